// SPDX-License-Identifier: Apache-2.0
//
// Small contractions of rows that lie in memory as they are, each read once: the cotangents' part
// of a product with a Jacobian. Compiled once for each instruction set and chosen at run time.
#pragma once

#include <cstdint>

namespace fastfisher::cpu {

inline constexpr std::int64_t kWeighAhead = 32;

template <class T>
struct ContractKernels {
  /// sums[i, j] += sum_k x[i][k] y[j][k] for xs rows of x and ys rows of y. What lies `ahead`
  /// entries behind those of x is asked for, unless that is 0: rows that are read next.
  void (*dots)(const T* const* x, std::int64_t xs, const T* const* y, std::int64_t ys,
               std::int64_t count, T* sums, std::int64_t ahead) = nullptr;

  /// sums[i, j] += sum_o x[i][o] z[o, j] for xs rows of x and packed rows of z, `ys` long.
  /// Less than kWeighAhead entries behind the last one of z are read, and forgotten.
  void (*weigh)(const T* const* x, std::int64_t xs, const T* z, std::int64_t ys, std::int64_t count,
                T* sums) = nullptr;

  /// y[j][k] (+)= sum_i weights[j, i] x[i][k]; `ahead` as above.
  void (*combine)(const T* const* x, std::int64_t xs, const T* weights, T* const* y,
                  std::int64_t ys, std::int64_t count, bool accumulate,
                  std::int64_t ahead) = nullptr;

  /// sums[i] += sum_k panel[k, i] for a packed panel, `width` <= 16 wide.
  void (*sum_panel)(const T* panel, std::int64_t width, std::int64_t depth, T* sums) = nullptr;

  /// The same, to the bit, of `width` entries of lines `pitch` apart.
  void (*sum_lines)(const T* lines, std::int64_t pitch, std::int64_t width, std::int64_t depth,
                    T* sums) = nullptr;
};

template <class T>
const ContractKernels<T>& contract_kernels_base();
#if defined(FF_HAVE_AVX2)
template <class T>
const ContractKernels<T>& contract_kernels_avx2();
#endif
#if defined(FF_HAVE_AVX512)
template <class T>
const ContractKernels<T>& contract_kernels_avx512();
#endif

/// The best kernels that this processor runs.
template <class T>
const ContractKernels<T>& contract_kernels();

}  // namespace fastfisher::cpu

// SPDX-License-Identifier: Apache-2.0
//
// The ops of the library. Each has one name everywhere: here, in the backends, the binding, the
// stub, the numpy reference, the tests and the benches. Ops are re-entrant, allocate no arrays and
// write only to `out`. Letters: n, m samples; c, d outputs; i in-features; o out-features.
#pragma once

#include "fastfisher/context.hpp"
#include "fastfisher/error.hpp"
#include "fastfisher/view.hpp"

#include <cstdint>
#include <span>

namespace fastfisher {

/// Factors of one dense layer, J[n,c] = g[n,c] (x) a[n]; with `bias`, a gains a trailing 1.
struct GramLayer {
  ArrayRef a;  ///< [n,i] in
  ArrayRef g;  ///< [n,c,o] in
  bool bias = false;
};

enum class GramOutputs : int {
  full,      ///< out [n,c,m,d]
  trace,     ///< out [n,m] = sum over c of full[n,c,m,c]
  diagonal,  ///< out [n,m,c] = full[n,c,m,c]
};

enum class GramPrecision : int {
  highest,  ///< products and depth sums in the dtype of the input
  exact,    ///< float32 input, float64 products and sums
};

struct GramOptions {
  GramOutputs outputs = GramOutputs::full;
  GramPrecision precision = GramPrecision::highest;
  std::int64_t memory_limit = std::int64_t{48} << 20;  ///< bytes of workspace at most
};

/// What an op found in its input. Ops report; whoever calls decides what to raise.
struct GramReport {
  enum class Kind : int { ok, non_finite, overflow } kind = Kind::ok;
  int side = 0;      ///< 0: left, 1: right
  int layer = 0;     ///< index into the list
  int argument = 0;  ///< 0: a, 1: g
  std::int64_t index =
      0;  ///< first such element, counted in row-major order of the argument's extents
};

/// Gram of per-sample Jacobians, summed over layers:
///   K[n,c,m,d] = sum_l (<a_l[n], a_l[m]> + bias_l) <g_l[n,c], g_l[m,d]>.
/// `right` empty: the square case, where only one half is computed and the result is symmetric bit
/// for bit. Needs at least gram_workspace(...) bytes in ctx.workspace; on non-finite input `out` is
/// left unspecified.
///
/// CUDA: the workspace is device memory. Reading the report back synchronises the stream, after the
/// scan of the input and after the result. A launch runs to its end: interrupts are not polled.
GramReport gram(const Context& ctx, std::span<const GramLayer> left,
                std::span<const GramLayer> right, const GramOptions& options, const ArrayRef& out);

/// Bytes of workspace that `gram` wants for these layers, at most options.memory_limit;
/// ErrorCode::memory with the needed figure if that cannot be. More memory means fewer passes over
/// the factors.
std::int64_t gram_workspace(const Context& ctx, std::span<const GramLayer> left,
                            std::span<const GramLayer> right, const GramOptions& options);

/// out[n,m] = a[n,k] b[k,m], by the bundled BLAS where there is one. The yardstick of every floor.
void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);

}  // namespace fastfisher

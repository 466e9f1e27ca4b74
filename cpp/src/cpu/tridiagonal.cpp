// SPDX-License-Identifier: Apache-2.0
//
// Blocked Householder reduction of a symmetric matrix (Dongarra, Hammarling and Sorensen 1989). The
// updates of a panel of columns wait until its end and are a matrix product then; before that, each
// column costs one product with the rest of the matrix, half of which is read. It is that read
// which takes the time, about half of it while the triangle fits the second cache level.
#include "tridiagonal.hpp"

#include "contract_kernels.hpp"
#include "lapack.hpp"
#include "reduction_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kUpdate = 32;  // rows of an update

// One reduction. The rows of the matrix keep their place; its blocks on the diagonal live apart, so
// that the product need not mind the diagonal and what is left of it stays what it was.
template <class T>
struct Reduction {
  std::int64_t n, lda;
  T *a, *d, *e, *tau;
  T* diagonal;  // [lda, kDiagonalBlock]
  T* left;      // [2 kReductionBlock, lda]: the v of a panel, then its w
  T* right;     // the same the other way round
  T* row;       // [lda]
  T* square;    // [kUpdate, kUpdate]

  // Row i of a matrix whose updates stand in the panel that began at `start`, from its diagonal on.
  void current_row(std::int64_t i, std::int64_t start) {
    const std::int64_t block = i / kDiagonalBlock * kDiagonalBlock;
    const std::int64_t next = std::min(block + kDiagonalBlock, n);
    const T* const near = diagonal + i * kDiagonalBlock - block;
    std::copy(near + i, near + next, row + i);
    std::copy(a + i * lda + next, a + i * lda + n, row + next);
    const T* rows[2 * kReductionBlock];
    T weights[2 * kReductionBlock];
    const std::int64_t done = i - start;
    for (std::int64_t q = 0; q < done; ++q) {
      const T* const v = left + q * lda;
      const T* const w = right + q * lda;
      rows[2 * q] = v + i;
      rows[2 * q + 1] = w + i;
      weights[2 * q] = -w[i];
      weights[2 * q + 1] = -v[i];
    }
    T* const to = row + i;
    contract_kernels<T>().combine(rows, 2 * done, weights, &to, 1, n - i, true, 0);
  }

  // The reflector that leaves of row i one entry beside the diagonal, as v and in the matrix.
  void reflector(std::int64_t i, T* v) {
    const T head = row[i + 1];
    const T* const rest = row + i + 2;
    T squares = 0;
    if (i + 2 < n) contract_kernels<T>().dots(&rest, 1, &rest, 1, n - i - 2, &squares, 0);
    d[i] = row[i];
    e[i] = head;
    tau[i] = 0;
    std::fill(v, v + lda, T{0});
    // Squares below this have lost digits, and entries of that size are nothing beside the rest.
    constexpr T kVanishing = sizeof(T) == 4 ? T(1e-30) : T(1e-280);
    if (squares > kVanishing) {
      const double size = std::sqrt(squares + static_cast<double>(head) * head);
      const double beta = head < 0 ? size : -size;
      const T factor = static_cast<T>(1 / (head - beta));
      e[i] = static_cast<T>(beta);
      tau[i] = static_cast<T>((beta - head) / beta);
      v[i + 1] = 1;
      for (std::int64_t k = i + 2; k < n; ++k) v[k] = row[k] * factor;
    }
    std::copy(v + i + 1, v + n, a + i * lda + i + 1);
  }

  // w of the update A - v w^T - w v^T: tau (A v) - tau^2 / 2 (v^T A v) v for the matrix A with the
  // updates of the panel.
  void partner(std::int64_t i, std::int64_t start, const T* v, T* w) {
    std::fill(w, w + lda, T{0});
    if (tau[i] == 0) return;
    const std::int64_t from = i + 1, done = i - start;
    const std::int64_t first = from / kDiagonalBlock * kDiagonalBlock;
    reduction_kernels<T>().product(a, lda, diagonal, first, lda_used(), v, w);
    const T* rows[2 * kReductionBlock];
    T sums[2 * kReductionBlock] = {}, weights[2 * kReductionBlock];
    for (std::int64_t q = 0; q < done; ++q) {
      rows[2 * q] = left + q * lda + from;
      rows[2 * q + 1] = right + q * lda + from;
    }
    const T* const in = v + from;
    T* const to = w + from;
    const ContractKernels<T>& kernels = contract_kernels<T>();
    kernels.dots(rows, 2 * done, &in, 1, n - from, sums, 0);
    for (std::int64_t q = 0; q < done; ++q) {
      weights[2 * q] = -sums[2 * q + 1];
      weights[2 * q + 1] = -sums[2 * q];
    }
    kernels.combine(rows, 2 * done, weights, &to, 1, n - from, true, 0);
    T inner = 0;
    kernels.dots(&in, 1, const_cast<const T* const*>(&to), 1, n - from, &inner, 0);
    const T half = tau[i] * tau[i] / 2 * inner;
    std::fill(w, w + from, T{0});
    for (std::int64_t k = from; k < n; ++k) w[k] = tau[i] * w[k] - half * v[k];
  }

  std::int64_t lda_used() const {
    return (n + kDiagonalBlock - 1) / kDiagonalBlock * kDiagonalBlock;
  }

  // The updates of a whole panel for rows from `start` on: v w^T + w v^T as one product.
  void update(std::int64_t start) {
    const std::int64_t depth = 2 * kReductionBlock;
    for (std::int64_t first = start; first < n; first += kUpdate) {
      const std::int64_t next = std::min(first + kUpdate, lda_used()), rows = next - first;
      std::fill(square, square + kUpdate * kUpdate, T{0});
      add_product(Op::transposed, Op::plain, rows, rows, depth, T{-1}, left + first, lda,
                  right + first, lda, square, kUpdate);
      for (std::int64_t block = 0; block < rows; block += kDiagonalBlock) {
        for (std::int64_t i = block; i < block + kDiagonalBlock; ++i) {
          T* const near = diagonal + (first + i) * kDiagonalBlock;
          for (std::int64_t j = 0; j < kDiagonalBlock; ++j)
            near[j] += square[i * kUpdate + block + j];
          T* const far = a + (first + i) * lda + first;
          for (std::int64_t j = block + kDiagonalBlock; j < rows; ++j)
            far[j] += square[i * kUpdate + j];
        }
      }
      if (next < lda_used())
        add_product(Op::transposed, Op::plain, rows, lda_used() - next, depth, T{-1}, left + first,
                    lda, right + next, lda, a + first * lda + next, lda);
    }
  }

  void run() {
    std::fill(diagonal, diagonal + lda * kDiagonalBlock, T{0});
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t block = i / kDiagonalBlock * kDiagonalBlock;
      for (std::int64_t j = i; j < std::min(n, block + kDiagonalBlock); ++j) {
        diagonal[i * kDiagonalBlock + j - block] = a[i * lda + j];
        diagonal[j * kDiagonalBlock + i - block] = a[i * lda + j];
      }
    }
    for (std::int64_t start = 0; start < n; start += kReductionBlock) {
      const std::int64_t end = std::min(n, start + kReductionBlock);
      for (std::int64_t i = start; i < end; ++i) {
        current_row(i, start);
        if (i == n - 1) {
          d[i] = row[i];
          return;
        }
        T* const v = left + (i - start) * lda;
        T* const w = right + (i - start) * lda;
        reflector(i, v);
        partner(i, start, v, w);
        std::copy(v, v + lda, right + (kReductionBlock + i - start) * lda);
        std::copy(w, w + lda, left + (kReductionBlock + i - start) * lda);
      }
      update(end);
    }
  }
};

}  // namespace

std::int64_t reduction_pitch(std::int64_t n) {
  // Not a power of two: rows of the same columns would share few lines of the first cache level.
  return (n + kDiagonalBlock - 1) / kDiagonalBlock * kDiagonalBlock + kDiagonalBlock;
}

std::int64_t reduction_work(std::int64_t n) {
  return reduction_pitch(n) * (kDiagonalBlock + 4 * kReductionBlock + 1) + kUpdate * kUpdate;
}

template <class T>
void tridiagonalise(std::int64_t n, T* a, T* d, T* e, T* tau, T* work) {
  const std::int64_t lda = reduction_pitch(n), panel = 2 * kReductionBlock * lda;
  T* const left = work + kDiagonalBlock * lda;
  Reduction<T>{
      n, lda, a, d, e, tau, work, left, left + panel, left + 2 * panel, left + 2 * panel + lda}
      .run();
}

namespace {

// Vectors that share each read of the matrix.
constexpr std::int64_t kTogether = 16;

}  // namespace

template <class T>
void reflect(std::int64_t n, const T* a, const T* tau, T* x, std::int64_t count) {
  const ContractKernels<T>& kernels = contract_kernels<T>();
  for (std::int64_t k = 0; k < count; k += kTogether) {
    const std::int64_t rows = std::min(kTogether, count - k);
    for (std::int64_t i = n - 2; i >= 0; --i) {
      if (tau[i] == 0) continue;
      const T* const v = a + i * reduction_pitch(n) + i + 1;
      T* to[kTogether];
      T weights[kTogether] = {};
      for (std::int64_t r = 0; r < rows; ++r) to[r] = x + (k + r) * n + i + 1;
      kernels.dots(&v, 1, to, rows, n - i - 1, weights, 0);
      for (std::int64_t r = 0; r < rows; ++r) weights[r] *= -tau[i];
      kernels.combine(&v, 1, weights, to, rows, n - i - 1, true, 0);
    }
  }
}

template <class T>
void multiply_left(std::int64_t n, const T* a, const T* d, const T* x, std::int64_t count, T* out) {
  const ContractKernels<T>& kernels = contract_kernels<T>();
  for (std::int64_t k = 0; k < count; ++k) {
    for (std::int64_t i = 0; i < n; ++i) out[k * n + i] = d[i] * x[k * n + i];
  }
  for (std::int64_t k = 0; k < count; k += kTogether) {
    const std::int64_t rows = std::min(kTogether, count - k);
    const T* in[kTogether];
    T* to[kTogether];
    for (std::int64_t r = 0; r < rows; ++r) {
      in[r] = x + (k + r) * n;
      to[r] = out + (k + r) * n;
    }
    for (std::int64_t i = 1; i < n; ++i) {
      const T* const row = a + i * reduction_pitch(n);
      T sums[kTogether] = {}, weights[kTogether];
      kernels.dots(&row, 1, in, rows, i, sums, 0);
      for (std::int64_t r = 0; r < rows; ++r) {
        weights[r] = in[r][i];
        to[r][i] += sums[r];
      }
      kernels.combine(&row, 1, weights, to, rows, i, true, 0);
    }
  }
}

template void tridiagonalise(std::int64_t, float*, float*, float*, float*, float*);
template void tridiagonalise(std::int64_t, double*, double*, double*, double*, double*);
template void reflect(std::int64_t, const float*, const float*, float*, std::int64_t);
template void reflect(std::int64_t, const double*, const double*, double*, std::int64_t);
template void multiply_left(std::int64_t, const float*, const float*, const float*, std::int64_t,
                            float*);
template void multiply_left(std::int64_t, const double*, const double*, const double*, std::int64_t,
                            double*);

}  // namespace fastfisher::cpu

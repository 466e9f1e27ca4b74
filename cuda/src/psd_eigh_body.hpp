// SPDX-License-Identifier: Apache-2.0
//
// Kernel body of eigenvectors and inverse roots of small matrices, one a block: scaled and damped
// as everywhere, diagonalised by psd_jacobi_body.hpp, sorted, and stored as what was asked for.
#pragma once

#include "fastfisher/psd.hpp"
#include "psd_damping.hpp"
#include "psd_jacobi_body.hpp"

#include <cstdint>

namespace fastfisher::cuda {

/// What is left behind about one matrix.
struct EigenState {
  std::uint64_t bad = 0;  ///< kFirst minus the position of the first NaN or infinity, or 0
  std::int64_t kind = 0;  ///< PsdReport::Kind
  double damping = 0;
  double condition = 1;
};

struct EigenMatrix {
  const void* a = nullptr;
  std::int64_t row_stride = 0, column_stride = 0;
  DType dtype = DType::f32;
  double damping = 0;
  bool automatic = false;
  std::int64_t n = 0;
  void* out = nullptr;     ///< [n,n] packed
  void* values = nullptr;  ///< [n]
  std::int64_t value_stride = 0;
  EigenState* state = nullptr;
};

template <class T, int Most, int Threads>
struct PsdEigen {
  using Jacobi = PsdJacobi<T, Most, Threads>;
  static constexpr int kMost = Most, kThreads = Threads;
  // Two blocks a multiprocessor where few pieces a thread need few registers.
  static constexpr int kMinBlocks = Jacobi::kPieces <= 4 ? 2 : 1;
  static_assert(Most % 4 == 0);

  /// Numbers of the matrix and of the vectors of n rows.
  FF_HD static constexpr int matrix_size(int n) {
    const int m = n + n % 2;
    return (m * (m + 1) + 3) / 4 * 4;
  }
  FF_HD static constexpr int vector_pitch(int n) { return (n + 3) / 4 * 4; }
  FF_HD static constexpr int numbers(int n) { return matrix_size(n) + n * vector_pitch(n); }

  struct Shared {
    double values[Threads];
    typename Jacobi::Rotation rotations[2][Jacobi::kHalf];
    T first[Jacobi::kHalf], second[Jacobi::kHalf];
    T spectrum[Most], factor[Most];
    std::int16_t order[Most];
    double largest, tolerance, damping;  // largest: on the diagonal of a
    int power, go;                       // the matrix is 2^-power a
    alignas(16) T memory[numbers(Most)];
  };
  /// Bytes of shared memory that matrices of up to n rows need.
  static std::int64_t bytes(std::int64_t n) {
    return static_cast<std::int64_t>(
        sizeof(Shared) -
        sizeof(T) * static_cast<std::size_t>(numbers(Most) - numbers(static_cast<int>(n))));
  }

  const EigenMatrix* matrices;
  std::int64_t count;
  bool root;
  double p;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    for (std::int64_t k = block.index(); k < count; k += block.blocks()) {
      const EigenMatrix& matrix = matrices[k];
      const int n = static_cast<int>(matrix.n);
      const One one{
          {n, (n + 1) / 2, vector_pitch(n), shared.memory, shared.memory + matrix_size(n)}, matrix};
      if (!load(block, shared, one)) continue;
      if (!Jacobi::diagonalise(block, shared, one)) {
        tell(block, one, PsdReport::Kind::no_convergence);
        continue;
      }
      sort(block, shared, one);
      if (!decide(block, shared, one)) continue;
      if (root) {
        store_root(block, shared, one);
      } else {
        store_vectors(block, shared, one);
      }
    }
  }

 private:
  struct One : Jacobi::Matrix {
    const EigenMatrix& matrix;
  };

  template <BlockContext Block>
  FF_HD static void tell(const Block& block, const One& one, PsdReport::Kind kind) {
    if (block.thread() == 0) one.matrix.state->kind = static_cast<std::int64_t>(kind);
  }

  template <BlockContext Block>
  FF_HD static bool load(const Block& block, Shared& shared, const One& one) {
    const EigenMatrix& matrix = one.matrix;
    const int n = one.n, t = block.thread();
    double largest = 0, diagonal = 0;
    std::uint64_t bad = 0;
    const auto entry = [&](int i, int j) {
      return element<T>(matrix.a, matrix.dtype, i * matrix.row_stride + j * matrix.column_stride);
    };
    for (int e = t; e < n * n; e += Threads) {
      const int i = e / n, j = e % n;
      if (j > i) continue;
      const double x = std::abs(static_cast<double>(entry(i, j)));
      if (!is_finite(x)) {
        if (bad == 0) bad = PsdState::kFirst - static_cast<std::uint64_t>(e);
        largest = double_of(std::uint64_t{0x7ff} << 52);
      }
      largest = x > largest ? x : largest;
      if (i == j) diagonal = x > diagonal ? x : diagonal;
    }
    if (bad != 0) block.atomic_max(&matrix.state->bad, bad);
    largest = largest_of_block<Threads>(block, shared.values, largest);
    diagonal = largest_of_block<Threads>(block, shared.values, diagonal);
    if (!is_finite(largest)) {
      tell(block, one, PsdReport::Kind::non_finite);
      return false;
    }
    // One power of two for all, in two factors, each of which is a normal number of T.
    const int power = largest > 0 ? exponent_of_double(largest) / 2 * 2 : 0;
    const T scale = static_cast<T>(power_of_two(-power / 2));
    if (t == 0) {
      const double wide = static_cast<double>(scale);
      shared.largest = diagonal;
      shared.power = power;
      shared.tolerance = kPsdEpsilon<T> * (largest * wide) * wide;
    }
    const int m = 2 * one.h;
    for (int e = t; e < m * m; e += Threads) {
      const int x = e / m, y = e % m;
      if (y > x) continue;
      const int i = x < one.h ? one.top(x, 0) : one.bottom(x - one.h, 0);
      const int j = y < one.h ? one.top(y, 0) : one.bottom(y - one.h, 0);
      const bool inside = i < n && j < n;
      one.at(x, y) = inside ? entry(i > j ? i : j, i > j ? j : i) * scale * scale : T(0);
    }
    for (int e = t; e < n * one.pitch; e += Threads)
      one.v[e] = e / one.pitch == e % one.pitch ? T(1) : T(0);
    block.sync();
    return true;
  }

  template <BlockContext Block>
  FF_HD static void sort(const Block& block, Shared& shared, const One& one) {
    for (int x = block.thread(); x < 2 * one.h; x += Threads) {
      const int who = x < one.h ? one.top(x, 0) : one.bottom(x - one.h, 0);
      if (who < one.n) shared.spectrum[who] = one.at(x, x);
    }
    block.sync();
    for (int e = block.thread(); e < one.n; e += Threads) {
      const T mine = shared.spectrum[e];
      int rank = 0;
      for (int k = 0; k < one.n; ++k) {
        const T other = shared.spectrum[k];
        rank += other < mine || (other == mine && k < e) ? 1 : 0;
      }
      shared.order[rank] = static_cast<std::int16_t>(e);
    }
    block.sync();
  }

  FF_HD static double unscaled(const Shared& shared, T value) {
    const double half = power_of_two(shared.power / 2);
    return static_cast<double>(value) * half * half;
  }

  // Damping by the smallest eigenvalue, on the ladder of attempts, and what there is to report.
  template <BlockContext Block>
  FF_HD bool decide(const Block& block, Shared& shared, const One& one) const {
    if (block.thread() == 0) {
      using Kind = PsdReport::Kind;
      const EigenMatrix& matrix = one.matrix;
      const double low = unscaled(shared, shared.spectrum[shared.order[0]]);
      const double high = unscaled(shared, shared.spectrum[shared.order[one.n - 1]]);
      double damping = matrix.automatic ? 0 : matrix.damping;
      Kind kind = Kind::ok;
      if (matrix.automatic) {
        // Eigenvalues are known to some eps of the largest one.
        const double enough = kPsdEpsilon<T> * (high > 0 ? high : 0);
        DampingRange range = damping_range<T>(one.n, shared.largest);
        if (range.most < 64 * enough) range.most = 64 * enough;
        while (!(low + damping > enough) && damping < range.most) damping = raised(damping, range);
        if (damping > 0) kind = Kind::damped;
      }
      const double bottom = low + damping, top = high + damping;
      if ((root || matrix.automatic) && !(bottom > 0)) {
        kind = Kind::indefinite;
      } else if (!is_finite(top) || !is_finite(bottom)) {
        kind = Kind::overflow;
      } else if (root ? !is_finite(static_cast<double>(power(bottom)))
                      : !is_finite(static_cast<double>(static_cast<T>(bottom))) ||
                            !is_finite(static_cast<double>(static_cast<T>(top)))) {
        kind = Kind::overflow;
      }
      matrix.state->kind = static_cast<std::int64_t>(kind);
      matrix.state->damping = damping;
      matrix.state->condition = bottom > 0 ? top / bottom : double_of(std::uint64_t{0x7ff} << 52);
      shared.damping = damping;
      shared.go = kind == Kind::ok || kind == Kind::damped ? 1 : 0;
    }
    block.sync();
    const bool go = shared.go != 0;
    block.sync();
    return go;
  }

  FF_HD T power(double value) const { return static_cast<T>(std::pow(value, -0.5 / p)); }

  template <BlockContext Block>
  FF_HD static void store_vectors(const Block& block, const Shared& shared, const One& one) {
    const int n = one.n;
    T* const out = static_cast<T*>(one.matrix.out);
    for (int i = block.thread(); i < n; i += Threads) {
      static_cast<T*>(one.matrix.values)[i * one.matrix.value_stride] =
          static_cast<T>(unscaled(shared, shared.spectrum[shared.order[i]]) + shared.damping);
    }
    for (int e = block.thread(); e < n * n; e += Threads)
      out[e] = one.v[shared.order[e % n] * one.pitch + e / n];
    block.sync();
  }

  // out = B^T B with rows b_k = lambda_k^(-1/2p) v_k: a square, so symmetric and semi-definite.
  template <BlockContext Block>
  FF_HD void store_root(const Block& block, Shared& shared, const One& one) const {
    const int n = one.n, quads = one.pitch / 4;
    T* const out = static_cast<T*>(one.matrix.out);
    for (int e = block.thread(); e < n; e += Threads)
      shared.factor[e] = power(unscaled(shared, shared.spectrum[e]) + shared.damping);
    block.sync();
    for (int e = block.thread(); e < n * one.pitch; e += Threads)
      one.v[e] *= shared.factor[e / one.pitch];
    block.sync();
    bool bad = false;
    for (int e = block.thread(); e < n * quads; e += Threads) {
      const int i = e / quads, j = e % quads * 4;
      if (j > i) continue;
      T sums[4] = {0, 0, 0, 0};
      for (int k = 0; k < n; ++k) {
        const T x = one.v[k * one.pitch + i];
        const Quad<T> y = *reinterpret_cast<const Quad<T>*>(one.v + k * one.pitch + j);
        for (int u = 0; u < 4; ++u) sums[u] += x * y.v[u];
      }
      for (int u = 0; u < 4 && j + u <= i; ++u) {
        bad = bad || !is_finite(static_cast<double>(sums[u]));
        out[i * n + j + u] = out[(j + u) * n + i] = sums[u];
      }
    }
    if (largest_of_block<Threads>(block, shared.values, bad ? 1 : 0) != 0)
      tell(block, one, PsdReport::Kind::overflow);
  }
};

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of lanczos_steps, see lanczos.cu: from the dots of a block of vectors with the rows
// before and with itself to the factor of its Gram matrix, all of it small and in float64; and the
// numbers of a first block.
#pragma once

#include "panel_steps_body.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

namespace fastfisher::cuda {

struct TurnProblem {
  const double* dots = nullptr;  // [e, j, i], i of the rows before and then of the block
  double* lower = nullptr;       // [e, j, j]
  double* step = nullptr;        // what the caller gets of this step [e, j, width]
  std::int64_t step_strides[3] = {0, 0, 0};
  std::int64_t networks = 0, before = 0, width = 0;
  int vectors = 0;
  bool again = false;  // the second of two sweeps
};

// Uniform numbers, counted through the rows: SplitMix64 of seed and count, its high 24 bits.
template <class T, int Threads>
struct DrawRows {
  static constexpr int kThreads = Threads;
  struct Shared {};

  template <BlockContext Block>
  FF_HD static void run(const Block& block, const PanelRows& rows, std::int64_t networks,
                        std::int64_t n, std::int64_t seed) {
    const std::int64_t size = networks * rows.rows * n;
    for (std::int64_t at = block.index() * Threads + block.thread(); at < size;
         at += block.blocks() * Threads) {
      std::uint64_t z = (static_cast<std::uint64_t>(seed) << 32U) + static_cast<std::uint64_t>(at);
      z = (z + 1) * 0x9e3779b97f4a7c15U;
      z = (z ^ z >> 30U) * 0xbf58476d1ce4e5b9U;
      z = (z ^ z >> 27U) * 0x94d049bb133111ebU;
      const auto high = static_cast<int>((z ^ z >> 31U) >> 40U);
      static_cast<T*>(rows.data)[at / (rows.rows * n) * rows.network_stride +
                                 at / n % rows.rows * rows.row_stride + at % n] =
          (static_cast<T>(high - (1 << 23)) + T{0.5}) / T{1 << 23};
    }
  }
};

// A block of Threads for a network; Most vectors at most.
template <int Most, int Threads>
struct LanczosTurn {
  static constexpr int kThreads = Threads;
  static constexpr double kInfinite = std::numeric_limits<double>::infinity();
  static_assert(Threads % (Most * Most) == 0 && (Threads & (Threads - 1)) == 0);

  static constexpr int kParts = Threads / (Most * Most);

  struct Shared {
    double slab[Most][Threads + 1];  // one more: rows in different banks
    double own[Most][Most], parts[Threads], gram[Most][Most], lower[Most][Most];
    double worst[Threads], worst_of[Most];
    int singular;
  };

  template <BlockContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const TurnProblem& problem) {
    for (std::int64_t e = block.index(); e < problem.networks; e += block.blocks()) {
      block.sync();  // the last network has been read
      one(block, shared, problem, e);
    }
  }

 private:
  FF_HD static double& step(const TurnProblem& problem, std::int64_t e, std::int64_t j,
                            std::int64_t i) {
    return problem.step[e * problem.step_strides[0] + j * problem.step_strides[1] +
                        i * problem.step_strides[2]];
  }

  template <BlockContext Block>
  FF_HD static void one(const Block& block, Shared& shared, const TurnProblem& problem,
                        std::int64_t e) {
    const int t = block.thread(), b = problem.vectors;
    const std::int64_t p = problem.before, row = p + b;
    const double* const dots = problem.dots + e * b * row;
    const int j = t / Most % Most, k = t % Most, part = t / (Most * Most);
    double sum = 0, worst = 0;
    for (std::int64_t from = 0; from < row; from += Threads) {
      read(block, shared, problem, e, dots, from, worst);
      const std::int64_t left = p - from;
      const int count = left < Threads ? static_cast<int>(left) : Threads;
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
      for (int c = part; c < count; c += kParts) sum += shared.slab[j][c] * shared.slab[k][c];
    }
    shared.parts[t] = sum;
    shared.worst[t] = worst;
    block.sync();
    if (part == 0 && j < b && k < b) {  // dots of the block without its part in the rows before
      double rest = shared.own[j][k];
      for (int q = 0; q < kParts; ++q) rest -= shared.parts[q * Most * Most + t];
      shared.gram[j][k] = rest;
    }
    if (t < Most) {
      for (int q = t; q < Threads; q += Most)
        worst = worst < shared.worst[q] ? shared.worst[q] : worst;
      shared.worst_of[t] = worst;
    }
    factorise(block, shared, b);
    const bool singular = shared.singular != 0;
    // The factor of the first sweep, then its product with the one of the second.
    double factor = 0;
    const bool inside = part == 0 && j < b && k < b;
    if (inside && problem.again) {
      for (int m = k; m <= j; ++m) factor += step(problem, e, j, p + m) * shared.lower[m][k];
    } else if (inside) {
      factor = shared.lower[j][k];
    }
    block.sync();
    if (inside) {
      step(problem, e, j, p + k) = factor;
      problem.lower[(e * b + j) * b + k] = shared.lower[j][k];
    }
    if (t >= b) return;
    double& last = step(problem, e, t, problem.width - 1);
    double apart = singular ? kInfinite : 0.0;
    for (int q = 0; problem.again && q < Most; ++q)
      apart = apart < shared.worst_of[q] ? shared.worst_of[q] : apart;
    last = problem.again && last > apart ? last : apart;
  }

  // A column of the dots a thread: to the caller's step, which counts what both sweeps took out, to
  // the slab, without what is the block's own; how far from orthonormal they are to `worst`, what
  // is not finite counts as infinite.
  template <BlockContext Block>
  FF_HD static void read(const Block& block, Shared& shared, const TurnProblem& problem,
                         std::int64_t e, const double* dots, std::int64_t from, double& worst) {
    const int b = problem.vectors, t = block.thread();
    const std::int64_t p = problem.before, row = p + b, i = from + t;
    double values[Most], was[Most];
    FF_UNROLL
    for (int j = 0; j < Most; ++j) values[j] = j < b && i < row ? dots[j * row + i] : 0.0;
    if (!problem.again && i < p) {
      FF_UNROLL
      for (int j = 0; j < Most; ++j) was[j] = j < b ? step(problem, e, j, i) : 0.0;
      FF_UNROLL
      for (int j = 0; j < Most; ++j) {
        if (j < b) step(problem, e, j, i) = was[j] + values[j];
      }
    }
    block.sync();  // the last slab has been read
    FF_UNROLL
    for (int j = 0; j < Most; ++j) {
      shared.slab[j][t] = i < p ? values[j] : 0.0;
      if (j >= b || i >= row) continue;
      if (i >= p) shared.own[j][i - p] = values[j];
      const double apart = std::abs(values[j] - (i == p + j ? 1.0 : 0.0));
      if (!(apart <= worst)) worst = apart > worst ? apart : kInfinite;
    }
    block.sync();
  }

  // Lower factor of the Gram matrix; the unit matrix where it is singular or not finite.
  template <BlockContext Block>
  FF_HD static void factorise(const Block& block, Shared& shared, int b) {
    const int t = block.thread();
    if (t == 0) shared.singular = 0;
    for (int c = 0; c < b; ++c) {
      block.sync();
      // Each row its own sum, and the diagonal's beside it: no one waits for another's root.
      if (t < b) {
        double sum = shared.gram[t][c], own = shared.gram[c][c];
        for (int k = 0; k < c; ++k) {
          sum -= shared.lower[t][k] * shared.lower[c][k];
          own -= shared.lower[c][k] * shared.lower[c][k];
        }
        const bool positive = own > 0 && own < kInfinite;
        if (!positive && t == c) shared.singular = 1;
        const double root = std::sqrt(positive ? own : 1.0);
        // Row c is read by all threads of this column; they write their own rows' column c.
        shared.parts[t] = t < c ? 0.0 : (t == c ? root : sum / root);
      }
      block.sync();
      if (t < b) shared.lower[t][c] = shared.parts[t];
    }
    block.sync();
    if (shared.singular != 0 && t < b) {
      for (int c = 0; c < b; ++c) shared.lower[t][c] = t == c ? 1.0 : 0.0;
    }
    block.sync();
  }
};

}  // namespace fastfisher::cuda

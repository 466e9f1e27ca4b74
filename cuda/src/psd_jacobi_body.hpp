// SPDX-License-Identifier: Apache-2.0
//
// Cyclic Jacobi rotations of a symmetric matrix in shared memory (Brent and Luk 1985): a round
// rotates all m / 2 pairs of a schedule in which everyone meets everyone once in m - 1 rounds. The
// matrix moves with the schedule: rows 0 to h - 1 and h to m - 1 hold the first and the second of
// each pair, so that a thread finds its 2 x 2 blocks in the same places in every round. Of the
// matrix only the lower triangle is kept, the eigenvectors as rows that do not move. About 8 sweeps
// of 3 n^3 multiply-adds.
#pragma once

#include "psd_matrix.hpp"
#include "psd_tile.hpp"

#include <cmath>
#include <cstdint>

namespace fastfisher::cuda {

// Shared has rotations[2][kHalf], first[kHalf], second[kHalf], values[Threads] and tolerance.
template <class T, int Most, int Threads>
struct PsdJacobi {
  static constexpr int kHalf = Most / 2;
  static constexpr int kPieces = (kHalf * (kHalf + 1) / 2 + Threads - 1) / Threads;
  static constexpr int kLanes = Threads < 32 ? Threads : 32;
  static constexpr int kSweeps = 40;

  struct alignas(2 * sizeof(T)) Rotation {
    T c, s;
  };
  /// A matrix and its eigenvectors in shared memory, and who is where.
  struct Matrix {
    int n, h, pitch;
    T* a;  // [2h, 2h + 1]
    T* v;  // [n, pitch], eigenvectors as rows

    FF_HD T& at(int x, int y) const {
      return x > y ? a[x * (2 * h + 1) + y] : a[y * (2 * h + 1) + x];
    }
    // Who is first or second of pair k in a round; number 2h - 1 stays where it is.
    FF_HD int top(int k, int round) const {
      const int m = 2 * h - 1, who = round + k;
      return k == 0 ? m : who < m ? who : who - m;
    }
    FF_HD int bottom(int k, int round) const {
      const int who = round - k;
      return who < 0 ? who + 2 * h - 1 : who;
    }
    // Where the next round has who is at place x now.
    FF_HD int next(int x) const {
      if (x >= h) return x < 2 * h - 1 ? x + 1 : h > 1 ? h - 1 : x;
      return x == 0 ? 0 : x == 1 ? h : x - 1;
    }
  };

  /// False if it does not end.
  template <BlockContext Block, class Shared>
  FF_HD static bool diagonalise(const Block& block, Shared& shared, const Matrix& one) {
    const int rounds = 2 * one.h - 1;
    Piece pieces[kPieces];
    FF_UNROLL
    for (int k = 0; k < kPieces; ++k) pieces[k] = piece_of(one, block.thread() + k * Threads);
    int now = 0;
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      for (int round = 0; round < rounds; ++round, now ^= 1) {
        for (int k = block.thread(); k < one.h; k += Threads) choose(shared, one, k, now);
        // The vectors follow a round behind, while the next rotations are found.
        if (sweep + round > 0)
          turn(block, shared, one, round == 0 ? rounds - 1 : round - 1, now ^ 1);
        block.sync();
        rotate(block, shared, one, pieces, now);
      }
      if (rest(block, shared, one) > shared.tolerance) continue;
      turn(block, shared, one, rounds - 1, now ^ 1);
      block.sync();
      return true;
    }
    return false;
  }

 private:
  // Largest magnitude below the diagonal.
  template <BlockContext Block, class Shared>
  FF_HD static double rest(const Block& block, Shared& shared, const Matrix& one) {
    T largest = 0;
    const int m = 2 * one.h;
    for (int e = block.thread(); e < m * m; e += Threads) {
      const T x = e % m < e / m ? std::abs(one.at(e / m, e % m)) : T(0);
      largest = x > largest ? x : largest;
    }
    return largest_of_block<Threads>(block, shared.values, static_cast<double>(largest));
  }

  // The rotation that makes the pair's entry zero; none where it is small.
  template <class Shared>
  FF_HD static void choose(Shared& shared, const Matrix& one, int k, int now) {
    const T p = one.at(k, k), q = one.at(one.h + k, one.h + k), x = one.at(one.h + k, k);
    T c = 1, s = 0, t = 0;
    const bool wanted = std::abs(static_cast<double>(x)) > shared.tolerance;
    if (wanted) {
      const T tau = (q - p) / (2 * x);
      t = (tau < 0 ? T(-1) : T(1)) / (std::abs(tau) + std::sqrt(1 + tau * tau));
      c = 1 / std::sqrt(1 + t * t);
      s = t * c;
    }
    shared.rotations[now][k] = {c, s};
    shared.first[k] = p - t * x;
    shared.second[k] = q + t * x;
  }

  template <BlockContext Block, class Shared>
  FF_HD static void turn(const Block& block, const Shared& shared, const Matrix& one, int round,
                         int which) {
    const int lane = block.thread() % kLanes, quads = one.pitch / 4;
    for (int k = block.thread() / kLanes; k < one.h; k += Threads / kLanes) {
      const Rotation by = shared.rotations[which][k];
      if (by.s == 0) continue;
      auto* const p = reinterpret_cast<Quad<T>*>(one.v + one.top(k, round) * one.pitch);
      auto* const q = reinterpret_cast<Quad<T>*>(one.v + one.bottom(k, round) * one.pitch);
      if constexpr (Most / 4 <= kLanes) {
        if (lane < quads) turn(by, p[lane], q[lane]);
      } else {
        for (int at = lane; at < quads; at += kLanes) turn(by, p[at], q[at]);
      }
    }
  }

  FF_HD static void turn(const Rotation& by, Quad<T>& p, Quad<T>& q) {
    Quad<T> x = p, y = q;
    FF_UNROLL
    for (int i = 0; i < 4; ++i) {
      const T old = x.v[i];
      x.v[i] = by.c * old - by.s * y.v[i];
      y.v[i] = by.s * old + by.c * y.v[i];
    }
    p = x;
    q = y;
  }

  // A 2 x 2 block of the lower triangle of blocks: pairs k and l, and the places that its entries
  // have in the next round.
  struct Piece {
    std::int16_t k, l;
    std::uint16_t to[4];
  };

  FF_HD static Piece piece_of(const Matrix& one, int index) {
    Piece piece = {-1, -1, {}};
    if (index >= one.h * (one.h + 1) / 2) return piece;
    const int k = static_cast<int>(triangle_row(index)), l = index - k * (k + 1) / 2;
    piece.k = static_cast<std::int16_t>(k);
    piece.l = static_cast<std::int16_t>(l);
    const auto place = [&](int x, int y) {
      return static_cast<std::uint16_t>(&one.at(one.next(x), one.next(y)) - one.a);
    };
    piece.to[0] = place(k, l);
    piece.to[1] = place(k, one.h + l);
    piece.to[2] = place(one.h + k, l);
    piece.to[3] = place(one.h + k, one.h + l);
    return piece;
  }

  // Both sides of the matrix, on the way to the places of the next round.
  template <BlockContext Block, class Shared>
  FF_HD static void rotate(const Block& block, const Shared& shared, const Matrix& one,
                           const Piece (&pieces)[kPieces], int now) {
    const int h = one.h, pitch = 2 * h + 1;
    T held[kPieces][4];
    FF_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      const int k = pieces[piece].k, l = pieces[piece].l;
      if (k < 0) continue;
      T(&x)[4] = held[piece];
      const T* const at = one.a + k * pitch + l;
      if (k == l) {
        x[0] = shared.first[k];
        x[3] = shared.second[k];
        x[1] = x[2] = shared.rotations[now][k].s == 0 ? at[h * pitch] : T(0);
        continue;
      }
      const Rotation of_k = shared.rotations[now][k], of_l = shared.rotations[now][l];
      const T ck = of_k.c, sk = of_k.s, cl = of_l.c, sl = of_l.s;
      const T tt = at[0], tb = one.a[(h + l) * pitch + k], bt = at[h * pitch],
              bb = at[h * pitch + h];
      const T t1 = ck * tt - sk * bt, b1 = sk * tt + ck * bt;
      const T t2 = ck * tb - sk * bb, b2 = sk * tb + ck * bb;
      x[0] = cl * t1 - sl * t2;
      x[1] = sl * t1 + cl * t2;
      x[2] = cl * b1 - sl * b2;
      x[3] = sl * b1 + cl * b2;
    }
    block.sync();
    FF_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      if (pieces[piece].k < 0) continue;
      // On the diagonal the second and the third are one entry, and equal.
      FF_UNROLL
      for (int i = 0; i < 4; ++i) one.a[pieces[piece].to[i]] = held[piece][i];
    }
    block.sync();
  }
};

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
//
// A square tile in the registers of a thread block: acc[x,y] += sum_m P[m,x] Q[m,y], and the
// elimination that gives the inverse of its Cholesky factor. A thread has Micro x Micro entries in
// groups of four neighbours, so that operands come from shared memory four at a time.
#pragma once

#include "block.hpp"
#include "psd_matrix.hpp"

#include <cstdint>
#include <limits>

namespace fastfisher::cuda {

template <class T>
struct alignas(16) Quad {
  T v[4];
};

/// Element (m, x) is data[m pitch + x], or data[x pitch + m] if turned; zero from `wide` in x and
/// from `deep` in m.
template <class T>
struct TileOperand {
  const T* data = nullptr;
  std::int64_t pitch = 0;
  int wide = 0, deep = 0;
  bool turned = false;
  /// Rows begin at multiples of 16 bytes and are read four at a time, up to three beyond the end:
  /// finite numbers, zeros where they are summed over.
  bool vector = false;
};

template <class T, int Edge, int Micro, int Depth>
struct PsdTile {
  static constexpr int kEdge = Edge, kMicro = Micro;
  static constexpr int kLanes = Edge / Micro;
  static constexpr int kThreads = kLanes * kLanes;
  static constexpr int kGroups = Micro / 4;
  static constexpr int kGroupStep = Edge / kGroups;  // rows between two groups of a thread
  static constexpr int kPitch = Edge + 4;
  static constexpr int kQuads = Depth * Edge / 4 / kThreads;
  static_assert(kQuads * 4 * kThreads == Depth * Edge && Depth % 4 == 0 && Micro % 4 == 0);

  struct Shared {
    Quad<T> p[2][Depth][kPitch / 4], q[2][Depth][kPitch / 4];
    T column[2][Edge], row[2][Edge];
  };

  /// Place within the tile of entry u of a thread whose lane in that direction is given.
  FF_HD static constexpr int place(int lane, int u) {
    return u / 4 * kGroupStep + lane * 4 + u % 4;
  }

  FF_HD static void clear(T (&acc)[Micro][Micro]) {
    FF_UNROLL
    for (int u = 0; u < Micro; ++u) {
      FF_UNROLL
      for (int v = 0; v < Micro; ++v) acc[u][v] = 0;
    }
  }

  template <BlockContext Block>
  FF_HD static void product(const Block& block, Shared& shared, const TileOperand<T>& p,
                            const TileOperand<T>& q, T (&acc)[Micro][Micro]) {
    const int t = block.thread(), ty = t / kLanes, tx = t % kLanes;
    const int deep = p.deep < q.deep ? p.deep : q.deep;
    if (deep == 0) return;
    Quad<T> of_p[kQuads], of_q[kQuads];
    block.sync();  // whoever still reads the shared memory
    fetch(p, 0, t, of_p);
    fetch(q, 0, t, of_q);
    put(p.turned, t, of_p, shared.p[0]);
    put(q.turned, t, of_q, shared.q[0]);
    block.sync();
    int now = 0;
    for (int m = 0; m < deep; m += Depth, now ^= 1) {
      const bool more = m + Depth < deep;
      if (more) {
        fetch(p, m + Depth, t, of_p);
        fetch(q, m + Depth, t, of_q);
      }
      for (int k = 0; k < Depth; ++k) {
        Quad<T> x[kGroups], y[kGroups];
        FF_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          x[g] = shared.p[now][k][g * (kGroupStep / 4) + ty];
          y[g] = shared.q[now][k][g * (kGroupStep / 4) + tx];
        }
        FF_UNROLL
        for (int u = 0; u < Micro; ++u) {
          FF_UNROLL
          for (int v = 0; v < Micro; ++v) acc[u][v] += x[u / 4].v[u % 4] * y[v / 4].v[v % 4];
        }
      }
      if (more) {
        put(p.turned, t, of_p, shared.p[now ^ 1]);
        put(q.turned, t, of_q, shared.q[now ^ 1]);
        block.sync();
      }
    }
  }

  /// For a symmetric S of `valid` rows in acc: with S = L L^T, entries below the diagonal of acc
  /// become those of D L^-1, on it D^2, above it those of D L^T, D the diagonal of L. Gauss-Jordan
  /// steps, one barrier each. 0, or the order of the leading minor that is not positive, in all
  /// threads.
  template <BlockContext Block>
  FF_HD static int eliminate(const Block& block, Shared& shared, int valid,
                             T (&acc)[Micro][Micro]) {
    const int t = block.thread(), ty = t / kLanes, tx = t % kLanes;
    block.sync();
    FF_UNROLL
    for (int g = 0; g < kGroups; ++g) {
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
      for (int lane = 0; lane < kLanes; ++lane) {
        FF_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int j = g * kGroupStep + lane * 4 + i, own = g * 4 + i;
          if (j >= valid) return 0;
          // Two buffers: those of the step before may still be read.
          T* const column = shared.column[i & 1];
          T* const row = shared.row[i & 1];
          if (tx == lane) {
            FF_UNROLL
            for (int u = 0; u < Micro; ++u) column[place(ty, u)] = acc[u][own];
          }
          if (ty == lane) {
            FF_UNROLL
            for (int v = 0; v < Micro; ++v) row[place(tx, v)] = acc[own][v];
          }
          block.sync();
          const T pivot = row[j];
          if (!(pivot > 0) || !is_finite(static_cast<double>(pivot))) return j + 1;
          const T inverse = 1 / pivot;
          T right[Micro];
          FF_UNROLL
          for (int v = 0; v < Micro; ++v) right[v] = row[place(tx, v)];
          FF_UNROLL
          for (int u = g * 4; u < Micro; ++u) {
            const int at = place(ty, u);
            const T factor = at > j ? column[at] * inverse : T(0);
            FF_UNROLL
            for (int v = 0; v < Micro; ++v) acc[u][v] -= factor * right[v];
            if (tx == lane && at > j) acc[u][own] = -factor;
          }
        }
      }
    }
    return 0;
  }

  /// 1 / D of `eliminate` for the rows of the thread; 1 from `valid` on.
  template <BlockContext Block>
  FF_HD static void roots(const Block& block, Shared& shared, int valid,
                          const T (&acc)[Micro][Micro], T (&inverse)[Micro]) {
    const int t = block.thread(), ty = t / kLanes, tx = t % kLanes;
    block.sync();
    if (ty == tx) {
      FF_UNROLL
      for (int u = 0; u < Micro; ++u) shared.row[0][place(ty, u)] = acc[u][u];
    }
    block.sync();
    FF_UNROLL
    for (int u = 0; u < Micro; ++u) {
      const int at = place(ty, u);
      inverse[u] = at < valid ? 1 / std::sqrt(shared.row[0][at]) : T(1);
    }
  }

 private:
  FF_HD static void fetch(const TileOperand<T>& from, int m0, int t, Quad<T> (&quads)[kQuads]) {
    FF_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      const int index = t + k * kThreads;
      const int across = from.turned ? index / (Depth / 4) : index / (Edge / 4) + m0;
      const int along = from.turned ? index % (Depth / 4) * 4 + m0 : index % (Edge / 4) * 4;
      const int rows = from.turned ? from.wide : from.deep;
      const int valid = across < rows ? (from.turned ? from.deep : from.wide) - along : 0;
      const std::int64_t at = across * from.pitch + along;
      if (from.vector) {
        quads[k] = Quad<T>{};
        if (valid > 0) quads[k] = *reinterpret_cast<const Quad<T>*>(from.data + at);
      } else {
        FF_UNROLL
        for (int i = 0; i < 4; ++i) quads[k].v[i] = i < valid ? from.data[at + i] : T(0);
      }
    }
  }

  FF_HD static void put(bool turned, int t, const Quad<T> (&quads)[kQuads],
                        Quad<T> (&to)[Depth][kPitch / 4]) {
    FF_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      const int index = t + k * kThreads;
      if (turned) {
        const int x = index / (Depth / 4), m = index % (Depth / 4) * 4;
        FF_UNROLL
        for (int i = 0; i < 4; ++i) to[m + i][x / 4].v[x % 4] = quads[k].v[i];
      } else {
        to[index / (Edge / 4)][index % (Edge / 4)] = quads[k];
      }
    }
  }
};

}  // namespace fastfisher::cuda

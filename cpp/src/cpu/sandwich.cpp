// SPDX-License-Identifier: Apache-2.0
//
// [out out_b] = left [w b] right for a list of matrices: 2 (o r^2 + o^2 r) flops for o rows and r
// columns, the bias one of them. Both products are made of the tiles of the Gram's micro kernel:
//   pack right into panels of columns                              parallel over panels
//   for each group of rows: pack [w b], z = [w b] right            parallel over groups
//   for each group of rows: pack left, [out out_b] = left z        parallel over groups
// z is written as panels of columns, which the second product reads as they lie. The pieces depend
// on the sizes alone, so that the bits do not depend on the threads. With factors in place of left
// and right see sandwich_factors.hpp.
#include "backend.hpp"
#include "parallel.hpp"
#include "products.hpp"
#include "sandwich_factors.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kGroup = 48;          // rows of a task: whole micro tiles
constexpr std::int64_t kDepth = 6 * kGroup;  // of one pass of the micro kernel
constexpr std::int64_t kLine = ProductScratch::kAlignment;
constexpr std::int64_t kWidest = 64;  // no panel is wider
constexpr double kSerialWork = 1e5;

/// Depth-major panels [stretch of depth][panel][depth in it][width], panels `width` rows or columns
/// wide; the last stretch may be shorter.
struct Stretches {
  std::int64_t depth, panels, width;

  [[nodiscard]] std::int64_t size() const { return depth * panels * width; }
  [[nodiscard]] std::int64_t count(std::int64_t from) const {
    return std::min(kDepth, depth - from);
  }
  [[nodiscard]] std::int64_t at(std::int64_t from, std::int64_t panel) const {
    return (from * panels + panel * count(from)) * width;
  }
};

/// Shapes of one item in panels.
struct SandwichPlan {
  Stretches right, z, group;
  std::int64_t sums;  ///< panels of a group's results

  template <class T>
  SandwichPlan(const TileKernels<T>& kernels, std::int64_t rows, std::int64_t columns) {
    const std::int64_t panels = (columns + kernels.nr - 1) / kernels.nr;
    right = {columns, panels, kernels.nr};
    z = {round_up(rows, kernels.mr), panels, kernels.nr};
    group = {std::max(rows, columns), kGroup / kernels.mr, kernels.mr};
    sums = kGroup * panels * kernels.nr;
  }
  /// Numbers of workspace, stretches of it aligned.
  template <class T>
  [[nodiscard]] std::int64_t numbers(int threads) const {
    return aligned<T>(right.size()) + aligned<T>(z.size()) +
           threads * (aligned<T>(group.size()) + aligned<T>(sums));
  }
  template <class T>
  static std::int64_t aligned(std::int64_t numbers) {
    return round_up(numbers, kLine / static_cast<std::int64_t>(sizeof(T)));
  }
};

template <class T>
class Sandwich {
 public:
  Sandwich(const Context& ctx, int threads, const SandwichItem& item, T* memory)
      : ctx_(ctx),
        threads_(threads),
        left_(view_of<const T, 2>(item.left)),
        w_(view_of<const T, 2>(item.w)),
        b_(view_of<const T, 1>(item.b)),
        right_(view_of<const T, 2>(item.right)),
        out_(view_of<T, 2>(item.out)),
        out_b_(view_of<T, 1>(item.out_b)),
        rows_(left_.extent(0)),
        columns_(right_.extent(0)),
        plan_(kernels_, rows_, columns_),
        packed_(memory),
        z_(packed_ + SandwichPlan::aligned<T>(plan_.right.size())),
        desks_(z_ + SandwichPlan::aligned<T>(plan_.z.size())) {}

  void run() {
    const std::int64_t groups = (rows_ + kGroup - 1) / kGroup;
    parallel_for(ctx_, threads_, plan_.right.panels,
                 [&](std::int64_t panel, int) { pack_right(panel); });
    parallel_for(ctx_, threads_, groups, [&](std::int64_t task, int worker) {
      const std::int64_t from = task * kGroup, to = std::min(rows_, from + kGroup);
      const Stretches group = group_of(columns_);
      T* const desk = desk_of(worker);
      pack_rows(w_, from, to, group, w_.extent(1), desk);
      if (columns_ > w_.extent(1)) pack_bias(from, to, group, desk);
      const std::int64_t stretch = from / kDepth * kDepth;
      multiply(group, desk, to - from, plan_.right, packed_, [&](std::int64_t panel) {
        return z_ + plan_.z.at(stretch, panel) + (from - stretch) * kernels_.nr;
      });
    });
    parallel_for(ctx_, threads_, groups, [&](std::int64_t task, int worker) {
      const std::int64_t from = task * kGroup, to = std::min(rows_, from + kGroup);
      const Stretches group = group_of(rows_);
      T* const desk = desk_of(worker);
      T* const sums = desk + SandwichPlan::aligned<T>(plan_.group.size());
      pack_rows(left_, from, to, group, rows_, desk);
      multiply(group, desk, to - from, plan_.z, z_,
               [&](std::int64_t panel) { return sums + panel * kGroup * kernels_.nr; });
      for (std::int64_t panel = 0; panel < plan_.z.panels; ++panel)
        store(sums + panel * kGroup * kernels_.nr, from, to, panel * kernels_.nr);
    });
  }

 private:
  Stretches group_of(std::int64_t depth) const {
    return {depth, plan_.group.panels, plan_.group.width};
  }
  T* desk_of(int worker) const {
    return desks_ + worker * (SandwichPlan::aligned<T>(plan_.group.size()) +
                              SandwichPlan::aligned<T>(plan_.sums));
  }

  void pack(const T* const* rows, std::int64_t count, std::int64_t width, std::int64_t stride,
            std::int64_t depth, T* to) const {
    pack_of<T>(kernels_)(rows, count, width, stride, depth, 1, to);
  }

  void pack_right(std::int64_t panel) {
    const std::int64_t first = panel * kernels_.nr;
    const std::int64_t count = std::min(kernels_.nr, columns_ - first);
    const T* at[kWidest];
    for (std::int64_t from = 0; from < columns_; from += kDepth) {
      for (std::int64_t q = 0; q < count; ++q) at[q] = &right_(from, first + q);
      pack(at, count, kernels_.nr, right_.stride(0), plan_.right.count(from),
           packed_ + plan_.right.at(from, panel));
    }
  }

  // Rows from..to of a matrix, `features` of the group's depth.
  void pack_rows(const View<const T, 2>& a, std::int64_t from, std::int64_t to,
                 const Stretches& group, std::int64_t features, T* desk) const {
    const T* at[kWidest];
    for (std::int64_t row = from; row < to; row += kernels_.mr) {
      const std::int64_t count = std::min(kernels_.mr, to - row);
      for (std::int64_t k = 0; k < features; k += kDepth) {
        for (std::int64_t q = 0; q < count; ++q) at[q] = &a(row + q, k);
        pack(at, count, kernels_.mr, a.stride(1), std::min(kDepth, features - k),
             desk + group.at(k, (row - from) / kernels_.mr));
      }
    }
  }

  // The last feature.
  void pack_bias(std::int64_t from, std::int64_t to, const Stretches& group, T* desk) const {
    const std::int64_t last = columns_ - 1, stretch = last / kDepth * kDepth;
    for (std::int64_t row = from; row < to; row += kernels_.mr) {
      T* const line =
          desk + group.at(stretch, (row - from) / kernels_.mr) + (last - stretch) * kernels_.mr;
      for (std::int64_t q = 0; q < kernels_.mr; ++q) line[q] = row + q < to ? b_(row + q) : T(0);
    }
  }

  // Rows of a group times all panels of columns; `sums_of` says where those of a panel go.
  template <class SumsOf>
  void multiply(const Stretches& group, const T* desk, std::int64_t rows, const Stretches& right,
                const T* packed, const SumsOf& sums_of) const {
    const std::int64_t tiles = (rows + kernels_.mr - 1) / kernels_.mr;
    for (std::int64_t from = 0; from < group.depth; from += kDepth) {
      // The rows of z are padded, its depth is not.
      const std::int64_t depth = group.count(from);
      for (std::int64_t panel = 0; panel < right.panels; ++panel) {
        const T* const columns = packed + right.at(from, panel);
        const std::int64_t bytes = right.count(from) * right.width * sizeof(T);
        Ahead next{reinterpret_cast<const char*>(columns) + bytes, bytes, 0, bytes};
        if (panel + 1 == right.panels) next.bytes = 0;
        kernels_.product_ahead(desk + group.at(from, 0), columns, depth, depth * group.width, tiles,
                               columns_ - panel * right.width, sums_of(panel), right.width,
                               from > 0, next, 0, bytes);
      }
    }
  }

  void store(const T* sums, std::int64_t from, std::int64_t to, std::int64_t first) const {
    const std::int64_t count = std::clamp<std::int64_t>(w_.extent(1) - first, 0, kernels_.nr);
    for (std::int64_t row = from; row < to; ++row, sums += kernels_.nr) {
      for (std::int64_t j = 0; j < count; ++j) out_(row, first + j) = sums[j];
      if (columns_ > w_.extent(1) && count < kernels_.nr) out_b_(row) = sums[count];
    }
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const Context& ctx_;
  int threads_;
  View<const T, 2> left_, w_;
  View<const T, 1> b_;
  View<const T, 2> right_;
  View<T, 2> out_;
  View<T, 1> out_b_;
  std::int64_t rows_, columns_;
  SandwichPlan plan_;
  T *packed_, *z_, *desks_;
};

std::int64_t rows_of(const SandwichItem& item) {
  return item.w.extent(0);
}
std::int64_t columns_of(const SandwichItem& item) {
  return item.w.extent(1) + (item.b.extent(0) > 0 ? 1 : 0);
}

}  // namespace

void sandwich(const Context& ctx, std::span<const SandwichItem> items) {
  double work = 0;
  std::int64_t rows = 0, columns = 0;
  for (const SandwichItem& item : items) {
    const std::int64_t o = rows_of(item), r = columns_of(item);
    work += static_cast<double>(o * r) * static_cast<double>(o + r);
    rows = std::max(rows, o);
    columns = std::max(columns, r);
  }
  if (rows == 0 || columns == 0) return;
  const DType dtype = items.front().out.dtype;
  const ProductScratch scratch(ctx, "sandwich", cpu::sandwich_workspace(ctx, rows, columns, dtype));
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  const ParallelRegion awake;
  visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* const memory = reinterpret_cast<T*>(scratch.data());
    const auto empty = [](const SandwichItem& item) {
      return rows_of(item) == 0 || columns_of(item) == 0;
    };
    // Before anything is written.
    for (std::size_t k = 0; k < items.size(); ++k) {
      if (items[k].left.rank == 1 && !empty(items[k]))
        SandwichFactors<T>(ctx, threads, items[k], memory).check(k);
    }
    for (const SandwichItem& item : items) {
      if (empty(item)) continue;
      if (item.left.rank == 1) {
        SandwichFactors<T>(ctx, threads, item, memory).run();
      } else {
        Sandwich<T>(ctx, threads, item, memory).run();
      }
    }
  });
}

std::int64_t sandwich_workspace(const Context& ctx, std::int64_t rows, std::int64_t columns,
                                DType dtype) {
  return kLine + visit_dtype(dtype, [&](auto tag) {
           using T = typename decltype(tag)::type;
           const SandwichPlan plan(tile_kernels<T>(), rows, columns);
           const int threads = thread_count(ctx);
           return std::max(plan.template numbers<T>(threads),
                           SandwichFactors<T>::numbers(rows, columns, threads)) *
                  size_of(dtype);
         });
}

}  // namespace fastfisher::cpu

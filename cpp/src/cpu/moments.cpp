// SPDX-License-Identifier: Apache-2.0
//
// out = scale [a 1]^T [a 1] of a list of matrices a [n,i]: n m (m + 1) / 2 multiply-adds for m
// columns, the one of the ones included. Columns are packed into panels [n][width], some rows at a
// time, which are both operands of a product; the lower triangle is added up in panels too and
// written out with its mirror. The pieces depend on the sizes alone, so that the bits do not depend
// on the threads.
#include "backend.hpp"
#include "parallel.hpp"
#include "products.hpp"
#include "psd_panels.hpp"
#include "sweep_kernels.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kDepth = 256;  // rows of a that are packed, and added up, at once
constexpr std::int64_t kChunk = 96;   // rows of out of a task, multiples of every panel's width
constexpr std::int64_t kGroup = 4;    // panels that a task packs
constexpr std::int64_t kLine = ProductScratch::kAlignment;
constexpr double kSerialWork = 1e5;

// Packed columns and the triangle of at most m columns.
template <class T>
std::int64_t numbers_of(std::int64_t m) {
  constexpr std::int64_t line = kLine / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t width = sweep_kernels<T>().width, rows = round_up(m, width);
  return round_up(rows * kDepth, line) + round_up(SweepPanels<T>::size(m, width), line);
}

template <class T>
class Moment {
 public:
  Moment(const Context& ctx, int threads, const MomentItem& item, T* memory)
      : ctx_(ctx),
        threads_(threads),
        a_(view_of<const T, 2>(item.a)),
        n_(a_.extent(0)),
        m_(item.out.extent(0)),
        width_(kernels_.width),
        panels_((m_ + width_ - 1) / width_),
        scale_(static_cast<T>(item.scale)),
        out_(static_cast<T*>(item.out.data)),
        packed_(memory),
        sum_(aligned(packed_ + panels_ * width_ * kDepth), m_, width_) {}

  void run() {
    const std::int64_t chunks = (m_ + kChunk - 1) / kChunk;
    const std::int64_t groups = (panels_ + kGroup - 1) / kGroup;
    std::int64_t from = 0;
    do {
      const std::int64_t depth = std::min(kDepth, n_ - from);
      parallel_for(ctx_, threads_, groups, [&](std::int64_t task, int) {
        for (std::int64_t p = task * kGroup; p < std::min(panels_, (task + 1) * kGroup); ++p)
          pack(p, from, depth);
      });
      // The last rows have the most columns: they go first.
      parallel_for(ctx_, threads_, chunks, [&](std::int64_t task, int) {
        const std::int64_t row = (chunks - 1 - task) * kChunk, end = std::min(m_, row + kChunk);
        multiply(row, end, depth, from > 0);
        if (from + depth >= n_) store_panels<T>(kernels_, sum_, scale_, m_, row, end, out_);
      });
      from += depth;
    } while (from < n_);
  }

 private:
  T* aligned(T* at) const {
    constexpr std::int64_t line = kLine / static_cast<std::int64_t>(sizeof(T));
    return packed_ + round_up(at - packed_, line);
  }
  T* packed(std::int64_t panel, std::int64_t depth) const {
    return packed_ + panel * depth * width_;
  }

  void pack(std::int64_t panel, std::int64_t from, std::int64_t depth) {
    const std::int64_t first = panel * width_, i = a_.extent(1);
    const T* columns[kSweepWidth];
    const std::int64_t count = std::clamp<std::int64_t>(i - first, 0, width_);
    for (std::int64_t k = 0; k < count; ++k)
      columns[k] = a_.data + from * a_.stride(0) + (first + k) * a_.stride(1);
    T* const to = packed(panel, depth);
    kernels_.pack(columns, count, width_, a_.stride(0), depth, 1, to);
    if (m_ == i || i < first || i >= first + width_) return;
    for (std::int64_t l = 0; l < depth; ++l) to[l * width_ + i - first] = 1;
  }

  void multiply(std::int64_t row, std::int64_t end, std::int64_t depth, bool accumulate) {
    for (std::int64_t p = 0; p * width_ < end; ++p) {
      const std::int64_t top = std::max(row, p * width_);
      kernels_.product(packed(top / width_, depth), depth * width_, packed(p, depth), depth,
                       end - top, sum_.row(p, top), accumulate);
    }
  }

  const SweepKernels<T>& kernels_ = sweep_kernels<T>();
  const Context& ctx_;
  int threads_;
  View<const T, 2> a_;
  std::int64_t n_, m_, width_, panels_;
  T scale_;
  T* out_;
  T* packed_;
  SweepPanels<T> sum_;
};

}  // namespace

void moments(const Context& ctx, std::span<const MomentItem> items) {
  std::int64_t most = 0;
  double work = 0;
  for (const MomentItem& item : items) {
    const std::int64_t m = item.out.extent(0);
    most = std::max(most, m);
    work += static_cast<double>(m * m) * static_cast<double>(1 + item.a.extent(0));
  }
  if (most == 0) return;
  const DType dtype = items.front().out.dtype;
  const ProductScratch scratch(ctx, "moments", cpu::moments_workspace(ctx, most, dtype));
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  const ParallelRegion awake;
  visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (const MomentItem& item : items) {
      if (item.out.extent(0) > 0)
        Moment<T>(ctx, threads, item, reinterpret_cast<T*>(scratch.data())).run();
    }
  });
}

std::int64_t moments_workspace(const Context&, std::int64_t most, DType dtype) {
  return kLine + visit_dtype(dtype, [&](auto tag) {
           using T = typename decltype(tag)::type;
           return numbers_of<T>(most) * size_of(dtype);
         });
}

}  // namespace fastfisher::cpu

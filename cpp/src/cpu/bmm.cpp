// SPDX-License-Identifier: Apache-2.0
//
// out[e,n,m] = a[e,n,k] b[e,k,m]: 2 e n k m flops. The matrices b are packed into panels once; then
// blocks of rows, as they lie in memory, meet all panels of theirs:
//
//   for each stretch of the depth, for each panel of b: micro tiles down the block
//
// A stretch of a panel stays in the first cache level, the block's rows in the second; rows whose
// entries do not lie together are packed by the block. Tiles that reach past the last row or column
// are summed beside `out`. Sums are cut by the depth alone, so threads never change a bit.
#include "backend.hpp"
#include "fastfisher/dtype.hpp"
#include "parallel.hpp"
#include "products.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <new>

namespace fastfisher::cpu {
namespace {

constexpr double kSerialWork = 1e6;
constexpr std::int64_t kBlockRows = 96;
constexpr std::int64_t kMostWidth = 64;  // of a panel of b, and of a micro tile's rows
constexpr std::size_t kAlignment = 64;

template <class T>
class BatchedProduct {
 public:
  BatchedProduct(const Context& ctx, int threads, const View<const T, 3>& a,
                 const View<const T, 3>& b, const View<T, 3>& out)
      : ctx_(ctx),
        threads_(threads),
        a_(a),
        b_(b),
        out_(out),
        kernels_(tile_kernels<T>(out.extent(2))),
        panels_(a.extent(2), kernels_.nr, out.extent(2)),
        packed_(new (std::align_val_t(kAlignment))
                    T[static_cast<std::size_t>(b.extent(0) * panels_.size())]) {
    if (a.stride(2) == 1 || a.extent(2) == 1) return;
    left_size_ = round_up(kBlockRows, kernels_.mr) * std::min(a.extent(2), kProductDepth);
    left_.reset(new (std::align_val_t(kAlignment))
                    T[static_cast<std::size_t>(threads * left_size_)]);
  }

  void run() {
    const std::int64_t panels = panels_.rows / panels_.width;
    parallel_shares(ctx_, threads_, b_.extent(0) * panels, [&](std::int64_t task, int) {
      pack(task / panels, task % panels * panels_.width);
    });
    const std::int64_t blocks = ceil_div(out_.extent(1), kBlockRows);
    parallel_shares(ctx_, threads_, out_.extent(0) * blocks, [&](std::int64_t task, int worker) {
      multiply_block(task / blocks, task % blocks * kBlockRows, left_.get() + worker * left_size_);
    });
  }

 private:
  struct Free {
    void operator()(T* data) const { operator delete[](data, std::align_val_t(kAlignment)); }
  };

  // A stretch of the depth of the rows of one block: where each begins, or all of them in panels.
  struct Left {
    std::array<const T*, kBlockRows + kMostWidth> rows;
    const T* panels = nullptr;
    std::int64_t depth = 0;
  };

  // Columns `first` .. of matrix e of b.
  void pack(std::int64_t e, std::int64_t first) const {
    const T* columns[kMostWidth];
    const std::int64_t count = std::min(panels_.width, out_.extent(2) - first);
    for (std::int64_t j = 0; j < count; ++j) columns[j] = &b_(e, 0, first + j);
    pack_panel(kernels_, columns, count, b_.stride(1), panels_, first, 0, panels_.depth,
               packed_.get() + e * panels_.size());
  }

  // Rows first .. first + count of matrix e of a, from depth `from`; those up to a whole micro tile
  // are the last one again. `buffer` takes them where they must be packed.
  void load(Left& left, std::int64_t e, std::int64_t first, std::int64_t count, std::int64_t from,
            T* buffer) const {
    left.depth = panels_.chunk_depth(from);
    for (std::int64_t r = 0; r < round_up(count, kernels_.mr); ++r)
      left.rows[static_cast<std::size_t>(r)] = &a_(e, first + std::min(r, count - 1), from);
    if (left_ == nullptr) return;
    for (std::int64_t r = 0; r < count; r += kernels_.mr) {
      pack_of<T>(kernels_)(left.rows.data() + r, kernels_.mr, kernels_.mr, a_.stride(2), left.depth,
                           1, buffer + r * left.depth);
    }
    left.panels = buffer;
  }

  // `tiles` micro tiles from row `first` of the block against a panel of b.
  void multiply(const Left& left, std::int64_t first, std::int64_t tiles, const T* panel,
                std::int64_t cols, T* c, std::int64_t ldc, bool accumulate) const {
    if (left.panels != nullptr) {
      kernels_.product(left.panels + first * left.depth, panel, left.depth,
                       kernels_.mr * left.depth, 0, tiles, cols, kNoSkew, c, ldc, accumulate);
    } else {
      kernels_.product_rows(left.rows.data() + first, panel, left.depth, false, tiles, cols, c, ldc,
                            accumulate, {}, 0, 0);
    }
  }

  void multiply_block(std::int64_t e, std::int64_t first, T* buffer) const {
    const std::int64_t mr = kernels_.mr, width = panels_.width;
    const std::int64_t rows = std::min(kBlockRows, out_.extent(1) - first);
    const T* packed = packed_.get() + e * panels_.size();
    Left left;
    alignas(kAlignment) T beside[kMostWidth * kMostWidth];
    for (std::int64_t from = 0; from < panels_.depth; from += kProductDepth) {
      load(left, e, first, rows, from, buffer);
      for (std::int64_t j = 0; j < out_.extent(2); j += width) {
        const T* panel = packed + panels_.at(from, j);
        const std::int64_t cols = std::min(width, out_.extent(2) - j);
        const std::int64_t direct = cols % kernels_.lanes == 0 ? rows / mr * mr : 0;
        if (direct > 0)
          multiply(left, 0, direct / mr, panel, cols, &out_(e, first, j), out_.stride(1), from > 0);
        for (std::int64_t r = direct; r < rows; r += mr) {
          multiply(left, r, 1, panel, cols, beside, width, false);
          for (std::int64_t i = 0; i < std::min(mr, rows - r); ++i) {
            T* to = &out_(e, first + r + i, j);
            for (std::int64_t q = 0; q < cols; ++q)
              to[q] = from > 0 ? to[q] + beside[i * width + q] : beside[i * width + q];
          }
        }
      }
    }
  }

  const Context& ctx_;
  int threads_;
  const View<const T, 3>& a_;
  const View<const T, 3>& b_;
  const View<T, 3>& out_;
  const TileKernels<T>& kernels_;
  Panels panels_;
  std::unique_ptr<T[], Free> packed_, left_;
  std::int64_t left_size_ = 0;
};

// An array of the same extents whose last axis lies together.
template <class T>
struct Copy {
  std::unique_ptr<T[]> data;
  ArrayRef ref;

  explicit Copy(const ArrayRef& like)
      : data(new T[static_cast<std::size_t>(like.size())]),
        ref(array_ref(data.get(), like.extent(0), like.extent(1), like.extent(2))) {}
};

template <class T>
void copy(const ArrayRef& from, const ArrayRef& to) {
  const auto source = view_of<const T, 3>(from);
  const auto target = view_of<T, 3>(to);
  for (std::int64_t e = 0; e < source.extent(0); ++e) {
    for (std::int64_t n = 0; n < source.extent(1); ++n) {
      for (std::int64_t k = 0; k < source.extent(2); ++k) target(e, n, k) = source(e, n, k);
    }
  }
}

}  // namespace

void bmm(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  if (out.size() == 0) return;
  const double work = static_cast<double>(out.size()) * static_cast<double>(a.extent(2));
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  const ParallelRegion region;
  visit_dtype(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (a.extent(2) == 0) {
      const auto result = view_of<T, 3>(out);
      for (std::int64_t e = 0; e < result.extent(0); ++e) {
        for (std::int64_t n = 0; n < result.extent(1); ++n) {
          for (std::int64_t m = 0; m < result.extent(2); ++m) result(e, n, m) = 0;
        }
      }
      return;
    }
    if (out.stride(2) != 1 && out.extent(2) != 1) {
      const Copy<T> result(out);
      cpu::bmm(ctx, a, b, result.ref);
      return copy<T>(result.ref, out);
    }
    BatchedProduct<T>(ctx, threads, view_of<const T, 3>(a), view_of<const T, 3>(b),
                      view_of<T, 3>(out))
        .run();
  });
}

}  // namespace fastfisher::cpu

// SPDX-License-Identifier: Apache-2.0
//
// out[n,m] = a[n,k] b[k,m] for many rows: 2 n k m flops. b is packed into panels once; then blocks
// of rows, as they lie in memory, meet all of its panels:
//
//   for each stretch of the depth, for each panel of b: micro tiles down the block
//
// A stretch of a panel stays in the first cache level, the block's rows in the second. Tiles that
// reach past the last row or column are summed beside `out`. Sums are cut by the depth alone, so
// threads never change a bit.
#include "backend.hpp"
#include "parallel.hpp"
#include "products.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

namespace fastfisher::cpu {
namespace {

constexpr double kSerialWork = 1e6;
constexpr std::int64_t kBlockRows = 96;
constexpr std::size_t kAlignment = 64;

template <class T>
class RowProduct {
 public:
  RowProduct(const Context& ctx, int threads, const View<const T, 2>& a, const View<const T, 2>& b,
             const View<T, 2>& out)
      : ctx_(ctx),
        threads_(threads),
        a_(a),
        b_(b),
        out_(out),
        kernels_(tile_kernels<T>(out.extent(1))),
        panels_(a.extent(1), kernels_.nr, out.extent(1)),
        packed_(new (std::align_val_t(kAlignment)) T[static_cast<std::size_t>(panels_.size())]) {}

  void run() {
    parallel_for(ctx_, threads_, panels_.rows / panels_.width,
                 [&](std::int64_t panel, int) { pack(panel * panels_.width); });
    parallel_shares(ctx_, threads_, ceil_div(out_.extent(0), kBlockRows),
                    [&](std::int64_t block, int) { multiply_block(block * kBlockRows); });
  }

 private:
  struct Free {
    void operator()(T* data) const { operator delete[](data, std::align_val_t(kAlignment)); }
  };

  // Columns `first` .. of b.
  void pack(std::int64_t first) const {
    const T* columns[64];
    const std::int64_t count = std::min(panels_.width, out_.extent(1) - first);
    for (std::int64_t j = 0; j < count; ++j) columns[j] = &b_(0, first + j);
    pack_panel(kernels_, columns, count, b_.stride(0), panels_, first, 0, panels_.depth,
               packed_.get());
  }

  void multiply_block(std::int64_t first) const {
    constexpr std::int64_t kMostCols = 64;
    const std::int64_t mr = kernels_.mr, width = panels_.width;
    const std::int64_t rows = std::min(kBlockRows, out_.extent(0) - first);
    const std::int64_t whole = rows / mr * mr;
    std::array<const T*, kBlockRows + 64> at;
    alignas(kAlignment) T beside[64 * kMostCols];
    for (std::int64_t from = 0; from < panels_.depth; from += kProductDepth) {
      const std::int64_t depth = panels_.chunk_depth(from);
      for (std::int64_t r = 0; r < round_up(rows, mr); ++r)
        at[static_cast<std::size_t>(r)] = &a_(first + std::min(r, rows - 1), from);
      for (std::int64_t j = 0; j < out_.extent(1); j += width) {
        const T* panel = packed_.get() + panels_.at(from, j);
        const std::int64_t cols = std::min(width, out_.extent(1) - j);
        const std::int64_t direct = cols % kernels_.lanes == 0 ? whole : 0;
        if (direct > 0) {
          kernels_.product_rows(at.data(), panel, depth, false, direct / mr, cols, &out_(first, j),
                                out_.stride(0), from > 0, {}, 0, 0);
        }
        for (std::int64_t r = direct; r < rows; r += mr) {
          kernels_.product_rows(at.data() + r, panel, depth, false, 1, cols, beside, width, false,
                                {}, 0, 0);
          for (std::int64_t i = 0; i < std::min(mr, rows - r); ++i) {
            T* to = &out_(first + r + i, j);
            for (std::int64_t q = 0; q < cols; ++q)
              to[q] = from > 0 ? to[q] + beside[i * width + q] : beside[i * width + q];
          }
        }
      }
    }
  }

  const Context& ctx_;
  int threads_;
  const View<const T, 2>& a_;
  const View<const T, 2>& b_;
  const View<T, 2>& out_;
  const TileKernels<T>& kernels_;
  Panels panels_;
  std::unique_ptr<T[], Free> packed_;
};

}  // namespace

void row_product(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  if (out.size() == 0) return;
  if (a.extent(1) == 0 || a.stride(1) != 1 || out.stride(1) != 1)
    return cpu::matmul(ctx, a, b, out);
  const double work = static_cast<double>(out.size()) * static_cast<double>(a.extent(1));
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  visit_dtype(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto left = view_of<const T, 2>(a), right = view_of<const T, 2>(b);
    const auto result = view_of<T, 2>(out);
    RowProduct<T>(ctx, threads, left, right, result).run();
  });
}

}  // namespace fastfisher::cpu

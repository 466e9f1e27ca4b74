// SPDX-License-Identifier: Apache-2.0
//
// Second moments out = scale [a 1]^T [a 1] of a list of matrices a [n,i], see product.cu: tiles on
// and below the diagonal, stored with their mirror image; the sums of the columns are their last
// row. Up to kProductTable matrices are one launch of tiles and one that adds up shares of the
// depth. n m (m + 1) flops a matrix of m columns; a is read once for each 128 columns.
#include "device_guard.hpp"
#include "moments_steps.hpp"
#include "product_machine.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace fastfisher::cuda {
namespace {

template <class T>
std::int64_t table_bytes() {
  return ProductMemory::padded(kProductTable * static_cast<std::int64_t>(sizeof(Product<T>)));
}

// Memory for the shares of results of up to `most` rows.
template <class T>
std::int64_t share_bytes(std::int64_t most) {
  constexpr std::int64_t kLeast = std::int64_t{16} << 20, kMost = std::int64_t{256} << 20;
  return std::clamp(8 * most * most * static_cast<std::int64_t>(sizeof(T)), kLeast, kMost);
}

template <class T>
void run(const Context& ctx, std::span<const MomentItem> items, std::int64_t most) {
  const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
  std::byte* base = ctx.workspace.data() +
                    (ProductMemory::kAlign - start % ProductMemory::kAlign) % ProductMemory::kAlign;
  auto* const table = reinterpret_cast<Product<T>*>(base);
  auto* const partial = reinterpret_cast<T*>(base + table_bytes<T>());
  ProductLimits limits = product_limits<T>();
  limits.partial_bytes = share_bytes<T>(most);
  std::vector<Product<T>> products;
  for (std::size_t k = 0; k < items.size(); ++k) {
    if (items[k].out.size() > 0) products.push_back(moment_of<T>(items[k]));
    const bool full = static_cast<std::int64_t>(products.size()) == kProductTable;
    if (products.empty() || (!full && k + 1 < items.size())) continue;
    share_list<T>(products, limits, partial);
    launch_products<T>(products, table, ctx.stream, "moments");
    products.clear();
  }
}

}  // namespace

std::int64_t moments_workspace(const Context&, std::int64_t most, DType dtype) {
  return visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return ProductMemory::kAlign + table_bytes<T>() + share_bytes<T>(most);
  });
}

void moments(const Context& ctx, std::span<const MomentItem> items) {
  std::int64_t most = 0;
  for (const MomentItem& item : items) most = std::max(most, item.out.extent(0));
  if (most == 0) return;
  const DType dtype = items.front().out.dtype;
  const std::int64_t needed = cuda::moments_workspace(ctx, most, dtype);
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, "moments", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed) + " as moments_workspace says");
  }
  const DeviceGuard guard(ctx.device.index, "moments");
  visit_dtype(dtype, [&](auto tag) { run<typename decltype(tag)::type>(ctx, items, most); });
}

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
//
// Cholesky factors, inverses, solutions, eigenvectors and inverse roots of a list of matrices. Per
// matrix of n rows: n^3/6 multiply-adds for a factor, n^3/2 for an inverse, about 4.5 n^3 for
// eigenvectors. Large matrices come one after another with all threads inside, the rest one a
// thread, largest first. What is computed for a matrix, and in which pieces, depends on it alone.
#include "backend.hpp"
#include "fastfisher/error.hpp"
#include "parallel.hpp"
#include "psd_work.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kParallelSize = 1536;  // from here on, threads work inside a matrix
constexpr std::int64_t kParallelAtAll = 320;  // below, never

double cost(std::int64_t n) {
  const auto size = static_cast<double>(n);
  return size * size * size;
}

std::int64_t scratch_of(PsdTask task, DType dtype, std::int64_t n) {
  return visit_dtype(
      dtype, [&](auto tag) { return scratch_bytes<typename decltype(tag)::type>(task, n); });
}

}  // namespace

std::vector<PsdReport> psd(const Context& ctx, std::span<const PsdItem> items,
                           const PsdOptions& options) {
  std::vector<PsdReport> reports(items.size());
  if (items.empty()) return reports;
  const DType storage = items.front().a.dtype, dtype = result_of(storage);
  std::vector<std::int64_t> sizes;
  double left = 0;
  for (const PsdItem& item : items) {
    sizes.push_back(item.a.extent(0));
    left += cost(sizes.back());
  }
  const std::int64_t needed = cpu::psd_workspace(ctx, sizes, dtype, options.task);
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, "psd", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed));
  }
  std::byte* base = ctx.workspace.data();
  if (base != nullptr)
    base += (kPsdLine - reinterpret_cast<std::uintptr_t>(base) % kPsdLine) % kPsdLine;
  const std::int64_t share =
      scratch_of(options.task, dtype, *std::max_element(sizes.begin(), sizes.end()));

  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t x, std::size_t y) { return sizes[x] > sizes[y]; });
  const int threads = thread_count(ctx);
  const auto one = [&](std::size_t k, int inside, int worker) {
    visit_storage(storage, [&](auto tag) {
      using S = typename decltype(tag)::type;
      using T = std::conditional_t<std::is_same_v<S, double>, double, float>;
      reports[k] = PsdWork<S, T>(ctx, inside, items[k], options, base + worker * share).run();
    });
  };
  // LAPACK's eigenvectors are a thread's own work.
  const bool inside = options.task != PsdTask::eigh && options.task != PsdTask::inverse_root;
  const ParallelRegion awake;
  std::size_t first = 0;
  for (; inside && threads > 1 && first < order.size(); ++first) {
    const std::int64_t n = sizes[order[first]];
    if (n < kParallelAtAll || (n < kParallelSize && cost(n) * threads <= left)) break;
    one(order[first], threads, 0);
    left -= cost(n);
  }
  // A few small ones a task: handing out costs as much as a tiny matrix.
  const std::size_t rest = order.size() - first;
  std::vector<std::size_t> starts{first};
  double sum = 0;
  for (std::size_t k = first; k < order.size(); ++k) {
    sum += cost(sizes[order[k]]) + 1000;
    if (sum < 5e5 && k + 1 < order.size()) continue;
    starts.push_back(k + 1);
    sum = 0;
  }
  parallel_for(ctx, rest > 1 ? threads : 1, static_cast<std::int64_t>(starts.size()) - 1,
               [&](std::int64_t task, int worker) {
                 const auto at = static_cast<std::size_t>(task);
                 for (std::size_t k = starts[at]; k < starts[at + 1]; ++k) one(order[k], 1, worker);
               });
  return reports;
}

std::int64_t psd_factor_size(const Context&, std::int64_t n, DType dtype) {
  return visit_dtype(dtype,
                     [&](auto tag) { return FactorPanels<typename decltype(tag)::type>::size(n); });
}

std::int64_t psd_workspace(const Context& ctx, std::span<const std::int64_t> sizes, DType dtype,
                           PsdTask task) {
  std::int64_t largest = 0;
  for (const std::int64_t n : sizes) largest = std::max(largest, n);
  if (largest > 32000) {
    throw Error(ErrorCode::shape, "psd", "a",
                "got " + std::to_string(largest) + " rows, expected at most 32000");
  }
  return kPsdLine + scratch_of(task, dtype, largest) *
                        std::min<std::int64_t>(
                            thread_count(ctx),
                            std::max<std::int64_t>(1, static_cast<std::int64_t>(sizes.size())));
}

}  // namespace fastfisher::cpu

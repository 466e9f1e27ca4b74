// SPDX-License-Identifier: Apache-2.0
//
// The host's side of eigenvectors and inverse roots of small matrices: one table, a launch for each
// class of sizes, so that small ones share a multiprocessor, and the reports.
#pragma once

#include "fastfisher/ops.hpp"
#include "psd_eigh_body.hpp"
#include "psd_flow.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace fastfisher::cuda {

template <class T, class Small, class Large, class Pass, class Device>
class PsdEigenFlow {
 public:
  using Kind = PsdReport::Kind;

  static std::int64_t workspace(std::span<const std::int64_t> sizes) {
    const auto count = static_cast<std::int64_t>(sizes.size());
    return kPsdAlign + matrices_at(count) + count * static_cast<std::int64_t>(sizeof(EigenMatrix));
  }

  static std::vector<PsdReport> run(Device& device, std::span<const PsdItem> items,
                                    const PsdOptions& options, std::byte* workspace) {
    std::byte* const base = psd_aligned(workspace);
    auto* const states = reinterpret_cast<EigenState*>(base);
    std::vector<PsdReport> reports(items.size());
    std::vector<std::size_t> order;
    for (std::size_t k = 0; k < items.size(); ++k) {
      reports[k].condition = 1;
      reports[k].damping = items[k].automatic ? 0 : items[k].damping;
      if (items[k].a.extent(0) > 0) order.push_back(k);
    }
    if (order.empty()) return reports;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
      return items[x].a.extent(0) > items[y].a.extent(0);
    });
    const bool root = options.task == PsdTask::inverse_root;
    std::vector<EigenMatrix> matrices;
    for (std::size_t k = 0; k < order.size(); ++k)
      matrices.push_back(matrix_of(items[order[k]], root, states + k));
    const auto count = static_cast<std::int64_t>(order.size());
    const auto table = static_cast<std::size_t>(matrices_at(count));
    std::vector<std::byte> image(table + matrices.size() * sizeof(EigenMatrix));
    std::copy_n(reinterpret_cast<const std::byte*>(matrices.data()),
                matrices.size() * sizeof(EigenMatrix), image.data() + table);
    const EigenState zero;
    for (std::size_t k = 0; k < order.size(); ++k)
      std::copy_n(reinterpret_cast<const std::byte*>(&zero), sizeof zero,
                  image.data() + k * sizeof zero);
    device.write(base, image.data(), static_cast<std::int64_t>(image.size()));
    const auto* const first = reinterpret_cast<const EigenMatrix*>(base + table);
    // As much shared memory as the largest of a class needs.
    for (std::size_t from = 0; from < matrices.size();) {
      const int size_class = class_of(matrices[from].n);
      std::size_t end = from;
      while (end < matrices.size() && class_of(matrices[end].n) == size_class) ++end;
      const auto many = static_cast<std::int64_t>(end - from);
      const std::int64_t n = matrices[from].n;
      if (n <= Small::kMost) {
        device.launch(Small{first + from, many, root, options.p}, many, Small::bytes(n));
      } else {
        device.launch(Large{first + from, many, root, options.p}, many, Large::bytes(n));
      }
      from = end;
    }
    std::vector<EigenState> found(order.size());
    device.read(found.data(), states, count * static_cast<std::int64_t>(sizeof(EigenState)));
    for (std::size_t k = 0; k < order.size(); ++k)
      settle(device, items[order[k]], found[k], options.task, reports[order[k]]);
    return reports;
  }

 private:
  static std::int64_t matrices_at(std::int64_t count) {
    return psd_aligned(count * static_cast<std::int64_t>(sizeof(EigenState)));
  }

  static int class_of(std::int64_t n) {
    constexpr std::array<std::int64_t, 5> kClasses = {32, 48, Small::kMost * 3 / 4, Small::kMost,
                                                      (Small::kMost + Large::kMost) / 2};
    return static_cast<int>(std::lower_bound(kClasses.begin(), kClasses.end(), n) -
                            kClasses.begin());
  }

  static EigenMatrix matrix_of(const PsdItem& item, bool root, EigenState* state) {
    EigenMatrix matrix;
    matrix.a = item.a.data;
    matrix.row_stride = item.a.stride(0);
    matrix.column_stride = item.a.stride(1);
    matrix.dtype = item.a.dtype;
    matrix.damping = item.damping;
    matrix.automatic = item.automatic;
    matrix.n = item.a.extent(0);
    matrix.out = item.out.data;
    if (!root) {
      matrix.values = item.values.data;
      matrix.value_stride = item.values.stride(0);
    }
    matrix.state = state;
    return matrix;
  }

  static void settle(Device& device, const PsdItem& item, const EigenState& state, PsdTask task,
                     PsdReport& report) {
    report.kind = static_cast<Kind>(state.kind);
    if (report.kind == Kind::ok || report.kind == Kind::damped) {
      report.damping = state.damping;
      report.condition = state.condition;
      return;
    }
    if (report.kind == Kind::indefinite || report.kind == Kind::overflow)
      report.damping = state.damping;
    if (report.kind == Kind::non_finite)
      report.index = static_cast<std::int64_t>(PsdState::kFirst - state.bad);
    report.condition = std::numeric_limits<double>::infinity();
    fill(device, item.out, 1);
    if (task == PsdTask::eigh) fill(device, item.values, item.values.stride(0));
  }

  static void fill(Device& device, const ArrayRef& array, std::int64_t stride) {
    device.launch(PsdVoid<T, Pass>{static_cast<T*>(array.data), array.size(), stride},
                  blocks_of(array.size(), 4 * PsdVoid<T, Pass>::kThreads));
  }
};

}  // namespace fastfisher::cuda

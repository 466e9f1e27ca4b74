// SPDX-License-Identifier: Apache-2.0
//
// The host's side of psd: memory, tables, launches one after another, reports, and another round
// for matrices that need more damping. Plain C++ over a device that launches bodies and moves
// bytes, so that tests run it without one.
#pragma once

#include "fastfisher/ops.hpp"
#include "psd_damping.hpp"
#include "psd_pass_body.hpp"
#include "psd_solve_body.hpp"
#include "psd_step_body.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace fastfisher::cuda {

inline constexpr std::int64_t kPsdAlign = 256;

inline std::int64_t psd_aligned(std::int64_t bytes) {
  return (bytes + kPsdAlign - 1) / kPsdAlign * kPsdAlign;
}
inline std::byte* psd_aligned(std::byte* data) {
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  return data + (kPsdAlign - at % kPsdAlign) % kPsdAlign;
}

/// Where the scratch of each matrix lies in the workspace, behind the states and the tables.
template <class T, class Pass, int Edge>
class PsdMemory {
 public:
  PsdMemory(std::span<const std::int64_t> sizes, PsdTask task) : task_(task) {
    const auto count = static_cast<std::int64_t>(sizes.size());
    std::int64_t steps = 0, starts = 3 * (count + 1);
    for (const std::int64_t n : sizes) {
      const std::int64_t blocks = blocks_of(n, Edge);
      steps = std::max(steps, blocks);
      starts += 2 * blocks;
    }
    starts += 2 * steps;
    matrices_at = psd_aligned(size_of_<PsdState>(count));
    starts_at = matrices_at + psd_aligned(size_of_<PsdMatrix<T>>(count));
    tables = bytes = starts_at + psd_aligned(size_of_<std::int64_t>(starts));
    places_.reserve(sizes.size());
    for (const std::int64_t n : sizes) places_.push_back(place(n));
  }

  std::int64_t matrices_at, starts_at;
  std::int64_t tables;  ///< bytes of states and tables
  std::int64_t bytes;   ///< of all

  /// `matrix` of n rows with the addresses of its scratch.
  void assign(std::size_t item, std::byte* base, PsdMatrix<T>& matrix) const {
    const Place& at = places_[item];
    const std::int64_t blocks = blocks_of(matrix.n, Edge);
    matrix.scale = reinterpret_cast<T*>(base + at.scale);
    matrix.factor = reinterpret_cast<T*>(base + at.factor);
    matrix.factors = factors_of(blocks);
    matrix.factor_pitch = factor_pitch(matrix.n);
    matrix.pitch = blocks * Edge;
    matrix.w = reinterpret_cast<T*>(base + at.w);
    matrix.sums = task_ == PsdTask::inverse ? reinterpret_cast<double*>(base + at.sums) : nullptr;
    matrix.c = task_ == PsdTask::solve ? reinterpret_cast<T*>(base + at.c) : matrix.out;
  }

 private:
  struct Place {
    std::int64_t scale, factor, w, sums, c;
  };

  template <class Type>
  static std::int64_t size_of_(std::int64_t count) {
    return count * static_cast<std::int64_t>(sizeof(Type));
  }
  [[nodiscard]] std::int64_t factors_of(std::int64_t blocks) const {
    return task_ == PsdTask::solve ? blocks : std::min<std::int64_t>(blocks, 2);
  }
  static std::int64_t factor_pitch(std::int64_t n) { return n >= Edge ? Edge : (n + 3) / 4 * 4; }

  Place place(std::int64_t n) {
    const auto take = [&](std::int64_t size) {
      return std::exchange(bytes, bytes + psd_aligned(size));
    };
    const std::int64_t blocks = blocks_of(n, Edge), pitch = factor_pitch(n);
    Place at{};
    at.scale = take(size_of_<T>(n));
    at.factor = take(size_of_<T>(factors_of(blocks) * pitch * pitch));
    if (blocks > 1) at.w = take(size_of_<T>(blocks * Edge * Edge));
    if (task_ == PsdTask::inverse) at.sums = take(size_of_<double>(blocks_of(n, Pass::kEdge) * n));
    if (task_ == PsdTask::solve) at.c = take(size_of_<T>(n * n));
    return at;
  }

  PsdTask task_;
  std::vector<Place> places_;
};

template <class T, class Tile, class Pass, class Device>
class PsdFactorFlow {
 public:
  using Kind = PsdReport::Kind;

  static std::int64_t workspace(std::span<const std::int64_t> sizes, PsdTask task) {
    return kPsdAlign + PsdMemory<T, Pass, Tile::kEdge>(sizes, task).bytes;
  }

  PsdFactorFlow(Device& device, std::span<const PsdItem> items, PsdTask task, std::byte* workspace)
      : device_(device), items_(items), task_(task), base_(psd_aligned(workspace)) {}

  std::vector<PsdReport> run() {
    std::vector<std::int64_t> sizes;
    for (const PsdItem& item : items_) sizes.push_back(item.a.extent(0));
    const PsdMemory<T, Pass, Tile::kEdge> memory(sizes, task_);
    reports_.assign(items_.size(), {});
    std::vector<std::size_t> open;
    for (std::size_t k = 0; k < items_.size(); ++k) {
      reports_[k].condition = 1;
      reports_[k].damping = items_[k].automatic ? 0 : items_[k].damping;
      if (sizes[k] > 0) open.push_back(k);
    }
    std::stable_sort(open.begin(), open.end(),
                     [&](std::size_t x, std::size_t y) { return sizes[x] > sizes[y]; });
    while (!open.empty()) open = round(memory, open);
    for (std::size_t k = 0; k < items_.size(); ++k) {
      if (reports_[k].kind == Kind::ok || reports_[k].kind == Kind::damped) continue;
      reports_[k].condition = std::numeric_limits<double>::infinity();
      const std::int64_t size = items_[k].out.size();
      if (size > 0) {
        device_.launch(PsdVoid<T, Pass>{static_cast<T*>(items_[k].out.data), size, 1},
                       blocks_of(size, 4 * PsdVoid<T, Pass>::kThreads));
      }
    }
    return std::move(reports_);
  }

 private:
  static constexpr int kEdge = Tile::kEdge;

  // First tasks of every matrix of a list, and how many in all.
  struct Starts {
    const std::int64_t* data;
    std::int64_t total;
  };

  // The matrices of a list on their way; those that need another round.
  std::vector<std::size_t> round(const PsdMemory<T, Pass, kEdge>& memory,
                                 const std::vector<std::size_t>& open) {
    auto* const states = reinterpret_cast<PsdState*>(base_);
    std::vector<PsdMatrix<T>> matrices;
    for (std::size_t k = 0; k < open.size(); ++k) {
      matrices.push_back(matrix_of(open[k]));
      memory.assign(open[k], base_, matrices.back());
      matrices.back().state = states + k;
      const bool packed = reinterpret_cast<std::uintptr_t>(matrices.back().c) % 16 == 0;
      matrices.back().vector =
          packed && matrices.back().n % (16 / sizeof(T)) == 0 && matrices.back().n % 4 == 0;
    }
    plan(memory, matrices);
    launch_all(reinterpret_cast<const PsdMatrix<T>*>(base_ + memory.matrices_at), matrices);
    std::vector<PsdState> found(open.size());
    device_.read(found.data(), states, static_cast<std::int64_t>(found.size() * sizeof(PsdState)));
    std::vector<std::size_t> again;
    for (std::size_t k = 0; k < open.size(); ++k) {
      if (!settled(open[k], found[k])) again.push_back(open[k]);
    }
    return again;
  }

  PsdMatrix<T> matrix_of(std::size_t k) const {
    const PsdItem& item = items_[k];
    PsdMatrix<T> matrix;
    matrix.a = item.a.data;
    matrix.n = item.a.extent(0);
    matrix.row_stride = item.a.stride(0);
    matrix.column_stride = item.a.stride(1);
    matrix.dtype = item.a.dtype;
    matrix.damping = reports_[k].damping;
    matrix.out = static_cast<T*>(item.out.data);
    if (task_ == PsdTask::solve) {
      matrix.b = static_cast<const T*>(item.b.data);
      matrix.b_row_stride = item.b.stride(0);
      matrix.b_column_stride = item.b.stride(1);
      matrix.columns = item.b.extent(1);
    }
    return matrix;
  }

  // Tables for all launches, in one piece; states are cleared.
  void plan(const PsdMemory<T, Pass, kEdge>& memory, const std::vector<PsdMatrix<T>>& matrices) {
    std::vector<std::int64_t> starts;
    struct Part {
      std::size_t at;
      std::int64_t total;
    };
    std::vector<Part> parts;
    const auto add = [&](std::size_t count, const auto& tasks) {
      std::int64_t sum = 0;
      const std::size_t at = starts.size();
      for (std::size_t k = 0; k < count; ++k) {
        starts.push_back(sum);
        sum += tasks(matrices[k]);
      }
      starts.push_back(sum);
      parts.push_back({at, sum});
    };
    const bool inverse = task_ == PsdTask::inverse;
    add(matrices.size(),
        [](const PsdMatrix<T>& m) { return triangle(blocks_of(m.n, Pass::kEdge)); });
    add(matrices.size(), [](const PsdMatrix<T>& m) {
      return blocks_of(m.columns, PsdSubstitute<T, kEdge>::kColumns);
    });
    counts_.clear();
    for (std::int64_t step = 0; step < blocks_of(matrices.front().n, kEdge); ++step) {
      std::size_t count = 0;
      while (count < matrices.size() && blocks_of(matrices[count].n, kEdge) > step) ++count;
      counts_.push_back(static_cast<std::int64_t>(count));
      add(count,
          [&](const PsdMatrix<T>& m) { return panel_tasks(blocks_of(m.n, kEdge), step, inverse); });
      add(count, [&](const PsdMatrix<T>& m) {
        return update_tasks(blocks_of(m.n, kEdge), step, inverse);
      });
    }
    std::vector<std::byte> image(static_cast<std::size_t>(memory.starts_at) +
                                 starts.size() * sizeof(std::int64_t));
    std::copy_n(reinterpret_cast<const std::byte*>(matrices.data()),
                matrices.size() * sizeof(PsdMatrix<T>), image.data() + memory.matrices_at);
    std::copy_n(reinterpret_cast<const std::byte*>(starts.data()),
                starts.size() * sizeof(std::int64_t), image.data() + memory.starts_at);
    const PsdState zero;
    for (std::size_t k = 0; k < matrices.size(); ++k)
      std::copy_n(reinterpret_cast<const std::byte*>(&zero), sizeof zero,
                  image.data() + k * sizeof zero);
    device_.write(base_, image.data(), static_cast<std::int64_t>(image.size()));
    const auto* const data = reinterpret_cast<const std::int64_t*>(base_ + memory.starts_at);
    starts_.clear();
    for (const Part& part : parts) starts_.push_back({data + part.at, part.total});
  }

  void launch_all(const PsdMatrix<T>* matrices, const std::vector<PsdMatrix<T>>& host) {
    const auto count = static_cast<std::int64_t>(host.size());
    const Starts tiles = starts_[0], strips = starts_[1];
    const bool inverse = task_ == PsdTask::inverse;
    const std::int64_t parts = blocks_of(host.front().n, Pass::kThreads);
    device_.launch(PsdBalance<T, Pass>{matrices, count}, count);
    device_.launch(PsdLoad<T, Pass, kEdge>{matrices, tiles.data, count}, tiles.total);
    if (inverse) device_.launch(PsdNorm<T, Pass>{matrices, count, parts, false}, count * parts);
    device_.launch(PsdUpdate<Tile, T>({matrices, nullptr, count, -1, inverse}), count);
    for (std::size_t k = 0; k < counts_.size(); ++k) {
      const auto step = static_cast<std::int64_t>(k);
      const Starts panel = starts_[2 + 2 * k], update = starts_[3 + 2 * k];
      if (panel.total > 0) {
        device_.launch(PsdPanel<Tile, T>({matrices, panel.data, counts_[k], step, inverse}),
                       panel.total);
      }
      if (update.total > 0) {
        device_.launch(PsdUpdate<Tile, T>({matrices, update.data, counts_[k], step, inverse}),
                       counts_[k] + update.total);
      }
    }
    if (inverse) {
      device_.launch(PsdStoreInverse<T, Pass>{matrices, tiles.data, count}, tiles.total);
      device_.launch(PsdNorm<T, Pass>{matrices, count, parts, true}, count * parts);
      return;
    }
    device_.launch(PsdPivots<T, Pass>{matrices, count}, count);
    if (task_ == PsdTask::cholesky) {
      device_.launch(PsdStoreFactor<T, Pass>{matrices, tiles.data, count}, tiles.total);
    } else if (strips.total > 0) {
      constexpr std::int64_t kParts = 8;
      device_.launch(PsdSides<T, Pass>{matrices, count, kParts, false}, count * kParts);
      device_.launch(PsdSubstitute<T, kEdge>{matrices, strips.data, count}, strips.total);
      device_.launch(PsdSides<T, Pass>{matrices, count, kParts, true}, count * kParts);
    }
  }

  // The report of a matrix; false if it wants more damping first.
  bool settled(std::size_t k, const PsdState& state) {
    PsdReport& report = reports_[k];
    const PsdItem& item = items_[k];
    if (state.bad != 0) {
      report.kind = Kind::non_finite;
      report.index = static_cast<std::int64_t>(PsdState::kFirst - state.bad);
      return true;
    }
    if (state.minor != 0) {
      const DampingRange range = damping_range<T>(item.a.extent(0), state.largest);
      if (item.automatic && report.damping < range.most) {
        report.damping = raised(report.damping, range);
        return false;
      }
      report.kind = Kind::indefinite;
      report.index = state.minor;
      return true;
    }
    if (item.automatic && report.damping > 0) report.kind = Kind::damped;
    if (task_ == PsdTask::inverse) {
      const double a_norm = double_of(state.a_norm), x_norm = double_of(state.x_norm);
      report.condition =
          std::ldexp(a_norm * x_norm, static_cast<int>(state.a_power + state.x_power));
      if (!is_finite(x_norm)) report.kind = Kind::overflow;
      return true;
    }
    report.condition = state.high / state.low * (state.high / state.low);
    if (state.bad_side != 0) {
      report.kind = Kind::non_finite;
      report.index = -1 - static_cast<std::int64_t>(PsdState::kFirst - state.bad_side);
    } else if (state.overflow != 0) {
      report.kind = Kind::overflow;
    }
    return true;
  }

  Device& device_;
  std::span<const PsdItem> items_;
  PsdTask task_;
  std::byte* base_;
  std::vector<PsdReport> reports_;
  std::vector<Starts> starts_;
  std::vector<std::int64_t> counts_;
};

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
#include "scan.hpp"

#include "backend.hpp"
#include "fastfisher/layer.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace fastfisher::cpu {
namespace {

// Rows that one task reads: large enough to hide the hand-out, small enough to balance.
constexpr std::int64_t kTaskEntries = std::int64_t{1} << 17;

template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, std::uint16_t,
                                std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>;

// The number behind the bits of a magnitude.
template <class T>
double value_of(Bits<T> bits) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  } else if constexpr (std::is_same_v<T, Float16>) {
    if (bits >= 0x7c00) return std::numeric_limits<double>::infinity();
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 13) * 0x1p112F;
  } else {
    return static_cast<double>(std::bit_cast<T>(bits));
  }
}

template <class T>
Bits<T> magnitude_of(T x) {
  constexpr Bits<T> mask = std::numeric_limits<Bits<T>>::max() >> 1;
  return static_cast<Bits<T>>(std::bit_cast<Bits<T>>(x) & mask);
}

// Magnitudes of floats order like their bits read as unsigned integers, NaN above infinity above
// all numbers: an integer maximum needs no special case and vectorises.
template <class T>
Bits<T> largest_bits(const T* data, std::int64_t stride, std::int64_t count) {
  Bits<T> largest = 0;
  if (stride == 1) {
    for (std::int64_t k = 0; k < count; ++k) {
      largest = std::max(largest, magnitude_of(data[k]));
    }
  } else {
    for (std::int64_t k = 0; k < count; ++k) {
      largest = std::max(largest, magnitude_of(data[k * stride]));
    }
  }
  return largest;
}

// Axes sorted so that the innermost has the smallest stride, zero strides and packed axes
// folded.
struct Walk {
  std::array<std::int64_t, kMaxRank> extents, strides;

  Walk() {
    extents.fill(1);
    strides.fill(0);
  }
  [[nodiscard]] std::int64_t inner() const { return extents.back(); }
  [[nodiscard]] std::int64_t rows() const {
    std::int64_t count = 1;
    for (std::size_t r = 0; r + 1 < kMaxRank; ++r) count *= extents[r];
    return count;
  }
  [[nodiscard]] std::int64_t offset(std::int64_t row) const {
    std::int64_t at = 0;
    for (std::size_t r = kMaxRank - 1; r-- > 0; row /= extents[r])
      at += row % extents[r] * strides[r];
    return at;
  }
};

Walk walk_of(const ArrayRef& array) {
  struct Axis {
    std::int64_t extent, stride;
  };
  std::vector<Axis> axes;
  for (int r = 0; r < array.rank; ++r) {
    if (array.extents[r] != 1 && array.strides[r] != 0)
      axes.push_back({array.extents[r], array.strides[r]});
  }
  std::stable_sort(axes.begin(), axes.end(), [](const Axis& x, const Axis& y) {
    return std::abs(x.stride) > std::abs(y.stride);
  });
  for (std::size_t r = axes.size(); r-- > 1;) {
    if (axes[r - 1].stride == axes[r].stride * axes[r].extent) {
      axes[r - 1] = {axes[r - 1].extent * axes[r].extent, axes[r].stride};
      axes.erase(axes.begin() + static_cast<std::ptrdiff_t>(r));
    }
  }
  Walk walk;
  const std::size_t first = kMaxRank - axes.size();
  for (std::size_t r = 0; r < axes.size(); ++r) {
    walk.extents[first + r] = axes[r].extent;
    walk.strides[first + r] = axes[r].stride;
  }
  return walk;
}

template <class T>
std::int64_t first_bad_index(const ArrayRef& array) {
  const auto* data = static_cast<const T*>(array.data);
  std::array<std::int64_t, kMaxRank> at{};
  for (std::int64_t index = 0;; ++index) {
    std::int64_t offset = 0;
    for (int r = 0; r < array.rank; ++r) offset += at[r] * array.strides[r];
    if (!std::isfinite(value_of<T>(magnitude_of(data[offset])))) return index;
    int r = array.rank - 1;
    while (r >= 0 && ++at[r] == array.extents[r]) at[r--] = 0;
    if (r < 0) return -1;
  }
}

template <class T>
ScanResult scan_typed(const Context& ctx, int threads, const ArrayRef& array, bool where = true) {
  const Walk walk = walk_of(array);
  const auto* data = static_cast<const T*>(array.data);
  const std::int64_t inner = walk.inner(), rows = walk.rows();
  // A task is a stretch of whole rows, or of one long row.
  const std::int64_t parts = inner > kTaskEntries ? (inner + kTaskEntries - 1) / kTaskEntries : 1;
  const std::int64_t part = (inner + parts - 1) / parts;
  const std::int64_t group =
      parts > 1 ? 1 : std::max<std::int64_t>(1, kTaskEntries / std::max<std::int64_t>(inner, 1));
  const std::int64_t tasks = (rows + group - 1) / group * parts;
  std::vector<Bits<T>> found(static_cast<std::size_t>(std::max(threads, 1)), 0);
  parallel_for(ctx, threads, tasks, [&](std::int64_t task, int worker) {
    const std::int64_t from = task % parts * part;
    const std::int64_t count = std::min(part, inner - from);
    Bits<T> largest = 0;
    for (std::int64_t row = task / parts * group; row < std::min(rows, (task / parts + 1) * group);
         ++row) {
      largest = std::max(largest, largest_bits(data + walk.offset(row) + from * walk.strides.back(),
                                               walk.strides.back(), count));
    }
    auto& mine = found[static_cast<std::size_t>(worker)];
    mine = std::max(mine, largest);
  });
  ScanResult result;
  result.largest = value_of<T>(*std::max_element(found.begin(), found.end()));
  if (where && !std::isfinite(result.largest)) result.first_bad = first_bad_index<T>(array);
  return result;
}

template <class Bits>
void raise_to(Bits& shared, Bits value) {
  const std::atomic_ref<Bits> largest(shared);
  Bits seen = largest.load(std::memory_order_relaxed);
  while (seen < value && !largest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// A task is a stretch of rows of whichever samples.
template <class T>
ScanResult scan_samples(const Context& ctx, int threads, const ArrayRef& array,
                        std::vector<double>& samples) {
  const Walk walk = walk_of(without_axis(array, 0));
  const auto* data = static_cast<const T*>(array.data);
  const std::int64_t inner = walk.inner(), rows = walk.rows(), all = array.extent(0) * rows;
  const std::int64_t parts = inner > kTaskEntries ? (inner + kTaskEntries - 1) / kTaskEntries : 1;
  const std::int64_t part = (inner + parts - 1) / parts;
  const std::int64_t group =
      parts > 1 ? 1 : std::max<std::int64_t>(1, kTaskEntries / std::max<std::int64_t>(inner, 1));
  std::vector<Bits<T>> found(static_cast<std::size_t>(array.extent(0)), 0);
  parallel_for(ctx, threads, (all + group - 1) / group * parts, [&](std::int64_t task, int) {
    const std::int64_t from = task % parts * part, count = std::min(part, inner - from);
    const std::int64_t end = std::min(all, (task / parts + 1) * group);
    for (std::int64_t row = task / parts * group; row < end;) {
      const std::int64_t n = row / rows, stop = std::min(end, (n + 1) * rows);
      Bits<T> largest = 0;
      for (; row < stop; ++row) {
        const std::int64_t offset = rows == 1 ? 0 : walk.offset(row - n * rows);
        largest = std::max(
            largest, largest_bits(data + n * array.stride(0) + offset + from * walk.strides.back(),
                                  walk.strides.back(), count));
      }
      raise_to(found[static_cast<std::size_t>(n)], largest);
    }
  });
  ScanResult result;
  for (std::size_t n = 0; n < found.size(); ++n) {
    samples[n] = value_of<T>(found[n]);
    // Not the other way round: NaN is neither.
    if (!(samples[n] <= result.largest)) result.largest = samples[n];
    if (!std::isfinite(result.largest)) break;
  }
  if (!std::isfinite(result.largest)) result.first_bad = first_bad_index<T>(array);
  return result;
}

}  // namespace

ScanResult scan(const Context& ctx, int threads, const ArrayRef& array,
                std::vector<double>* samples) {
  if (samples != nullptr)
    samples->assign(static_cast<std::size_t>(array.rank > 0 ? array.extent(0) : 0), 0.0);
  if (array.size() == 0) return {};
  return visit_storage(array.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    // Samples that are one in memory are read once.
    if (samples != nullptr && array.stride(0) != 0 && array.extent(0) > 1)
      return scan_samples<T>(ctx, threads, array, *samples);
    const ScanResult result = scan_typed<T>(ctx, threads, array);
    if (samples != nullptr) std::fill(samples->begin(), samples->end(), result.largest);
    return result;
  });
}

double largest(const Context& ctx, const ArrayRef& x) {
  constexpr std::int64_t kSerialEntries = 4 * kTaskEntries;
  if (x.size() == 0) return 0;
  const int threads = x.size() < kSerialEntries ? 1 : thread_count(ctx);
  return visit_storage(x.dtype, [&](auto tag) {
    return scan_typed<typename decltype(tag)::type>(ctx, threads, x, false).largest;
  });
}

}  // namespace fastfisher::cpu

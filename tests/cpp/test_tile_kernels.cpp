// SPDX-License-Identifier: Apache-2.0
//
// Every instruction set's packing, product and fold against plain loops, also those this machine
// would not choose.
#include "check.hpp"
#include "instruction_set.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace {

using fastfisher::cpu::TileKernels;

// Lines where they lie, as many rows and vectors as there may be: the bits of packed ones, and
// nothing is written behind them. `left` and `right` hold two panels each.
template <class T>
void lines_agree(const TileKernels<T>& kernels, std::int64_t k, const std::vector<T>& left,
                 const std::vector<T>& right) {
  const std::int64_t mr = kernels.mr, nr = kernels.nr, rows = 2 * mr, cols = 2 * nr;
  const auto unpacked = [k](const std::vector<T>& panels, std::int64_t width, std::int64_t pitch) {
    std::vector<T> lines(static_cast<std::size_t>(k * pitch), T{7});
    for (std::int64_t d = 0; d < k; ++d) {
      for (std::int64_t i = 0; i < 2 * width; ++i)
        lines[static_cast<std::size_t>(d * pitch + i)] =
            panels[static_cast<std::size_t>((i / width * k + d) * width + i % width)];
    }
    return lines;
  };
  // The rows three times beside each other: more than one strip of them.
  const std::int64_t most = 3 * rows, left_pitch = most + 3, right_pitch = cols + 5;
  std::vector<T> x = unpacked(left, mr, left_pitch);
  const std::vector<T> y = unpacked(right, nr, right_pitch);
  for (std::int64_t d = 0; d < k; ++d) {
    for (std::int64_t i = rows; i < most; ++i)
      x[static_cast<std::size_t>(d * left_pitch + i)] =
          x[static_cast<std::size_t>(d * left_pitch + i - rows)];
  }
  for (const bool accumulate : {false, true}) {
    std::vector<T> expected(static_cast<std::size_t>(rows * cols), T{1});
    kernels.product(left.data(), right.data(), k, k * mr, k * nr, 2, cols, std::int64_t{1} << 40,
                    expected.data(), cols, accumulate);
    for (std::int64_t tall = 1; tall <= most; ++tall) {
      for (std::int64_t wide = kernels.lanes; wide <= cols; wide += kernels.lanes) {
        std::vector<T> got(static_cast<std::size_t>(most * cols), T{1});
        const fastfisher::cpu::Ahead ahead{reinterpret_cast<const char*>(x.data()), 64, 64, 640};
        kernels.product_lines(x.data(), left_pitch, y.data(), right_pitch, k, tall, wide,
                              got.data(), cols, accumulate, ahead, 0, wide % 2 == 0 ? 640 : 0);
        bool same = true;
        for (std::int64_t i = 0; i < most; ++i) {
          for (std::int64_t j = 0; j < cols; ++j) {
            const auto at = static_cast<std::size_t>(i * cols + j);
            const auto of = static_cast<std::size_t>(i % rows * cols + j);
            same = same && got[at] == (i < tall && j < wide ? expected[of] : T{1});
          }
        }
        FF_CHECK(same);
      }
    }
  }
}

template <class T>
void kernels_agree(const TileKernels<T>& kernels) {
  std::mt19937 engine(3);
  std::normal_distribution<T> normal;
  for (const std::int64_t k : {0, 1, 2, 3, 4, 5, 7, 8, 31, 256}) {
    for (const std::int64_t stride : {1, 3}) {
      for (const std::int64_t width : {kernels.mr, kernels.nr}) {
        for (std::int64_t count = 1; count <= width; ++count) {
          // Rows one after the other, and rows that are neighbours in memory.
          for (const std::int64_t apart : {k * stride + 1, std::int64_t{1}}) {
            const std::int64_t step = apart == 1 ? stride * width : stride;
            std::vector<T> data(static_cast<std::size_t>(count * apart + k * step + 1));
            for (T& value : data) value = normal(engine);
            std::vector<const T*> rows;
            for (std::int64_t r = 0; r < count; ++r) rows.push_back(data.data() + r * apart);
            std::vector<T> packed(static_cast<std::size_t>(k * width), -1);
            if constexpr (sizeof(T) == 4) {
              kernels.pack_f32(rows.data(), count, width, step, k, 2.0, packed.data());
            } else {
              kernels.pack_f64(rows.data(), count, width, step, k, 2.0, packed.data());
            }
            bool same = true;
            for (std::int64_t d = 0; d < k; ++d) {
              for (std::int64_t r = 0; r < width; ++r) {
                const T expected = r < count ? 2 * rows[static_cast<std::size_t>(r)][d * step] : 0;
                same = same && packed[static_cast<std::size_t>(d * width + r)] == expected;
              }
            }
            FF_CHECK(same);
          }
        }
      }
    }
    const std::int64_t rows = 2 * kernels.mr, cols = 2 * kernels.nr;
    std::vector<T> left(static_cast<std::size_t>(k * rows)),
        right(static_cast<std::size_t>(k * cols));
    for (T& value : left) value = normal(engine);
    for (T& value : right) value = normal(engine);
    std::vector<T> c(static_cast<std::size_t>(rows * cols), T{1});
    constexpr std::int64_t everything = std::int64_t{1} << 40;
    kernels.product(left.data(), right.data(), k, k * kernels.mr, k * kernels.nr, 2, cols,
                    everything, c.data(), cols, true);
    double worst = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) {
        double sum = 1, size = 1;
        for (std::int64_t d = 0; d < k; ++d) {
          const double x = left[static_cast<std::size_t>((i / kernels.mr * k + d) * kernels.mr +
                                                         i % kernels.mr)];
          const double y = right[static_cast<std::size_t>((j / kernels.nr * k + d) * kernels.nr +
                                                          j % kernels.nr)];
          sum += x * y;
          size += std::abs(x * y);
        }
        worst = std::max(worst, std::abs(c[static_cast<std::size_t>(i * cols + j)] - sum) / size);
      }
    }
    FF_CHECK(worst <= 4 * std::numeric_limits<T>::epsilon());

    // Few columns: the same bits, and nothing is written behind the vector that holds the last.
    for (std::int64_t few = 1; few < cols; ++few) {
      std::vector<T> part(static_cast<std::size_t>(rows * cols), T{1});
      kernels.product(left.data(), right.data(), k, k * kernels.mr, k * kernels.nr, 2, few,
                      everything, part.data(), cols, true);
      bool same = true;
      for (std::int64_t i = 0; i < rows; ++i) {
        const auto line = static_cast<std::ptrdiff_t>(i * cols);
        const std::int64_t written =
            std::min(cols, (few + kernels.lanes - 1) / kernels.lanes * kernels.lanes);
        same = same && std::equal(part.begin() + line, part.begin() + line + few, c.begin() + line);
        same = same && std::all_of(part.begin() + line + written, part.begin() + line + cols,
                                   [](T x) { return x == T{1}; });
      }
      FF_CHECK(same);
    }

    // Left rows that lie in the panels of the right, from any even row on: the same bits.
    const std::int64_t panels = 2, last = cols - 1;
    for (std::int64_t first = 0; first <= last; first += 2) {
      const std::int64_t tall =
          std::min<std::int64_t>(2, (cols - first + kernels.mr - 1) / kernels.mr);
      std::vector<T> copied(static_cast<std::size_t>(k * rows), T{0});
      for (std::int64_t i = 0; i < std::min(tall * kernels.mr, cols - first); ++i) {
        for (std::int64_t d = 0; d < k; ++d) {
          const std::int64_t from = first + i;
          copied[static_cast<std::size_t>((i / kernels.mr * k + d) * kernels.mr + i % kernels.mr)] =
              right[static_cast<std::size_t>((from / kernels.nr * k + d) * kernels.nr +
                                             from % kernels.nr)];
        }
      }
      std::vector<T> expected(static_cast<std::size_t>(rows * cols), T{1}), got = expected;
      kernels.product(copied.data(), right.data(), k, k * kernels.mr, k * kernels.nr, tall, cols,
                      everything, expected.data(), cols, true);
      kernels.product_within(right.data(), first, panels, right.data(), k, tall, cols, everything,
                             got.data(), cols, true);
      const auto used =
          static_cast<std::ptrdiff_t>(std::min(tall * kernels.mr, cols - first) * cols);
      FF_CHECK(std::equal(got.begin(), got.begin() + used, expected.begin()));
    }

    lines_agree(kernels, k, left, right);

    std::vector<double> acc(static_cast<std::size_t>(cols), 0.5);
    kernels.fold(left.data(), c.data(), 1.0, 0.25, std::min(rows * k, cols), acc.data(), true);
    for (std::int64_t j = 0; j < std::min(rows * k, cols); ++j) {
      const auto at = static_cast<std::size_t>(j);
      const double expected =
          0.5 + (static_cast<double>(left[at]) + 1.0) * 0.25 * static_cast<double>(c[at]);
      FF_CHECK(std::abs(acc[at] - expected) <= 1e-15 * (1 + std::abs(expected)));
    }
  }
}

// Rows where they lie: against plain sums; the bits are those of the two rows, wherever these stand
// among the others, and nothing is written that was not asked for.
template <class T>
void dots_agree(const TileKernels<T>& kernels) {
  std::mt19937 engine(4);
  std::normal_distribution<T> normal;
  using Stretches = std::vector<fastfisher::cpu::Stretch>;
  const std::int64_t lanes = kernels.lanes;
  for (const Stretches& stretches :
       {Stretches{}, Stretches{{0, lanes}}, Stretches{{lanes + 1, 5 * lanes}},
        Stretches{{3, lanes}, {2 * lanes, 7 * lanes}, {11 * lanes, 2 * lanes}}}) {
    constexpr std::int64_t most = 14, ld = most + 3;
    const std::int64_t pitch = 14 * lanes;
    std::vector<T> data(static_cast<std::size_t>(most * pitch));
    for (T& value : data) value = normal(engine);
    std::vector<const T*> rows;
    for (std::int64_t r = 0; r < most; ++r) rows.push_back(data.data() + r * pitch);
    const auto run = [&](std::int64_t i, std::int64_t count, std::int64_t j, std::int64_t cols,
                         std::int64_t skew) {
      std::vector<T> c(static_cast<std::size_t>(most * ld), T{1});
      // What is asked for ahead changes no number: all rows, in two stretches each.
      const auto bytes = static_cast<std::int64_t>(sizeof(T)) * pitch;
      const fastfisher::cpu::Ahead ahead{reinterpret_cast<const char*>(data.data()),
                                         bytes / 4,
                                         bytes,
                                         most * bytes / 2,
                                         2,
                                         bytes / 2};
      kernels.dots(rows.data() + i, count, rows.data() + j, cols, stretches.data(),
                   static_cast<std::int64_t>(stretches.size()), skew, c.data(), ld, ahead);
      return c;
    };
    constexpr std::int64_t everything = std::int64_t{1} << 40;
    const std::vector<T> all = run(0, most, 0, most, everything);
    const auto at = [](const std::vector<T>& c, std::int64_t i, std::int64_t j) {
      return c[static_cast<std::size_t>(i * ld + j)];
    };
    double worst = 0;
    bool same = true;
    for (std::int64_t i = 0; i < most; ++i) {
      for (std::int64_t j = 0; j < most; ++j) {
        double sum = 0, size = 1;
        for (const auto& stretch : stretches) {
          for (std::int64_t k = stretch.from; k < stretch.from + stretch.length; ++k) {
            const double term = static_cast<double>(rows[static_cast<std::size_t>(i)][k]) *
                                static_cast<double>(rows[static_cast<std::size_t>(j)][k]);
            sum += term;
            size += std::abs(term);
          }
        }
        worst = std::max(worst, std::abs(at(all, i, j) - sum) / size);
        same = same && at(all, i, j) == at(all, j, i);
      }
    }
    FF_CHECK(worst <= 4 * std::numeric_limits<T>::epsilon());
    FF_CHECK(same);
    for (std::int64_t i = 0; i < most; ++i) {
      for (std::int64_t cols = 1; cols <= most; ++cols) {
        const std::int64_t count = most - i, j = most - cols;
        const std::vector<T> part = run(i, count, j, cols, everything);
        const std::vector<T> lower = run(i, count, j, cols, i - j);
        same = true;
        for (std::int64_t r = 0; r < most; ++r) {
          for (std::int64_t q = 0; q < ld; ++q) {
            const bool inside = r < count && q < cols;
            const T expected = inside ? at(all, i + r, j + q) : T{1};
            same = same && at(part, r, q) == expected;
            const bool may_skip = inside && i + r < j + q;
            same = same && (at(lower, r, q) == expected || (may_skip && at(lower, r, q) == T{1}));
          }
        }
        FF_CHECK(same);
      }
    }
  }
}

template <class T>
void agree(const TileKernels<T>& kernels) {
  kernels_agree(kernels);
  dots_agree(kernels);
}

}  // namespace

int main() {
  using namespace fastfisher::cpu;
  agree(tile_kernels_base<float>());
  agree(tile_kernels_base<double>());
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) {
    agree(tile_kernels_avx2<float>());
    agree(tile_kernels_avx2<double>());
  }
#endif
#if defined(FF_HAVE_AVX512)
  if (has_avx512()) {
    agree(tile_kernels_avx512<float>());
    agree(tile_kernels_avx512<double>());
    agree(tile_kernels_avx512_medium<float>());
    agree(tile_kernels_avx512_medium<double>());
    agree(tile_kernels_avx512_narrow<float>());
    agree(tile_kernels_avx512_narrow<double>());
  }
#endif
  return fastfisher::test::report();
}

// SPDX-License-Identifier: Apache-2.0
//
// The bodies of the CUDA kernels on the host, one std::thread per CUDA thread and small blocks,
// against plain float64 loops. Under ThreadSanitizer a missing barrier shows as a race. It says
// nothing about a device: occupancy, speed and the launches themselves need one.
#include "check.hpp"
#include "gram_machine.hpp"
#include "rounds.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace {

using namespace fastfisher;
using namespace fastfisher::test;

// Half of them packed: rows on 16-byte boundaries are copied in other ways.
template <class T>
Strided<T> strided(const std::vector<std::int64_t>& extents, double scale) {
  return Strided<T>(extents, draw(0, 1) == 0, scale);
}

template <class T>
struct Side {
  std::vector<Strided<T>> a, g;
  std::vector<LayerFactors> layers;
};

struct Size {
  std::int64_t i, o;
  bool bias;
  double scale;
  bool given = false;  // an explicit Jacobian
};

template <class T>
Side<T> draw_side(std::int64_t n, std::int64_t c, const std::vector<Size>& sizes) {
  Side<T> side;
  for (const Size& size : sizes) {
    side.a.push_back(strided<T>({n, size.i}, size.scale));
    side.g.push_back(strided<T>({n, c, size.o}, 1 / size.scale));
    side.layers.push_back({side.a.back().ref, side.g.back().ref, size.bias});
    if (!size.given) continue;
    side.layers.back().a = {};
    side.layers.back().form = LayerForm::jacobian;
  }
  return side;
}

// Each place of a term once, eight rows of a piece in different banks.
void panel_offsets() {
  using Panel = cuda::Panels<128>;
  std::vector<bool> seen(Panel::kTermBytes);
  for (int r = 0; r < 128; ++r) {
    for (int k = 0; k < 32; ++k) {
      const auto at = static_cast<std::size_t>(Panel::offset(r, k));
      FF_CHECK(at % 2 == 0 && !seen[at]);
      seen[at] = true;
    }
  }
  for (int k = 0; k < 32; k += 8) {
    std::vector<int> banks;
    for (int r = 0; r < 8; ++r) banks.push_back(Panel::offset(r, k) / 16 % 8);
    std::sort(banks.begin(), banks.end());
    FF_CHECK(std::unique(banks.begin(), banks.end()) == banks.end());
  }
}

// Every tile of a problem once, whatever the bands.
void places() {
  using Tile = cuda::GramTile<OneWarp<cuda::TripleSteps>, true>;
  for (int k = 0; k < 200; ++k) {
    cuda::Problem p;
    p.square = draw(0, 1) == 0;
    p.rows = draw(1, 40) * 16 - draw(0, 15);
    p.cols = p.square ? p.rows : draw(1, 40) * 16 - draw(0, 15);
    p.first_row = draw(0, (p.rows - 1) / 16) * 16;
    std::vector<std::pair<std::int64_t, std::int64_t>> seen;
    for (std::int64_t at = 0; at < Tile::plane_tiles(p); ++at) {
      std::int64_t i = -1, j = -1;
      Tile::place(p, at, i, j);
      seen.emplace_back(i, j);
    }
    std::vector<std::pair<std::int64_t, std::int64_t>> expected;
    for (std::int64_t i = p.first_row / 16; i * 16 < p.rows; ++i) {
      for (std::int64_t j = 0; p.square ? j <= i : j * 16 < p.cols; ++j)
        expected.emplace_back(i, j);
    }
    std::sort(seen.begin(), seen.end());
    FF_CHECK(seen == expected);
  }
}

// An entry and the sum of the magnitudes behind it, which bounds its rounding error. In long
// double, whose range holds the products that the kernel scales.
struct Entry {
  long double value = 0, magnitude = 0;
};

template <class S>
Entry exact(std::span<const LayerFactors> left, std::span<const LayerFactors> right, std::int64_t n,
            std::int64_t c, std::int64_t m, std::int64_t d) {
  Entry sum;
  const auto add = [](Entry& entry, long double term) {
    entry.value += term;
    entry.magnitude += std::abs(term);
  };
  for (std::size_t layer = 0; layer < left.size(); ++layer) {
    const bool given = left[layer].form == LayerForm::jacobian;
    const auto a = view_of<const S, 2>(left[layer].a), b = view_of<const S, 2>(right[layer].a);
    const auto g = view_of<const S, 3>(left[layer].g), h = view_of<const S, 3>(right[layer].g);
    Entry inner, outer;
    if (left[layer].bias || given) add(inner, 1);
    for (std::int64_t i = 0; !given && i < a.extent(1); ++i)
      add(inner, static_cast<long double>(a(n, i)) * b(m, i));
    for (std::int64_t o = 0; o < g.extent(2); ++o)
      add(outer, static_cast<long double>(g(n, c, o)) * h(m, d, o));
    sum.value += inner.value * outer.value;
    sum.magnitude += inner.magnitude * outer.magnitude;
  }
  return sum;
}

// use(expected, got) for every entry of the output.
template <class S, class Use>
void each_entry(GramOutputs outputs, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const ArrayRef& out, const Use& use) {
  const std::int64_t outs = left.front().g.extent(1), other = right.front().g.extent(1);
  for (std::int64_t n = 0; n < left.front().g.extent(0); ++n) {
    for (std::int64_t m = 0; m < right.front().g.extent(0); ++m) {
      Entry trace;
      for (std::int64_t c = 0; c < outs; ++c) {
        if (outputs == GramOutputs::full) {
          for (std::int64_t d = 0; d < other; ++d)
            use(exact<S>(left, right, n, c, m, d), view_of<S, 4>(out)(n, c, m, d));
          continue;
        }
        const Entry expected = exact<S>(left, right, n, c, m, c);
        trace.value += expected.value;
        trace.magnitude += expected.magnitude;
        if (outputs == GramOutputs::diagonal) use(expected, view_of<S, 3>(out)(n, m, c));
      }
      if (outputs == GramOutputs::trace) use(trace, view_of<S, 2>(out)(n, m));
    }
  }
}

// The problem twice, with different launches: right within the tolerance, bits the same.
template <class S, class Product, int Rank>
void one_output(GramOutputs outputs, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, bool square,
                std::array<std::int64_t, Rank> extents) {
  const auto out = strided<S>({extents.begin(), extents.end()}, 1);
  const std::span<const LayerFactors> given = square ? std::span<const LayerFactors>{} : right;
  FF_CHECK((run<S, Product>(left, given, outputs, out.ref, 1).kind) == GramReport::Kind::ok);
  bool close = true;
  each_entry<S>(outputs, left, right, out.ref, [&](const Entry& expected, S got) {
    const long double bound = 8 * std::numeric_limits<S>::epsilon() * expected.magnitude;
    close = close && std::abs(expected.value - got) <= bound;
  });
  FF_CHECK(close);
  const std::vector<S> first = out.memory;
  FF_CHECK((run<S, Product>(left, given, outputs, out.ref, 3).kind) == GramReport::Kind::ok);
  FF_CHECK(first == out.memory);
  if (!square) return;
  const auto k = view_of<S, Rank>(out.ref);
  bool symmetric = true;
  const std::int64_t samples = extents[0], outs = Rank == 4 ? extents[1] : 1;
  for (std::int64_t r = 0; r < samples * outs; ++r) {
    for (std::int64_t q = 0; q < samples * outs; ++q) {
      if constexpr (Rank == 4) {
        symmetric = symmetric && k(r / outs, r % outs, q / outs, q % outs) ==
                                     k(q / outs, q % outs, r / outs, r % outs);
      } else if constexpr (Rank == 3) {
        for (std::int64_t c = 0; c < extents[2]; ++c)
          symmetric = symmetric && k(r, q, c) == k(q, r, c);
      } else {
        symmetric = symmetric && k(r, q) == k(q, r);
      }
    }
  }
  FF_CHECK(symmetric);
}

template <class S, class Product>
void one_problem() {
  const auto outputs = static_cast<GramOutputs>(draw(0, 2));
  const bool square = draw(0, 1) == 0;
  const std::int64_t n = draw(1, 14), m = square ? n : draw(1, 14), c = draw(1, 4);
  const std::int64_t d = square || outputs != GramOutputs::full ? c : draw(1, 4);
  std::vector<Size> sizes(static_cast<std::size_t>(draw(1, 3)));
  for (Size& size : sizes) {
    // Factors outside [2^-32, 2^32] meet their inverse: the result stays of order one.
    const double scale = sizeof(S) == 4 ? std::ldexp(1, 100) : std::ldexp(1, 700);
    // Some in whole pieces of 16 bytes, some longer than the ring of buffers.
    const std::int64_t piece = draw(0, 1) == 0 ? 1 : 4, most = draw(0, 3) == 0 ? 50 : 8;
    size = {draw(0, most / piece) * piece, draw(0, most / piece) * piece, draw(0, 1) == 0,
            draw(0, 2) == 0 ? scale : 1};
    if (draw(0, 3) == 0) size = {0, size.o, false, 1, true};
    if (size.bias) size.scale = draw(0, 2) == 0 ? 1 / std::ldexp(1, 40) : 1;
  }
  const Side<S> left = draw_side<S>(n, c, sizes), other = draw_side<S>(m, d, sizes);
  const std::span<const LayerFactors> right = square ? left.layers : other.layers;
  if (outputs == GramOutputs::full)
    one_output<S, Product, 4>(outputs, left.layers, right, square, {n, c, m, d});
  if (outputs == GramOutputs::trace)
    one_output<S, Product, 2>(outputs, left.layers, right, square, {n, m});
  if (outputs == GramOutputs::diagonal)
    one_output<S, Product, 3>(outputs, left.layers, right, square, {n, m, c});
}

// The first entry that is not finite in row-major order, whatever the strides.
void reports() {
  for (int k = 0; k < 20; ++k) {
    const std::vector<Size> sizes(2, {3, 4, false, 1});
    Side<float> left = draw_side<float>(5, 2, sizes), right = draw_side<float>(4, 2, sizes);
    std::vector<float> memory(5 * 2 * 4 * 2);
    const ArrayRef out = array_ref(memory.data(), 5, 2, 4, 2);
    const std::int64_t at = draw(0, 4 * 2 * 4 - 2);
    const auto nan = std::numeric_limits<float>::quiet_NaN();
    const auto infinity = std::numeric_limits<float>::infinity();
    view_of<float, 3>(right.g[1].ref)(at / 8, at / 4 % 2, at % 4) = k % 2 == 0 ? nan : -infinity;
    view_of<float, 3>(right.g[1].ref)(3, 1, 3) = nan;
    const GramReport report = run<float, OneWarp<cuda::TripleSteps>>(left.layers, right.layers,
                                                                     GramOutputs::full, out, 1);
    FF_CHECK(report.kind == GramReport::Kind::non_finite);
    FF_CHECK(report.side == 1 && report.layer == 1 && report.argument == 1);
    FF_CHECK(report.index == at);
  }
  std::vector<float> a(6, 3e30F), g(6, 3e30F), memory(4);
  const std::vector<LayerFactors> layers = {
      {array_ref(a.data(), 2, 3), array_ref(g.data(), 2, 1, 3)}};
  const ArrayRef out = array_ref(memory.data(), 2, 2);
  FF_CHECK((run<float, OneWarp<cuda::TripleSteps>>(layers, {}, GramOutputs::trace, out, 1).kind) ==
           GramReport::Kind::overflow);
  const std::vector<LayerFactors> none = {
      {array_ref(a.data(), 0, 3), array_ref(g.data(), 0, 1, 3)}};
  FF_CHECK((run<float, OneWarp<cuda::TripleSteps>>(none, {}, GramOutputs::trace, out, 1).kind) ==
           GramReport::Kind::ok);
}

}  // namespace

int main() {
  for (int k = 0; k < rounds(40); ++k) {
    one_problem<float, OneWarp<cuda::TripleSteps>>();
    one_problem<double, OneWarp<cuda::DoubleSteps>>();
    one_problem<float, OneWarp<cuda::DoubleSteps>>();
    one_problem<float, FourWarps<cuda::TripleSteps>>();
    one_problem<float, PanelProduct>();
  }
  places();
  panel_offsets();
  reports();
  return fastfisher::test::report();
}

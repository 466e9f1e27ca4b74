// SPDX-License-Identifier: Apache-2.0
//
// Grams of drawn layers of every form and by every method, in one call or as a batch, against
// Jacobians written out by plain loops.
#include "check.hpp"
#include "draw.hpp"
#include "fastfisher/ops.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace fastfisher;
using test::draw;
using Index = std::vector<std::int64_t>;

// What both sides of a layer have in common.
struct Kind {
  LayerForm form = LayerForm::dense;
  bool bias = false, separable = false;
  std::int64_t channels = 1, units = 1;
  ConvGeometry conv;
  GramMethod method = GramMethod::automatic;
};

Kind draw_kind() {
  Kind kind;
  kind.form = static_cast<LayerForm>(draw(0, 3));
  // Few panels of inputs, or more than a thread forms at once where memory is short.
  kind.channels = draw(0, 5) == 0 ? draw(100, 300) : draw(0, 9);
  kind.units = draw(0, 9);
  if (kind.form == LayerForm::jacobian) {
    kind.method = draw(0, 1) == 0 ? GramMethod::automatic : GramMethod::s1;
    return kind;
  }
  kind.bias = draw(0, 1) == 1;
  if (kind.form == LayerForm::dense) {
    const GramMethod methods[] = {GramMethod::automatic, GramMethod::s0, GramMethod::s1,
                                  GramMethod::s3};
    kind.method = methods[draw(0, 3)];
    return kind;
  }
  kind.separable = draw(0, 2) == 0;
  const GramMethod methods[] = {GramMethod::automatic, GramMethod::s1, GramMethod::s2,
                                GramMethod::s3, GramMethod::s4};
  kind.method = methods[draw(0, kind.separable ? 4 : 3)];
  if (kind.form == LayerForm::conv) {
    kind.conv.rank = static_cast<int>(draw(1, 3));
    kind.conv.groups = draw(1, 3);
    kind.channels = kind.conv.groups * draw(0, 3);
    kind.units = kind.conv.groups * draw(0, 3);
    for (std::size_t r = 0; r < static_cast<std::size_t>(kind.conv.rank); ++r) {
      kind.conv.kernel[r] = draw(1, 3);
      kind.conv.stride[r] = draw(1, 3);
      kind.conv.padding[r] = draw(0, 2);
      kind.conv.dilation[r] = draw(1, 2);
    }
  }
  return kind;
}

// One layer for n samples: factors, and its Jacobian [n][c][p] by plain loops.
template <class T>
struct Layer {
  std::vector<test::Strided<T>> memory;  // a, g, w
  LayerFactors factors;
  std::vector<std::vector<std::vector<double>>> jacobian;

  Layer(const Kind& kind, std::int64_t n, std::int64_t c, const test::Strided<T>* shared_w) {
    factors.form = kind.form;
    factors.bias = kind.bias;
    factors.conv = kind.conv;
    factors.method = kind.method;
    memory.reserve(3);
    Index in_extents, out_extents;
    if (kind.form == LayerForm::shared) out_extents = {draw(0, 6)};
    if (kind.form == LayerForm::conv) {
      for (int r = 0; r < kind.conv.rank; ++r) {
        in_extents.push_back(draw(1, 6));
        out_extents.push_back(kind.conv.output_extent(r, in_extents.back()));
      }
    }
    const bool last = kind.form == LayerForm::conv;  // space comes last
    Index a{n}, g{n};
    if (!kind.separable) g.push_back(c);
    if (last) g.push_back(kind.units);
    g.insert(g.end(), out_extents.begin(), out_extents.end());
    if (!last) g.push_back(kind.units);
    if (last) a.push_back(kind.channels);
    a.insert(a.end(), last ? in_extents.begin() : out_extents.begin(),
             last ? in_extents.end() : out_extents.end());
    if (!last) a.push_back(kind.channels);
    memory.emplace_back(a);
    memory.emplace_back(g);
    if (shared_w != nullptr) {
      memory.push_back(*shared_w);
    } else {
      memory.emplace_back(Index{c, kind.units});
    }
    if (kind.form != LayerForm::jacobian) factors.a = memory[0].ref;
    factors.g = memory[1].ref;
    if (kind.separable) factors.w = memory[2].ref;
    write_out(kind, n, c, in_extents, out_extents);
  }

 private:
  [[nodiscard]] double cotangent(const Kind& kind, std::int64_t n, std::int64_t c, std::int64_t o,
                                 const Index& position) const {
    Index at{n};
    if (!kind.separable) at.push_back(c);
    if (kind.form == LayerForm::conv) at.push_back(o);
    at.insert(at.end(), position.begin(), position.end());
    if (kind.form != LayerForm::conv) at.push_back(o);
    return memory[1].at(at) * (kind.separable ? memory[2].at({c, o}) : 1.0);
  }

  // Input that weight `i` of unit o sees at a position: feature, or tap of a channel.
  [[nodiscard]] double input(const Kind& kind, std::int64_t n, std::int64_t o, std::int64_t i,
                             const Index& position, const Index& extents) const {
    if (kind.form != LayerForm::conv) {
      Index at{n};
      at.insert(at.end(), position.begin(), position.end());
      at.push_back(i);
      return memory[0].at(at);
    }
    const std::int64_t taps = kind.conv.taps(), groups = kind.conv.groups;
    Index at{n, o / (kind.units / groups) * (kind.channels / groups) + i / taps};
    std::int64_t rest = i % taps;
    Index tap(position.size());
    for (std::size_t r = position.size(); r-- > 0; rest /= kind.conv.kernel[r])
      tap[r] = rest % kind.conv.kernel[r];
    for (std::size_t r = 0; r < position.size(); ++r) {
      const std::int64_t x =
          position[r] * kind.conv.stride[r] - kind.conv.padding[r] + tap[r] * kind.conv.dilation[r];
      if (x < 0 || x >= extents[r]) return 0;
      at.push_back(x);
    }
    return memory[0].at(at);
  }

  void write_out(const Kind& kind, std::int64_t samples, std::int64_t outputs,
                 const Index& in_extents, const Index& out_extents) {
    const bool conv = kind.form == LayerForm::conv;
    const std::int64_t in =
        conv ? kind.channels / kind.conv.groups * kind.conv.taps() : kind.channels;
    jacobian.assign(static_cast<std::size_t>(samples), {});
    for (std::int64_t n = 0; n < samples; ++n) {
      for (std::int64_t c = 0; c < outputs; ++c) {
        std::vector<double> row;
        if (kind.form == LayerForm::jacobian) {
          for (std::int64_t p = 0; p < kind.units; ++p) row.push_back(memory[1].at({n, c, p}));
        } else {
          row.assign(static_cast<std::size_t>(kind.units * (in + (kind.bias ? 1 : 0))), 0);
          each_position(out_extents, [&](const Index& position) {
            for (std::int64_t o = 0; o < kind.units; ++o) {
              const double g = cotangent(kind, n, c, o, position);
              for (std::int64_t i = 0; i < in; ++i)
                row[static_cast<std::size_t>(o * in + i)] +=
                    g * input(kind, n, o, i, position, in_extents);
              if (kind.bias) row[static_cast<std::size_t>(kind.units * in + o)] += g;
            }
          });
        }
        jacobian[static_cast<std::size_t>(n)].push_back(row);
      }
    }
  }

  template <class Function>
  static void each_position(const Index& extents, const Function& each) {
    std::int64_t count = 1;
    for (const std::int64_t extent : extents) count *= extent;
    for (std::int64_t k = 0; k < count; ++k) {
      Index position(extents.size());
      std::int64_t rest = k;
      for (std::size_t r = extents.size(); r-- > 0; rest /= extents[r])
        position[r] = rest % extents[r];
      each(position);
    }
  }
};

template <class T>
double exact(const std::vector<Layer<T>>& left, const std::vector<Layer<T>>& right, std::int64_t n,
             std::int64_t c, std::int64_t m, std::int64_t d) {
  double sum = 0;
  for (std::size_t l = 0; l < left.size(); ++l) {
    const auto& x = left[l].jacobian[static_cast<std::size_t>(n)][static_cast<std::size_t>(c)];
    const auto& y = right[l].jacobian[static_cast<std::size_t>(m)][static_cast<std::size_t>(d)];
    for (std::size_t p = 0; p < x.size(); ++p) sum += x[p] * y[p];
  }
  return sum;
}

template <class T>
void one_problem() {
  const std::int64_t n = draw(1, 9), c = draw(1, 12);
  const bool square = draw(0, 1) == 0;
  const std::int64_t m = square ? n : draw(1, 9);
  GramOptions options;
  options.outputs = static_cast<GramOutputs>(draw(0, 2));
  const bool full = options.outputs == GramOutputs::full;
  const bool trace = options.outputs == GramOutputs::trace;
  const std::int64_t d = square || !full ? c : draw(1, 12);
  std::vector<Layer<T>> left, right;
  const auto count = draw(1, 3);
  for (std::int64_t l = 0; l < count; ++l) {
    const Kind kind = draw_kind();
    left.emplace_back(kind, n, c, nullptr);
    if (!square) right.emplace_back(kind, m, d, c == d ? &left.back().memory[2] : nullptr);
  }
  std::vector<LayerFactors> one, other;
  for (const auto& layer : left) one.push_back(layer.factors);
  for (const auto& layer : right) other.push_back(layer.factors);

  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  options.memory_limit = (std::int64_t{1} << draw(14, 24)) * draw(8, 15) / 8;
  GramEstimate estimate;
  for (;; options.memory_limit *= 2) {
    try {
      estimate = gram_workspace(ctx, one, other, options);
      break;
    } catch (const Error& error) {
      FF_CHECK(error.code() == ErrorCode::memory);
    }
  }
  FF_CHECK(estimate.bytes <= options.memory_limit);
  // Exactly as large as asked for, so that a sanitizer sees one byte too many.
  std::vector<std::byte> workspace(static_cast<std::size_t>(estimate.bytes));
  ctx.workspace = workspace;
  std::array<std::int64_t, 2> progress{};
  ctx.progress = progress.data();
  std::vector<T> out(static_cast<std::size_t>(n * m *
                                              (full    ? c * d
                                               : trace ? 1
                                                       : c)),
                     std::numeric_limits<T>::quiet_NaN());
  const ArrayRef target = full    ? array_ref(out.data(), n, c, m, d)
                          : trace ? array_ref(out.data(), n, m)
                                  : array_ref(out.data(), n, m, c);
  FF_CHECK(gram(ctx, one, other, options, target).kind == GramReport::Kind::ok);
  FF_CHECK(progress[0] == progress[1]);
  const std::vector<Layer<T>>& second = square ? left : right;
  double error = 0, size = 0;
  for (std::int64_t at = 0; at < static_cast<std::int64_t>(out.size()); ++at) {
    double expected = 0;
    if (full) {
      expected = exact(left, second, at / (c * m * d), at / (m * d) % c, at / d % m, at % d);
    } else if (trace) {
      for (std::int64_t k = 0; k < c; ++k) expected += exact(left, second, at / m, k, at % m, k);
    } else {
      expected = exact(left, second, at / (m * c), at % c, at / c % m, at % c);
    }
    const double difference = static_cast<double>(out[static_cast<std::size_t>(at)]) - expected;
    error += difference * difference;
    size += expected * expected;
  }
  FF_CHECK(std::sqrt(error) <= 40 * std::numeric_limits<T>::epsilon() * std::sqrt(size));
}

// Each network of a batch has the bits of its own Gram.
void batch() {
  for (const std::int64_t networks : {0, 1, 5, 40}) {
    const std::int64_t n = draw(1, 9), c = draw(1, 3), s = draw(1, 4), i = draw(1, 9);
    const test::Strided<float> a({networks, n, s, i}), g({networks, n, c, s, 7});
    LayerFactors layer{a.ref, g.ref, true};
    layer.form = LayerForm::shared;
    GramOptions options;
    options.batched = true;
    options.outputs = GramOutputs::trace;
    Context ctx;
    ctx.threads = 2;
    const auto bytes = gram_workspace(ctx, {&layer, 1}, {}, options).bytes;
    std::vector<std::byte> workspace(static_cast<std::size_t>(bytes));
    ctx.workspace = workspace;
    std::vector<float> out(static_cast<std::size_t>(networks * n * n)),
        one(static_cast<std::size_t>(n * n));
    FF_CHECK(gram(ctx, {&layer, 1}, {}, options, array_ref(out.data(), networks, n, n)).kind ==
             GramReport::Kind::ok);
    options.batched = false;
    for (std::int64_t e = 0; e < networks; ++e) {
      const LayerFactors single = network_of(layer, e);
      std::vector<std::byte> scratch(
          static_cast<std::size_t>(gram_workspace(ctx, {&single, 1}, {}, options).bytes));
      ctx.workspace = scratch;
      gram(ctx, {&single, 1}, {}, options, array_ref(one.data(), n, n));
      FF_CHECK(std::equal(one.begin(), one.end(), out.begin() + e * n * n));
    }
  }
}

}  // namespace

int main() {
  for (int k = 0; k < 600; ++k) {
    one_problem<float>();
    one_problem<double>();
  }
  batch();
  return fastfisher::test::report();
}

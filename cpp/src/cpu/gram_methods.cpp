// SPDX-License-Identifier: Apache-2.0
//
// Which method each layer takes: counted work at stored rates. Nothing is measured during a call,
// so the same call always takes the same way.
#include "gram_plan.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace fastfisher::cpu {
namespace {

// A second of one thread, for the kernels of tile_kernels_avx2 on a processor with two 256-bit
// fused multiply-adds a cycle at 3 GHz; others differ by about one factor throughout.
struct Rates {
  double multiply_adds;    // products of whole tiles
  double combines;         // multiply-adds of weighted sums of panels, two loads each
  double folds = 1.0e9;    // entries of acc += P o Q
  double packs = 2.0e9;    // entries that go into panels
  double unfolds = 2.0e9;  // entries of patches
};

Rates rates_of(std::int64_t item_bytes) {
  return item_bytes == 4 ? Rates{43e9, 10e9} : Rates{21e9, 5e9};
}

struct Work {
  double multiply_adds = 0;
  double padding = 0;   // multiply-adds of tiles that few samples do not fill
  double combines = 0;  // those of the multiply-adds and of the padding that are weighted sums
  double folds = 0;
  double packs = 0;
  double unfolds = 0;

  [[nodiscard]] double seconds(const Rates& rates) const {
    return (multiply_adds + padding - combines) / rates.multiply_adds + combines / rates.combines +
           folds / rates.folds + packs / rates.packs + unfolds / rates.unfolds;
  }
};

// Entries that tiles of `high` rows and vectors of `wide` columns compute of a product, halved by
// symmetry as far as whole tiles go.
double in_tiles(double rows, double cols, double high, double wide, bool symmetric) {
  rows = std::ceil(rows / high) * high;
  cols = std::ceil(cols / wide) * wide;
  return rows * (symmetric ? std::min(cols, 0.5 * (cols + high + wide)) : cols);
}

Work work_of(const GramShape& shape, const LayerShape& layer, GramMethod method) {
  const auto number = [](std::int64_t value) { return static_cast<double>(value); };
  const bool full = shape.kind == GramOutputs::full;
  const double n = number(shape.rows / shape.left_outputs);
  const double m = number(shape.cols / shape.right_outputs);
  const double pairs = n * m * (shape.symmetric ? 0.5 : 1.0);
  const double tiled = in_tiles(n, m, 6, 8, shape.symmetric);
  const double samples = shape.symmetric ? n : n + m;
  const double c = number(layer.outputs);
  // Products of outputs that each pair of samples needs, and how many entries take them.
  const double meets = full ? number(shape.left_outputs) * number(shape.right_outputs) : c;
  const double entries = shape.kind == GramOutputs::trace ? 1 : meets;
  const double planes = number(shape.planes);
  const double s = number(layer.left_positions), t = number(layer.right_positions);
  const double positions = std::max(s, t);
  const double i = number(layer.in) + (layer.bias ? 1 : 0), o = number(layer.out);
  const double p = i * o, groups = number(layer.groups);
  const double patches =
      layer.form == LayerForm::conv ? samples * positions * i * groups * planes : 0;
  Work work;
  switch (method) {
  case GramMethod::s1:
    work.multiply_adds = pairs * meets * p;
    work.packs = shape.in_place() ? 0 : 2 * samples * c * p;
    work.folds = pairs * entries;
    if (layer.form != LayerForm::jacobian) {
      work.multiply_adds += samples * positions * c * p;
      work.packs += samples * positions * c * o;
      work.unfolds = patches;
    }
    break;
  case GramMethod::s2:
    work.multiply_adds =
        pairs * (c * positions * p + meets * positions * o) + samples * positions * c * p;
    work.folds = pairs * entries * groups;
    work.packs = 2 * samples * c * p;
    work.unfolds = patches;
    break;
  case GramMethod::s4:
    work.multiply_adds = pairs * (full ? p + o * meets : planes * p) + samples * positions * p;
    work.folds = pairs * (full ? 2 * o * meets : planes);
    work.packs = 2 * samples * p * planes;
    work.unfolds = patches;
    break;
  default:
    if (full && layer.contracts(shape)) {
      const double d = number(shape.right_outputs);
      const double met = in_tiles(n, m * d, 1, 16, shape.symmetric);
      work.multiply_adds = pairs * (s * t * (i * groups + d * o) + meets * s * o);
      work.padding = s * t * ((tiled - pairs) * i * groups + (met - pairs * d) * o);
      work.combines = s * t * met * o;
      work.folds = pairs * (s * meets * groups + meets);
    } else {
      work.multiply_adds = pairs * s * t * (i * groups * planes + meets * o);
      work.padding = (tiled - pairs) * s * t * (i * groups * planes + meets * o);
      work.folds = pairs * s * t * entries * groups;
    }
    work.packs = 2 * samples * positions * (i * groups + c * o);
    work.unfolds = patches;
    break;
  }
  return work;
}

bool has_method(const LayerShape& layer, GramMethod method) {
  switch (method) {
  case GramMethod::s0:
    return layer.form == LayerForm::dense;
  case GramMethod::s1:
    return true;
  case GramMethod::s2:
    return layer.form == LayerForm::shared || layer.form == LayerForm::conv;
  case GramMethod::s3:
    return layer.form != LayerForm::jacobian;
  case GramMethod::s4:
    return layer.separable;
  default:
    return false;
  }
}

// S3 holds the rows of every position of a tile at a time. Where the smallest of tiles (6 x 16)
// would take more than this for them in float64, a small `memory_limit` would not do.
constexpr std::int64_t kMostPairBytes = std::int64_t{16} << 20;

bool pairs_fit(const GramShape& shape, const LayerShape& layer) {
  const std::int64_t outputs = shape.kind == GramOutputs::trace ? layer.outputs : 1;
  const std::int64_t entries = layer.in * layer.groups + layer.out * outputs;
  return (6 + 16) * layer.positions() * entries * std::int64_t{8} <= kMostPairBytes;
}

GramMethod cheapest(const GramShape& shape, const LayerShape& layer) {
  if (layer.form == LayerForm::dense) return GramMethod::s0;
  // Every item size has the same order but for rare ties.
  const Rates rates = rates_of(4);
  GramMethod best = GramMethod::s1;
  for (const GramMethod method : {GramMethod::s2, GramMethod::s3, GramMethod::s4}) {
    // With T positions on both sides S2 is beaten by contracted S3 unless T > i C o / (i + C o),
    // and then by S1, for which T > i C / (i + C) is enough.
    if (method == GramMethod::s2 && layer.left_positions == layer.right_positions) continue;
    if (method == GramMethod::s3 && !pairs_fit(shape, layer)) continue;
    if (has_method(layer, method) &&
        work_of(shape, layer, method).seconds(rates) < work_of(shape, layer, best).seconds(rates))
      best = method;
  }
  return best;
}

LayerShape layer_shape(const LayerFactors& left, const LayerFactors& right, std::int64_t nr,
                       std::int64_t item) {
  const LayerSizes one = sizes_of(left), other = sizes_of(right);
  LayerShape layer;
  layer.form = left.form;
  layer.separable = left.separable();
  layer.bias = left.bias;
  layer.as_products = size_of(left.g.dtype) == item && size_of(right.g.dtype) == item;
  layer.outputs = std::max(one.outputs, other.outputs);
  layer.left_positions = one.positions;
  layer.right_positions = other.positions;
  layer.in = one.in;
  layer.out = one.out;
  layer.groups = one.groups;
  layer.padded = round_up(std::max<std::int64_t>(1, one.in), nr);
  return layer;
}

}  // namespace

GramShape gram_shape(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                     GramOutputs outputs, std::int64_t nr, std::int64_t item) {
  GramShape shape;
  shape.kind = outputs;
  shape.symmetric = right.empty();
  shape.grain = nr;
  const LayerSizes one = sizes_of(left.front());
  const LayerSizes other = right.empty() ? one : sizes_of(right.front());
  if (outputs == GramOutputs::full) {
    shape.left_outputs = std::max<std::int64_t>(one.outputs, 1);
    shape.right_outputs = std::max<std::int64_t>(other.outputs, 1);
  }
  shape.rows = one.samples * (outputs == GramOutputs::full ? one.outputs : 1);
  shape.cols = other.samples * (outputs == GramOutputs::full ? other.outputs : 1);
  shape.planes = outputs == GramOutputs::diagonal ? one.outputs : 1;
  for (std::size_t index = 0; index < left.size(); ++index) {
    LayerShape layer =
        layer_shape(left[index], right.empty() ? left[index] : right[index], nr, item);
    const GramMethod asked = left[index].method;
    if (asked != GramMethod::automatic && !has_method(layer, asked)) {
      throw Error(ErrorCode::shape, "gram", "method",
                  "S" + std::to_string(static_cast<int>(asked)) + " is not for layer " +
                      std::to_string(index) + ", whose form does not have it");
    }
    layer.method = asked == GramMethod::automatic ? cheapest(shape, layer) : asked;
    shape.layers.push_back(layer);
  }
  return shape;
}

std::vector<GramChoice> gram_choices(const GramShape& shape, std::int64_t item_bytes, int threads) {
  std::vector<GramChoice> choices;
  for (const LayerShape& layer : shape.layers) {
    const Work work = work_of(shape, layer, layer.method);
    choices.push_back({layer.method, work.multiply_adds,
                       work.seconds(rates_of(item_bytes)) / std::max(threads, 1)});
  }
  return choices;
}

}  // namespace fastfisher::cpu

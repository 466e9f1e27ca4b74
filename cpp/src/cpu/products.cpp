// SPDX-License-Identifier: Apache-2.0
#include "products.hpp"

#include "parallel.hpp"
#include "scan.hpp"

#include <array>
#include <cmath>
#include <string>

namespace fastfisher::cpu {

std::vector<Piece> pieces_of(std::span<const LayerFactors> layers) {
  std::vector<Piece> pieces;
  std::int64_t start = 0;
  for (const LayerFactors& layer : layers) {
    const LayerSizes sizes = sizes_of(layer);
    Piece piece;
    piece.layer = &layer;
    piece.samples = sizes.samples;
    piece.outputs = sizes.outputs;
    piece.positions = sizes.positions;
    piece.units = sizes.out / sizes.groups;
    piece.row_features = sizes.in;
    for (std::int64_t group = 0; group < sizes.groups; ++group) {
      piece.first_unit = group * piece.units;
      piece.weight = start + piece.first_unit * sizes.in;
      piece.bias_weights = start + sizes.out * sizes.in + piece.first_unit;
      if (layer.form == LayerForm::conv)
        piece.first_channel = group * (layer.a.extent(1) / sizes.groups);
      const std::int64_t most = piece.explicit_form() ? sizes.in : kPieceFeatures;
      piece.first_feature = 0;
      do {
        piece.features = std::min(most, sizes.in - piece.first_feature);
        piece.bias = layer.bias && piece.first_feature + piece.features == sizes.in;
        if (piece.units > 0 && piece.depth() > 0) pieces.push_back(piece);
        piece.first_feature += most;
      } while (piece.first_feature < sizes.in);
    }
    start += sizes.parameters;
  }
  return pieces;
}

double product_flops(std::span<const LayerFactors> layers, std::int64_t columns) {
  double sum = 0;
  for (const LayerFactors& layer : layers) {
    const LayerSizes sizes = sizes_of(layer);
    const double rows = static_cast<double>(sizes.samples) * static_cast<double>(sizes.positions) *
                        static_cast<double>(sizes.out);
    const bool formed = layer.form == LayerForm::jacobian;
    sum += rows * static_cast<double>(sizes.outputs) * static_cast<double>(formed ? sizes.in : 1);
    if (!formed) sum += rows * static_cast<double>(sizes.in);
  }
  return 2 * sum * static_cast<double>(columns);
}

int product_threads(const Context& ctx, double flops) {
  // Below this waking a second thread costs more than it saves.
  constexpr double kSerialFlops = 4e6;
  return flops < kSerialFlops ? 1 : thread_count(ctx);
}

ProductScratch::ProductScratch(const Context& ctx, const char* op, std::int64_t needed) {
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, op, "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed) + " as " + op + "_workspace says");
  }
  const auto start =
      static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(ctx.workspace.data()));
  data_ = ctx.workspace.data() + (round_up(start, kAlignment) - start);
}

namespace {

// Only asked when a result is not finite: no need for speed.
std::int64_t first_bad(const ArrayRef& array) {
  if (array.rank == 0 || array.size() == 0) return -1;
  return visit_storage(array.dtype, [&](auto tag) -> std::int64_t {
    using S = typename decltype(tag)::type;
    const auto* data = static_cast<const S*>(array.data);
    std::array<std::int64_t, kMaxRank> at{};
    for (std::int64_t index = 0;; ++index) {
      std::int64_t offset = 0;
      for (std::size_t r = 0; r < kMaxRank; ++r) offset += at[r] * array.strides[r];
      if (!std::isfinite(widen(data[offset]))) return index;
      int r = array.rank - 1;
      while (r >= 0 && ++at[static_cast<std::size_t>(r)] == array.extent(r))
        at[static_cast<std::size_t>(r--)] = 0;
      if (r < 0) return -1;
    }
  });
}

}  // namespace

ProductReport verdict(const Context& ctx, int threads, std::span<const LayerFactors> layers,
                      const ArrayRef& vector, const ArrayRef& out) {
  using Kind = ProductReport::Kind;
  if (scan(ctx, threads, out).first_bad < 0) return {};
  if (const std::int64_t index = first_bad(vector); index >= 0)
    return {Kind::non_finite, -1, 0, index};
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const ArrayRef* const arrays[] = {&layers[layer].a, &layers[layer].g, &layers[layer].w};
    for (int argument = 0; argument < 3; ++argument) {
      if (const std::int64_t index = first_bad(*arrays[argument]); index >= 0)
        return {Kind::non_finite, static_cast<int>(layer), argument, index};
    }
  }
  return {Kind::overflow, -1, 0, 0};
}

TapView::TapView(const LayerFactors& layer, std::int64_t tap) {
  const ConvGeometry& conv = layer.conv;
  const int missing = 3 - conv.rank;
  for (int r = conv.rank - 1; r >= 0; --r) {
    const auto axis = static_cast<std::size_t>(r);
    const int at = r + missing;
    input[at] = layer.a.extent(2 + r);
    stride[at] = layer.a.stride(2 + r);
    output[at] = layer.g.extent(layer.g.rank - conv.rank + r);
    step[at] = conv.stride[axis];
    shift[at] = tap % conv.kernel[axis] * conv.dilation[axis] - conv.padding[axis];
    tap /= conv.kernel[axis];
  }
}

template <class S, class T>
Inputs<S, T>::Inputs(const Piece& piece) : piece_(piece) {
  const ArrayRef& a = piece.layer->a;
  data_ = static_cast<const S*>(a.data);
  sample_ = a.stride(0);
  if (piece.layer->form == LayerForm::conv) {
    data_ += piece.first_channel * a.stride(1);
    return;
  }
  const bool shared = piece.layer->form == LayerForm::shared;
  position_ = shared ? a.stride(1) : 0;
  feature_ = a.stride(shared ? 2 : 1);
  data_ += piece.first_feature * feature_;
}

template <class S, class T>
void Inputs<S, T>::positions(std::int64_t n, std::int64_t i, std::int64_t s, std::int64_t count,
                             T* to) const {
  if (i == piece_.features) {
    std::fill(to, to + count, T{1});
    return;
  }
  const LayerFactors& layer = *piece_.layer;
  const std::int64_t taps = layer.conv.taps();
  const TapView view(layer, (piece_.first_feature + i) % taps);
  const S* plane = data_ + n * sample_ + (piece_.first_feature + i) / taps * layer.a.stride(1);
  const std::int64_t pitch = view.step[2] * view.stride[2];
  view.stretches(s, count,
                 [&](std::int64_t at, std::int64_t from, std::int64_t upto, std::int64_t run,
                     std::int64_t z, std::int64_t y, std::int64_t x) {
                   T* line = to + at;
                   std::fill(line, line + from, T{0});
                   std::fill(line + upto, line + run, T{0});
                   if (from == upto) return;
                   const S* source =
                       plane + z * view.stride[0] + y * view.stride[1] + x * view.stride[2];
                   if (pitch == 1) {
                     for (std::int64_t k = 0; k < upto - from; ++k)
                       line[from + k] = widen(source[k]);
                   } else {
                     for (std::int64_t k = 0; k < upto - from; ++k)
                       line[from + k] = widen(source[k * pitch]);
                   }
                 });
}

template <class S, class T>
const T* Inputs<S, T>::plane(std::int64_t n, std::int64_t channel, T* buffer) const {
  const LayerFactors& layer = *piece_.layer;
  const TapView view(layer, 0);
  const S* data = data_ + n * sample_ + channel * layer.a.stride(1);
  if constexpr (std::is_same_v<S, T>) {
    if (view.stride[2] == 1 && view.stride[1] == view.input[2] &&
        (view.input[0] == 1 || view.stride[0] == view.input[1] * view.input[2]))
      return data;
  }
  T* to = buffer;
  for (std::int64_t z = 0; z < view.input[0]; ++z) {
    for (std::int64_t y = 0; y < view.input[1]; ++y) {
      const S* line = data + z * view.stride[0] + y * view.stride[1];
      for (std::int64_t x = 0; x < view.input[2]; ++x) *to++ = widen(line[x * view.stride[2]]);
    }
  }
  return buffer;
}

template <class S, class T>
Ahead Inputs<S, T>::ahead(std::int64_t row, std::int64_t rows) const {
  const std::int64_t pitch = piece_.positions == 1 ? sample_ : position_;
  const auto item = static_cast<std::int64_t>(sizeof(S));
  if (piece_.positions_inside() || feature_ != 1 || pitch != piece_.features ||
      sample_ != piece_.positions * pitch || rows * pitch * item > kProductAhead)
    return {};
  const std::int64_t bytes = rows * pitch * item;
  return {reinterpret_cast<const char*>(data_ + row * pitch), bytes, bytes, bytes};
}

template <class S, class T>
Cotangents<S, T>::Cotangents(const Piece& piece) {
  const LayerFactors& layer = *piece.layer;
  const ArrayRef& g = layer.g;
  data_ = static_cast<const S*>(g.data);
  sample_ = g.stride(0);
  const int next = layer.separable() ? 1 : 2;  // the axis after those of samples and outputs
  output_ = layer.separable() ? 0 : g.stride(1);
  if (layer.separable()) {
    w_output_ = layer.w.stride(0);
    w_unit_ = layer.w.stride(1);
    w_ = static_cast<const S*>(layer.w.data) + piece.first_unit * w_unit_;
  }
  switch (layer.form) {
  case LayerForm::jacobian:
  case LayerForm::dense:
    inner_ = g.stride(2);
    return;
  case LayerForm::shared:
    outer_ = g.stride(next);
    inner_ = g.stride(next + 1);
    return;
  case LayerForm::conv:
    break;
  }
  outer_ = g.stride(next);
  data_ += piece.first_unit * outer_;
  for (int r = 0; r < layer.conv.rank; ++r) {
    const std::int64_t extent = g.extent(next + 1 + r), stride = g.stride(next + 1 + r);
    if (extent == 1) continue;
    if (axes_ > 0 && strides_[axes_ - 1] == stride * extent) {
      extents_[axes_ - 1] *= extent;
      strides_[axes_ - 1] = stride;
    } else {
      extents_[axes_] = extent;
      strides_[axes_++] = stride;
    }
  }
  if (axes_ <= 1) {
    inner_ = axes_ == 1 ? strides_[0] : 1;
    axes_ = 0;
  }
}

template <class S, class T>
const T* Cotangents<S, T>::row(std::int64_t n, std::int64_t c, std::int64_t outer,
                               std::int64_t from, std::int64_t count, T* buffer) const {
  const S* line = data_ + n * sample_ + c * output_ + outer * outer_;
  if (axes_ == 0) return load_packed<S, T>(line + from * inner_, inner_, count, buffer);
  const std::int64_t last = extents_[axes_ - 1];
  for (std::int64_t k = 0; k < count;) {
    std::int64_t rest = (from + k) / last, offset = 0;
    for (int r = axes_ - 2; r >= 0; --r) {
      offset += rest % extents_[r] * strides_[r];
      rest /= extents_[r];
    }
    const std::int64_t at = (from + k) % last, run = std::min(count - k, last - at);
    const S* start = line + offset + at * strides_[axes_ - 1];
    for (std::int64_t q = 0; q < run; ++q) buffer[k + q] = widen(start[q * strides_[axes_ - 1]]);
    k += run;
  }
  return buffer;
}

template <class S, class T>
Ahead Cotangents<S, T>::ahead(const Piece& piece, std::int64_t n, std::int64_t s,
                              std::int64_t rows) const {
  Ahead ahead;
  if (piece.layer->separable() || piece.explicit_form() || axes_ != 0 || inner_ != 1) return ahead;
  const std::int64_t within = std::min(rows, piece.positions - s);
  std::int64_t segment = within, pitch = outer_, count = piece.outputs * piece.units;
  if (!piece.positions_inside()) {
    if (piece.positions > 1 && outer_ != piece.units) return {};
    segment = within * piece.units;
    pitch = output_;
    count = piece.outputs;
  } else if (output_ != piece.units * outer_) {
    return {};
  }
  // Whole samples, one after the other.
  if (s == 0 && rows >= piece.positions && pitch == segment && sample_ == count * segment)
    count *= std::min(ceil_div(rows, piece.positions), piece.samples - n);
  const auto item = static_cast<std::int64_t>(sizeof(S));
  ahead.base = reinterpret_cast<const char*>(data_ + n * sample_ +
                                             s * (piece.positions_inside() ? 1 : outer_));
  ahead.segment = segment * item;
  ahead.pitch = pitch * item;
  ahead.bytes = count * segment * item;
  if (pitch == segment) ahead.segment = ahead.pitch = std::max<std::int64_t>(1, ahead.bytes);
  return ahead.bytes > kProductAhead || ahead.segment <= 0 ? Ahead{} : ahead;
}

template class Inputs<float, float>;
template class Inputs<double, double>;
template class Inputs<BFloat16, float>;
template class Inputs<Float16, float>;
template class Cotangents<float, float>;
template class Cotangents<double, double>;
template class Cotangents<BFloat16, float>;
template class Cotangents<Float16, float>;

}  // namespace fastfisher::cpu

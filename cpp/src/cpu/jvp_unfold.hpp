// SPDX-License-Identifier: Apache-2.0
//
// The inputs of a convolution, unfolded into panels of positions for J v. See jvp.cpp.
#pragma once

#include "convert.hpp"
#include "products.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fastfisher::cpu {

/// `count` numbers, mostly a few vectors of them: too few for a call of the library's copy.
template <class S, class T>
void copy_run(const S* from, std::int64_t pitch, std::int64_t count, T* to) {
  if constexpr (std::is_same_v<S, T>) {
    constexpr std::int64_t kLine = 32 / sizeof(T);
    if (pitch == 1 && count >= kLine) {
      // The last line overlaps the one before.
      for (std::int64_t k = 0; k + kLine <= count; k += kLine) std::memcpy(to + k, from + k, 32);
      std::memcpy(to + count - kLine, from + count - kLine, 32);
      return;
    }
  }
  for (std::int64_t k = 0; k < count; ++k) to[k] = widen(from[k * pitch]);
}

/// The panel at row `to_row` of `panels`: rows row .. of the block of `count` positions from s on
/// of each of `samples` samples from n on, zeros beyond. What a tap sees of a stretch of positions
/// is the same for all channels: it is found once.
template <class S, class T>
void unfold(const Piece& piece, std::int64_t n, std::int64_t samples, std::int64_t s,
            std::int64_t count, std::int64_t row, const Panels& panels, std::int64_t to_row,
            T* to) {
  const LayerFactors& layer = *piece.layer;
  const std::int64_t taps = layer.conv.taps(), width = panels.width;
  const std::int64_t used = std::min(width, samples * count - row);
  const std::int64_t sample = layer.a.stride(0), channel = layer.a.stride(1);
  const S* const data = static_cast<const S*>(layer.a.data) + piece.first_channel * channel;
  const auto line = [&](std::int64_t depth) {
    const std::int64_t chunk = depth / kProductDepth * kProductDepth;
    return to + panels.at(chunk, to_row) + (depth - chunk) * width;
  };
  for (std::int64_t tap = 0; tap < taps; ++tap) {
    const TapView view(layer, tap);
    const std::int64_t pitch = view.step[2] * view.stride[2];
    // Channels of which this tap is among the piece's features.
    const std::int64_t first = ceil_div(piece.first_feature - tap, taps);
    const std::int64_t last = ceil_div(piece.first_feature + piece.features - tap, taps);
    for (std::int64_t r = 0; r < used;) {
      const std::int64_t at = n + (row + r) / count, from = (row + r) % count;
      const std::int64_t run = std::min(used - r, count - from);
      view.stretches(s + from, run,
                     [&](std::int64_t start, std::int64_t seen, std::int64_t upto,
                         std::int64_t length, std::int64_t z, std::int64_t y, std::int64_t x) {
                       const std::int64_t source = at * sample + z * view.stride[0] +
                                                   y * view.stride[1] + x * view.stride[2];
                       for (std::int64_t c = first; c < last; ++c) {
                         T* dst = line(c * taps + tap - piece.first_feature) + r + start;
                         std::fill(dst, dst + seen, T{0});
                         std::fill(dst + upto, dst + length, T{0});
                         if (seen < upto)
                           copy_run(data + source + c * channel, pitch, upto - seen, dst + seen);
                       }
                     });
      r += run;
    }
  }
  if (piece.bias) std::fill_n(line(piece.features), used, T{1});
  if (used == width) return;
  for (std::int64_t depth = 0; depth < piece.depth(); ++depth)
    std::fill(line(depth) + used, line(depth) + width, T{0});
}

}  // namespace fastfisher::cpu

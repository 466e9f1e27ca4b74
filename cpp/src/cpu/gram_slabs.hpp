// SPDX-License-Identifier: Apache-2.0
//
// Cuts the chunks of a plan into slabs that are packed together, and those into groups whose
// gradients are formed together.
#pragma once

#include "gram_plan.hpp"

#include <array>
#include <cstdint>

namespace fastfisher::cpu {

/// Works on a plan whose chunks and blocks are set; in one pass over the chunks.
class SlabCutter {
 public:
  SlabCutter(const GramShape& shape, std::int64_t item, GramPlan& plan);

  /// Fills slabs of at most `panels` bytes of panels, in groups that form at most `formed` bytes;
  /// false if what cannot be divided is larger, or where a `single` slab is wanted and they are
  /// several.
  bool cut(std::int64_t panels, std::int64_t formed, bool single);

  /// What limits mean: bytes of panels and formed ones that cannot be divided, and of all panels.
  struct Extent {
    std::int64_t packed = 0, formed = 0, all_packed = 0;
  };
  [[nodiscard]] Extent extent() const;

  /// Where each chunk finds its panels and its piece.
  void locate();

  /// Whether left and right form different samples at some time.
  [[nodiscard]] bool two_sides() const;

 private:
  struct Bytes {
    std::int64_t left = 0, right = 0;
    [[nodiscard]] std::int64_t sum() const { return left + right; }
    void operator+=(const Bytes& more) {
      left += more.left;
      right += more.right;
    }
  };

  // Of its panels, or of its rows where these meet in place.
  [[nodiscard]] Bytes chunk_bytes(const GramChunk& chunk) const;
  [[nodiscard]] Bytes panel_bytes(const GramChunk& chunk) const;
  [[nodiscard]] Bytes piece_bytes(const GramPiece& piece) const;
  [[nodiscard]] std::int64_t in_place_bytes() const;
  void form(const GramChunk& chunk, std::vector<GramPiece>& pieces, Bytes& bytes) const;
  bool form_all(std::size_t begin, std::size_t end, std::int64_t limit, Bytes& bytes);
  [[nodiscard]] bool fits_whole(std::size_t begin, std::int64_t limit, Bytes bytes) const;
  void close_group();

  const GramShape& shape_;
  std::int64_t item_;
  GramPlan& plan_;
  bool two_sides_;
  std::array<std::int64_t, 2> left_extents_, right_extents_;  // of samples, of gradients
  std::int64_t left_samples_, right_samples_;                 // of a block
};

}  // namespace fastfisher::cpu

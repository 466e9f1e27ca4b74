// SPDX-License-Identifier: Apache-2.0
#include "gram_access.hpp"
#include "gram_plan.hpp"

#include <algorithm>
#include <bit>

namespace fastfisher::cpu {
namespace {

// Where a slab may begin: nowhere in a stretch, at its first chunk, at every one.
enum class Atoms { none, first, every };

constexpr Atoms first_if(bool condition) {
  return condition ? Atoms::first : Atoms::none;
}

// Depth after which a product of gradients alone is folded.
constexpr std::int64_t kFoldDepth = 16 * kGramDepth;

// Entries of a sample that are always formed together, about, for all outputs: rows that meet in
// place are read in long stretches, and little memory will do.
constexpr std::int64_t kFormedTogether = std::int64_t{1} << 12;

class Chunks {
 public:
  explicit Chunks(const GramShape& shape) : shape_(shape) {}

  // Counts first: a list that grows takes twice its memory, and one too long is never made.
  std::vector<GramChunk> all(std::int64_t most) {
    walk();
    if (count_ > most) return {};
    chunks_.reserve(static_cast<std::size_t>(count_));
    counting_ = false;
    walk();
    return std::move(chunks_);
  }

 private:
  void walk() {
    for (std::size_t index = 0; index < shape_.layers.size(); ++index) {
      next_ = {};
      next_.layer = static_cast<int>(index);
      layer(shape_.layers[index]);
    }
  }

  void layer(const LayerShape& layer) {
    const bool trace = shape_.kind == GramOutputs::trace;
    const std::int64_t outputs = trace ? layer.outputs : 1;
    if (layer.form == LayerForm::dense && layer.method == GramMethod::s0) {
      cut(false, 0, layer.in, true, true, Atoms::every);
      cut(true, 0, layer.out * outputs, true, true, Atoms::every);
    } else if (layer.form == LayerForm::jacobian) {
      jacobian(layer, outputs);
    } else if (layer.nothing()) {
      cut(true, 0, 0, true, true, Atoms::every);  // zero, but the tile must be set
    } else if (layer.method == GramMethod::s3) {
      position_pairs(layer, outputs);
    } else if (layer.method == GramMethod::s2) {
      half_formed(layer, outputs);
    } else if (layer.has_samples(shape_.kind)) {
      separable(layer);
    } else {
      gradients(layer, layer.method == GramMethod::s4 ? 1 : outputs);
    }
  }

  // The caller's own rows. Those that meet in place do so in whole vectors of one output.
  void jacobian(const LayerShape& layer, std::int64_t outputs) {
    if (!shape_.in_place(layer)) {
      const std::size_t begin = chunks_.size();
      cut(true, 0, layer.in * outputs, true, true, Atoms::every);
      return fold_often(begin);
    }
    const std::int64_t whole = layer.in / shape_.grain * shape_.grain;
    for (std::int64_t output = 0; output < outputs; ++output) {
      next_.in_place = true;
      if (whole > 0) cut(true, output * layer.in, whole, true, true, Atoms::every);
      next_.in_place = false;
      if (whole < layer.in)
        cut(true, output * layer.in + whole, layer.in - whole, true, true, Atoms::every);
    }
  }

  // S1, and S4 where outputs do not meet: one product over formed rows.
  void gradients(const LayerShape& layer, std::int64_t outputs) {
    const std::size_t begin = chunks_.size();
    const bool in_place = shape_.in_place(layer);
    const std::int64_t together = std::max<std::int64_t>(1, kFormedTogether / outputs);
    std::int64_t wanted =
        (in_place ? std::min(kInPlaceDepth, together) : kGramDepth) / layer.padded;
    // A power of two, about: groups of them end where micro tiles and lines of cotangents do.
    if (in_place && wanted > 0)
      wanted =
          static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(wanted * 4 / 3)));
    units(layer, wanted, [&](std::int64_t count) {
      next_.across = outputs > 1;
      next_.in_place = in_place;
      next_.source = GramChunk::Source::weights;
      cut(true, 0, count * layer.padded * outputs, in_place, in_place,
          outputs > 1 ? Atoms::every : Atoms::first);
      next_.in_place = false;
      if (!layer.bias) return;
      next_.source = GramChunk::Source::ones;
      cut(true, 0, count * outputs, in_place, in_place, outputs > 1 ? Atoms::every : Atoms::none);
    });
    next_.across = false;
    if (in_place) return;
    one_product(begin);
    fold_often(begin);
  }

  // A product that is folded by itself need not grow long in its own precision: now and then what
  // there is goes to the float64 sum.
  void fold_often(std::size_t begin) {
    std::int64_t depth = 0;
    for (std::size_t k = begin; k < chunks_.size(); ++k) {
      if (depth >= kFoldDepth) {
        chunks_[k - 1].last = chunks_[k].first = true;
        depth = 0;
      }
      depth += chunks_[k].depth;
    }
  }

  // S4: each unit o is a dense layer with the formed a and the column w[:, o] for g.
  void separable(const LayerShape& layer) {
    units(layer, kGramDepth / layer.padded, [&](std::int64_t count) {
      const std::int64_t from = next_.unit;
      next_.units = 1;
      for (std::int64_t o = from; o < from + count; ++o) {
        next_.unit = o;
        next_.source = GramChunk::Source::weights;
        cut(false, 0, layer.padded, true, !layer.bias, first_if(o == from));
        if (layer.bias) {
          next_.source = GramChunk::Source::ones;
          cut(false, 0, 1, false, true, Atoms::none);
        }
        next_.source = GramChunk::Source::input;
        cut(true, 0, 1, true, true, Atoms::none);
      }
    });
  }

  // S3: rows of each position; which meet which is the tile's business.
  void position_pairs(const LayerShape& layer, std::int64_t outputs) {
    const bool conv = layer.form == LayerForm::conv;
    for (next_.group = 0; next_.group < layer.groups; ++next_.group) {
      for (next_.unit = 0; next_.unit < layer.positions(); ++next_.unit) {
        const bool begins = next_.group == 0 && next_.unit == 0;
        next_.source = conv ? GramChunk::Source::patches : GramChunk::Source::input;
        cut(false, 0, conv ? layer.padded : layer.in, true, true, first_if(begins));
        next_.source = GramChunk::Source::input;
        cut(true, 0, layer.group_out() * outputs, true, true, Atoms::none);
      }
    }
    next_.group = 0;
  }

  // S2: for each stretch of units the left's inputs at every position, the right's gradients, then
  // the left's cotangents at every position.
  void half_formed(const LayerShape& layer, std::int64_t outputs) {
    const std::size_t begin = chunks_.size();
    const bool conv = layer.form == LayerForm::conv;
    units(layer, kHalfFormedUnits, [&](std::int64_t count) {
      const std::int64_t from = next_.unit;
      for (next_.output = 0; next_.output < outputs; ++next_.output) {
        next_.side = GramChunk::Side::left;
        next_.source = conv ? GramChunk::Source::patches : GramChunk::Source::input;
        next_.units = 1;
        for (next_.unit = 0; next_.unit < layer.left_positions; ++next_.unit)
          cut(false, 0, layer.in, false, false, first_if(next_.unit == 0));
        next_.side = GramChunk::Side::right;
        next_.source = GramChunk::Source::weights;
        for (next_.unit = from; next_.unit < from + count; ++next_.unit)
          cut(true, 0, layer.in, false, false, Atoms::none);
        if (layer.bias) {
          next_.source = GramChunk::Source::ones;
          next_.unit = from;
          next_.units = static_cast<std::int32_t>(count);
          cut(true, 0, count, false, false, Atoms::none);
        }
        next_.side = GramChunk::Side::left;
        next_.source = GramChunk::Source::input;
        const std::int64_t first =
            next_.output * layer.group_out() + from - next_.group * layer.group_out();
        for (next_.unit = 0; next_.unit < layer.left_positions; ++next_.unit)
          cut(true, first, count, false, false, Atoms::none);
      }
      next_.side = GramChunk::Side::both;
    });
    one_product(begin);
  }

  // The chunks from `begin` on are one product.
  void one_product(std::size_t begin) {
    if (counting_) return;
    chunks_[begin].first = true;
    chunks_.back().last = true;
  }

  // Stretches of about `wanted` units o of each group.
  template <class Function>
  void units(const LayerShape& layer, std::int64_t wanted, const Function& each) {
    wanted = std::max<std::int64_t>(1, wanted);
    for (next_.group = 0; next_.group < layer.groups; ++next_.group) {
      const std::int64_t end = (next_.group + 1) * layer.group_out();
      for (std::int64_t o = next_.group * layer.group_out(); o < end; o += wanted) {
        next_.unit = o;
        const std::int64_t count = std::min(wanted, end - o);
        next_.units = static_cast<std::int32_t>(count);
        each(count);
      }
    }
    next_.group = next_.output = 0;
    next_.units = 1;
  }

  // Depth [from, from + depth) in equal chunks.
  void cut(bool gradients, std::int64_t from, std::int64_t depth, bool first, bool last,
           Atoms atoms) {
    const std::int64_t most = next_.in_place ? kInPlaceDepth : kGramDepth;
    const std::int64_t grain = next_.in_place ? shape_.grain : 1;
    const std::int64_t count = std::max<std::int64_t>(1, ceil_div(depth, most));
    count_ += count;
    if (counting_) return;
    const auto bound = [&](std::int64_t k) { return depth / grain * k / count * grain; };
    for (std::int64_t k = 0; k < count; ++k) {
      GramChunk chunk = next_;
      chunk.gradients = gradients;
      chunk.from = from + bound(k);
      chunk.depth = static_cast<std::int32_t>(bound(k + 1) - bound(k));
      // What meets in place is folded at once: the chunks of a product go to several sums.
      chunk.first = first && (k == 0 || next_.in_place);
      chunk.last = last && (k == count - 1 || next_.in_place);
      chunk.atom = atoms == Atoms::every || (atoms == Atoms::first && k == 0);
      chunks_.push_back(chunk);
    }
  }

  const GramShape& shape_;
  GramChunk next_;
  bool counting_ = true;
  std::int64_t count_ = 0;
  std::vector<GramChunk> chunks_;
};

}  // namespace

std::vector<GramChunk> gram_chunks(const GramShape& shape, std::int64_t most) {
  return Chunks(shape).all(most);
}

std::int64_t gram_list_bytes(const GramShape& shape, std::int64_t chunks, std::int64_t item_bytes) {
  // Every chunk may be a slab and a group of its own only where memory is short: count the slab,
  // twice as its list grows, and the pieces, one a group of channels and two while they grow.
  std::int64_t bytes = chunks * static_cast<std::int64_t>(sizeof(GramChunk) + 2 * sizeof(GramSlab));
  // Where rows lie that meet in place, and what tiles do with them, for the chunks of a slab.
  if (shape.in_place_depth() > 0)
    bytes += chunks * static_cast<std::int64_t>(2 * sizeof(Rows) + sizeof(GramStep));
  for (const LayerShape& layer : shape.layers) {
    // One for each group of channels, twice while their list grows.
    if (layer.formed()) bytes += 2 * layer.groups * static_cast<std::int64_t>(sizeof(GramPiece));
    // Copies of w: of both sides, and of what forms with them.
    if (layer.separable) bytes += 4 * layer.outputs * layer.out * item_bytes;
  }
  return bytes;
}

}  // namespace fastfisher::cpu

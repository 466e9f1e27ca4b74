// SPDX-License-Identifier: Apache-2.0
//
// The layers of both sides scanned, and the powers of two that their factors are packed with.
#pragma once

#include "fastfisher/error.hpp"
#include "fastfisher/ops.hpp"
#include "gram_balance.hpp"
#include "gram_plan.hpp"
#include "scan.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {

/// What fold multiplies the products of a layer with, and adds to those of samples.
struct LayerScale {
  double scale = 1, bias = 0;
};

/// Layers of one side, and by layer their scales.
template <class T>
struct SideScales {
  std::span<const LayerFactors> layers;
  std::vector<double> scale_a, scale_g, scale_w;     ///< powers of two
  std::vector<std::vector<T>> w;                     ///< separable: [c,o] times scale_w
  std::vector<std::vector<T>> balance_a, balance_g;  ///< scale of each sample, where balanced
};

template <class S, class T>
class SideScanner {
 public:
  /// `square`: the second side is the first.
  SideScanner(const GramShape& shape, const TileKernels<T>& kernels, bool square,
              SideScales<T>* const (&sides)[2], std::vector<LayerScale>& scales,
              std::vector<bool>& trusted)
      : shape_(shape),
        kernels_(kernels),
        square_(square),
        sides_{sides[0], sides[1]},
        scales_(scales),
        trusted_(trusted) {}

  /// Finds bad entries and the power of two that each factor is packed with.
  /// With `trust`, for a Gram of one side, cotangents are not read that its diagonal tells of.
  GramReport scan_all(const Context& ctx, int threads, bool trust) {
    const std::size_t count = shape_.layers.size();
    scales_.assign(count, {});
    trusted_.assign(count, false);
    for (SideScales<T>* each : sides_) {
      SideScales<T>& side = *each;
      side.scale_a.assign(count, 1);
      side.scale_g.assign(count, 1);
      side.scale_w.assign(count, 1);
      side.w.resize(count);
      side.balance_a.resize(count);
      side.balance_g.resize(count);
    }
    for (std::size_t index = 0; index < count; ++index) {
      const LayerShape& layer = shape_.layers[index];
      double total = 0;
      int exponents_a = 0;
      for (int which = 0; which < 2; ++which) {
        SideScales<T>& side = *sides_[which];
        if (which == 1 && square_) {
          side.scale_a[index] = sides_[0]->scale_a[index];
          side.scale_g[index] = sides_[0]->scale_g[index];
          side.scale_w[index] = sides_[0]->scale_w[index];
          side.w[index] = sides_[0]->w[index];
          side.balance_a[index] = sides_[0]->balance_a[index];
          side.balance_g[index] = sides_[0]->balance_g[index];
        } else {
          const LayerFactors& factors = side.layers[index];
          const ArrayRef* arrays[] = {&factors.a, &factors.g, &factors.w};
          double* scales[] = {&side.scale_a[index], &side.scale_g[index], &side.scale_w[index]};
          SampleScales largest_of;
          std::vector<double>* samples[] = {&largest_of.a, &largest_of.g, nullptr};
          for (int argument = 0; argument < 3; ++argument) {
            if (arrays[argument]->rank == 0) continue;
            if (argument == 1 && trust && tells(ctx, threads, layer, factors.g)) {
              trusted_[index] = true;
              side.scale_a[index] = 1;
              continue;
            }
            const ScanResult found = scan(ctx, threads, *arrays[argument], samples[argument]);
            if (argument == 2) largest_of.w = found.largest;
            if (found.first_bad >= 0) {
              return {GramReport::Kind::non_finite,
                      which,
                      static_cast<int>(index),
                      argument,
                      found.first_bad,
                      0};
            }
            // The bias joins the inner product of a, so it takes part in its scale.
            const double largest =
                argument == 0 && factors.bias ? std::max(found.largest, 1.0) : found.largest;
            *scales[argument] = std::ldexp(1.0, -exponent_of(largest, layer));
          }
          if (layer.form != LayerForm::jacobian && !trusted_[index])
            balance_samples(side, index, largest_of);
          if (factors.separable()) read_w(factors.w, side.scale_w[index], side.w[index]);
        }
        exponents_a += std::ilogb(side.scale_a[index]);
        total += std::ilogb(side.scale_a[index]) + std::ilogb(side.scale_g[index]) +
                 std::ilogb(side.scale_w[index]);
      }
      // The 1 that a bias adds to a has the scale of a: of both sides where samples meet, of the
      // left where formed gradients meet its inputs.
      if (layer.bias && (layer.method == GramMethod::s0 || layer.method == GramMethod::s3))
        scales_[index].bias = std::ldexp(1.0, exponents_a);
      if (layer.bias && layer.method == GramMethod::s2)
        scales_[index].bias = sides_[0]->scale_a[index];
      // Denormal or zero where every entry underflows; infinite, hence an overflow, beyond the
      // range.
      scales_[index].scale = std::ldexp(1.0, static_cast<int>(std::clamp(-total, -2000.0, 2000.0)));
    }
    return {};
  }

 private:
  // Whether the diagonal of the Gram tells of every number of g, as in products of gradients alone,
  // and is likely to: denormal products of small numbers take long. Such a layer is multiplied as
  // it is: what is huge where the other factor is zero hides nothing then.
  [[nodiscard]] bool tells(const Context& ctx, int threads, const LayerShape& layer,
                           const ArrayRef& g) const {
    // Float16 is widened without a thought of infinity.
    if (std::is_same_v<S, Float16> || layer.nothing() || layer.separable) return false;
    if (layer.form == LayerForm::jacobian && shape_.in_place(layer)) return true;
    if (layer.form != LayerForm::jacobian && layer.method != GramMethod::s1) return false;
    if (g.extent(0) == 0) return false;
    ArrayRef first = g;
    first.extents[0] = 1;
    return scan(ctx, threads, first).largest > 0x1p-40;
  }

  // Scales a and g sample by sample where no common scale will do.
  void balance_samples(SideScales<T>& side, std::size_t index, SampleScales& largest) const {
    constexpr int low = std::is_same_v<T, float> ? -50 : -400;
    constexpr int most = std::is_same_v<T, float> ? 126 : 1000;
    const LayerShape& layer = shape_.layers[index];
    if (layer.bias) {
      for (double& a : largest.a) a = std::max(a, 1.0);
    }
    double& scale_a = side.scale_a[index];
    double& scale_g = side.scale_g[index];
    if (!opposed(largest, scale_a, scale_g * side.scale_w[index], low)) return;
    if (layer.bias && layer.method != GramMethod::s1 && layer.method != GramMethod::s4) {
      throw Error(ErrorCode::shape, "gram", "method",
                  "layer " + std::to_string(index) +
                      " has a bias and samples whose inputs and gradients are of opposed scale, "
                      "which only S1 and precision='exact' can tell from zero");
    }
    const std::vector<int> exponents = balance(largest);
    double most_a = 0, most_g = 0;
    for (std::size_t n = 0; n < exponents.size(); ++n) {
      most_a = std::max(most_a, std::ldexp(largest.a[n], exponents[n]));
      most_g = std::max(most_g, std::ldexp(largest.g[n], -exponents[n]));
    }
    scale_a = std::ldexp(1.0, -exponent_of(most_a, layer));
    scale_g = std::ldexp(1.0, -exponent_of(most_g, layer));
    const int log_a = std::ilogb(scale_a), log_g = std::ilogb(scale_g);
    for (const int wanted : exponents) {
      // Both scales are normal numbers of T.
      const int e = std::clamp(wanted, std::max(-most - log_a, log_g - most),
                               std::min(most - log_a, log_g + most));
      side.balance_a[index].push_back(static_cast<T>(std::ldexp(1.0, log_a + e)));
      side.balance_g[index].push_back(static_cast<T>(std::ldexp(1.0, log_g - e)));
    }
  }

  // Widened through the kernels, so that 16-bit types are known in one place.
  void read_w(const ArrayRef& w, double scale, std::vector<T>& to) const {
    to.resize(static_cast<std::size_t>(w.size()));
    for (std::int64_t c = 0; c < w.extent(0); ++c) {
      const S* row = static_cast<const S*>(w.data) + c * w.stride(0);
      pack_of<S>(kernels_)(&row, 1, 1, w.stride(1), w.extent(1), scale,
                           to.data() + c * w.extent(1));
    }
  }

  // Magnitudes whose products, summed over any depth, stay in the range of T: of two factors, or of
  // four where what is formed of two is multiplied again.
  static int exponent_of(double largest, const LayerShape& layer) {
    if (largest == 0) return 0;
    constexpr bool narrow = std::is_same_v<T, float>;
    const bool twice = layer.method == GramMethod::s0 || layer.form == LayerForm::jacobian;
    const int safe = narrow ? (twice ? 48 : 12) : (twice ? 480 : 120);
    constexpr int most = narrow ? 126 : 1000;  // so that 2^-e is a normal T
    const int e = std::ilogb(largest);
    return std::abs(e) <= safe ? 0 : std::clamp(e, -most, most);
  }

  const GramShape& shape_;
  const TileKernels<T>& kernels_;
  bool square_;
  SideScales<T>* sides_[2];
  std::vector<LayerScale>& scales_;
  std::vector<bool>& trusted_;
};

}  // namespace fastfisher::cpu

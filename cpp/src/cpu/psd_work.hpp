// SPDX-License-Identifier: Apache-2.0
//
// The work on one matrix: load, factor or diagonalise, raise the damping where that is automatic,
// store, report.
#pragma once

#include "fastfisher/error.hpp"
#include "fastfisher/ops.hpp"
#include "parallel.hpp"
#include "psd_cholesky.hpp"
#include "psd_copy.hpp"
#include "psd_damping.hpp"
#include "psd_factor.hpp"
#include "psd_inverse.hpp"
#include "psd_solve.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>

namespace fastfisher::cpu {

inline constexpr std::int64_t kPsdLine = 64;

inline std::int64_t rounded(std::int64_t bytes) {
  return round_up(bytes, kPsdLine);
}

// Scratch of one worker: scales and sums, then by task a matrix, or two and LAPACK's.
template <class T>
std::int64_t scratch_bytes(PsdTask task, std::int64_t n) {
  const std::int64_t size = static_cast<std::int64_t>(sizeof(T));
  const std::int64_t passes = in_panels(task, n) ? ceil_div(n, kPassRows) : 1;
  std::int64_t bytes = rounded(size * n) + rounded(size * n * passes);
  if (task == PsdTask::solve && !in_panels(task, n)) {
    bytes += rounded(size * n * n);
  } else if (task == PsdTask::solve) {
    constexpr auto kind = DiagonalBlocks::factored;
    bytes += rounded(size * FactorPanels<T>::size(n, kind)) +
             rounded(size * FactorSweep<T, kind>::scratch(n)) +
             kSolvers * rounded(size * solver_panel<T>(n));
  }
  if (task == PsdTask::inverse) {
    bytes += rounded(size * SweepPanels<T>::size(n, sweep_kernels<T>().width)) +
             rounded(size * InverseSweep<T>::scratch(n));
  }
  if (task == PsdTask::factor) bytes += rounded(size * FactorSweep<T>::scratch(n));
  if (task == PsdTask::inverse_root) bytes += rounded(size * n * n) + rounded(size * n);
  if (task == PsdTask::eigh || task == PsdTask::inverse_root)
    bytes += rounded(std::max(eigen_work<T>(n), size * n * n));
  return bytes;
}

template <class S, class T>
class PsdWork {
 public:
  PsdWork(const Context& ctx, int threads, const PsdItem& item, const PsdOptions& options,
          std::byte* scratch)
      : ctx_(ctx),
        threads_(threads),
        item_(item),
        options_(options),
        a_(view_of<const S, 2>(item.a)),
        n_(item.a.extent(0)),
        ladder_(a_),
        out_(static_cast<T*>(item.out.data)),
        scratch_(scratch),
        end_(scratch + scratch_bytes<T>(options.task, n_)) {
    scale_ = take(n_);
    sums_ = take(in_panels(options.task, n_) ? n_ * passes() : n_);
  }

  PsdReport run() {
    PsdReport report;
    report.condition = 1;
    report.damping = item_.automatic ? 0 : item_.damping;
    if (n_ > 0) {
      if (options_.task == PsdTask::eigh || options_.task == PsdTask::inverse_root) {
        spectral(report);
      } else {
        by_factor(report);
      }
    }
    if (report.kind != Kind::ok && report.kind != Kind::damped) {
      report.condition = kInfinity;
      std::fill(out_, out_ + item_.out.size(), std::numeric_limits<T>::quiet_NaN());
      if (options_.task == PsdTask::eigh) {
        for (std::int64_t i = 0; i < n_; ++i) values()(i) = std::numeric_limits<T>::quiet_NaN();
      }
    }
    return report;
  }

 private:
  using Kind = PsdReport::Kind;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  T* take(std::int64_t count) {
    T* const taken = reinterpret_cast<T*>(scratch_);
    scratch_ += rounded(static_cast<std::int64_t>(sizeof(T)) * count);
    // Numbers written behind the workspace would be someone else's.
    if (scratch_ > end_) throw Error(ErrorCode::memory, "psd", "workspace", "counted too small");
    return taken;
  }

  View<T, 1> values() const { return view_of<T, 1>(item_.values); }

  [[nodiscard]] std::int64_t passes() const { return ceil_div(n_, kPassRows); }

  // The last rows are the longest ones and go first.
  template <class Function>
  void by_rows(const Function& function) {
    const auto pass = [&](std::int64_t task) {
      const std::int64_t number = passes() - 1 - task;
      function(number, number * kPassRows, std::min(n_, (number + 1) * kPassRows));
    };
    parallel_steps(ctx_, threads_, passes(), pass);
  }

  bool bad_input(PsdReport& report) {
    report.kind = Kind::non_finite;
    report.index = first_bad(a_);
    return false;
  }

  void by_factor(PsdReport& report) {
    if (options_.task == PsdTask::inverse) return invert(report);
    if (options_.task == PsdTask::factor) return factor_panels(report);
    const bool solves = options_.task == PsdTask::solve;
    if (solves && in_panels(options_.task, n_)) return solve_in_panels(report);
    T* const c = solves ? take(n_ * n_) : out_;
    const auto load = [&] {
      std::atomic<bool> good{true};
      by_rows([&](std::int64_t, std::int64_t from, std::int64_t to) {
        if (!load_rows<S, T>(a_, report.damping, scale_, from, to, c)) good = false;
      });
      return good.load();
    };
    const auto factor = [&] { return Cholesky<T>(ctx_, threads_, n_, c).run(); };
    if (!factored(report, load, factor)) return;
    if (!condition_by_pivots(report, [&](std::int64_t i) { return c[i * n_ + i]; })) return;
    if (!solves) return unscale(c);
    const auto b = right_sides(report);
    if (b.data != nullptr && !solve_by_square(ctx_, threads_, n_, c, scale_, b, out_))
      report.kind = Kind::overflow;
  }

  // Loads and works, with more damping where that is automatic, until it is positive definite.
  template <class Load, class Work>
  bool factored(PsdReport& report, const Load& load, const Work& work) {
    const double most = item_.automatic ? ladder_.greatest() : 0;
    for (;;) {
      balance(a_, report.damping, scale_);
      if (!load()) return bad_input(report);
      const std::int64_t bad = work();
      if (bad == 0) break;
      if (!item_.automatic || report.damping >= most) {
        report.kind = Kind::indefinite;
        report.index = bad;
        return false;
      }
      report.damping = ladder_.raised(report.damping, most);
    }
    if (item_.automatic && report.damping > 0) report.kind = Kind::damped;
    return true;
  }

  void invert(PsdReport& report) {
    const SweepKernels<T>& kernels = sweep_kernels<T>();
    const SweepPanels<T> panels(take(SweepPanels<T>::size(n_, kernels.width)), n_, kernels.width);
    T* const scratch = take(InverseSweep<T>::scratch(n_));
    int a_power = 0;
    double a_norm = 0;
    const auto load = [&] { return load_norm(report.damping, panels, a_power, a_norm); };
    const auto sweep = [&] { return InverseSweep<T>(ctx_, threads_, n_, panels, scratch).run(); };
    if (!factored(report, load, sweep)) return;
    double largest = 0;
    for (std::int64_t i = 0; i < n_; ++i) {
      const double mine = scale_[i];
      largest = std::max(largest, static_cast<double>(panels(i, i)) * mine * mine);
    }
    const int x_power = power_near<T>(largest);
    const double x_norm =
        norm_of_pass(-x_power, [&](std::int64_t from, std::int64_t to, T unit, T* sums) {
          store_panels<T>(kernels, panels, scale_, unit, n_, from, to, out_, sums);
        });
    report.condition = std::ldexp(a_norm * x_norm, a_power + x_power);
    if (!std::isfinite(x_norm)) report.kind = Kind::overflow;
  }

  // -D (A + damping I) D and the norm of A + damping I over 2^power; false if an entry of A is not
  // finite.
  bool load_norm(double damping, const SweepPanels<T>& panels, int& power, double& norm) {
    power = power_near<T>(ladder_.largest_diagonal() + damping);
    norm = norm_of_pass(-power, [&](std::int64_t from, std::int64_t to, T unit, T* sums) {
      load_panels<S, T>(sweep_kernels<T>(), a_, damping, scale_, unit, from, to, panels, sums);
    });
    // Sums of an indefinite matrix may overflow.
    return std::isfinite(norm) || first_bad(a_) < 0;
  }

  // The factor in `panels`; false if there is none.
  template <DiagonalBlocks Blocks>
  bool factor_into(PsdReport& report, const FactorPanels<T>& panels) {
    T* const scratch = take(FactorSweep<T, Blocks>::scratch(n_));
    int power = 0;
    double norm = 0;
    const auto load = [&] {
      panels.clear();
      return load_norm(report.damping, panels.columns, power, norm);
    };
    const auto sweep = [&] {
      return FactorSweep<T, Blocks>(ctx_, threads_, panels, scratch).run();
    };
    if (!factored(report, load, sweep)) return false;
    // On the diagonal are those of inverses.
    return condition_by_pivots(report, [&](std::int64_t i) { return 1 / panels.columns(i, i); });
  }

  void factor_panels(PsdReport& report) {
    const FactorPanels<T> panels(out_, n_);
    if (!factor_into<DiagonalBlocks::inverted>(report, panels)) return;
    std::copy_n(scale_, n_, panels.scale);
    if (!std::isfinite(report.condition)) report.kind = Kind::overflow;
    panels.sign();
  }

  // Infinity norm times 2^power from the sums of a pass over the rows; infinity for NaN too.
  template <class Pass>
  double norm_of_pass(int power, const Pass& pass) {
    const T unit = static_cast<T>(power_of_two(power));
    by_rows([&](std::int64_t number, std::int64_t from, std::int64_t to) {
      T* const sums = sums_ + number * n_;
      std::fill(sums, sums + to, T(0));
      pass(from, to, unit, sums);
    });
    double largest = 0;
    for (std::int64_t i = 0; i < n_; ++i) {
      double sum = 0;
      for (std::int64_t k = i / kPassRows; k < passes(); ++k)
        sum += static_cast<double>(sums_[k * n_ + i]);
      if (!std::isfinite(sum)) return kInfinity;
      largest = std::max(largest, sum);
    }
    return largest;
  }

  // A condition number's estimate from the diagonal of the factor of a scaled matrix: C = D A D,
  // hence L = D^-1 L_C. False and the report if a sum on the diagonal overflowed, as with a damping
  // near the largest number.
  template <class Pivot>
  bool condition_by_pivots(PsdReport& report, const Pivot& pivot_of) const {
    double low = kInfinity, high = 0;
    for (std::int64_t i = 0; i < n_; ++i) {
      const double pivot = static_cast<double>(pivot_of(i)) / static_cast<double>(scale_[i]);
      low = std::min(low, pivot);
      high = std::max(high, pivot);
    }
    report.condition = high / low * (high / low);
    if (!std::isnan(report.condition)) return true;
    report.kind = Kind::overflow;
    return false;
  }

  // L = D^-1 L_C, zeros above.
  void unscale(T* c) const {
    for (std::int64_t i = 0; i < n_; ++i) {
      const T back = 1 / scale_[i];
      for (std::int64_t j = 0; j <= i; ++j) c[i * n_ + j] *= back;
      std::fill(c + i * n_ + i + 1, c + (i + 1) * n_, T(0));
    }
  }

  // b, or nothing and the report if that is not finite.
  View<const T, 2> right_sides(PsdReport& report) const {
    auto b = view_of<const T, 2>(item_.b);
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t j = 0; j < b.extent(1); ++j) {
        if (!is_bad(b(i, j))) continue;
        report.kind = Kind::non_finite;
        report.index = -1 - (i * b.extent(1) + j);
        b.data = nullptr;
        return b;
      }
    }
    return b;
  }

  void solve_in_panels(PsdReport& report) {
    constexpr auto kind = DiagonalBlocks::factored;
    const FactorPanels<T> factor(take(FactorPanels<T>::size(n_, kind)), n_, kind);
    if (!factor_into<kind>(report, factor)) return;
    T* panels[kSolvers];
    for (T*& panel : panels) panel = take(solver_panel<T>(n_));
    const auto b = right_sides(report);
    if (b.data != nullptr && !solve_by_panels(ctx_, threads_, factor, scale_, b, panels, out_))
      report.kind = Kind::overflow;
  }

  void spectral(PsdReport& report) {
    const bool root = options_.task == PsdTask::inverse_root;
    T* const vectors = root ? take(n_ * n_) : out_;
    T* const spectrum = root ? take(n_) : sums_;
    double largest = 0;
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        const double x = static_cast<double>(widen(a_(i, j)));
        if (is_bad(x)) {
          bad_input(report);
          return;
        }
        largest = std::max(largest, std::abs(x));
      }
    }
    // One power of two for all, in two factors, each of which is a normal number of T.
    const int power = largest > 0 ? std::ilogb(largest) / 2 * 2 : 0;
    std::fill(scale_, scale_ + n_, static_cast<T>(std::ldexp(1.0, -power / 2)));
    load_rows<S, T>(a_, 0, scale_, 0, n_, vectors);
    if (!eigen(n_, vectors, spectrum, scratch_)) {
      report.kind = Kind::no_convergence;
      return;
    }
    const double low = std::ldexp(static_cast<double>(spectrum[0]), power);
    const double high = std::ldexp(static_cast<double>(spectrum[n_ - 1]), power);
    const bool definite = root || item_.automatic;
    if (definite && !raise(report, low, high)) return;
    const double bottom = low + report.damping, top = high + report.damping;
    report.condition = bottom > 0 ? top / bottom : kInfinity;
    const bool good = root ? finish_root(report, vectors, spectrum, power)
                           : finish_eigen(report, spectrum, power);
    if (!good) report.kind = Kind::overflow;
  }

  // Damping by the smallest eigenvalue, on the same ladder as by attempts.
  bool raise(PsdReport& report, double low, double high) {
    const double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
    if (item_.automatic) {
      // Eigenvalues are known to some eps of the largest one, which may be n times the diagonal.
      const double enough = eps * std::max(high, 0.0);
      const double most = std::max(ladder_.greatest(), 64 * enough);
      while (!(low + report.damping > enough) && report.damping < most)
        report.damping = ladder_.raised(report.damping, most);
      if (report.damping > 0) report.kind = Kind::damped;
    }
    if (low + report.damping > 0) return true;
    report.kind = Kind::indefinite;
    report.index = 0;
    return false;
  }

  bool finish_eigen(const PsdReport& report, const T* spectrum, int power) {
    int bad = 0;
    for (std::int64_t i = 0; i < n_; ++i) {
      const T x =
          static_cast<T>(std::ldexp(static_cast<double>(spectrum[i]), power) + report.damping);
      bad |= static_cast<int>(is_bad(x));
      values()(i) = x;
    }
    for (std::int64_t i0 = 0; i0 < n_; i0 += kCopyTile) {
      for (std::int64_t j0 = 0; j0 <= i0; j0 += kCopyTile) {
        for (std::int64_t i = i0; i < std::min(n_, i0 + kCopyTile); ++i) {
          for (std::int64_t j = j0; j < std::min(i, j0 + kCopyTile); ++j)
            std::swap(out_[i * n_ + j], out_[j * n_ + i]);
        }
      }
    }
    return bad == 0;
  }

  // out = B^T B with rows b_k = lambda_k^(-1/2p) v_k: a square, so symmetric and semi-definite.
  bool finish_root(const PsdReport& report, T* vectors, const T* spectrum, int power) {
    int bad = 0;
    for (std::int64_t k = 0; k < n_; ++k) {
      const double value = std::ldexp(static_cast<double>(spectrum[k]), power) + report.damping;
      const T factor = static_cast<T>(std::pow(value, -0.5 / options_.p));
      bad |= static_cast<int>(is_bad(factor));
      for (std::int64_t j = 0; j < n_; ++j) vectors[k * n_ + j] *= factor;
    }
    std::fill(out_, out_ + n_ * n_, T(0));
    add_square(Op::transposed, n_, n_, T(1), vectors, n_, out_, n_);
    std::fill(scale_, scale_ + n_, T(1));
    return store_symmetric(n_, scale_, 0, n_, out_) && bad == 0;
  }

  const Context& ctx_;
  int threads_;
  const PsdItem& item_;
  const PsdOptions& options_;
  View<const S, 2> a_;
  std::int64_t n_;
  DampingLadder<S, T> ladder_;
  T* out_;
  std::byte *scratch_, *end_;
  T* scale_ = nullptr;
  T* sums_ = nullptr;
};

}  // namespace fastfisher::cpu

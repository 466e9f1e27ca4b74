// SPDX-License-Identifier: Apache-2.0
//
// bench_linalg [--threads N] [--runs N]: products of symmetric matrices (symm), second moments
// (moments, n rows of k numbers) and pairs at the ends of spectra (eigh_ends) against their flops
// at the rate of a 2048^3 product in the same run; the reduction of eigh_ends has half of its flops
// in products with a vector, which no cache feeds at that rate. One JSON line a case, checked by a
// residual first.
#include "bench.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace fastfisher::bench {
namespace {

struct Case {
  const char* name;
  std::int64_t count, n, k;
};

const Case kProducts[] = {{"64_of_512_x8", 64, 512, 8}, {"1_of_8192_x8", 1, 8192, 8}};
const Case kEnds[] = {{"256_of_64_k2", 256, 64, 2},
                      {"64_of_256_k2", 64, 256, 2},
                      {"64_of_512_k2", 64, 512, 2},
                      {"64_of_512_k20", 64, 512, 20},
                      {"8_of_1024_k2", 8, 1024, 2}};

const Case kMoments[] = {{"8_of_1024_x1024", 8, 1024, 1024},
                         {"64_of_1024_x256", 64, 1024, 256},
                         {"1_of_512_x4096", 1, 512, 4096}};

std::vector<float> symmetric(std::int64_t count, std::int64_t n) {
  auto a = normal<float>(count * n * n, 1);
  for (std::int64_t e = 0; e < count; ++e) {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < i; ++j)
        a[static_cast<std::size_t>((e * n + j) * n + i)] =
            a[static_cast<std::size_t>((e * n + i) * n + j)];
    }
  }
  return a;
}

// Largest |A x - value x - y| over the vectors of the last matrix, relative to n.
double apart(const Case& item, const std::vector<float>& a, const std::vector<float>& x,
             const std::vector<double>* values, const std::vector<float>* y) {
  const std::int64_t n = item.n, e = item.count - 1;
  double worst = 0;
  for (std::int64_t k = 0; k < std::min<std::int64_t>(item.k, 2); ++k) {
    const auto at = static_cast<std::size_t>((e * item.k + k) * n);
    for (std::int64_t i = 0; i < n; i += 7) {
      double sum = 0;
      for (std::int64_t j = 0; j < n; ++j)
        sum += double{a[static_cast<std::size_t>((e * n + i) * n + j)]} *
               x[at + static_cast<std::size_t>(j)];
      const auto here = at + static_cast<std::size_t>(i);
      if (values != nullptr) sum -= (*values)[static_cast<std::size_t>(e * item.k + k)] * x[here];
      if (y != nullptr) sum -= (*y)[here];
      worst = std::max(worst, std::abs(sum));
    }
  }
  return worst / static_cast<double>(n);
}

template <class Function>
void report(const char* op, const Case& item, double flops, double error, int threads, int runs,
            Function&& call) {
  MatmulRate<float> rate(2048, threads);
  std::vector<double> seconds, ratios;
  for (int k = 0; k < runs; ++k) {
    const double before = rate.measure();
    seconds.push_back(seconds_of(call));
    ratios.push_back(seconds.back() * between(before, rate.measure()) / flops);
  }
  std::printf("{\"op\": \"%s\", \"case\": \"%s\", \"seconds\": %.6g, \"floor_ratio\": %.3f, "
              "\"gflops\": %.1f, \"error\": %.2e, \"ok\": %s}\n",
              op, item.name, median(seconds), median(ratios), 1e-9 * flops / median(seconds), error,
              error < 1e-5 ? "true" : "false");
}

void products(const Case& item, int threads, int runs) {
  const std::int64_t e = item.count, n = item.n, k = item.k;
  const auto a = symmetric(e, n), x = normal<float>(e * k * n, 2);
  const std::vector<double> scale(static_cast<std::size_t>(e), 1.0);
  std::vector<float> out(x.size());
  Context ctx;
  ctx.threads = threads;
  const ArrayRef matrices = array_ref(a.data(), e, n, n);
  std::vector<std::byte> workspace(static_cast<std::size_t>(symm_workspace(ctx, matrices, k)));
  ctx.workspace = workspace;
  const auto call = [&] {
    symm(ctx, matrices, array_ref(x.data(), e, k, n), array_ref(scale.data(), e),
         array_ref(out.data(), e, k, n));
  };
  call();
  const double flops = 2.0 * static_cast<double>(e * n) * static_cast<double>(n * k);
  report("symm", item, flops, apart(item, a, x, nullptr, &out), threads, runs, call);
}

void ends(const Case& item, int threads, int runs) {
  const std::int64_t e = item.count, n = item.n, k = item.k;
  const auto a = symmetric(e, n);
  const std::vector<double> scale(static_cast<std::size_t>(e), 1.0);
  std::vector<float> vectors(static_cast<std::size_t>(e * k * n));
  std::vector<double> values(static_cast<std::size_t>(e * k)), norms(values), norm(scale);
  Context ctx;
  ctx.threads = threads;
  const ArrayRef matrices = array_ref(a.data(), e, n, n);
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(eigh_ends_workspace(ctx, matrices, SpectrumEnd::both, k)));
  ctx.workspace = workspace;
  const auto call = [&] {
    eigh_ends(ctx, matrices, array_ref(scale.data(), e), SpectrumEnd::both,
              array_ref(values.data(), e, k), array_ref(vectors.data(), e, k, n),
              array_ref(norms.data(), e, k), array_ref(norm.data(), e));
  };
  call();
  const auto size = static_cast<double>(n);
  const double flops =
      static_cast<double>(e) * size * size * (4.0 / 3 * size + 4.0 * static_cast<double>(k));
  report("eigh_ends", item, flops, apart(item, a, vectors, &values, nullptr), threads, runs, call);
}

void second_moments(const Case& item, int threads, int runs) {
  const std::int64_t n = item.n, m = item.k + 1;
  const auto a = normal<float>(item.count * n * item.k, 1);
  std::vector<float> out(static_cast<std::size_t>(item.count * m * m));
  std::vector<MomentItem> items;
  for (std::int64_t e = 0; e < item.count; ++e) {
    items.push_back({array_ref(a.data() + e * n * item.k, n, item.k),
                     array_ref(out.data() + e * m * m, m, m), 1});
  }
  Context ctx;
  ctx.threads = threads;
  std::vector<std::byte> workspace(static_cast<std::size_t>(moments_workspace(ctx, m, DType::f32)));
  ctx.workspace = workspace;
  const auto call = [&] { moments(ctx, items); };
  call();
  double worst = 0;
  const float* const last = a.data() + (item.count - 1) * n * item.k;
  for (std::int64_t p = 0; p < m; p += 37) {
    const std::int64_t q = p * 101 % m;
    double sum = -double{out[out.size() - static_cast<std::size_t>(m * m - p * m - q)]};
    for (std::int64_t l = 0; l < n; ++l) {
      const auto entry = [&](std::int64_t at) {
        return at < item.k ? double{last[l * item.k + at]} : 1.0;
      };
      sum += entry(p) * entry(q);
    }
    worst = std::max(worst, std::abs(sum));
  }
  const auto size = static_cast<double>(m);
  report("moments", item, static_cast<double>(item.count * n) * size * (size + 1),
         worst / static_cast<double>(n), threads, runs, call);
}

}  // namespace
}  // namespace fastfisher::bench

int main(int argc, char** argv) {
  int threads = 0, runs = 5;
  for (int k = 1; k + 1 < argc; k += 2) {
    if (std::strcmp(argv[k], "--threads") == 0) threads = std::atoi(argv[k + 1]);
    if (std::strcmp(argv[k], "--runs") == 0) runs = std::max(1, std::atoi(argv[k + 1]));
  }
  for (const auto& item : fastfisher::bench::kProducts)
    fastfisher::bench::products(item, threads, runs);
  for (const auto& item : fastfisher::bench::kMoments)
    fastfisher::bench::second_moments(item, threads, runs);
  for (const auto& item : fastfisher::bench::kEnds) fastfisher::bench::ends(item, threads, runs);
  return 0;
}

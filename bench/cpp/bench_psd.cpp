// SPDX-License-Identifier: Apache-2.0
//
// bench_psd [--threads N] [--runs N]: inverses of lists of matrices against n^3 / 2 multiply-adds
// at the rate of a 2048^3 product in the same run. One JSON line a case, checked by a residual
// first.
#include "bench.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace fastfisher::bench {
namespace {

struct Case {
  const char* name;
  std::int64_t count, n;
};

const Case kCases[] = {{"500_of_64", 500, 64},
                       {"500_of_100", 500, 100},
                       {"20_of_512", 20, 512},
                       {"8_of_1024", 8, 1024},
                       {"1_of_4608", 1, 4608}};

void run(const Case& item, int threads, int runs) {
  const std::int64_t n = item.n, size = n * n, rank = std::max<std::int64_t>(1, n / 2);
  const auto x = normal<float>(n * rank, 1), y = [&] {
    std::vector<float> turned(x.size());
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < rank; ++j)
        turned[static_cast<std::size_t>(j * n + i)] = x[static_cast<std::size_t>(i * rank + j)];
    }
    return turned;
  }();
  std::vector<float> a(static_cast<std::size_t>(size));
  std::vector<float> out(static_cast<std::size_t>(item.count * size));
  Context ctx;
  ctx.threads = threads;
  matmul(ctx, array_ref(x.data(), n, rank), array_ref(y.data(), rank, n),
         array_ref(a.data(), n, n));
  for (float& value : a) value /= static_cast<float>(rank);
  std::vector<PsdItem> items(static_cast<std::size_t>(item.count));
  for (std::int64_t k = 0; k < item.count; ++k) {
    PsdItem& one = items[static_cast<std::size_t>(k)];
    one.a = array_ref(a.data(), n, n);
    one.out = array_ref(out.data() + k * size, n, n);
    one.damping = 1e-2;
  }
  const std::vector<std::int64_t> sizes(items.size(), n);
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(psd_workspace(ctx, sizes, DType::f32, PsdTask::inverse)));
  ctx.workspace = workspace;
  const auto call = [&] { psd(ctx, items, {}); };
  call();

  double worst = 0;
  for (std::int64_t pick = 0; pick < 5; ++pick) {
    const std::int64_t i = pick * 37 % n, j = pick * 101 % n;
    double sum = 1e-2 * static_cast<double>(out[static_cast<std::size_t>(i * n + j)]), scale = 0;
    for (std::int64_t k = 0; k < n; ++k) {
      const double product =
          double{a[static_cast<std::size_t>(i * n + k)]} * out[static_cast<std::size_t>(k * n + j)];
      sum += product;
      scale += std::abs(product);
    }
    worst = std::max(worst, std::abs(sum - (i == j ? 1 : 0)) / scale);
  }

  MatmulRate<float> rate(2048, threads);
  const double flops = static_cast<double>(item.count) * static_cast<double>(size * n);
  std::vector<double> seconds, ratios;
  for (int k = 0; k < runs; ++k) {
    const double before = rate.measure();
    seconds.push_back(seconds_of(call));
    ratios.push_back(seconds.back() * between(before, rate.measure()) / flops);
  }
  std::printf("{\"op\": \"psd\", \"case\": \"inverse_%s\", \"seconds\": %.6g, "
              "\"floor_ratio\": %.3f, \"gflops\": %.1f, \"error\": %.2e, \"ok\": %s}\n",
              item.name, median(seconds), median(ratios), 1e-9 * flops / median(seconds), worst,
              worst < 1e-3 ? "true" : "false");
}

}  // namespace
}  // namespace fastfisher::bench

int main(int argc, char** argv) {
  int threads = 0, runs = 5;
  for (int k = 1; k + 1 < argc; k += 2) {
    if (std::strcmp(argv[k], "--threads") == 0) threads = std::atoi(argv[k + 1]);
    if (std::strcmp(argv[k], "--runs") == 0) runs = std::max(1, std::atoi(argv[k + 1]));
  }
  for (const auto& item : fastfisher::bench::kCases) fastfisher::bench::run(item, threads, runs);
  return 0;
}

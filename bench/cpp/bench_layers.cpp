// SPDX-License-Identifier: Apache-2.0
//
// bench_layers [--threads N] [--runs N]: Grams of weights used at many positions, and of a batch of
// networks, against the counted multiply-adds at the rate of a 2048^3 product in the same run. One
// JSON line a case, each checked against float64 on a few entries first.
#include "bench.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace fastfisher::bench {
namespace {

struct Case {
  const char* name;
  std::int64_t networks, n, c, positions, in, out;
};

const Case kCases[] = {
    {"shared_t64_n32_c10", 1, 32, 10, 64, 128, 128},
    {"shared_t64_n128_c10", 1, 128, 10, 64, 128, 128},
    {"tied_t2_n256_c10", 1, 256, 10, 2, 512, 512},
    {"batch_256_networks_n16", 256, 16, 1, 1, 32, 32},
};

// Multiply-adds of the cheaper of gradients formed (S1) and pairs of positions (S3), halved.
double multiply_adds(const Case& item) {
  const auto number = [](std::int64_t value) { return static_cast<double>(value); };
  const double pairs = number(item.n * item.n) / 2, i = number(item.in), o = number(item.out);
  const double c = number(item.c), t = number(item.positions);
  const double formed = pairs * c * c * i * o + number(item.n) * t * c * i * o;
  return number(item.networks) * std::min(formed, pairs * t * t * (i + c * c * o));
}

void run(const Case& item, int threads, int runs) {
  const std::int64_t e = item.networks, n = item.n, c = item.c, s = item.positions;
  const auto a = normal<float>(e * n * s * item.in, 1),
             g = normal<float>(e * n * c * s * item.out, 2);
  std::vector<float> out(static_cast<std::size_t>(e * n * c * n * c));
  LayerFactors layer;
  layer.form = LayerForm::shared;
  layer.a = array_ref(a.data(), e, n, s, item.in);
  layer.g = array_ref(g.data(), e, n, c, s, item.out);
  GramOptions options;
  options.batched = true;
  Context ctx;
  ctx.threads = threads;
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(gram_workspace(ctx, {&layer, 1}, {}, options).bytes));
  ctx.workspace = workspace;
  const auto call = [&] {
    gram(ctx, {&layer, 1}, {}, options, array_ref(out.data(), e, n, c, n, c));
  };
  call();

  double worst = 0;
  const auto inner = [](const float* x, const float* y, std::int64_t count) {
    double sum = 0;
    for (std::int64_t k = 0; k < count; ++k) sum += double{x[k]} * y[k];
    return sum;
  };
  const auto exact = [&](std::int64_t net, std::int64_t row, std::int64_t col) {
    double sum = 0;
    for (std::int64_t x = 0; x < s; ++x) {
      for (std::int64_t y = 0; y < s; ++y) {
        sum +=
            inner(&a[static_cast<std::size_t>(((net * n + row / c) * s + x) * item.in)],
                  &a[static_cast<std::size_t>(((net * n + col / c) * s + y) * item.in)], item.in) *
            inner(&g[static_cast<std::size_t>(((net * n * c + row) * s + x) * item.out)],
                  &g[static_cast<std::size_t>(((net * n * c + col) * s + y) * item.out)], item.out);
      }
    }
    return sum;
  };
  for (std::int64_t pick = 0; pick < 12; ++pick) {
    const std::int64_t net = pick * 7 % e, row = pick * 37 % (n * c), col = pick * 101 % (n * c);
    const double got = out[static_cast<std::size_t>((net * n * c + row) * n * c + col)];
    worst = std::max(worst, std::abs(got - exact(net, row, col)) / std::abs(exact(net, row, row)));
  }

  MatmulRate<float> rate(2048, threads);
  std::vector<double> seconds, ratios;
  for (int k = 0; k < runs; ++k) {
    const double before = rate.measure();
    seconds.push_back(seconds_of(call));
    ratios.push_back(seconds.back() * between(before, rate.measure()) / (2 * multiply_adds(item)));
  }
  std::printf("{\"op\": \"gram\", \"case\": \"%s\", \"seconds\": %.6g, \"floor_ratio\": %.3f, "
              "\"gflops\": %.1f, \"error\": %.2e, \"ok\": %s}\n",
              item.name, median(seconds), median(ratios),
              2e-9 * multiply_adds(item) / median(seconds), worst, worst < 1e-5 ? "true" : "false");
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

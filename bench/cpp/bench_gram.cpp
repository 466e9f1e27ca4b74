// SPDX-License-Identifier: Apache-2.0
//
// bench_gram [case ...] [--threads N] [--runs N]: the dense Gram against its floor, one JSON line a
// case. The floor is the counted multiply-adds, halved by symmetry, at the rate of a 2048^3 product
// in the same run.
#include "bench.hpp"
#include "fastfisher/backend.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace fastfisher::bench {
namespace {

struct Case {
  const char* name;
  GramOutputs outputs;
  std::int64_t n, c;
  std::vector<std::int64_t> widths;
};

const Case kCases[] = {
    {"mlp_full_n1024_c10", GramOutputs::full, 1024, 10, {784, 1024, 1024, 1024, 10}},
    {"mlp_trace_n1024_c10", GramOutputs::trace, 1024, 10, {784, 1024, 1024, 1024, 10}},
    {"mlp_full_n4096_c1", GramOutputs::full, 4096, 1, {784, 1024, 1024, 1024, 10}},
    {"small_n8", GramOutputs::full, 8, 1, {32, 32}},
};

struct Problem {
  std::vector<std::vector<float>> memory;
  std::vector<LayerFactors> layers;
  std::vector<float> out;
  ArrayRef out_ref;
  double multiply_adds = 0;
};

Problem problem_of(const Case& item) {
  Problem p;
  for (std::size_t layer = 0; layer + 1 < item.widths.size(); ++layer) {
    const std::int64_t i = item.widths[layer], o = item.widths[layer + 1];
    const auto seed = static_cast<unsigned>(2 * layer);
    p.memory.push_back(normal<float>(item.n * i, seed));
    p.memory.push_back(normal<float>(item.n * item.c * o, seed + 1));
    p.layers.push_back({array_ref(p.memory[2 * layer].data(), item.n, i),
                        array_ref(p.memory[2 * layer + 1].data(), item.n, item.c, o), true});
    const bool full = item.outputs == GramOutputs::full;
    const double per_pair = static_cast<double>(i + (full ? item.c * item.c : item.c) * o);
    p.multiply_adds += per_pair * static_cast<double>(item.n * item.n) / 2;
  }
  if (item.outputs == GramOutputs::full) {
    p.out.resize(static_cast<std::size_t>(item.n * item.c * item.n * item.c));
    p.out_ref = array_ref(p.out.data(), item.n, item.c, item.n, item.c);
  } else {
    p.out.resize(static_cast<std::size_t>(item.n * item.n));
    p.out_ref = array_ref(p.out.data(), item.n, item.n);
  }
  return p;
}

// Largest difference from float64 on a few entries, relative to the diagonal.
double error_of(const Case& item, const Problem& p) {
  double worst = 0;
  for (std::int64_t pick = 0; pick < 12; ++pick) {
    const std::int64_t n = pick * 37 % item.n, m = pick * 101 % item.n;
    const std::int64_t c = pick % item.c, d = pick * 3 % item.c;
    const bool full = item.outputs == GramOutputs::full;
    const auto exact = [&](std::int64_t s, std::int64_t t) {
      double sum = 0;
      for (const LayerFactors& layer : p.layers) {
        const auto a = view_of<const float, 2>(layer.a);
        const auto g = view_of<const float, 3>(layer.g);
        double inner = 1;
        for (std::int64_t i = 0; i < a.extent(1); ++i) inner += double{a(s, i)} * a(t, i);
        double outer = 0;
        for (std::int64_t k = full ? c : 0; k <= (full ? c : item.c - 1); ++k) {
          for (std::int64_t o = 0; o < g.extent(2); ++o)
            outer += double{g(s, k, o)} * g(t, full ? d : k, o);
        }
        sum += inner * outer;
      }
      return sum;
    };
    const std::int64_t at = full ? ((n * item.c + c) * item.n + m) * item.c + d : n * item.n + m;
    worst = std::max(worst, std::abs(p.out[static_cast<std::size_t>(at)] - exact(n, m)) /
                                std::abs(exact(n, n)));
  }
  return worst;
}

void run(const Case& item, int threads, int runs) {
  Problem p = problem_of(item);
  Context ctx;
  ctx.threads = threads;
  GramOptions options;
  options.outputs = item.outputs;
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(gram_workspace(ctx, p.layers, {}, options).bytes));
  ctx.workspace = workspace;
  const auto call = [&] { gram(ctx, p.layers, {}, options, p.out_ref); };
  call();
  const double error = error_of(item, p);
  MatmulRate<float> rate(2048, threads);
  std::vector<double> seconds, ratios, rates;
  for (int k = 0; k < runs; ++k) {
    const double before = rate.measure();
    const double took = seconds_of(call);
    const double flops_per_second = between(before, rate.measure());
    seconds.push_back(took);
    rates.push_back(flops_per_second);
    ratios.push_back(took * flops_per_second / (2 * p.multiply_adds));
  }
  std::printf("{\"op\": \"gram\", \"case\": \"%s\", \"seconds\": %.6g, \"floor_ratio\": %.3f, "
              "\"best_floor_ratio\": %.3f, "
              "\"gflops\": %.1f, \"matmul_gflops\": %.1f, \"error\": %.2e, \"ok\": %s}\n",
              item.name, median(seconds), median(ratios),
              *std::min_element(ratios.begin(), ratios.end()),
              2e-9 * p.multiply_adds / median(seconds), median(rates) * 1e-9, error,
              error < 1e-5 ? "true" : "false");
}

}  // namespace
}  // namespace fastfisher::bench

int main(int argc, char** argv) {
  using namespace fastfisher::bench;
  int threads = 0, runs = 5;
  std::vector<std::string> wanted;
  for (int k = 1; k < argc; ++k) {
    if (std::strcmp(argv[k], "--threads") == 0 && k + 1 < argc) {
      threads = std::atoi(argv[++k]);
    } else if (std::strcmp(argv[k], "--runs") == 0 && k + 1 < argc) {
      runs = std::max(1, std::atoi(argv[++k]));
    } else {
      wanted.emplace_back(argv[k]);
    }
  }
  for (const Case& item : kCases) {
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), item.name) != wanted.end()) {
      run(item, threads, runs);
    }
  }
  return 0;
}

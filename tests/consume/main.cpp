// SPDX-License-Identifier: Apache-2.0
//
// A Gram of two samples through the installed headers, against values worked out by hand:
//   a a^T + 1 = [[6, 12], [12, 26]],  g g^T = [[1, 2], [2, 4]],  K = their entrywise product.
#include <fastfisher/backend.hpp>
#include <fastfisher/ops.hpp>

#include <array>
#include <cstddef>
#include <cstdio>
#include <vector>

int main() {
  const std::array<double, 4> a{1, 2, 3, 4};             // [n=2, i=2]
  const std::array<double, 2> g{1, 2};                   // [n=2, c=1, o=1]
  const std::array<double, 4> expected{6, 24, 24, 104};  // [n, c, m, d]
  std::array<double, 4> k{};

  const std::array<fastfisher::LayerFactors, 1> layers{{{
      .a = fastfisher::array_ref(a.data(), 2, 2),
      .g = fastfisher::array_ref(g.data(), 2, 1, 1),
      .bias = true,
  }}};
  const fastfisher::ArrayRef out = fastfisher::array_ref(k.data(), 2, 1, 2, 1);

  fastfisher::Context context;
  const fastfisher::GramOptions options;
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(fastfisher::gram_workspace(context, layers, {}, options).bytes));
  context.workspace = workspace;
  const fastfisher::GramReport report = fastfisher::gram(context, layers, {}, options, out);

  const bool right = report.kind == fastfisher::GramReport::Kind::ok && k == expected;
  std::printf("fastfisher %s: gram = [%g %g; %g %g], %s\n",
              fastfisher::build_info().version.c_str(), k[0], k[1], k[2], k[3],
              right ? "as expected" : "WRONG");
  return right ? 0 : 1;
}

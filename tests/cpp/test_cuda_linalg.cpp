// SPDX-License-Identifier: Apache-2.0
//
// The bodies of the CUDA kernels of an eigenvalue iteration on the host, one std::thread per CUDA
// thread and small tiles, against plain float64 loops over drawn sizes and strides. Under
// ThreadSanitizer a missing barrier shows as a race.
#include "check.hpp"
#include "draw.hpp"
#include "host_block.hpp"
#include "symm_mma_body.hpp"
#include "symm_problem.hpp"
#include "symmetry_body.hpp"

#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

using namespace fastfisher;
using test::draw;
using test::HostBlock;
using test::launch;
using test::Strided;

template <class T>
using Tile = cuda::SymmTile<T, 16, 8, 4, 8>;
template <int Width>
using Mma = cuda::SymmMma<Width, 1, 1, 2>;
template <int Width>
using TallMma = cuda::SymmMma<Width, 2, 2, 2>;

// What symm.cu does, with host memory for the device's; the workspace is full of NaN.
template <class T, class Some>
void run_symm(const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale, const ArrayRef& out,
              std::int64_t blocks) {
  using Memory = cuda::SymmMemory<T, Some>;
  const Memory memory(a.extent(0), a.extent(1), x.extent(1));
  std::vector<std::byte> workspace(static_cast<std::size_t>(memory.bytes), std::byte{0xff});
  constexpr std::uintptr_t kAlign = Memory::kAlign;
  const auto start = reinterpret_cast<std::uintptr_t>(workspace.data());
  std::byte* const base = workspace.data() + (kAlign - start % kAlign) % kAlign;
  for (std::int64_t first = 0; first < x.extent(1); first += Some::kPanels * Some::kWidth) {
    const auto problem = cuda::symm_problem<T, Some>(a, x, scale, out, first, base);
    using Shared = typename Some::Shared;
    launch<Some>(2, [&](const HostBlock& block, Shared&) { Some::pack(block, problem); });
    launch<Some>(
        blocks, [&](const HostBlock& block, Shared& shared) { Some::run(block, shared, problem); });
    launch<Some>(3, [&](const HostBlock& block, Shared&) { Some::reduce(block, problem); });
  }
}

template <class T, class Some>
void symm_is_right(const Strided<T>& a, const Strided<T>& x, const Strided<T>& out,
                   double factor = 0.5) {
  const std::int64_t e = a.ref.extent(0), n = a.ref.extent(1), k = x.ref.extent(1);
  std::vector<double> scale(static_cast<std::size_t>(2 * e), factor);
  ArrayRef scales = array_ref(scale.data(), e);
  scales.strides[0] = 2;
  const bool turn = a.ref.stride(1) == 1 && a.ref.stride(2) != 1;
  for (std::int64_t b = 0; b < e; ++b) {  // the other triangle is never read
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i + 1; j < n; ++j)
        view_of<T, 3>(a.ref)(b, turn ? j : i, turn ? i : j) = std::numeric_limits<T>::quiet_NaN();
    }
  }
  run_symm<T, Some>(a.ref, x.ref, scales, out.ref, 2);
  bool close = true;
  double error = 0, norm = 0;
  for (std::int64_t b = 0; b < e; ++b) {
    for (std::int64_t v = 0; v < k; ++v) {
      for (std::int64_t i = 0; i < n; ++i) {
        double sum = 0, size = 0;
        for (std::int64_t j = 0; j < n; ++j) {
          const std::int64_t low = std::min(i, j), high = std::max(i, j);
          const double term =
              factor * factor * a.at({b, turn ? low : high, turn ? high : low}) * x.at({b, v, j});
          sum += term;
          size += std::abs(term);
        }
        const double bound = 40 * std::numeric_limits<T>::epsilon() * size,
                     found = out.at({b, v, i});
        close = close && std::abs(found - sum) <= bound;
        error += (found - sum) * (found - sum);
        norm += sum * sum;
      }
    }
  }
  FF_CHECK(close);
  // As near as products in float32 come; the reference is not exact enough for float64.
  if constexpr (std::is_same_v<T, float>)
    FF_CHECK(std::sqrt(error) <= 1.2 * std::numeric_limits<T>::epsilon() * std::sqrt(norm));
  const std::vector<T> first = out.memory;
  run_symm<T, Some>(a.ref, x.ref, scales, out.ref, 5);
  FF_CHECK(first == out.memory);
}

template <class T, class Some>
void symmetric_products(std::int64_t most_n, std::int64_t most_k) {
  const std::int64_t e = draw(1, 3), n = draw(1, most_n), k = draw(1, most_k);
  symm_is_right<T, Some>(Strided<T>({e, n, n}), Strided<T>({e, k, n}), Strided<T>({e, k, n}));
}

// Packed rows that start at multiples of 16 bytes, whatever n: copies of four entries.
template <class T, class Some>
void aligned_products(std::int64_t n, std::int64_t k) {
  Strided<T> a({1, 1, 1});
  const std::int64_t pitch = (n + 3) / 4 * 4;
  // Room to start at a multiple of 16 bytes.
  a.memory.resize(static_cast<std::size_t>(n * pitch + 4));
  std::normal_distribution<T> normal;
  for (T& value : a.memory) value = normal(test::engine);
  const auto start = reinterpret_cast<std::uintptr_t>(a.memory.data());
  a.ref = array_ref(a.memory.data() + (16 - start % 16) % 16 / sizeof(T), 1, n, n);
  a.ref.strides[1] = pitch;
  FF_CHECK((cuda::symm_problem<T, Some>(a.ref, a.ref, a.ref, a.ref, 0, nullptr).aligned));
  symm_is_right<T, Some>(a, Strided<T>({1, k, n}), Strided<T>({1, k, n}));
}

// Entries as large and as small as the dtype has them, with the scale that operators choose.
void extreme_products() {
  constexpr float kMost = std::numeric_limits<float>::max();
  for (const double size : {1e38, 1e-38, 1e-20, 1e20}) {
    const std::int64_t n = draw(40, 90), k = draw(1, 9);
    Strided<float> a({1, n, n}, false, size / 4);
    for (float& value : a.memory) value = std::isfinite(value) ? value : kMost;
    if (size == 1e38) a.memory.front() = a.memory.back() = kMost;
    const double factor = std::exp2(-std::floor(std::log2(size) / 2));
    symm_is_right<float, Mma<8>>(a, Strided<float>({1, k, n}), Strided<float>({1, k, n}), factor);
  }
  // Nothing that is finite becomes infinite, and what is not stays so.
  const std::int64_t n = 5;
  std::vector<float> a(n * n, kMost), x(2 * n, 0), out(2 * n);
  std::vector<double> scale{1};
  x[1] = 0.25F;
  x[n + 2] = kMost;
  a[2 * n + 2] = 0x1p-3F;
  a[4 * n + 2] = 1;
  const ArrayRef vectors = array_ref(x.data(), 1, 2, n), result = array_ref(out.data(), 1, 2, n);
  const auto product = [&] {
    run_symm<float, Mma<8>>(array_ref(a.data(), 1, n, n), vectors, array_ref(scale.data(), 1),
                            result, 1);
  };
  product();
  FF_CHECK(out[0] == kMost / 4);
  FF_CHECK(std::abs(out[n + 2] / kMost - 0.125F) < 1e-7F);
  FF_CHECK(out[n + 4] <= kMost && out[n + 4] > kMost * (1 - 1e-6F));
  x[1] = std::numeric_limits<float>::quiet_NaN();
  x[n + 2] = std::numeric_limits<float>::infinity();
  product();
  FF_CHECK(std::isnan(out[0]) && !std::isfinite(out[n + 2]));
}

// How many vectors share a tile says nothing about their products.
void widths() {
  const std::int64_t n = 100, k = 33;
  const Strided<float> a({1, n, n}), x({1, k, n});
  std::vector<double> scale{0.5};
  std::vector<float> one(n * k), other(n * k);
  run_symm<float, Mma<8>>(a.ref, x.ref, array_ref(scale.data(), 1), array_ref(one.data(), 1, k, n),
                          2);
  run_symm<float, Mma<24>>(a.ref, x.ref, array_ref(scale.data(), 1),
                           array_ref(other.data(), 1, k, n), 2);
  FF_CHECK(one == other);
}

// Every pair of a strip and a chunk once, in order.
void cuts() {
  for (std::int64_t group : {1, 2, 4}) {
    for (std::int64_t strips = 0; strips < 40; ++strips) {
      const cuda::SymmCut cut{strips, group};
      std::int64_t item = 0;
      bool right = true;
      for (std::int64_t strip = 0; strip < strips; ++strip) {
        right = right && cut.first(strip) == item;
        for (std::int64_t chunk = 0; chunk < cut.chunks(strip); ++chunk, ++item) {
          std::int64_t found = -1, part = -1;
          cut.locate(item, found, part);
          right = right && found == strip && part == chunk;
        }
      }
      FF_CHECK(right && cut.items() == item);
    }
  }
}

template <class T>
void asymmetry() {
  using Check = cuda::Symmetry<T, 4, 2>;
  const std::int64_t e = draw(1, 3), n = draw(0, 23);
  const Strided<T> a({e, n, n});
  std::vector<std::uint64_t> out(static_cast<std::size_t>(3 * e), 7);
  if (n > 1 && draw(0, 3) == 0)
    view_of<T, 3>(a.ref)(draw(0, e - 1), draw(0, n - 1), draw(0, n - 1)) =
        draw(0, 1) == 0 ? std::numeric_limits<T>::quiet_NaN() : -std::numeric_limits<T>::infinity();
  const bool turn = a.ref.stride(1) == 1 && a.ref.stride(2) != 1;
  cuda::SymmetryInput input;
  input.a = a.ref.data;
  input.network_stride = a.ref.stride(0);
  input.row_stride = a.ref.stride(turn ? 2 : 1);
  input.col_stride = a.ref.stride(turn ? 1 : 2);
  input.n = n;
  input.networks = e;
  input.share = 3;
  input.out = out.data();
  input.out_strides[0] = 3;
  input.out_strides[1] = 1;
  launch<Check>(
      1, [&](const HostBlock& block, typename Check::Shared&) { Check::clear(block, input); });
  launch<Check>(4, [&](const HostBlock& block, typename Check::Shared& shared) {
    Check::run(block, shared, input);
  });
  for (std::int64_t b = 0; b < e; ++b) {
    double largest = 0, apart = 0;
    bool finite = true;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        const double here = a.at({b, i, j}), there = a.at({b, j, i});
        finite = finite && std::isfinite(here);
        largest = std::max(largest, std::abs(here));
        apart = std::max(apart, std::abs(static_cast<double>(static_cast<T>(here - there))));
      }
    }
    const auto found = std::bit_cast<double>(out[static_cast<std::size_t>(3 * b)]);
    FF_CHECK(std::isfinite(found) == finite);
    FF_CHECK(out[static_cast<std::size_t>(3 * b + 2)] == 7);  // a gap between outputs
    if (!finite) continue;
    FF_CHECK(found == largest);
    FF_CHECK(std::bit_cast<double>(out[static_cast<std::size_t>(3 * b + 1)]) == apart);
  }
}

void tensor_products() {
  for (int k = 0; k < 3; ++k) symmetric_products<float, Mma<8>>(150, 33);
  for (std::int64_t n : {1, 31, 32, 33, 64, 65, 130}) aligned_products<float, Mma<16>>(n, 9);
  symmetric_products<float, TallMma<16>>(300, 20);
  aligned_products<float, TallMma<8>>(256, 8);
  aligned_products<float, TallMma<24>>(259, 24);
  // As on a device.
  aligned_products<float, cuda::SymmMma<32, 2, 4, 2>>(257, 33);
  aligned_products<float, cuda::SymmMma<8, 1, 4, 4>>(257, 9);
  extreme_products();
  widths();
}

template <class T>
void all() {
  for (int k = 0; k < 12; ++k) symmetric_products<T, Tile<T>>(70, 19);
  for (std::int64_t n : {1, 8, 15, 16, 17, 48, 61}) aligned_products<T, Tile<T>>(n, draw(1, 9));
  aligned_products<T, Tile<T>>(16 * 33 - 5, 3);  // chunks of two strips
  for (int k = 0; k < 30; ++k) asymmetry<T>();
}

}  // namespace

int main() {
  cuts();
  tensor_products();
  all<float>();
  all<double>();
  return fastfisher::test::report();
}

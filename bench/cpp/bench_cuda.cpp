// SPDX-License-Identifier: Apache-2.0
//
// bench_cuda [--runs N]: the dense Gram on the first GPU, timed by CUDA events, against cuBLAS'
// TF32 product where that library is found at run time; one JSON line a case. A case is checked
// against float64 before it is timed.
#include "bench.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace fastfisher::bench {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Device memory that outlives the run.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) { check(cudaMalloc(&data_, bytes > 0 ? bytes : 1)); }
  explicit DeviceMemory(const std::vector<float>& host) : DeviceMemory(host.size() * 4) {
    check(cudaMemcpy(data_, host.data(), host.size() * 4, cudaMemcpyHostToDevice));
  }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory() { cudaFree(data_); }
  [[nodiscard]] void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

template <class Call>
double device_seconds(int runs, const Call& call) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  call();
  std::vector<double> times;
  for (int run = 0; run < runs; ++run) {
    check(cudaDeviceSynchronize());
    check(cudaEventRecord(begin, nullptr));
    call();
    check(cudaEventRecord(end, nullptr));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    times.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return median(times);
}

// cuBLAS' product of two random matrices in TF32, by prototypes of our own; 0 without the library.
double cublas_rate(int n, int runs) {
  void* const library = dlopen("libcublas.so.13", RTLD_NOW);
  if (library == nullptr) return 0;
  const auto create = reinterpret_cast<int (*)(void**)>(dlsym(library, "cublasCreate_v2"));
  const auto mode = reinterpret_cast<int (*)(void*, int)>(dlsym(library, "cublasSetMathMode"));
  using Gemm = int (*)(void*, int, int, int, int, int, const float*, const float*, int,
                       const float*, int, const float*, float*, int);
  const auto gemm = reinterpret_cast<Gemm>(dlsym(library, "cublasSgemm_v2"));
  void* handle = nullptr;
  if (create == nullptr || mode == nullptr || gemm == nullptr || create(&handle) != 0) return 0;
  constexpr int kTf32 = 3;  // CUBLAS_TF32_TENSOR_OP_MATH
  if (mode(handle, kTf32) != 0) return 0;
  const std::int64_t size = std::int64_t{n} * n;
  const DeviceMemory a(normal<float>(size, 1)), b(normal<float>(size, 2));
  const DeviceMemory c(static_cast<std::size_t>(size) * 4);
  const float one = 1, zero = 0;
  const double seconds = device_seconds(runs, [&] {
    gemm(handle, 0, 0, n, n, n, &one, static_cast<const float*>(a.data()), n,
         static_cast<const float*>(b.data()), n, &zero, static_cast<float*>(c.data()), n);
  });
  return 2.0 * static_cast<double>(size) * n / seconds;
}

struct Case {
  const char* name;
  GramOutputs outputs;
  std::int64_t n, c;
};

constexpr Case kCases[] = {
    {"mlp_full_n1024_c10", GramOutputs::full, 1024, 10},
    {"mlp_trace_n4096_c10", GramOutputs::trace, 4096, 10},
    {"mlp_trace_n16384_c1", GramOutputs::trace, 16384, 1},
};
constexpr std::int64_t kWidths[] = {784, 1024, 1024, 1024, 10};

void run(const Case& item, int runs, double tf32) {
  std::vector<std::vector<float>> host;
  std::vector<DeviceMemory> memory;
  std::vector<LayerFactors> layers;
  double multiply_adds = 0;
  const bool full = item.outputs == GramOutputs::full;
  const auto on_device = [](ArrayRef array) {
    array.device = {DeviceKind::cuda, 0};
    return array;
  };
  for (std::size_t k = 0; k + 1 < std::size(kWidths); ++k) {
    const std::int64_t i = kWidths[k], o = kWidths[k + 1];
    host.push_back(normal<float>(item.n * i, static_cast<unsigned>(2 * k)));
    host.push_back(normal<float>(item.n * item.c * o, static_cast<unsigned>(2 * k + 1)));
    memory.emplace_back(host[2 * k]);
    memory.emplace_back(host[2 * k + 1]);
    layers.push_back(
        {on_device(array_ref(static_cast<float*>(memory[2 * k].data()), item.n, i)),
         on_device(array_ref(static_cast<float*>(memory[2 * k + 1].data()), item.n, item.c, o)),
         true});
    multiply_adds += static_cast<double>(item.n * item.n) / 2 *
                     static_cast<double>(i + (full ? item.c * item.c : item.c) * o);
  }
  const std::int64_t rows = item.n * (full ? item.c : 1);
  DeviceMemory out(static_cast<std::size_t>(rows * rows) * 4);
  const ArrayRef result =
      on_device(full ? array_ref(static_cast<float*>(out.data()), item.n, item.c, item.n, item.c)
                     : array_ref(static_cast<float*>(out.data()), item.n, item.n));
  Context ctx;
  ctx.device = {DeviceKind::cuda, 0};
  GramOptions options;
  options.outputs = item.outputs;
  options.memory_limit = std::int64_t{8} << 30;
  const std::int64_t bytes = gram_workspace(ctx, layers, {}, options).bytes;
  DeviceMemory workspace(static_cast<std::size_t>(bytes));
  ctx.workspace = {static_cast<std::byte*>(workspace.data()), static_cast<std::size_t>(bytes)};
  const auto call = [&] {
    if (gram(ctx, layers, {}, options, result).kind != GramReport::Kind::ok)
      throw std::runtime_error("gram: bad input");
  };
  call();

  // Some entries of the first row against float64.
  std::vector<float> row(static_cast<std::size_t>(rows));
  check(cudaMemcpy(row.data(), out.data(), row.size() * 4, cudaMemcpyDeviceToHost));
  double worst = 0, largest = 0;
  for (std::int64_t m = 0; m < item.n; m += item.n / 16) {
    double exact = 0;
    for (std::size_t k = 0; k < layers.size(); ++k) {
      const std::int64_t i = kWidths[k], o = kWidths[k + 1];
      double inner = 1, outer = 0;
      for (std::int64_t e = 0; e < i; ++e)
        inner += double{host[2 * k][static_cast<std::size_t>(e)]} *
                 host[2 * k][static_cast<std::size_t>(m * i + e)];
      for (std::int64_t e = 0; e < (full ? o : item.c * o); ++e)
        outer += double{host[2 * k + 1][static_cast<std::size_t>(e)]} *
                 host[2 * k + 1][static_cast<std::size_t>(m * item.c * o + e)];
      exact += inner * outer;
    }
    largest = std::max(largest, std::abs(exact));
    worst = std::max(worst, std::abs(exact - row[static_cast<std::size_t>(full ? m * item.c : m)]));
  }
  const double error = worst / largest;
  if (!(error < 1e-5)) throw std::runtime_error(std::string(item.name) + ": wrong result");

  const double seconds = device_seconds(runs, call), rate = 2 * multiply_adds / seconds;
  std::printf("{\"bench\": \"gram\", \"case\": \"%s\", \"seconds\": %.6g, \"tflops\": %.4g, "
              "\"cublas_tf32_tflops\": %.4g, \"of_a_third\": %.4g, \"error\": %.3g}\n",
              item.name, seconds, rate / 1e12, tf32 / 1e12, tf32 > 0 ? 3 * rate / tf32 : 0.0,
              error);
  std::fflush(stdout);
}

}  // namespace
}  // namespace fastfisher::bench

int main(int argc, char** argv) {
  int runs = 7;
  for (int k = 1; k + 1 < argc; ++k) {
    if (std::strcmp(argv[k], "--runs") == 0) runs = std::max(1, std::atoi(argv[k + 1]));
  }
  try {
    const double tf32 = fastfisher::bench::cublas_rate(8192, runs);
    for (const auto& item : fastfisher::bench::kCases) fastfisher::bench::run(item, runs, tf32);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_cuda: %s\n", error.what());
    return 1;
  }
  return 0;
}

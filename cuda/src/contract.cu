// SPDX-License-Identifier: Apache-2.0
//
// The reductions beside the products, see contract_body.hpp. They read the cotangents once (from
// the second cache level again for each eight outputs or columns) and do two flops a number and
// column: as fast as the memory.
#include "launch.cuh"
#include "product_launch.hpp"

namespace fastfisher::cuda {
namespace {

constexpr int kThreads = 128;

template <class Kernel, class Problem>
__global__ void __launch_bounds__(Kernel::kThreads)
    plain_kernel(const __grid_constant__ Problem p) {
  Kernel::run(DeviceBlock{}, p);
}

template <class Kernel, class Problem>
__global__ void __launch_bounds__(Kernel::kThreads)
    shared_kernel(const __grid_constant__ Problem p) {
  __shared__ typename Kernel::Shared shared;
  Kernel::run(DeviceBlock{}, shared, p);
}

template <class Kernel, class Problem>
void launch_plain(const Problem& p, void* stream, const char* op) {
  const std::int64_t blocks = Kernel::blocks_of(p);
  if (blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  plain_kernel<Kernel><<<grid_of(blocks), Kernel::kThreads, 0, on>>>(p);
  check_launch(op, on);
}

template <class Kernel, class Problem>
void launch_shared(const Problem& p, void* stream, const char* op) {
  const std::int64_t blocks = Kernel::blocks_of(p);
  if (blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  shared_kernel<Kernel><<<grid_of(blocks), Kernel::kThreads, 0, on>>>(p);
  check_launch(op, on);
}

}  // namespace

template <class S, class T>
void launch_contract(const Contraction<T>& p, void* stream, const char* op) {
  if (p.columns == 1) {
    launch_shared<Contract<S, T, kThreads, kContractOutputs, 1>>(p, stream, op);
  } else {
    launch_shared<Contract<S, T, kThreads, kContractOutputs, kContractColumns>>(p, stream, op);
  }
}

template <class S, class T>
void launch_weigh(const Weighing<T>& p, void* stream, const char* op) {
  if (p.columns == 1) {
    launch_plain<Weigh<S, T, kThreads, 1>>(p, stream, op);
  } else {
    launch_plain<Weigh<S, T, kThreads, kWeighColumns>>(p, stream, op);
  }
}

template <class T>
void launch_collect(const Collection<T>& p, void* stream, const char* op) {
  launch_plain<Collect<T, kThreads>>(p, stream, op);
}

template <class T>
void launch_widen(const Widening<T>& p, void* stream, const char* op) {
  launch_plain<Widen<T, kThreads>>(p, stream, op);
}

template void launch_contract<float>(const Contraction<float>&, void*, const char*);
template void launch_contract<BFloat16>(const Contraction<float>&, void*, const char*);
template void launch_contract<Float16>(const Contraction<float>&, void*, const char*);
template void launch_contract<double>(const Contraction<double>&, void*, const char*);
template void launch_weigh<float>(const Weighing<float>&, void*, const char*);
template void launch_weigh<BFloat16>(const Weighing<float>&, void*, const char*);
template void launch_weigh<Float16>(const Weighing<float>&, void*, const char*);
template void launch_weigh<double>(const Weighing<double>&, void*, const char*);
template void launch_collect(const Collection<float>&, void*, const char*);
template void launch_collect(const Collection<double>&, void*, const char*);
template void launch_widen(const Widening<float>&, void*, const char*);
template void launch_widen(const Widening<double>&, void*, const char*);

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
#include "cpu_info.hpp"
#include "fastfisher/backend.hpp"

namespace fastfisher {
namespace cpu {
const Backend& backend();
}
namespace cuda {
const Backend& backend();
}

const std::vector<const Backend*>& backends() {
  static const std::vector<const Backend*> all = {&cpu::backend(), &cuda::backend()};
  return all;
}

BuildInfo build_info() {
  BuildInfo info;
  info.version = FF_VERSION;
#if defined(__VERSION__)
  info.compiler = __VERSION__;
#endif
  info.blas = cpu::blas_name();
  info.simd = cpu::simd_name();
  info.outruns_mkl = cpu::outruns_mkl();
  info.threads = cpu::thread_count({});
  return info;
}

}  // namespace fastfisher

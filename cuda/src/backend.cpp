// SPDX-License-Identifier: Apache-2.0
//
// The CUDA lane of the backend table. An op without an entry is reported as missing by core.
#include "fastfisher/backend.hpp"

#include "check.hpp"

#include <string>

namespace fastfisher::cuda {

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out);
GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options);
ProductReport jvp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& v,
                  const ArrayRef& out);
std::int64_t jvp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns);
void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);
void moments(const Context& ctx, std::span<const MomentItem> items);
std::int64_t moments_workspace(const Context& ctx, std::int64_t most, DType dtype);
std::vector<PsdReport> psd(const Context& ctx, std::span<const PsdItem> items,
                           const PsdOptions& options);
std::int64_t psd_workspace(const Context& ctx, std::span<const std::int64_t> sizes, DType dtype,
                           PsdTask task);
void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, LanczosStart start,
                   const ArrayRef& small);
std::int64_t lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                                     std::int64_t rows);
void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x, bool keep,
                   const ArrayRef& y);
void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out);
void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small);
std::int64_t panel_remove_workspace(const Context& ctx, std::int64_t networks, std::int64_t i,
                                    std::int64_t j, std::int64_t n);
void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out);
std::int64_t symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors);
void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out);
ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out);
std::int64_t vjp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns);

namespace {

std::string version(int number) {  // the runtime counts 1000 major + 10 minor
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// The runtime reports a missing driver and an old one by the same error; the driver's version, 0
// where there is none, tells them apart. Asking creates no CUDA context.
BackendState state() {
  const auto off = [](const std::string& why) { return BackendState{false, why}; };
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  cudaGetLastError();
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  if (status == cudaErrorInsufficientDriver && driver == 0)
    return off("compiled, but no NVIDIA driver");
  if (status == cudaErrorInsufficientDriver) {
    return off("compiled, but the NVIDIA driver is for CUDA " + version(driver) + ", expected " +
               version(runtime) + " or later");
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && devices == 0))
    return off("compiled, but no CUDA device");
  if (status != cudaSuccess) return off("compiled, but the CUDA runtime says: " + describe(status));
  cudaDeviceProp properties;
  const cudaError_t asked = cudaGetDeviceProperties(&properties, 0);
  if (asked != cudaSuccess) {
    cudaGetLastError();
    return off("compiled, but the first device says: " + describe(asked));
  }
  std::string detail = std::string(properties.name) + ", compute capability " +
                       std::to_string(properties.major) + "." + std::to_string(properties.minor);
  if (devices > 1) detail += ", and " + std::to_string(devices - 1) + " more";
  return {true, detail};
}

}  // namespace

const Backend& backend() {
  static const Backend table = [] {
    Backend b;
    b.name = "cuda";
    b.device = DeviceKind::cuda;
    b.state = &state;
    b.gram = &cuda::gram;
    b.gram_workspace = &cuda::gram_workspace;
    b.jvp = &cuda::jvp;
    b.jvp_workspace = &cuda::jvp_workspace;
    b.matmul = &cuda::matmul;
    b.moments = &cuda::moments;
    b.moments_workspace = &cuda::moments_workspace;
    b.psd = &cuda::psd;
    b.psd_workspace = &cuda::psd_workspace;
    b.lanczos_steps = &cuda::lanczos_steps;
    b.lanczos_steps_workspace = &cuda::lanczos_steps_workspace;
    b.panel_combine = &cuda::panel_combine;
    b.panel_dots = &cuda::panel_dots;
    b.panel_remove = &cuda::panel_remove;
    b.panel_remove_workspace = &cuda::panel_remove_workspace;
    b.symm = &cuda::symm;
    b.symm_workspace = &cuda::symm_workspace;
    b.symmetry = &cuda::symmetry;
    b.vjp = &cuda::vjp;
    b.vjp_workspace = &cuda::vjp_workspace;
    return b;
  }();
  return table;
}

}  // namespace fastfisher::cuda

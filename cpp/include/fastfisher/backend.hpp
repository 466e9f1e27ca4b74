// SPDX-License-Identifier: Apache-2.0
//
// The table that a device backend fills. A null entry means the backend has no such op; core
// reports that.
#pragma once

#include "fastfisher/ops.hpp"

#include <string>
#include <vector>

namespace fastfisher {

struct BackendState {
  bool available = false;
  std::string detail;  ///< what it runs on, or why it is off
};

struct Backend {
  const char* name = "";
  DeviceKind device = DeviceKind::cpu;
  BackendState (*state)() = nullptr;
  decltype(&fastfisher::eigh_ends) eigh_ends = nullptr;
  decltype(&fastfisher::eigh_ends_workspace) eigh_ends_workspace = nullptr;
  decltype(&fastfisher::gram) gram = nullptr;
  decltype(&fastfisher::gram_workspace) gram_workspace = nullptr;
  decltype(&fastfisher::jvp) jvp = nullptr;
  decltype(&fastfisher::jvp_workspace) jvp_workspace = nullptr;
  decltype(&fastfisher::largest) largest = nullptr;
  decltype(&fastfisher::matmul) matmul = nullptr;
  decltype(&fastfisher::moments) moments = nullptr;
  decltype(&fastfisher::moments_workspace) moments_workspace = nullptr;
  decltype(&fastfisher::lanczos_steps) lanczos_steps = nullptr;
  decltype(&fastfisher::lanczos_steps_workspace) lanczos_steps_workspace = nullptr;
  decltype(&fastfisher::panel_combine) panel_combine = nullptr;
  decltype(&fastfisher::panel_dots) panel_dots = nullptr;
  decltype(&fastfisher::panel_remove) panel_remove = nullptr;
  decltype(&fastfisher::panel_remove_workspace) panel_remove_workspace = nullptr;
  decltype(&fastfisher::bmm) bmm = nullptr;
  decltype(&fastfisher::sandwich) sandwich = nullptr;
  decltype(&fastfisher::sandwich_workspace) sandwich_workspace = nullptr;
  decltype(&fastfisher::small_eigh) small_eigh = nullptr;
  decltype(&fastfisher::symm) symm = nullptr;
  decltype(&fastfisher::symm_workspace) symm_workspace = nullptr;
  decltype(&fastfisher::symmetry) symmetry = nullptr;
  decltype(&fastfisher::psd) psd = nullptr;
  decltype(&fastfisher::psd_factor_size) psd_factor_size = nullptr;
  decltype(&fastfisher::psd_workspace) psd_workspace = nullptr;
  decltype(&fastfisher::vjp) vjp = nullptr;
  decltype(&fastfisher::vjp_workspace) vjp_workspace = nullptr;
};

/// All backends of this build, the CPU's first.
const std::vector<const Backend*>& backends();

struct BuildInfo {
  std::string version, compiler, blas, simd;
  bool outruns_mkl = false;  ///< products here take about half as long as MKL's
  int threads = 1;           ///< what threads = 0 means now
};
BuildInfo build_info();

}  // namespace fastfisher

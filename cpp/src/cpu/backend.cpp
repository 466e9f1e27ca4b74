// SPDX-License-Identifier: Apache-2.0
#include "backend.hpp"

#include "blas.hpp"
#include "instruction_set.hpp"
#include "parallel.hpp"
#include "tile_kernels.hpp"

namespace fastfisher::cpu {

std::string simd_name() {
  return tile_kernels<float>().name;
}

// MKL gives processors of other makers than its own vectors of 256 bits. Zen 4 does no more at a
// time, and others were not measured.
bool outruns_mkl() {
  return is_wide_amd();
}

const Backend& backend() {
  static const Backend table = [] {
    Backend b;
    b.name = "cpu";
    b.device = DeviceKind::cpu;
    b.state = [] {
      return BackendState{true, std::to_string(thread_count({})) + " threads, " + simd_name() +
                                    " kernels"};
    };
    b.eigh_ends = &cpu::eigh_ends;
    b.eigh_ends_workspace = &cpu::eigh_ends_workspace;
    b.gram = &cpu::gram;
    b.gram_workspace = &cpu::gram_workspace;
    b.jvp = &cpu::jvp;
    b.jvp_workspace = &cpu::jvp_workspace;
    b.largest = &cpu::largest;
    b.matmul = &cpu::matmul;
    b.moments = &cpu::moments;
    b.moments_workspace = &cpu::moments_workspace;
    b.lanczos_steps = &cpu::lanczos_steps;
    b.lanczos_steps_workspace = &cpu::lanczos_steps_workspace;
    b.panel_combine = &cpu::panel_combine;
    b.panel_dots = &cpu::panel_dots;
    b.panel_remove = &cpu::panel_remove;
    b.panel_remove_workspace = &cpu::panel_remove_workspace;
    b.bmm = &cpu::bmm;
    b.sandwich = &cpu::sandwich;
    b.sandwich_workspace = &cpu::sandwich_workspace;
    b.small_eigh = &cpu::small_eigh;
    b.symm = &cpu::symm;
    b.symm_workspace = &cpu::symm_workspace;
    b.symmetry = &cpu::symmetry;
    b.psd = &cpu::psd;
    b.psd_factor_size = &cpu::psd_factor_size;
    b.psd_workspace = &cpu::psd_workspace;
    b.vjp = &cpu::vjp;
    b.vjp_workspace = &cpu::vjp_workspace;
    return b;
  }();
  return table;
}

}  // namespace fastfisher::cpu

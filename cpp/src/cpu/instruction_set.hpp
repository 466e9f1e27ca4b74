// SPDX-License-Identifier: Apache-2.0
//
// Which of the compiled instruction sets this processor runs, at most the one that the variable
// FASTFISHER_SIMD names (avx2, base): so those of other processors are tested here.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <string_view>

namespace fastfisher::cpu {

inline std::string_view simd_limit() {
  const char* const name = std::getenv("FASTFISHER_SIMD");
  return name == nullptr ? "" : name;
}

inline bool has_avx2() {
#if defined(FF_HAVE_AVX2)
  static const bool found = simd_limit() != "base" && __builtin_cpu_supports("avx2") != 0 &&
                            __builtin_cpu_supports("fma") != 0;
  return found;
#else
  return false;
#endif
}

/// Zen 4 has these in two halves, at the rate of 256 bits where a core is alone: but they are half
/// as many instructions, which counts where another guest has the core's other thread (0.8 to 0.95
/// of the time), and twice as many registers.
inline bool has_avx512() {
#if defined(FF_HAVE_AVX512)
  static const bool found =
      simd_limit() != "avx2" && has_avx2() && __builtin_cpu_supports("avx512f") != 0 &&
      __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0;
  return found;
#else
  return false;
#endif
}

/// AMD's from Zen 5 on: vectors of 512 bits at their full rate.
inline bool is_wide_amd() {
#if defined(__x86_64__)
  static const bool found = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!has_avx512() || __builtin_cpu_is("amd") == 0 ||
        __get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0)
      return false;
    const unsigned family = (eax >> 8 & 0xF) + (eax >> 20 & 0xFF);
    return family >= 0x1A;
  }();
  return found;
#else
  return false;
#endif
}

}  // namespace fastfisher::cpu

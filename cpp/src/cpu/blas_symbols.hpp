// SPDX-License-Identifier: Apache-2.0
//
// Names of the bundled BLAS, whose symbols carry a prefix, and its threads: one. Whoever includes
// this declares the functions it calls by hand, so that no header of a BLAS need be there.
#pragma once

#if defined(FF_BLAS_PREFIX)

#define FF_JOIN_(x, y) x##y
#define FF_JOIN(x, y) FF_JOIN_(x, y)
#define FF_BLAS(name) FF_JOIN(FF_BLAS_PREFIX, name)

extern "C" void FF_BLAS(openblas_set_num_threads)(int threads);

namespace fastfisher::cpu {

/// All parallelism is in our own tiles.
inline void single_thread() {
  static const bool done = [] {
    FF_BLAS(openblas_set_num_threads)(1);
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace fastfisher::cpu

#endif

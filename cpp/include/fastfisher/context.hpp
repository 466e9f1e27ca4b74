// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fastfisher/view.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace fastfisher {

/// Where and how an op runs: the first parameter of every op. Nothing here is owned.
struct Context {
  Device device;
  void* stream = nullptr;  ///< CUDA stream of the caller; null on CPU
  int threads =
      0;  ///< 0: FASTFISHER_NUM_THREADS, else OMP_NUM_THREADS, else the process's affinity
  std::span<std::byte>
      workspace;  ///< scratch of the caller; an op's *_workspace query says how much

  /// Asked between tiles, by the calling thread only; true stops the op with
  /// ErrorCode::interrupted.
  bool (*interrupted)(void* state) = nullptr;
  void* interrupted_state = nullptr;

  /// Two numbers that a long op keeps up to date while it runs, pieces done and pieces in all; null
  /// if nobody looks.
  std::int64_t* progress = nullptr;

  /// Run on the team of an OpenMP runtime, torch's, where the process has one of enough threads:
  /// for ops between functions of torch, after each of which that team keeps watch for a while, in
  /// the way of other threads.
  bool openmp_team = false;
};

}  // namespace fastfisher

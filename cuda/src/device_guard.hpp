// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "check.hpp"

namespace fastfisher::cuda {

/// Makes `device` current for its lifetime: launches go to the current device, and the caller's
/// must not change.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* op) {
    check(cudaGetDevice(&previous_), op, "cudaGetDevice");
    if (device == previous_) return;
    check(cudaSetDevice(device), op, "cudaSetDevice");
    changed_ = true;
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);  // it was current before: nothing can be told here
  }

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace fastfisher::cuda

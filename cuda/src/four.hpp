// SPDX-License-Identifier: Apache-2.0
//
// Four numbers, or two floats, that are read and written together.
#pragma once

#include "block.hpp"

namespace fastfisher::cuda {

template <class T>
struct alignas(16) Four {
  T v[4];
};

struct alignas(8) Two {
  float v[2];
};

/// `from` is a multiple of 16 bytes.
template <class T>
FF_HD inline Four<T> four_at(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
// How often a test draws its problems anew.
#pragma once

namespace fastfisher::test {

// Sanitizers look for faults, not for figures, and slow every step down by ten or more.
constexpr int rounds(int plain) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  return plain < 8 ? 1 : plain / 8;
#else
  return plain;
#endif
}

}  // namespace fastfisher::test

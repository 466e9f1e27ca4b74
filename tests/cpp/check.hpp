// SPDX-License-Identifier: Apache-2.0
//
// The smallest test tool that serves: CHECK counts, main() reports in the form of other runners.
#pragma once

#include <cstdio>

namespace fastfisher::test {

inline int passed = 0;
inline int failed = 0;

inline void check(bool holds, const char* what, const char* file, int line) {
  if (holds) {
    ++passed;
  } else if (++failed <= 20) {
    std::printf("%s:%d: failed: %s\n", file, line, what);
  }
}

inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace fastfisher::test

#define FF_CHECK(condition) ::fastfisher::test::check((condition), #condition, __FILE__, __LINE__)

// SPDX-License-Identifier: Apache-2.0
//
// The host's pipelined block. Copies are made at once or at the last moment that is allowed: the
// first shows memory that is overwritten too early, the second memory that is read too early.
#pragma once

#include "host_block.hpp"
#include "pipelined_block.hpp"

#include <cstddef>
#include <cstring>
#include <deque>
#include <vector>

namespace fastfisher::test {

class PipelinedHostBlock : public HostBlock {
 public:
  PipelinedHostBlock(const HostBlock& block, bool late) : HostBlock(block), late_(late) {}

  [[nodiscard]] int thread_again() const { return thread(); }
  template <int Bytes>
  void copy(void* to, const void* from, bool valid) const {
    ask({to, from, Bytes, valid});
  }
  void commit() const { groups_.emplace_back(); }
  template <int Pending>
  void wait() const {
    // The last group is the one that is still being filled.
    while (groups_.size() > Pending + 1) {
      for (const Copy& copy : groups_.front()) make(copy);
      groups_.pop_front();
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
    bool valid;
  };

  void ask(const Copy& copy) const {
    if (late_) {
      groups_.back().push_back(copy);
    } else {
      make(copy);
    }
  }
  static void make(const Copy& copy) {
    if (copy.valid) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }

  bool late_;
  mutable std::deque<std::vector<Copy>> groups_{1};
};

}  // namespace fastfisher::test

// SPDX-License-Identifier: Apache-2.0
//
// A thread block that can ask for memory ahead of its use: the copies of a thread arrive in groups.
#pragma once

#include "block.hpp"

#include <concepts>
#include <cstdint>

namespace fastfisher::cuda {

template <class B>
concept PipelinedBlock =
    BlockContext<B> && requires(const B& block, float* to, const float* from, bool valid) {
      // thread() anew: what follows from it is not kept in registers from one round of a loop to
      // the next.
      { block.thread_again() } -> std::same_as<int>;
      block.copy(to, from, valid);       // *to = valid ? *from : 0, some time before its group
      block.copy_wide(to, from, valid);  // the same for 16 bytes, all of them aligned to it
      block.commit();                    // ends a group of copies
      block.template wait<1>();  // all groups but the last so many have arrived, for this thread
    };

}  // namespace fastfisher::cuda

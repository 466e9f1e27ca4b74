// SPDX-License-Identifier: Apache-2.0
//
// A thread block that copies in the background, see block.hpp, without the products of tensor
// cores.
#pragma once

#include "block.hpp"

#include <concepts>

namespace fastfisher::cuda {

template <class B>
concept PipelinedBlock = BlockContext<B> && requires(const B& block, void* to, const void* from) {
  // thread() anew: what follows from it is not kept in registers from one round of a loop to the
  // next.
  { block.thread_again() } -> std::same_as<int>;
  block.template copy<16>(to, from, true);
  block.commit();
  block.template wait<1>();
};

}  // namespace fastfisher::cuda

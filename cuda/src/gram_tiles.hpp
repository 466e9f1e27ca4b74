// SPDX-License-Identifier: Apache-2.0
//
// Launches of the Gram's kernels: one file an arithmetic, so that they compile side by side.
#pragma once

#include "gram_problem.hpp"
#include "panel_body.hpp"

#include <cuda_runtime_api.h>

namespace fastfisher::cuda {

/// All tiles of a problem; `slots` is scratch for `blocks` blocks.
void gram_tiles_highest(const Problem& problem, const Layer* layers, std::byte* slots,
                        std::int64_t blocks, std::uint64_t* overflow,
                        cudaStream_t stream);  // float, three bfloat16
void gram_tiles_hopper(const Problem& problem, const Layer* layers, std::byte* slots,
                       std::int64_t blocks, std::uint64_t* overflow,
                       cudaStream_t stream);  // the same of packed rows
void gram_tiles_medium(const Problem& problem, const Layer* layers, std::byte* slots,
                       std::int64_t blocks, std::uint64_t* overflow,
                       cudaStream_t stream);  // float, one TF32
void gram_tiles_double(const Problem& problem, const Layer* layers, std::byte* slots,
                       std::int64_t blocks, std::uint64_t* overflow, cudaStream_t stream);

/// Whether the device, which is current, runs gram_tiles_hopper.
bool gram_has_hopper(int device);
/// Packs rows for it.
void pack(const PackProblem& problem, cudaStream_t stream);

/// Blocks that a device runs at a time.
std::int64_t gram_blocks(int device);

/// Largest magnitude and first entry that is not finite of `array` into `found`, which is zero.
void scan(const ArrayRef& array, ScanFound* found, cudaStream_t stream);

}  // namespace fastfisher::cuda

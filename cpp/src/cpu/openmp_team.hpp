// SPDX-License-Identifier: Apache-2.0
//
// The threads of an OpenMP runtime that the process has anyway: torch's. After each of its
// functions they keep watch for some milliseconds, in the way of any others on these cores, so that
// ops between functions of torch run on them.
#pragma once

namespace fastfisher::cpu {

/// Run function(data, k) for the threads k of a team, the calling one (0) among them, and wait for
/// all of them. False if there is no such team of `threads` or more: nothing was run.
///
/// Runtimes are found, not linked: where none is loaded for all to see, there is none.
bool run_on_openmp_team(int threads, void (*function)(void* data, int thread), void* data);

/// There is none from now on: in the child of a fork its parent's would be waited for in vain.
void forget_openmp_team();

}  // namespace fastfisher::cpu

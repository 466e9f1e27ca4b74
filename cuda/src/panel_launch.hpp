// SPDX-License-Identifier: Apache-2.0
//
// Launches of the panel kernels, for the ops that are made of them.
#pragma once

#include "fastfisher/dtype.hpp"
#include "panel_steps_body.hpp"

namespace fastfisher::cuda {

template <class T>
using DeviceDots = PanelDots<T, 4, 8, 128>;

template <class T>
using DeviceCombine = PanelCombine<T, 64, 4, 8, 128>;

void launch_dots(DType dtype, const PanelProblem& problem, const char* op, void* stream);
void launch_combine(DType dtype, const PanelProblem& problem, const char* op, void* stream);

}  // namespace fastfisher::cuda

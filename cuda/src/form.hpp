// SPDX-License-Identifier: Apache-2.0
//
// Per-sample gradients written out on a device, a stretch of the parameters at a time: what method
// S1 of the Gram multiplies.
#pragma once

#include "fastfisher/context.hpp"
#include "fastfisher/layer.hpp"

#include <cstdint>

namespace fastfisher::cuda {

/// destination[(n c_count + c) row_stride + p - first] = J[n,c,p] for every sample n and output c
/// of the layer and the parameters first <= p < first + count, with
///   J[n,c,(o,i)] = sum_s g[n,c,s,o] a[n,s,i],   J[n,c,(b,o)] = sum_s g[n,c,s,o],
/// parameters W[o,i] row-major, then b[o]. All forms: dense, shared, convolutions of any geometry
/// and groups (unfolded on the way), explicit ones (copied, 16-bit storage widened), separable
/// cotangents. The arrays of the layer lie on ctx.device and have any strides and dtype.
///
/// What it needs:
/// - destination: device memory of float32 (T = float; factors of float32, bfloat16, float16) or
///   float64 (T = double; factors of float64), (samples x outputs) rows of row_stride >= count
///   numbers. 16-byte alignment of it and of the stride helps whoever reads it, not this op.
/// - ctx.stream: all work is put there, nothing is waited for, no host memory is referred to later.
/// - ctx.workspace: form_workspace(layer, count) bytes of device memory, which are scratch until
///   the stream has passed. May be empty or smaller: the depth (positions) is then never shared out
///   among tiles, which only matters for few samples with many positions. Sizes alone decide, so
///   results are the same to the bit for the same workspace.
/// - ctx.device current (DeviceGuard): launches go to the current device.
/// It checks neither finiteness nor extents; a non-finite factor gives non-finite gradients, and
/// gradients beyond the range of T are infinite. Throws Error for failed launches only.
///
/// To work on some samples only, narrow the first axis of layer.a and layer.g. Stretches of whole
/// units (multiples of sizes_of(layer).in parameters) take one launch, others up to three; whole
/// groups of a convolution share a launch. Cost: 2 n c o i s flops for the stretch's o and i
/// (separable: 2 n o i s), n c count numbers written, a and g read once for each 128 columns or
/// rows.
template <class T>
void form(const Context& ctx, const LayerFactors& layer, std::int64_t first, std::int64_t count,
          T* destination, std::int64_t row_stride);

/// Bytes of workspace with which `form` of any `count` parameters of the layer is fastest. Only
/// extents of the arrays are looked at.
std::int64_t form_workspace(const LayerFactors& layer, std::int64_t count);

}  // namespace fastfisher::cuda

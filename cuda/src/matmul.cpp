// SPDX-License-Identifier: Apache-2.0
//
// out[n,m] = a[n,k] b[k,m] by the tiles of the products with a Jacobian, see product.cu: 2 n k m
// flops. Without a workspace the depth is not shared out, so small results with a long depth leave
// most of a device idle.
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "product_launch.hpp"

namespace fastfisher::cuda {

void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  if (out.size() == 0) return;
  const DeviceGuard guard(ctx.device.index, "matmul");
  visit_dtype(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Product<T> p;
    p.left.data = a.data;
    p.left.rows.nest(a.extent(0), a.stride(0));
    p.left.depth.nest(a.extent(1), a.stride(1));
    choose_path<T>(p.left);
    p.right.data = b.data;
    p.right.rows.nest(b.extent(1), b.stride(1));
    p.right.depth.nest(b.extent(0), b.stride(0));
    choose_path<T>(p.right);
    p.rows = out.extent(0);
    p.cols = out.extent(1);
    p.depth = a.extent(1);
    p.out = static_cast<T*>(out.data);
    p.out_row = {1, out.stride(0), 0};
    p.out_col = {1, out.stride(1), 0};
    ProductLimits limits = product_limits<T>();
    limits.partial_bytes = 0;
    share(p, limits);
    launch_product(p, ctx.stream, "matmul");
  });
}

}  // namespace fastfisher::cuda

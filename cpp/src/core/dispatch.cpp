// SPDX-License-Identifier: Apache-2.0
//
// The public ops: check, pick the backend of the context's device, call it. No arithmetic here.
#include "checks.hpp"
#include "fastfisher/backend.hpp"

#include <string>

namespace fastfisher {
namespace {

const Backend& backend_of(const Context& ctx) {
  for (const Backend* backend : backends()) {
    if (backend->device == ctx.device.kind) return *backend;
  }
  throw Error(ErrorCode::missing, "dispatch", "", "no backend for this device");
}

template <class Function>
Function entry(const Backend& backend, Function function, const char* op) {
  if (function != nullptr) return function;
  throw Error(ErrorCode::missing, op, "",
              std::string("the ") + backend.name + " backend: " + backend.state().detail);
}

}  // namespace

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out) {
  checks::gram(ctx, left, right, options);
  checks::gram_out(left, right, options, out);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.gram, "gram")(ctx, left, right, options, out);
}

GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options) {
  checks::gram(ctx, left, right, options);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.gram_workspace, "gram_workspace")(ctx, left, right, options);
}

ProductReport jvp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& v,
                  const ArrayRef& out) {
  checks::product("jvp", ctx, layers, v, out, true);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.jvp, "jvp")(ctx, layers, v, out);
}

std::int64_t jvp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  checks::product_workspace("jvp_workspace", ctx, layers, columns);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.jvp_workspace, "jvp_workspace")(ctx, layers, columns);
}

double largest(const Context& ctx, const ArrayRef& x) {
  checks::largest(ctx, x);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.largest, "largest")(ctx, x);
}

void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, LanczosStart start,
                   const ArrayRef& small) {
  checks::lanczos_steps(ctx, a, scale, basis, first, small);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.lanczos_steps, "lanczos_steps")(ctx, a, scale, basis, first, start, small);
}

std::int64_t lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                                     std::int64_t rows) {
  checks::lanczos_steps_workspace(ctx, a, b, rows);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.lanczos_steps_workspace, "lanczos_steps_workspace")(ctx, a, b,
                                                                                    rows);
}

void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  checks::matmul(ctx, a, b, out);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.matmul, "matmul")(ctx, a, b, out);
}

void moments(const Context& ctx, std::span<const MomentItem> items) {
  checks::moments(ctx, items);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.moments, "moments")(ctx, items);
}

std::int64_t moments_workspace(const Context& ctx, std::int64_t most, DType dtype) {
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.moments_workspace, "moments_workspace")(ctx, most, dtype);
}

void bmm(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  checks::bmm(ctx, a, b, out);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.bmm, "bmm")(ctx, a, b, out);
}

void sandwich(const Context& ctx, std::span<const SandwichItem> items) {
  checks::sandwich(ctx, items);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.sandwich, "sandwich")(ctx, items);
}

std::int64_t sandwich_workspace(const Context& ctx, std::int64_t rows, std::int64_t columns,
                                DType dtype) {
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.sandwich_workspace, "sandwich_workspace")(ctx, rows, columns,
                                                                          dtype);
}

void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x, bool keep,
                   const ArrayRef& y) {
  checks::panel_combine(ctx, weights, x, y);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.panel_combine, "panel_combine")(ctx, weights, x, keep, y);
}

void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out) {
  checks::panel_dots(ctx, x, y, out);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.panel_dots, "panel_dots")(ctx, x, y, out);
}

void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small) {
  checks::panel_remove(ctx, x, y, small);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.panel_remove, "panel_remove")(ctx, x, y, small);
}

std::int64_t panel_remove_workspace(const Context& ctx, std::int64_t networks, std::int64_t i,
                                    std::int64_t j, std::int64_t n) {
  checks::panel_remove_workspace(networks, i, j, n);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.panel_remove_workspace, "panel_remove_workspace")(ctx, networks, i,
                                                                                  j, n);
}

void eigh_ends(const Context& ctx, const ArrayRef& a, const ArrayRef& scale, SpectrumEnd end,
               const ArrayRef& values, const ArrayRef& vectors, const ArrayRef& residual_norms,
               const ArrayRef& norm) {
  checks::eigh_ends(ctx, a, scale, values, vectors, residual_norms, norm);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.eigh_ends, "eigh_ends")(ctx, a, scale, end, values, vectors,
                                                 residual_norms, norm);
}

std::int64_t eigh_ends_workspace(const Context& ctx, const ArrayRef& a, SpectrumEnd end,
                                 std::int64_t k) {
  checks::eigh_ends_workspace(ctx, a, k);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.eigh_ends_workspace, "eigh_ends_workspace")(ctx, a, end, k);
}

void small_eigh(const Context& ctx, const ArrayRef& a, const ArrayRef& values,
                const ArrayRef& vectors) {
  checks::small_eigh(ctx, a, values, vectors);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.small_eigh, "small_eigh")(ctx, a, values, vectors);
}

void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out) {
  checks::symm(ctx, a, x, scale, out);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.symm, "symm")(ctx, a, x, scale, out);
}

std::int64_t symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors) {
  checks::symm_workspace(ctx, a, vectors);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.symm_workspace, "symm_workspace")(ctx, a, vectors);
}

void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out) {
  checks::symmetry(ctx, a, out);
  const Backend& backend = backend_of(ctx);
  entry(backend, backend.symmetry, "symmetry")(ctx, a, out);
}

std::vector<PsdReport> psd(const Context& ctx, std::span<const PsdItem> items,
                           const PsdOptions& options) {
  checks::psd(ctx, items, options);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.psd, "psd")(ctx, items, options);
}

std::int64_t psd_factor_size(const Context& ctx, std::int64_t n, DType dtype) {
  checks::psd_factor_size(n, dtype);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.psd_factor_size, "psd_factor_size")(ctx, n, dtype);
}

std::int64_t psd_workspace(const Context& ctx, std::span<const std::int64_t> sizes, DType dtype,
                           PsdTask task) {
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.psd_workspace, "psd_workspace")(ctx, sizes, dtype, task);
}

ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out) {
  checks::product("vjp", ctx, layers, u, out, false);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.vjp, "vjp")(ctx, layers, u, out);
}

std::int64_t vjp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  checks::product_workspace("vjp_workspace", ctx, layers, columns);
  const Backend& backend = backend_of(ctx);
  return entry(backend, backend.vjp_workspace, "vjp_workspace")(ctx, layers, columns);
}

}  // namespace fastfisher

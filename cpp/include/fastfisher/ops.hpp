// SPDX-License-Identifier: Apache-2.0
//
// The ops of the library. Each has one name everywhere: here, in the backends, the binding, the
// stub, the numpy reference, the tests and the benches. Ops are re-entrant, allocate no arrays and
// write only to `out`. Letters: n, m samples; c, d outputs; s, t positions; i in-features;
// o out-features; p parameters; e networks of a batch.
#pragma once

#include "fastfisher/context.hpp"
#include "fastfisher/error.hpp"
#include "fastfisher/layer.hpp"
#include "fastfisher/psd.hpp"
#include "fastfisher/view.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace fastfisher {

enum class GramOutputs : int {
  full,      ///< out [n,c,m,d]
  trace,     ///< out [n,m] = sum over c of full[n,c,m,c]
  diagonal,  ///< out [n,m,c] = full[n,c,m,c]
};

enum class GramPrecision : int {
  highest,  ///< products and depth sums in the dtype of the input
  exact,    ///< float32 input, float64 products and sums
  medium,   ///< on a device: TF32 products of float32 input; elsewhere highest
};

struct GramOptions {
  GramOutputs outputs = GramOutputs::full;
  GramPrecision precision = GramPrecision::highest;
  std::int64_t memory_limit = std::int64_t{48} << 20;  ///< bytes of workspace at most
  /// Every array, `out` too, has a leading axis e: one Gram for each of e networks.
  bool batched = false;
};

/// What an op found in its input. Ops report; whoever calls decides what to raise.
struct GramReport {
  /// lost: huge numbers, which may meet nothing but zeros, hide ordinary ones; exact products do
  /// not. Said of float32 on the CPU.
  enum class Kind : int { ok, non_finite, overflow, lost } kind = Kind::ok;
  int side = 0;            ///< 0: left, 1: right
  int layer = 0;           ///< index into the list
  int argument = 0;        ///< 0: a, 1: g, 2: w
  std::int64_t index = 0;  ///< first such element, counted in row-major order of the argument's
                           ///< extents (of its network in a batch)
  std::int64_t network = 0;
};

/// What gram decided and expects for one layer.
struct GramChoice {
  GramMethod method = GramMethod::automatic;
  double multiply_adds = 0;  ///< of the method, halved by symmetry
  double seconds = 0;        ///< predicted from stored rates
};

/// What a call of gram needs and what it will do.
struct GramEstimate {
  std::int64_t bytes = 0;   ///< of workspace
  std::int64_t blocks = 1;  ///< of rows of the Gram; more of them form and pack the factors again
  std::int64_t slabs = 1;   ///< of parameters, a block
  std::vector<GramChoice> layers;
};

/// Gram of per-sample Jacobians, summed over layers, K[n,c,m,d] = sum_l <J_l[n,c], J_l[m,d]>; for
/// dense layers that is
///   K[n,c,m,d] = sum_l (<a_l[n], a_l[m]> + bias_l) <g_l[n,c], g_l[m,d]>.
/// `right` empty: the square case, where only one half is computed and the result is symmetric bit
/// for bit. Needs at least gram_workspace(...).bytes in ctx.workspace; on non-finite input `out` is
/// left unspecified.
///
/// CUDA: methods S0 of dense layers and S1 of others; the workspace is device memory. Reading the
/// report back synchronises the stream, after the scan of the input and after the result. A launch
/// runs to its end: interrupts are not polled.
GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out);

/// Bytes of workspace that `gram` wants for these layers, at most options.memory_limit, and the
/// methods it chooses; ErrorCode::memory with the needed figure if that cannot be. More memory
/// means fewer passes over the factors.
GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options);

/// What a product with a Jacobian found: a result that is not finite, and the input to blame for
/// it.
struct ProductReport {
  enum class Kind : int { ok, non_finite, overflow } kind = Kind::ok;
  int layer = -1;          ///< index into the list; -1: the vector
  int argument = 0;        ///< of a layer, 0: a, 1: g, 2: w
  std::int64_t index = 0;  ///< first such element, counted in row-major order of its extents
};

/// out[n,c,k] = J v, summed over layers, for v [p,k] with the parameters of all layers in order. v
/// and out have the result's dtype and any strides. Needs at least jvp_workspace(...) bytes in
/// ctx.workspace; unless the report is ok, `out` is left unspecified.
///
/// CUDA: reading the report back synchronises the stream once, after the result; interrupts are not
/// polled.
ProductReport jvp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& v,
                  const ArrayRef& out);

/// Bytes of workspace that `jvp` wants for k columns.
std::int64_t jvp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns);

/// out[p,k] = J^T u for u [n,c,k]: the counterpart of `jvp`.
ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out);

/// Bytes of workspace that `vjp` wants for k columns.
std::int64_t vjp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns);

/// y[e,j] = sum_i weights[e,j,i] x[e,i], with `keep` added to y: panels of vectors [e,i,n] and
/// [e,j,n], which lie without gaps along n; weights are float64.
void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x, bool keep,
                   const ArrayRef& y);

/// out[e,j,i] = <y[e,j], x[e,i]> in float64, summed in stretches in the dtype of the panels.
void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out);

/// Takes out of y[e,j] what lies in the span of the orthonormal x[e,i], in two passes over x;
/// small[e,j,:i] is what was taken out, in terms of x, and small[e,j,i:] = <y[e,j], y[e,k]> of what
/// is left, for every k. Panels and float64 sums as in `panel_dots`. Needs at least
/// panel_remove_workspace(...) bytes in ctx.workspace.
void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small);

/// Bytes of workspace that `panel_remove` wants for panels [e,i,n] and [e,j,n].
std::int64_t panel_remove_workspace(const Context& ctx, std::int64_t networks, std::int64_t i,
                                    std::int64_t j, std::int64_t n);

/// What the first block of `lanczos_steps` is.
struct LanczosStart {
  bool fresh = false;      ///< any vectors, else orthonormal and orthogonal to the rows before
  std::int64_t seed = -1;  ///< of fresh ones; negative: the rows of the basis as they are
};

/// Passes of block Lanczos without a look at what comes out, each with full reorthogonalisation, on
/// the symmetric matrices scale[e]^2 a[e] (a [e,n,n] and scale as in symm). The rows
/// [first, first + b) of basis [e,rows,n] are the next block. small [count + 1,e,b,width], float64,
/// where width >= first + (count + 1) b + 1, b <= 8, and the rows have room for as many blocks.
///   Step 0, where the block is fresh: it is made orthonormal and orthogonal to the p = first rows;
///   with a seed it is drawn: uniform numbers between -1 and 1 of 24 bits, the same everywhere.
///   Step s of count: with p = first + s b and w = scale^2 a q of the last block q, the rows
///   [p, p + b) become the q' of w - part basis[:p] = r q'.
/// small[s,e,j,:p] is part, [p, p + b) is r, lower triangular; small[s,e,j,width - 1] is how far
/// the block was from orthonormal before its last sweep, infinite where r is singular: unless it is
/// small, what the step and those after it left is not to be used. The rest of small is not
/// written. Needs at least lanczos_steps_workspace(...) bytes in ctx.workspace.
/// CUDA: nothing synchronises.
void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, LanczosStart start,
                   const ArrayRef& small);

/// Bytes of workspace that `lanczos_steps` wants for blocks of b vectors and at most `rows` rows.
std::int64_t lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                                     std::int64_t rows);

/// Which eigenvalues of a symmetric matrix are wanted.
enum class SpectrumEnd : int {
  largest,
  smallest,
  magnitude,  ///< the largest in magnitude
  both,       ///< half at each end, the odd one at the high end
};

/// k eigenpairs of each symmetric matrix scale[e]^2 a[e] (a [e,n,n], one triangle is read, scale
/// as in symm): values [e,k] in no order, orthonormal vectors [e,k,n] in the dtype of a,
/// residual_norms [e,k] from a product made for that, and norm [e], the largest magnitude of an
/// eigenvalue to three digits; all but vectors are float64. By reduction to tridiagonal form: every
/// copy of a repeated eigenvalue is found. k is the extent of values, at most n. Needs at least
/// eigh_ends_workspace(...) bytes in ctx.workspace.
void eigh_ends(const Context& ctx, const ArrayRef& a, const ArrayRef& scale, SpectrumEnd end,
               const ArrayRef& values, const ArrayRef& vectors, const ArrayRef& residual_norms,
               const ArrayRef& norm);

/// Bytes of workspace that `eigh_ends` wants for k pairs a matrix.
std::int64_t eigh_ends_workspace(const Context& ctx, const ArrayRef& a, SpectrumEnd end,
                                 std::int64_t k);

/// Eigenvalues [e,m], ascending, and eigenvectors [e,m,m] as rows of small symmetric float64
/// matrices a [e,m,m], of which the lower triangle is read.
void small_eigh(const Context& ctx, const ArrayRef& a, const ArrayRef& values,
                const ArrayRef& vectors);

/// out[e,k,n] = scale[e]^2 A_e x[e,k] for symmetric matrices a [e,n,n], of which one triangle is
/// read, once for all vectors. The scale (float64) is applied half before and half after, so that
/// entries near the ends of the dtype's range neither overflow nor vanish. Needs at least
/// symm_workspace(...) bytes in ctx.workspace. CUDA: once for each 32 vectors (16 of float64);
/// float32 numbers are sums of two of TF32 there, as good as float32 where the largest entry of the
/// matrix is above 2^-100 or scale^2 above 2^90; nothing synchronises, as in the panel ops and
/// symmetry.
void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out);

/// Bytes of workspace that `symm` wants for this many vectors.
std::int64_t symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors);

/// out[e] = (max |a_ij|, max |a_ij - a_ji|) in float64, for matrices a [e,n,n] in one read; the
/// first is not finite if an entry is not.
void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out);

/// max |x| over an array of any shape and strides in one read; not finite if an entry is not, 0 if
/// there is none. float32 and float64, 16-bit floats too.
///
/// CUDA: ErrorCode::missing.
double largest(const Context& ctx, const ArrayRef& x);

/// out[n,m] = a[n,k] b[k,m], by the bundled BLAS where there is one. The yardstick of every floor.
void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);

/// out[e,n,m] = a[e,n,k] b[e,k,m] by the kernels of the Gram, any strides. Sums are in the
/// dtype; the bits of a row depend on that row and its matrix alone.
///
/// CUDA: ErrorCode::missing.
void bmm(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);

/// One matrix of `moments`.
struct MomentItem {
  ArrayRef a;        ///< [n,i], any strides
  ArrayRef out;      ///< [m,m], packed row-major: m = i, or i + 1 with a column of ones
  double scale = 1;  ///< factor of the result
};

/// Second moments out = scale [a 1]^T [a 1] of every matrix of a list, or scale a^T a: Kronecker
/// factors of layers with a bias or without. Sums are in the dtype of `a`, in stretches; results
/// are symmetric bit for bit. Their diagonals are sums of squares: where these are finite, so was
/// `a`. Needs at least moments_workspace(...) bytes in ctx.workspace.
///
/// CUDA: nothing is waited for. How depths are shared out depends on the whole list, so an item's
/// last bits may differ from those it has alone.
void moments(const Context& ctx, std::span<const MomentItem> items);

/// Bytes of workspace that `moments` wants for results of up to `most` rows.
std::int64_t moments_workspace(const Context& ctx, std::int64_t most, DType dtype);

/// One matrix of `sandwich`, with a bias or without one (`b` and `out_b` then have no entries).
struct SandwichItem {
  ArrayRef left;   ///< [o,o], or a factor of o rows
  ArrayRef w;      ///< [o,i]
  ArrayRef b;      ///< [o]
  ArrayRef right;  ///< [i,i], with a bias [i + 1,i + 1], or a factor of as many rows
  ArrayRef out;    ///< [o,i]
  ArrayRef out_b;  ///< [o]
};

/// [out out_b] = left [w b] right for every matrix of a list, what Kronecker factors do to a weight
/// and its bias: 2 o r (o + r) flops for r columns. All of one dtype, float32 or float64, with any
/// strides. Sums are in that dtype, in stretches. Results may not overlap anything that is read.
/// Where both sides of an item are factors of matrices (PsdTask::factor), the inverses of these are
/// meant: left^-1 [w b] right^-1 for as many flops, by substitution, without the n^3 of the
/// inverses. Needs at least sandwich_workspace(...) bytes in ctx.workspace.
///
/// CUDA: no factors.
void sandwich(const Context& ctx, std::span<const SandwichItem> items);

/// Bytes of workspace that `sandwich` wants for matrices of up to so many rows and columns, the
/// bias counted.
std::int64_t sandwich_workspace(const Context& ctx, std::int64_t rows, std::int64_t columns,
                                DType dtype);

/// Factor, invert, solve or diagonalise every matrix of a list, each on its own: one report a
/// matrix, in order, and a bad matrix changes no bit of the others. Large ones are worked on by all
/// threads, small ones a thread each. Matrices are scaled inside by powers of two, so that entries
/// may be near overflow and underflow; results are symmetric bit for bit. Needs at least
/// psd_workspace(...) bytes in ctx.workspace.
///
/// CUDA: all matrices go through each step together. Reading the reports back synchronises the
/// stream, once a call and once more for each round of automatic damping. Eigenvectors and roots of
/// up to 160 rows in float32, 112 in float64 (fewer where a block has less than 227 KiB of shared
/// memory): ErrorCode::missing for larger ones. A launch runs to
/// its end: interrupts are not polled.
std::vector<PsdReport> psd(const Context& ctx, std::span<const PsdItem> items,
                           const PsdOptions& options);

/// Numbers of a factor of n rows (PsdTask::factor), whose form is the processor's own: it means
/// nothing on another one. Best aligned to 64 bytes.
std::int64_t psd_factor_size(const Context& ctx, std::int64_t n, DType dtype);

/// Bytes of workspace that `psd` wants for matrices of these sizes and results of `dtype`.
std::int64_t psd_workspace(const Context& ctx, std::span<const std::int64_t> sizes, DType dtype,
                           PsdTask task);

}  // namespace fastfisher

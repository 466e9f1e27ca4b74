// SPDX-License-Identifier: Apache-2.0
//
// Work on lists of symmetric positive (semi-)definite matrices of any sizes: items, options and
// what is reported about each. The op itself is in ops.hpp.
#pragma once

#include "fastfisher/view.hpp"

#include <cstdint>

namespace fastfisher {

enum class PsdTask : int {
  cholesky,      ///< out [n,n] = L, lower, A = L L^T
  inverse,       ///< out [n,n] = A^-1
  solve,         ///< out [n,k] = A^-1 b
  eigh,          ///< out [n,n] eigenvectors as columns, values [n] ascending
  inverse_root,  ///< out [n,n] = A^(-1/p)
  factor,        ///< out [psd_factor_size(n)]: a factor as `sandwich` takes it, in its own form
};

/// One matrix. Of `a` only the lower triangle is read. `out` has the result's dtype and is packed
/// row-major.
struct PsdItem {
  ArrayRef a;              ///< [n,n], any strides; 16-bit floats are widened
  ArrayRef out;            ///< [n,n], [n,k] for solve, [psd_factor_size(n)] for factor
  ArrayRef b;              ///< solve: right-hand sides [n,k] in the result's dtype; else rank 0
  ArrayRef values;         ///< eigh: eigenvalues [n] in the result's dtype; else rank 0
  double damping = 0;      ///< added to the diagonal
  bool automatic = false;  ///< raise the damping from 0 until the matrix is positive definite
};

struct PsdOptions {
  PsdTask task = PsdTask::inverse;
  double p = 2;  ///< of inverse_root
};

/// What happened to one matrix. On anything but ok and damped its outputs are NaN throughout.
struct PsdReport {
  enum class Kind : int {
    ok,             ///< nothing was added beyond what was asked for
    damped,         ///< automatic damping was needed
    non_finite,     ///< NaN or infinity in the lower triangle or in b: see `index`
    indefinite,     ///< not positive definite with the damping asked for, or with all allowed
    overflow,       ///< the result overflows its dtype
    no_convergence  ///< the eigenvalue iteration did not end
  } kind = Kind::ok;
  double damping = 0;      ///< what was added to the diagonal
  double condition = 0;    ///< estimate for the matrix with its damping; infinity if unknown
  std::int64_t index = 0;  ///< non_finite: row-major position in `a` (or b: -1 - position);
                           ///< indefinite: order of the leading minor that is not positive
};

}  // namespace fastfisher

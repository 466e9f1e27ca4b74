// SPDX-License-Identifier: Apache-2.0
//
// The CUDA lane of the backend table in a build without CUDA: it has no ops and says so.
#include "fastfisher/backend.hpp"

namespace fastfisher::cuda {

const Backend& backend() {
  static const Backend table = [] {
    Backend b;
    b.name = "cuda";
    b.device = DeviceKind::cuda;
    b.state = [] { return BackendState{false, "not compiled"}; };
    return b;
  }();
  return table;
}

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/backend.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  using namespace fastfisher;
  module.doc() = "Native ops of fastfisher; only _native.py calls them.";
  python::register_errors(module);
  python::register_gram(module);
  python::register_linalg(module);
  python::register_matmul(module);
  python::register_products(module);
  python::register_psd(module);
  module.def("use_openmp_team", &python::use_openmp_team);
  module.def("build_info", [] {
    const BuildInfo info = build_info();
    py::dict states;
    for (const Backend* backend : backends()) {
      const BackendState state = backend->state();
      states[backend->name] =
          py::dict(py::arg("available") = state.available, py::arg("detail") = state.detail);
    }
    return py::dict(py::arg("version") = info.version, py::arg("compiler") = info.compiler,
                    py::arg("blas") = info.blas, py::arg("simd") = info.simd,
                    py::arg("outruns_mkl") = info.outruns_mkl, py::arg("threads") = info.threads,
                    py::arg("backends") = states);
  });
}

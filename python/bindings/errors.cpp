// SPDX-License-Identifier: Apache-2.0
//
// The one translator from the library's exception to Python's.
#include "bridge.hpp"
#include "fastfisher/error.hpp"

namespace fastfisher::python {
namespace py = pybind11;

namespace {

void raise(const Error& error) {
  switch (error.code()) {
  case ErrorCode::shape:
    return PyErr_SetString(PyExc_ValueError, error.what());
  case ErrorCode::dtype:
    return PyErr_SetString(PyExc_TypeError, error.what());
  case ErrorCode::missing:
    return PyErr_SetString(PyExc_NotImplementedError, error.what());
  case ErrorCode::memory:
    return PyErr_SetString(PyExc_MemoryError, error.what());
  case ErrorCode::interrupted:
    // The signal's own handler may have raised already.
    if (PyErr_Occurred() == nullptr) PyErr_SetNone(PyExc_KeyboardInterrupt);
    return;
  case ErrorCode::cuda: {
    const py::object type = py::module_::import("fastfisher.errors").attr("CudaError");
    return PyErr_SetString(type.ptr(), error.what());
  }
  }
}

}  // namespace

void register_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      raise(error);
    }
  });
}

}  // namespace fastfisher::python

// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"

#include "dlpack_abi.hpp"
#include "fastfisher/error.hpp"

#include <chrono>
#include <string>

namespace fastfisher::python {
namespace py = pybind11;
namespace {

constexpr const char* kLegacy = "dltensor";
constexpr const char* kVersioned = "dltensor_versioned";

[[noreturn]] void fail(ErrorCode code, const std::string& name, const std::string& message) {
  throw Error(code, "dlpack", name, message);
}

// Whatever the library raised becomes an error about the named argument, with the cure where there
// is a usual one.
[[noreturn]] void refuse(const std::string& name, py::error_already_set& raised) {
  if (!raised.matches(PyExc_BufferError) && !raised.matches(PyExc_TypeError) &&
      !raised.matches(PyExc_RuntimeError) && !raised.matches(PyExc_ValueError)) {
    throw;
  }
  std::string text = py::str(raised.value());
  if (text.find("grad") != std::string::npos) text += " (pass x.detach())";
  if (text.find("conj") != std::string::npos) text += " (pass x.resolve_conj())";
  fail(ErrorCode::dtype, name, "cannot be borrowed: " + text);
}

py::object capsule_of(py::handle object, const std::string& name, std::intptr_t stream) {
  if (!py::hasattr(object, "__dlpack__")) {
    fail(ErrorCode::dtype, name,
         std::string("expected an array with __dlpack__, got ") + Py_TYPE(object.ptr())->tp_name);
  }
  const py::object stream_argument =
      stream == 0 ? py::object(py::none()) : py::object(py::int_(stream));
  const auto ask = [&](bool versioned) -> py::object {
    try {
      if (!versioned) return object.attr("__dlpack__")(py::arg("stream") = stream_argument);
      return object.attr("__dlpack__")(py::arg("stream") = stream_argument,
                                       py::arg("max_version") = py::make_tuple(dlpack::kMajor, 0));
    } catch (py::error_already_set& raised) {
      // Libraries from before version 1 do not know max_version.
      if (versioned && raised.matches(PyExc_TypeError)) return py::none();
      refuse(name, raised);
    }
  };
  py::object capsule = ask(true);
  return capsule.is_none() ? ask(false) : capsule;
}

// What the elements may be: floats of an op, or the bytes of a workspace.
enum class Elements { floats, bytes };

bool has_type(const dlpack::DataType& type, std::uint8_t code, std::uint8_t bits) {
  return type.code == code && type.bits == bits && type.lanes == 1;
}

ArrayRef ref_of(const dlpack::Tensor& tensor, Elements elements, const std::string& name) {
  ArrayRef array;
  switch (tensor.device.type) {
  case dlpack::kCpu:
  case dlpack::kCudaHost:
    array.device = {DeviceKind::cpu, 0};
    break;
  case dlpack::kCuda:
  case dlpack::kCudaManaged:
    array.device = {DeviceKind::cuda, tensor.device.index};
    break;
  default:
    fail(ErrorCode::dtype, name, "is on a device that fastfisher has no backend for");
  }
  if (elements == Elements::bytes) {
    // The dtype of the result has no name for bytes: only Workspace sees it.
    if (!has_type(tensor.dtype, dlpack::kUnsigned, 8))
      fail(ErrorCode::dtype, name, "expected dtype uint8");
  } else if (has_type(tensor.dtype, dlpack::kFloat, 32)) {
    array.dtype = DType::f32;
  } else if (has_type(tensor.dtype, dlpack::kFloat, 64)) {
    array.dtype = DType::f64;
  } else if (has_type(tensor.dtype, dlpack::kFloat, 16)) {
    array.dtype = DType::f16;
  } else if (has_type(tensor.dtype, dlpack::kBfloat, 16)) {
    array.dtype = DType::bf16;
  } else {
    fail(ErrorCode::dtype, name, "expected dtype float32, float64, bfloat16 or float16");
  }
  if (tensor.rank > kMaxRank) {
    fail(ErrorCode::shape, name,
         "expected at most " + std::to_string(kMaxRank) + " axes, got " +
             std::to_string(tensor.rank));
  }
  array.rank = tensor.rank;
  std::int64_t stride = 1;
  for (int r = tensor.rank - 1; r >= 0; --r) {
    array.extents[r] = tensor.shape[r];
    array.strides[r] = tensor.strides == nullptr ? stride : tensor.strides[r];
    stride *= tensor.shape[r];
  }
  array.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return array;
}

// Interrupts are worth a look at the interpreter a few times a second, not at every tile.
struct Interrupts {
  static bool pending(void*) {
    thread_local auto next = std::chrono::steady_clock::time_point{};
    const auto now = std::chrono::steady_clock::now();
    if (now < next) return false;
    next = now + std::chrono::milliseconds(50);
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  }
};

// Of types that offer it in C, which costs a tenth of a call of __dlpack__. Only of the very type
// that says so: subclasses may mean something else by it.
const dlpack::ExchangeApi* exchange_of(py::handle object) {
  PyObject* const names = Py_TYPE(object.ptr())->tp_dict;
  if (names == nullptr) return nullptr;
  PyObject* const capsule = PyDict_GetItemString(names, dlpack::kExchangeAttribute);
  if (capsule == nullptr || PyCapsule_IsValid(capsule, dlpack::kExchangeCapsule) == 0)
    return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule, dlpack::kExchangeCapsule));
  return api != nullptr && api->version.major == dlpack::kMajor ? api : nullptr;
}

// Whether the library would have the stream `stream` on the device, so that nothing has to wait.
bool is_current(const dlpack::ExchangeApi& api, const dlpack::DeviceId& device,
                std::intptr_t stream) {
  if (device.type != dlpack::kCuda && device.type != dlpack::kCudaManaged) return stream == 0;
  void* current = nullptr;
  if (api.current_stream(device.type, device.index, &current) != 0) return false;
  const auto handle = reinterpret_cast<std::intptr_t>(current);
  return (handle == 0 ? 1 : handle) == stream;  // 1: the default stream by its other name
}

// Null where __dlpack__ has to be asked, which also knows the reason for a refusal.
dlpack::ManagedVersioned* exchanged(py::handle object, std::intptr_t stream) {
  const dlpack::ExchangeApi* api = exchange_of(object);
  if (api == nullptr) return nullptr;
  if (py::hasattr(object, "requires_grad") && object.attr("requires_grad").cast<bool>())
    return nullptr;
  dlpack::ManagedVersioned* managed = nullptr;
  if (api->from_object(object.ptr(), &managed) != 0 || managed == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  const dlpack::Tensor& tensor = managed->tensor;
  const bool plain = tensor.dtype.code == dlpack::kFloat || tensor.dtype.code == dlpack::kBfloat ||
                     tensor.dtype.code == dlpack::kUnsigned;
  if (plain && managed->version.major == dlpack::kMajor &&
      is_current(*api, tensor.device, stream)) {
    return managed;
  }
  PyErr_Clear();
  if (managed->deleter != nullptr) managed->deleter(managed);
  return nullptr;
}

void expect_writable(const dlpack::ManagedVersioned& managed, const std::string& name) {
  if ((managed.flags & dlpack::kReadOnly) != 0)
    fail(ErrorCode::shape, name, "is read-only, expected a writable array");
}

template <class Managed>
Borrowed own(Managed* managed, Elements elements, const std::string& name) {
  const auto release = [](void* owner) {
    auto* m = static_cast<Managed*>(owner);
    if (m->deleter != nullptr) m->deleter(m);
  };
  try {
    return Borrowed(ref_of(managed->tensor, elements, name), managed, release);
  } catch (...) {
    release(managed);
    throw;
  }
}

template <class Managed>
Borrowed take(py::handle capsule, const char* kind, const char* used, Elements elements,
              const std::string& name) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), kind));
  if (managed == nullptr) throw py::error_already_set();
  // Renaming tells the capsule that the deleter is ours to call now.
  PyCapsule_SetName(capsule.ptr(), used);
  return own(managed, elements, name);
}

Borrowed borrow_as(Elements elements, py::handle object, const std::string& name, Access access,
                   std::intptr_t stream) {
  if (dlpack::ManagedVersioned* const managed = exchanged(object, stream)) {
    Borrowed owned = own(managed, elements, name);
    if (access == Access::write) expect_writable(*managed, name);
    return owned;
  }
  const py::object capsule = capsule_of(object, name, stream);
  const bool versioned = PyCapsule_IsValid(capsule.ptr(), kVersioned) != 0;
  if (access == Access::write && !versioned) {
    fail(ErrorCode::shape, name, "cannot be written: its library hands out immutable arrays only");
  }
  if (!versioned) return take<dlpack::Managed>(capsule, kLegacy, "used_dltensor", elements, name);
  const auto* managed =
      static_cast<const dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersioned));
  if (managed->version.major != dlpack::kMajor) {
    fail(ErrorCode::dtype, name,
         "speaks DLPack " + std::to_string(managed->version.major) + ", expected 1");
  }
  if (access == Access::write) expect_writable(*managed, name);
  return take<dlpack::ManagedVersioned>(capsule, kVersioned, "used_dltensor_versioned", elements,
                                        name);
}

}  // namespace

Borrowed borrow(py::handle object, const std::string& name, Access access, std::intptr_t stream) {
  return borrow_as(Elements::floats, object, name, access, stream);
}

namespace {
thread_local bool on_openmp_team = false;
}

bool use_openmp_team(bool wanted) {
  return std::exchange(on_openmp_team, wanted);
}

Context context_for(const Borrowed& out, std::intptr_t stream, int threads) {
  Context context;
  context.device = out.ref().device;
  context.stream = reinterpret_cast<void*>(stream);
  context.threads = threads;
  context.openmp_team = on_openmp_team;
  context.interrupted = &Interrupts::pending;
  return context;
}

Workspace::Workspace(py::handle object, Device device, std::intptr_t stream) {
  if (device.kind == DeviceKind::cpu && PyObject_CheckBuffer(object.ptr()) != 0) {
    buffer_ = py::reinterpret_borrow<py::buffer>(object).request(true);
    bytes_ = {static_cast<std::byte*>(buffer_.ptr),
              static_cast<std::size_t>(buffer_.size * buffer_.itemsize)};
    return;
  }
  array_ = borrow_as(Elements::bytes, object, "workspace", Access::write, stream);
  const ArrayRef& array = array_.ref();
  if (!(array.device == device))
    fail(ErrorCode::dtype, "workspace", "is on another device than out");
  if (array.rank != 1 || (array.extent(0) > 1 && array.stride(0) != 1))
    fail(ErrorCode::shape, "workspace", "expected one packed axis");
  bytes_ = {static_cast<std::byte*>(array.data), static_cast<std::size_t>(array.extent(0))};
}

Progress::Progress(py::handle object) {
  if (object.is_none()) return;
  buffer_ = py::reinterpret_borrow<py::buffer>(object).request(true);
  if (buffer_.size != 2 || buffer_.itemsize != 8)
    fail(ErrorCode::shape, "progress", "expected two int64 numbers");
}

}  // namespace fastfisher::python

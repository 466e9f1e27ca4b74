// SPDX-License-Identifier: Apache-2.0
//
// The one door through which arrays enter: DLPack, without copies, casts or transfers.
#pragma once

#include "fastfisher/context.hpp"

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace fastfisher::python {

enum class Access { read, write };

/// A borrowed array: keeps its owner alive and gives it back when it dies, which needs the GIL.
/// Declare these before py::gil_scoped_release.
class Borrowed {
 public:
  Borrowed() = default;
  Borrowed(ArrayRef array, void* owner, void (*release)(void*)) noexcept
      : array_(array), owner_(owner), release_(release) {}
  Borrowed(Borrowed&& other) noexcept
      : array_(other.array_),
        owner_(std::exchange(other.owner_, nullptr)),
        release_(other.release_) {}
  Borrowed& operator=(Borrowed&& other) noexcept {
    std::swap(array_, other.array_);
    std::swap(owner_, other.owner_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~Borrowed() {
    if (owner_ != nullptr) release_(owner_);
  }

  [[nodiscard]] const ArrayRef& ref() const { return array_; }

 private:
  ArrayRef array_;
  void* owner_ = nullptr;
  void (*release_)(void*) = nullptr;
};

/// Borrow `object`. Write access needs a versioned capsule that is not read-only, for a legacy one
/// cannot say so. `stream` is the caller's current stream, 0 on CPU. Errors name the argument.
Borrowed borrow(pybind11::handle object, const std::string& name, Access access,
                std::intptr_t stream);

/// Whether contexts of this thread ask for an OpenMP team from now on; returns what was so before.
bool use_openmp_team(bool wanted);

/// Context on the device of `out`. Interrupts are polled through it while the GIL is released.
Context context_for(const Borrowed& out, std::intptr_t stream, int threads);

/// Scratch memory of the caller on `device`, one-dimensional and writable: a byte buffer on the
/// CPU, uint8 by DLPack elsewhere. Like Borrowed, declare it before py::gil_scoped_release.
class Workspace {
 public:
  Workspace(pybind11::handle object, Device device, std::intptr_t stream);
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

 private:
  pybind11::buffer_info buffer_;
  Borrowed array_;
  std::span<std::byte> bytes_;
};

/// Two int64 numbers that an op keeps up to date, a writable buffer of the caller, or None.
class Progress {
 public:
  explicit Progress(pybind11::handle object);
  [[nodiscard]] std::int64_t* numbers() const { return static_cast<std::int64_t*>(buffer_.ptr); }

 private:
  pybind11::buffer_info buffer_;
};

void register_errors(pybind11::module_& module);
void register_gram(pybind11::module_& module);
void register_linalg(pybind11::module_& module);
void register_matmul(pybind11::module_& module);
void register_products(pybind11::module_& module);
void register_psd(pybind11::module_& module);

}  // namespace fastfisher::python

// SPDX-License-Identifier: Apache-2.0
//
// What runs the steps of an op: on a device, and a stand-in that adds up the memory they need.
#pragma once

#include "fastfisher/context.hpp"
#include "fastfisher/error.hpp"
#include "fastfisher/view.hpp"
#include "product_launch.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace fastfisher::cuda {

/// Layout of the workspace: a head of fixed size, what lies between products, shares of depths.
struct ProductMemory {
  static constexpr std::int64_t kAlign = 256, kHead = 1024;
  std::int64_t middle = 0, partial = 0;

  [[nodiscard]] static std::int64_t padded(std::int64_t bytes) {
    return parts_of(bytes, kAlign) * kAlign;
  }
  [[nodiscard]] std::int64_t bytes() const {
    return kAlign + kHead + padded(middle) + padded(partial);
  }
};

/// A vector or result for a MeasuringMachine, which only looks at extents; nothing is behind it.
inline ArrayRef shape_only(std::initializer_list<std::int64_t> extents, DType dtype) {
  ArrayRef array;
  array.dtype = dtype;
  array.data = reinterpret_cast<void*>(std::uintptr_t{ProductMemory::kAlign});
  for (const std::int64_t extent : extents)
    array.extents.at(static_cast<std::size_t>(array.rank++)) = extent;
  return array;
}

template <class T>
class MeasuringMachine {
 public:
  explicit MeasuringMachine(const ProductLimits& limits) : limits_(limits) {}

  [[nodiscard]] const ProductLimits& limits() const { return limits_; }
  [[nodiscard]] const ProductMemory& memory() const { return memory_; }
  T* middle(std::int64_t count) {
    memory_.middle = std::max(memory_.middle, count * static_cast<std::int64_t>(sizeof(T)));
    return nullptr;
  }
  void product(Product<T>& p) { need(share(p, limits_)); }
  template <class S>
  void contract(Contraction<T>& p) {
    need(share(p, limits_));
  }
  template <class S>
  void weigh(Weighing<T>& p) {
    need(share(p, limits_));
  }
  void collect(const Collection<T>&) {}
  void widen(const Widening<T>&) {}

 private:
  void need(std::int64_t bytes) { memory_.partial = std::max(memory_.partial, bytes); }

  ProductLimits limits_;
  ProductMemory memory_;
};

/// Runs steps on ctx.stream, in a workspace that a MeasuringMachine has measured.
template <class T>
class DeviceMachine {
 public:
  DeviceMachine(const Context& ctx, const char* op, const ProductMemory& memory,
                const ProductLimits& limits)
      : ctx_(ctx), op_(op), memory_(memory), limits_(limits) {
    const auto given = static_cast<std::int64_t>(ctx.workspace.size());
    if (given < memory.bytes()) {
      throw Error(ErrorCode::memory, op, "workspace",
                  "got " + std::to_string(given) + " bytes, expected " +
                      std::to_string(memory.bytes()) + " as " + op + "_workspace says");
    }
    const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
    head_ = ctx.workspace.data() +
            (ProductMemory::kAlign - start % ProductMemory::kAlign) % ProductMemory::kAlign;
    middle_ = head_ + ProductMemory::kHead;
    partial_ = reinterpret_cast<T*>(middle_ + ProductMemory::padded(memory.middle));
  }

  /// With whatever workspace there is, for steps without a middle: shares of depths only.
  DeviceMachine(const Context& ctx, const char* op, const ProductLimits& limits)
      : ctx_(ctx), op_(op), limits_(limits), head_(nullptr), middle_(nullptr) {
    const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
    const std::uintptr_t gap =
        (ProductMemory::kAlign - start % ProductMemory::kAlign) % ProductMemory::kAlign;
    const auto given = static_cast<std::int64_t>(ctx.workspace.size());
    memory_.partial = std::max<std::int64_t>(given - static_cast<std::int64_t>(gap), 0);
    limits_.partial_bytes = std::min(limits.partial_bytes, memory_.partial);
    partial_ = reinterpret_cast<T*>(start + gap);
  }

  [[nodiscard]] const ProductLimits& limits() const { return limits_; }
  [[nodiscard]] std::byte* head() const { return head_; }
  [[nodiscard]] T* partial() const { return partial_; }
  T* middle(std::int64_t) { return reinterpret_cast<T*>(middle_); }

  void product(Product<T>& p) {
    share(p, limits_);
    p.partial = partial_;
    launch_product(p, ctx_.stream, op_);
  }
  template <class S>
  void contract(Contraction<T>& p) {
    share(p, limits_);
    p.partial = partial_;
    launch_contract<S>(p, ctx_.stream, op_);
    if (p.splits > 1) launch_collect(collection_of(p), ctx_.stream, op_);
  }
  template <class S>
  void weigh(Weighing<T>& p) {
    share(p, limits_);
    p.partial = partial_;
    launch_weigh<S>(p, ctx_.stream, op_);
    if (p.splits > 1) launch_collect(collection_of(p), ctx_.stream, op_);
  }
  void collect(const Collection<T>& p) { launch_collect(p, ctx_.stream, op_); }
  void widen(const Widening<T>& p) { launch_widen(p, ctx_.stream, op_); }

 private:
  const Context& ctx_;
  const char* op_;
  ProductMemory memory_;
  ProductLimits limits_;
  std::byte *head_, *middle_;
  T* partial_;
};

}  // namespace fastfisher::cuda

// SPDX-License-Identifier: Apache-2.0
//
// The DLPack structures, versions 0 (unversioned) and 1, as their public specification lays them
// out in memory.
#pragma once

#include <cstdint>

namespace fastfisher::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : std::uint8_t { kUnsigned = 1, kFloat = 2, kBfloat = 4 };

struct DeviceId {
  std::int32_t type;
  std::int32_t index;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  DeviceId device;
  std::int32_t rank;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null means packed row-major
  std::uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

inline constexpr std::uint32_t kMajor = 1;
inline constexpr std::uint64_t kReadOnly = 1;

struct ManagedVersioned {
  struct {
    std::uint32_t major, minor;
  } version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

/// What a library's array type offers under __dlpack_c_exchange_api__, a capsule of this name.
inline constexpr const char* kExchangeAttribute = "__dlpack_c_exchange_api__";
inline constexpr const char* kExchangeCapsule = "dlpack_exchange_api";

struct ExchangeApi {
  struct {
    std::uint32_t major, minor;
  } version;
  void* previous;
  void* allocate;
  int (*from_object)(void* object, ManagedVersioned** out);  // without synchronisation
  void* to_object;
  void* tensor_from_object;
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** out);
};

}  // namespace fastfisher::dlpack

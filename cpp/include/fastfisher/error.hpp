// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace fastfisher {

enum class ErrorCode {
  shape,        ///< wrong rank, extent or value        -> ValueError
  dtype,        ///< wrong element type or device       -> TypeError
  missing,      ///< the backend does not have this op  -> NotImplementedError
  memory,       ///< not enough memory or workspace     -> MemoryError
  cuda,         ///< the CUDA runtime failed            -> fastfisher.CudaError
  interrupted,  ///< the caller asked to stop           -> KeyboardInterrupt
};

/// The one exception of the library: which op, which argument, what came and what was expected.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string op, std::string argument, const std::string& message)
      : std::runtime_error(argument.empty() ? op + ": " + message
                                            : op + ": " + argument + ": " + message),
        code_(code),
        op_(std::move(op)),
        argument_(std::move(argument)) {}

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  [[nodiscard]] const std::string& op() const noexcept { return op_; }
  [[nodiscard]] const std::string& argument() const noexcept { return argument_; }

 private:
  ErrorCode code_;
  std::string op_;
  std::string argument_;
};

}  // namespace fastfisher

# SPDX-License-Identifier: Apache-2.0
# Decides whether the CUDA backend is compiled: FF_CUDA. The static runtime is fastfisher::cudart, and FF_CUDART_FILE
# the archive that is installed with ours.
set(FF_CUDA OFF)
if(NOT FASTFISHER_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASTFISHER_CUDA: expected AUTO, ON or OFF, got '${FASTFISHER_CUDA}'")
endif()
if(NOT FASTFISHER_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    # Linked by name, below: the compiler's own choice would not reach those who use the installed library.
    set(CMAKE_CUDA_RUNTIME_LIBRARY None)
    find_package(CUDAToolkit REQUIRED)
    find_package(Threads REQUIRED)
    get_target_property(FF_CUDART_FILE CUDA::cudart_static IMPORTED_LOCATION)
    add_library(fastfisher::cudart STATIC IMPORTED GLOBAL)
    set_target_properties(
      fastfisher::cudart
      PROPERTIES
        IMPORTED_LOCATION "${FF_CUDART_FILE}"
        INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS};rt"
    )
    set(FF_CUDA ON)
  elseif(FASTFISHER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASTFISHER_CUDA=ON, but no CUDA compiler was found")
  endif()
endif()
message(STATUS "CUDA backend: ${FF_CUDA}")

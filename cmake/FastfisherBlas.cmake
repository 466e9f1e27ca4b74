# SPDX-License-Identifier: Apache-2.0
# Finds a BLAS and describes it as fastfisher::blas. FF_BLAS_PREFIX is the prefix of its symbols; FF_BLAS_FILE the
# shared library that has to travel with ours (empty when it belongs to the system).
set(FF_BLAS_FILE "")
set(FF_BLAS_FOUND OFF)

if(FASTFISHER_BLAS MATCHES "^(AUTO|OPENBLAS32)$")
  # PyPI's scipy-openblas32: a build requirement of the wheel, so its files are in the build's own Python.
  find_package(Python 3.11 COMPONENTS Interpreter QUIET)
  if(Python_EXECUTABLE)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c "import scipy_openblas32 as b; print(b.get_lib_dir())"
      OUTPUT_VARIABLE ff_blas_directory
      OUTPUT_STRIP_TRAILING_WHITESPACE
      ERROR_QUIET
      RESULT_VARIABLE ff_blas_missing
    )
    if(ff_blas_missing EQUAL 0 AND EXISTS "${ff_blas_directory}/libscipy_openblas.so")
      set(FF_BLAS_FILE "${ff_blas_directory}/libscipy_openblas.so")
      set(FF_BLAS_PREFIX "scipy_")
      set(ff_blas_location "${FF_BLAS_FILE}")
      set(FF_BLAS_FOUND ON)
    endif()
  endif()
  if(NOT FF_BLAS_FOUND AND FASTFISHER_BLAS STREQUAL "OPENBLAS32")
    message(
      FATAL_ERROR
      "FASTFISHER_BLAS=OPENBLAS32, but the Python package scipy-openblas32 was not found"
    )
  endif()
endif()

if(NOT FF_BLAS_FOUND AND FASTFISHER_BLAS MATCHES "^(AUTO|SYSTEM)$")
  find_library(ff_openblas NAMES openblas)
  if(ff_openblas)
    set(FF_BLAS_PREFIX "")
    set(ff_blas_location "${ff_openblas}")
    set(FF_BLAS_FOUND ON)
  elseif(FASTFISHER_BLAS STREQUAL "SYSTEM")
    message(FATAL_ERROR "FASTFISHER_BLAS=SYSTEM, but no OpenBLAS was found")
  endif()
endif()

if(FF_BLAS_FOUND)
  add_library(fastfisher::blas SHARED IMPORTED GLOBAL)
  set_target_properties(fastfisher::blas PROPERTIES IMPORTED_LOCATION "${ff_blas_location}")
  message(STATUS "BLAS: ${ff_blas_location}")
else()
  message(STATUS "BLAS: none")
endif()

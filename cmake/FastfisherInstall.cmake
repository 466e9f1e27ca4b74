# SPDX-License-Identifier: Apache-2.0
# The installed C++ library: find_package(fastfisher), fastfisher::fastfisher. Kept out of the wheel by its component.
include(CMakePackageConfigHelpers)

set(ff_package "${CMAKE_INSTALL_LIBDIR}/cmake/fastfisher")
install(
  TARGETS fastfisher
  EXPORT fastfisherTargets
  COMPONENT development
  FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
)
install(
  EXPORT fastfisherTargets
  NAMESPACE fastfisher::
  DESTINATION "${ff_package}"
  COMPONENT development
)
# Files of others that the library links, beside it: one line in fastfisherConfig.cmake says where.
function(ff_install_beside file variable)
  install(FILES "${file}" DESTINATION "${CMAKE_INSTALL_LIBDIR}/fastfisher" COMPONENT development)
  get_filename_component(name "${file}" NAME)
  set(${variable} "\${PACKAGE_PREFIX_DIR}/${CMAKE_INSTALL_LIBDIR}/fastfisher/${name}" PARENT_SCOPE)
endfunction()

if(FF_BLAS_FILE)
  ff_install_beside("${FF_BLAS_FILE}" FF_INSTALLED_BLAS)
elseif(FF_BLAS_FOUND)
  set(FF_INSTALLED_BLAS "${ff_blas_location}")
endif()
if(FF_CUDA)
  ff_install_beside("${FF_CUDART_FILE}" FF_INSTALLED_CUDART)
endif()
configure_package_config_file(
  "${CMAKE_CURRENT_SOURCE_DIR}/cmake/fastfisherConfig.cmake.in"
  "${CMAKE_CURRENT_BINARY_DIR}/fastfisherConfig.cmake"
  INSTALL_DESTINATION "${ff_package}"
)
write_basic_package_version_file(
  "${CMAKE_CURRENT_BINARY_DIR}/fastfisherConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion
)
install(
  FILES
    "${CMAKE_CURRENT_BINARY_DIR}/fastfisherConfig.cmake"
    "${CMAKE_CURRENT_BINARY_DIR}/fastfisherConfigVersion.cmake"
  DESTINATION "${ff_package}"
  COMPONENT development
)

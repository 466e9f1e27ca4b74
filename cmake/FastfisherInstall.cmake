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
if(FF_BLAS_FILE)
  install(
    FILES "${FF_BLAS_FILE}"
    DESTINATION "${CMAKE_INSTALL_LIBDIR}/fastfisher"
    COMPONENT development
  )
  get_filename_component(ff_blas_name "${FF_BLAS_FILE}" NAME)
  set(FF_INSTALLED_BLAS "@PACKAGE_PREFIX_DIR@/${CMAKE_INSTALL_LIBDIR}/fastfisher/${ff_blas_name}")
  string(
    REPLACE "@PACKAGE_PREFIX_DIR@"
    "\${PACKAGE_PREFIX_DIR}"
    FF_INSTALLED_BLAS
    "${FF_INSTALLED_BLAS}"
  )
elseif(FF_BLAS_FOUND)
  set(FF_INSTALLED_BLAS "${ff_blas_location}")
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

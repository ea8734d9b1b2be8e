# SPDX-License-Identifier: Apache-2.0
# Installs the CMake package of the C++ core; cmake/install_test is a consumer of it.
include(CMakePackageConfigHelpers)
set(destination ${CMAKE_INSTALL_LIBDIR}/cmake/arcflow)
install(EXPORT arcflowTargets NAMESPACE arcflow:: DESTINATION ${destination} COMPONENT devel)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/arcflowConfig.cmake.in
  ${PROJECT_BINARY_DIR}/arcflowConfig.cmake INSTALL_DESTINATION ${destination})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/arcflowConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/arcflowConfig.cmake ${PROJECT_BINARY_DIR}/arcflowConfigVersion.cmake
  DESTINATION ${destination} COMPONENT devel)

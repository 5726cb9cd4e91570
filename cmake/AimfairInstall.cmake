# cmake --install: the library, its headers, and a package for find_package(aimfair).

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/aimfair")

install(TARGETS aimfair EXPORT aimfair ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY csrc/include/aimfair "${aimfair_generated}/aimfair" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h")
install(EXPORT aimfair NAMESPACE aimfair:: FILE aimfair-targets.cmake DESTINATION ${package_dir})
configure_package_config_file(cmake/aimfair-config.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/aimfair-config.cmake"
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/aimfair-config-version.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/aimfair-config.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/aimfair-config-version.cmake" DESTINATION ${package_dir})

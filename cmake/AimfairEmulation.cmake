# The CUDA kernels compiled as C++, and the emulator of the tests. AimfairPython registers them for CPU tensors.

set(aimfair_emulator "${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda_emulator")
set_source_files_properties(${aimfair_cuda_sources} PROPERTIES LANGUAGE CXX)
add_library(aimfair_emulated OBJECT ${aimfair_cuda_sources} "${aimfair_emulator}/emulator.cpp"
                                    "${aimfair_emulator}/fiber.cpp")
target_include_directories(aimfair_emulated PRIVATE "${aimfair_emulator}/include" csrc csrc/include)
# Kernels read memory through vector types, as nvcc allows, and compare the unsigned indices of threads with int.
target_compile_options(aimfair_emulated PRIVATE -fno-strict-aliasing -Wno-unknown-pragmas -Wno-sign-compare)
if(AIMFAIR_SANITIZE MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(aimfair_emulated PRIVATE -fsanitize-sections=aimfair_shared)  # guards of __shared__ variables
endif()
target_link_libraries(aimfair_emulated PRIVATE aimfair_options)
target_sources(aimfair PRIVATE $<TARGET_OBJECTS:aimfair_emulated>)
message(STATUS "aimfair: emulated CUDA")

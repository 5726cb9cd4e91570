# The torch-free library: launchers on raw pointers. The kernels are compiled once per instruction set.

function(aimfair_add_simd name)  # compile options follow
  add_library(aimfair_${name} OBJECT csrc/cpu/simd/kernels.cpp)
  target_include_directories(aimfair_${name} PRIVATE csrc csrc/include)
  target_compile_definitions(aimfair_${name} PRIVATE AIMFAIR_SIMD=${name})
  target_compile_options(aimfair_${name} PRIVATE ${ARGN})
  target_link_libraries(aimfair_${name} PRIVATE aimfair_options)
  target_sources(aimfair PRIVATE $<TARGET_OBJECTS:aimfair_${name}>)
endfunction()

add_library(
  aimfair STATIC
  csrc/cpu/accumulate.cpp
  csrc/cpu/mask.cpp
  csrc/cpu/path.cpp
  csrc/cpu/step.cpp
  csrc/cpu/topk.cpp
  csrc/cpu/topk_keys.cpp
  csrc/cpu/topk_segments.cpp
  csrc/cpu/topk_units.cpp)
add_library(aimfair::aimfair ALIAS aimfair)
set(aimfair_generated "${CMAKE_CURRENT_BINARY_DIR}/include")
configure_file(csrc/include/aimfair/version.h.in "${aimfair_generated}/aimfair/version.h" @ONLY)
target_include_directories(
  aimfair
  PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include> $<BUILD_INTERFACE:${aimfair_generated}>
         $<INSTALL_INTERFACE:include>
  PRIVATE csrc)
target_compile_features(aimfair PUBLIC cxx_std_20)
target_link_libraries(aimfair PUBLIC OpenMP::OpenMP_CXX PRIVATE $<BUILD_INTERFACE:aimfair_options>)

aimfair_add_simd(scalar)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_definitions(aimfair PRIVATE AIMFAIR_X86)
  aimfair_add_simd(avx2 -mavx2 -mbmi -mbmi2 -mpopcnt -mf16c)
  aimfair_add_simd(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mbmi -mbmi2 -mpopcnt -mf16c)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  target_compile_definitions(aimfair PRIVATE AIMFAIR_ARM64)
  aimfair_add_simd(neon)
endif()

set(aimfair_cuda_sources
    csrc/cuda/accumulate.cu
    csrc/cuda/launch.cu
    csrc/cuda/mask.cu
    csrc/cuda/step.cu
    csrc/cuda/step_moments.cu
    csrc/cuda/topk.cu
    csrc/cuda/topk_choose.cu
    csrc/cuda/topk_collect.cu
    csrc/cuda/topk_keys.cu
    csrc/cuda/topk_sample.cu
    csrc/cuda/topk_segments.cu
    csrc/cuda/topk_units.cu)
if(AIMFAIR_WITH_CUDA)
  target_sources(aimfair PRIVATE ${aimfair_cuda_sources})
  target_link_libraries(aimfair PUBLIC CUDA::cudart_static)
elseif(AIMFAIR_EMULATE_CUDA)
  include(AimfairEmulation)
endif()

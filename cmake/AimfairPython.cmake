# The extension module aimfair._C, against LibTorch's stable ABI and Python's: one binary for torch 2.11 and Python 3.11,
# and later ones.

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
include(AimfairTorch)

add_library(
  _C MODULE
  csrc/torch/accumulate.cpp
  csrc/torch/arguments.cpp
  csrc/torch/mask.cpp
  csrc/torch/module.cpp
  csrc/torch/plan_memory.cpp
  csrc/torch/schemas.cpp
  csrc/torch/step.cpp
  csrc/torch/topk.cpp)
set_target_properties(_C PROPERTIES PREFIX "" SUFFIX ".abi3.so" VISIBILITY_INLINES_HIDDEN ON)
target_compile_definitions(_C PRIVATE Py_LIMITED_API=0x030B0000)
target_link_libraries(_C PRIVATE aimfair aimfair_options aimfair_torch Python::Module ${CMAKE_DL_LIBS})
if(NOT AIMFAIR_SANITIZE)
  target_link_options(_C PRIVATE $<$<CONFIG:Release>:-Wl,-s>)  # no symbol table: a tenth of the size
endif()
if(AIMFAIR_EMULATE_CUDA)
  target_include_directories(_C PRIVATE "${aimfair_emulator}/include")
  target_compile_definitions(_C PRIVATE AIMFAIR_EMULATED)
elseif(AIMFAIR_WITH_CUDA)
  target_compile_definitions(_C PRIVATE AIMFAIR_WITH_CUDA)
endif()

# Facts of the build for aimfair.build_info().
list(JOIN CMAKE_CUDA_ARCHITECTURES "," cuda_architectures)
target_compile_definitions(
  _C
  PRIVATE AIMFAIR_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
          AIMFAIR_BUILD_TYPE="${CMAKE_BUILD_TYPE}" AIMFAIR_SANITIZERS="${AIMFAIR_SANITIZE}"
          AIMFAIR_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}"
          AIMFAIR_CUDA_ARCHITECTURES="${cuda_architectures}")
install(TARGETS _C LIBRARY DESTINATION aimfair)

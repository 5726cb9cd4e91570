# aimfair_torch: headers and libtorch_cpu of the torch that the build's Python imports. find_package(Torch) is not
# used: it fails with a CUDA build of torch where there is no CUDA toolkit.

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import torch
for fact in (torch.__path__[0], torch.__version__, torch.version.cuda or 'none'): print(fact)"
  OUTPUT_VARIABLE torch_facts
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE torch_failed)
if(torch_failed)
  message(FATAL_ERROR "${Python_EXECUTABLE} cannot import torch; install it first, and build with --no-build-isolation")
endif()
string(REPLACE "\n" ";" torch_facts "${torch_facts}")
list(GET torch_facts 0 torch_path)
list(GET torch_facts 1 torch_version)
list(GET torch_facts 2 torch_cuda)
if(torch_version VERSION_LESS 2.11)
  message(FATAL_ERROR "torch ${torch_version} was found, 2.11 or later is needed")
endif()
if(AIMFAIR_WITH_CUDA AND NOT torch_cuda STREQUAL "none")
  string(REGEX MATCH "^[0-9]+" torch_cuda_major "${torch_cuda}")
  string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
  if(NOT torch_cuda_major EQUAL nvcc_major)
    message(FATAL_ERROR "torch ${torch_version} is built for CUDA ${torch_cuda}, but nvcc is of CUDA "
                        "${CMAKE_CUDA_COMPILER_VERSION}; set CUDACXX to an nvcc of CUDA ${torch_cuda_major}, install "
                        "a torch for CUDA ${nvcc_major}, or build without CUDA: AIMFAIR_CUDA=off")
  endif()
endif()
message(STATUS "aimfair: torch ${torch_version} in ${torch_path}")

add_library(aimfair_torch_cpu SHARED IMPORTED)
set_target_properties(aimfair_torch_cpu PROPERTIES IMPORTED_LOCATION "${torch_path}/lib/libtorch_cpu.so"
                                                   IMPORTED_NO_SONAME OFF)
add_library(aimfair_torch INTERFACE)
target_include_directories(aimfair_torch SYSTEM INTERFACE "${torch_path}/include")
target_compile_definitions(aimfair_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_link_libraries(aimfair_torch INTERFACE aimfair_torch_cpu)
# torch is loaded before the module (aimfair/__init__.py), so no path to it is recorded.
set(CMAKE_SKIP_RPATH ON)

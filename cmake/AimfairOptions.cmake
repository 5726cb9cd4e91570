# The compile options of all targets.

add_library(aimfair_options INTERFACE)
target_compile_options(
  aimfair_options
  INTERFACE
    # No fused multiply-add: all instruction sets and the GPU give the same bits.
    $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>
    # A third of the size; drivers that read it are those of CUDA 13.
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<VERSION_GREATER_EQUAL:$<CUDA_COMPILER_VERSION>,13>>:--compress-mode=size>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-psabi>
    # GCC 12 warns inside its own AVX-512 headers.
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>)

if(AIMFAIR_SANITIZE)
  target_compile_options(
    aimfair_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${AIMFAIR_SANITIZE} -fno-sanitize-recover=all
                              -fno-omit-frame-pointer -g1 -O1>)
  target_link_options(aimfair_options INTERFACE -fsanitize=${AIMFAIR_SANITIZE})
endif()

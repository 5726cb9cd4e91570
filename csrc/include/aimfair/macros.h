#pragma once

// Functions marked so run on the host and on the device, and are always inlined: translation units built for
// different instruction sets must not share one out-of-line copy of them.
#if defined(__CUDACC__)
#define AIMFAIR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define AIMFAIR_HOST_DEVICE inline __attribute__((always_inline))
#endif

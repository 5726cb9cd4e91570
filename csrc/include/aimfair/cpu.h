#pragma once

// The compiled CPU paths and which of them is used. All paths give the same bits.

namespace aimfair::cpu {

enum class Path : int { scalar, avx2, avx512, neon };

const char* path_name(Path path);

// Whether the path is compiled in and this processor can run it.
bool path_usable(Path path);

// The path in use; initially the best usable one.
Path path();

// Sets the path for all later calls. Returns false and changes nothing if it is not usable.
bool set_path(Path path);

}  // namespace aimfair::cpu

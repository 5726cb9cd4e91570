#pragma once

// Which of the compiled CPU paths runs. Every path gives the same bits.

namespace aimfair::cpu {

enum class Path : int { scalar, avx2, avx512 };

const char* path_name(Path path);

// Compiled in, and this processor can run it.
bool path_usable(Path path);

// The path in use: at first the best usable one.
Path path();

// Chooses the path for all later calls; false, and no change, if it is not usable.
bool set_path(Path path);

}  // namespace aimfair::cpu

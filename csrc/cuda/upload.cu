#include "cuda/upload.h"

#include <cstring>

#include "cuda/launch.h"

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWords = 1950;  // of 16 bytes: with the other parameters less than the 32,764 bytes a kernel may have

struct Piece {
  uint4 words[kWords];
};

__global__ void __launch_bounds__(kThreads) write_piece(const __grid_constant__ Piece piece, int64_t words, uint4* to) {
  for (int64_t i = threadIdx.x; i < words; i += kThreads) to[i] = piece.words[i];
}

}  // namespace

int64_t Upload::add_bytes(const void* from, int64_t bytes) {
  const int64_t place = this->bytes();
  table_.resize(static_cast<size_t>(place + (bytes + kAlignment - 1) / kAlignment * kAlignment));
  if (from && bytes > 0) memcpy(table_.data() + place, from, static_cast<size_t>(bytes));
  return place;
}

cudaError_t Upload::copy(void* to, void* stream) const {
  const int64_t words = bytes() / kAlignment;
  for (int64_t begin = 0; begin < words; begin += kWords) {
    const int64_t n = std::min(kWords, words - begin);
    Piece piece;
    memcpy(piece.words, table_.data() + begin * kAlignment, static_cast<size_t>(n * kAlignment));
    const cudaError_t error = launch(write_piece, 1, kThreads, stream, piece, n, static_cast<uint4*>(to) + begin);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace aimfair::cuda

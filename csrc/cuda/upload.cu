#include "cuda/upload.h"

#include <cstring>

#include "cuda/launch.h"

namespace aimfair::cuda {
namespace {

constexpr int kThreads = 256;

// Words of 16 bytes that travel with one launch. A kernel may have 32,764 bytes of parameters, but only 4,096 in a
// graph that is being captured: more has been reported to crash drivers, and torch avoids it too.
constexpr int64_t kMany = 1950, kFew = 254;

template <int64_t kWords>
struct Piece {
  uint4 words[kWords];
};

template <int64_t kWords>
__global__ void __launch_bounds__(kThreads)
    write_piece(const __grid_constant__ Piece<kWords> piece, int64_t words, uint4* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < words) to[i] = piece.words[i];
}

template <int64_t kWords>
cudaError_t write_words(const char* from, int64_t words, uint4* to, void* stream) {
  for (int64_t begin = 0; begin < words; begin += kWords) {
    const int64_t n = std::min(kWords, words - begin);
    Piece<kWords> piece;
    memcpy(piece.words, from + begin * Upload::kAlignment, static_cast<size_t>(n * Upload::kAlignment));
    const cudaError_t error =
        launch(write_piece<kWords>, (n + kThreads - 1) / kThreads, kThreads, stream, piece, n, to + begin);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
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
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  if (error != cudaSuccess) return error;
  const bool few = words <= kFew || status != cudaStreamCaptureStatusNone;
  return few ? write_words<kFew>(table_.data(), words, static_cast<uint4*>(to), stream)
             : write_words<kMany>(table_.data(), words, static_cast<uint4*>(to), stream);
}

}  // namespace aimfair::cuda

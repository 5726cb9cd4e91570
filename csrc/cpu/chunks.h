#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

// Work over a list of tensors as one flat schedule: every tensor is cut into chunks, the threads share the chunks of
// all tensors, and there is no barrier between tensors.

namespace aimfair::cpu {

inline int thread_count(int threads) { return threads > 0 ? threads : omp_get_max_threads(); }

// Calls body(i) for 0 <= i < count from up to `threads` threads, in any order. The body must not throw.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  const int team = static_cast<int>(std::min<int64_t>(thread_count(threads), count));
  if (team <= 1) {
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int64_t i = 0; i < count; i++) body(i);
}

// place = min(place, value) from any thread: keeps the lowest index that a thread reports.
inline void lower_to(std::atomic<int64_t>& place, int64_t value) {
  for (int64_t seen = place.load(); value < seen && !place.compare_exchange_weak(seen, value);) {
  }
}

struct Chunk {
  int64_t tensor;
  int64_t begin, end;  // elements of that tensor
};

// Cuts tensors of the given sizes into chunks of at most `chunk_size` elements; empty tensors give none.
class Chunks {
 public:
  template <class Numel>
  Chunks(int64_t tensors, int64_t chunk_size, const Numel& numel) : chunk_size_(chunk_size) {
    first_.reserve(static_cast<size_t>(tensors) + 1);
    numels_.reserve(static_cast<size_t>(tensors));
    first_.push_back(0);
    for (int64_t t = 0; t < tensors; t++) {
      numels_.push_back(numel(t));
      first_.push_back(first_.back() + (numels_.back() + chunk_size - 1) / chunk_size);
    }
  }

  int64_t count() const { return first_.back(); }
  // Chunks of tensor t are first(t) <= i < first(t + 1).
  int64_t first(int64_t tensor) const { return first_[static_cast<size_t>(tensor)]; }

  Chunk operator[](int64_t i) const {
    const int64_t tensor = std::upper_bound(first_.begin(), first_.end(), i) - first_.begin() - 1;
    const int64_t begin = (i - first(tensor)) * chunk_size_;
    return {tensor, begin, std::min(begin + chunk_size_, numels_[static_cast<size_t>(tensor)])};
  }

 private:
  int64_t chunk_size_;
  std::vector<int64_t> first_, numels_;
};

}  // namespace aimfair::cpu

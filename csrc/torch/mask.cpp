#include "aimfair/mask.h"

#include "arguments.h"
#include "backend.h"

namespace aimfair::ops {
namespace {

int64_t blocks_of(const std::vector<int64_t>& numels) {
  int64_t blocks = 0;
  for (const int64_t numel : numels) blocks += block_count(numel);
  return blocks;
}

// Checked tensors of bools.
struct Bools {
  std::vector<uint8_t*> data;
  std::vector<int64_t> numels;

  Bools(Arguments& arguments, const TensorList& bools, Access access) {
    for (size_t t = 0; t < bools.size(); t++) {
      data.push_back(static_cast<uint8_t*>(arguments.take("bools", bools, t, kBool, access)));
      numels.push_back(bools[t].numel());
    }
  }
};

void check_units(const Arguments& arguments, const std::vector<int64_t>& numels, const std::vector<int64_t>& units) {
  arguments.require(units.size() == numels.size(), "units",
                    "has " + std::to_string(units.size()) + " entries, expected " + std::to_string(numels.size()));
  for (size_t t = 0; t < numels.size(); t++) {
    constexpr int64_t kMost = int64_t{1} << 48;  // more than any memory; sums of such sizes do not overflow
    if (numels[t] < 0 || numels[t] > kMost) arguments.fail("numels", static_cast<int64_t>(t), "is no size of a tensor");
    if (units[t] <= 0 ? units[t] < 0 || numels[t] != 0 : numels[t] % units[t] != 0) {
      arguments.fail(
          "units", static_cast<int64_t>(t),
          "is " + std::to_string(units[t]) + ", which does not divide " + std::to_string(numels[t]) + " elements");
    }
  }
}

template <class Backend>
void expand_units(const Tensor& bits, const Tensor& rank, const Tensor& unit_bits, const std::vector<int64_t>& numels,
                  const std::vector<int64_t>& units) {
  Arguments arguments("expand_units_", &bits);
  check_units(arguments, numels, units);
  const int64_t blocks = blocks_of(numels);
  const auto* from = arguments.take_bits("unit_bits", unit_bits, Access::read, blocks_of(units));
  auto* mask = arguments.take_bits("bits", bits, Access::write, blocks);
  auto* directory = arguments.take_rank(rank, Access::write, blocks);
  arguments.refuse_overlap();
  Backend backend(arguments.op(), bits);
  backend.run(Backend::expand_units, from, numels.data(), units.data(), size_of(numels), mask);
  backend.run(Backend::rank, mask, blocks, directory);
}

template <class Backend>
void pack_bits(const Tensor& bits, const Tensor& rank, const TensorList& bools) {
  Arguments arguments("pack_bits_", &bits);
  const Bools from(arguments, bools, Access::read);
  const int64_t blocks = blocks_of(from.numels);
  auto* mask = arguments.take_bits("bits", bits, Access::write, blocks);
  auto* directory = arguments.take_rank(rank, Access::write, blocks);
  arguments.refuse_overlap();
  Backend backend(arguments.op(), bits);
  backend.run(Backend::pack_bits, from.data.data(), from.numels.data(), size_of(from.numels), mask);
  backend.run(Backend::rank, mask, blocks, directory);
}

template <class Backend>
void unpack_bits(const TensorList& bools, const Tensor& bits) {
  Arguments arguments("unpack_bits_", &bits);
  const Bools to(arguments, bools, Access::write);
  const auto* mask = arguments.take_bits("bits", bits, Access::read, blocks_of(to.numels));
  arguments.refuse_overlap();
  Backend backend(arguments.op(), bits);
  backend.run(Backend::unpack_bits, mask, to.numels.data(), size_of(to.numels), to.data.data());
}

template <class Backend>
void rank(const Tensor& rank, const Tensor& bits) {
  Arguments arguments("rank_", &bits);
  const int64_t blocks = bits.numel() / kWordsPerBlock;
  const auto* mask = arguments.take_bits("bits", bits, Access::read, blocks);
  auto* directory = arguments.take_rank(rank, Access::write, blocks);
  arguments.refuse_overlap();
  Backend backend(arguments.op(), bits);
  backend.run(Backend::rank, mask, blocks, directory);
}

template <class Backend>
void add_mask(Library& library) {
  library.impl("expand_units_", TORCH_BOX(&expand_units<Backend>));
  library.impl("pack_bits_", TORCH_BOX(&pack_bits<Backend>));
  library.impl("unpack_bits_", TORCH_BOX(&unpack_bits<Backend>));
  library.impl("rank_", TORCH_BOX(&rank<Backend>));
}

AIMFAIR_REGISTER(add_mask)

}  // namespace
}  // namespace aimfair::ops

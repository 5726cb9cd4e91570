// An extension of one's own on the kernels: exact top-k of numpy arrays, without torch.

#include <aimfair/aimfair.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;
using Floats = py::array_t<float, py::array::c_style>;  // float64 and strides are refused, not copied

// The mask of the k scores that are best over all of the array, a bool for each; equal scores go to the first.
py::array_t<bool> top_k(const Floats& scores, int64_t k, bool largest) {
  if (k < 0 || k > scores.size()) throw py::value_error("k=" + std::to_string(k) + " is not in the array's size");
  const int64_t blocks = aimfair::block_count(scores.size());
  std::vector<uint32_t> bits(static_cast<size_t>(blocks * aimfair::kWordsPerBlock));
  std::vector<int64_t> rank(static_cast<size_t>(blocks + 1));
  aimfair::ScoreTensor tensor;
  tensor.numel = scores.size();
  tensor.a = scores.data();
  aimfair::Score score;
  score.term.criterion = aimfair::Criterion::value;
  {
    const py::gil_scoped_release others_may_run;
    const auto result = aimfair::cpu::select(&tensor, 1, score, k, largest, bits.data(), rank.data());
    if (result.nan_tensor >= 0) throw std::invalid_argument("a score is NaN");
  }
  py::array_t<bool> mask(std::vector<py::ssize_t>(scores.shape(), scores.shape() + scores.ndim()));
  bool* selected = mask.mutable_data();
  for (int64_t i = 0; i < scores.size(); i++) selected[i] = bits[static_cast<size_t>(i / 32)] >> (i % 32) & 1;
  return mask;
}

PYBIND11_MODULE(numpy_masks, module) {
  module.def("top_k", &top_k, py::arg("scores").noconvert(), py::arg("k"), py::arg("largest") = true);
}

#include "aimfair/accumulate.h"

#include "arguments.h"
#include "backend.h"

namespace aimfair::ops {
namespace {

std::vector<AccumulateTensor> take_tensors(Arguments& arguments, const TensorList& grads, const TensorList& sums,
                                           const TensorList& squares, const TensorList& second_sums, bool zero_grads) {
  const size_t count = grads.size();
  arguments.length_or_empty("sums", sums, count);
  arguments.length_or_empty("squares", squares, count);
  arguments.length_or_empty("second_sums", second_sums, count);
  std::vector<AccumulateTensor> tensors(count);
  for (size_t t = 0; t < count; t++) {
    AccumulateTensor& tensor = tensors[t];
    tensor.grad = arguments.take("grads", grads, t, kFloating, zero_grads ? Access::write : Access::read);
    tensor.dtype = dtype_of(grads[t]);
    tensor.numel = grads[t].numel();
    tensor.sum = arguments.take_floats("sums", sums, t, Access::write, tensor.numel);
    tensor.square = arguments.take_floats("squares", squares, t, Access::write, tensor.numel);
    tensor.second_sum = arguments.take_floats("second_sums", second_sums, t, Access::write, tensor.numel);
  }
  return tensors;
}

template <class Backend>
void accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                const TensorList& second_sums, const Tensor& square_norms, const Tensor& nonfinite, double weight,
                double second_weight, const OptionalTensor& grad_scale, bool zero_grads) {
  Arguments arguments("accumulate_", &square_norms);
  const auto tensors = take_tensors(arguments, grads, sums, squares, second_sums, zero_grads);
  auto* norms =
      static_cast<double*>(arguments.take("square_norms", square_norms, kFloat64, Access::write, size_of(tensors)));
  auto* bad = arguments.take_counts("nonfinite", nonfinite, Access::write, tensors.size());
  AccumulateOptions options;
  options.grad_scale = arguments.take_scalar("grad_scale", grad_scale);
  options.weight = static_cast<float>(weight);
  options.second_weight = static_cast<float>(second_weight);
  options.zero_grads = zero_grads;
  arguments.refuse_overlap();
  Backend backend(arguments.op(), square_norms);
  backend.run(Backend::accumulate, tensors.data(), size_of(tensors), options, norms, bad);
}

template <class Backend>
void add_accumulate(Library& library) {
  library.impl("accumulate_", TORCH_BOX(&accumulate<Backend>));
}

AIMFAIR_REGISTER(add_accumulate)

}  // namespace
}  // namespace aimfair::ops

#include "aimfair/accumulate.h"

#include "arguments.h"
#include "backend.h"
#include "plan.h"

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

// What an addition has besides the lists.
struct Addition {
  AccumulateOptions options;
  double* square_norms;
  int64_t* nonfinite;

  Addition(Arguments& arguments, int64_t count, const Tensor& square_norms, const Tensor& nonfinite, double weight,
           double second_weight, const OptionalTensor& grad_scale, bool zero_grads)
      : square_norms(
            static_cast<double*>(arguments.take("square_norms", square_norms, kFloat64, Access::write, count))),
        nonfinite(arguments.take_counts("nonfinite", nonfinite, Access::write, static_cast<size_t>(count))) {
    options.grad_scale = arguments.take_scalar("grad_scale", grad_scale);
    options.weight = static_cast<float>(weight);
    options.second_weight = static_cast<float>(second_weight);
    options.zero_grads = zero_grads;
    arguments.refuse_overlap();
  }
};

template <class Backend>
void accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                const TensorList& second_sums, const Tensor& square_norms, const Tensor& nonfinite, double weight,
                double second_weight, const OptionalTensor& grad_scale, bool zero_grads) {
  Arguments arguments("accumulate_", &square_norms);
  const auto tensors = take_tensors(arguments, grads, sums, squares, second_sums, zero_grads);
  const Addition addition(arguments, size_of(tensors), square_norms, nonfinite, weight, second_weight, grad_scale,
                          zero_grads);
  Backend backend(arguments.op(), square_norms);
  backend.step(Backend::accumulate, backend.plan(tensors), addition.options, addition.square_norms, addition.nonfinite);
}

template <class Backend>
Tensor plan_accumulate(const TensorList& grads, const TensorList& sums, const TensorList& squares,
                       const TensorList& second_sums, bool zero_grads) {
  Arguments arguments("plan_accumulate", first_of(grads));
  const auto tensors = take_tensors(arguments, grads, sums, squares, second_sums, zero_grads);
  arguments.refuse_overlap();
  return stored_plan<Backend>(arguments, grads.at(0), tensors);
}

template <class Backend>
void planned_accumulate(const Tensor& plan, int64_t tensors, int64_t blocks, const Tensor& square_norms,
                        const Tensor& nonfinite, double weight, double second_weight, const OptionalTensor& grad_scale,
                        bool zero_grads) {
  Arguments arguments("planned_accumulate_", &plan);
  arguments.take("plan", plan, kBytes, Access::write, Backend::template plan_bytes<AccumulateTensor>(tensors, blocks));
  const Addition addition(arguments, tensors, square_norms, nonfinite, weight, second_weight, grad_scale, zero_grads);
  Backend backend(arguments.op(), plan);
  backend.step(Backend::accumulate, Backend::template plan_in<AccumulateTensor>(plan.data_ptr(), tensors, blocks),
               addition.options, addition.square_norms, addition.nonfinite);
}

template <class Backend>
void add_accumulate(Library& library) {
  library.impl("accumulate_", TORCH_BOX(&accumulate<Backend>));
  library.impl("plan_accumulate", TORCH_BOX(&plan_accumulate<Backend>));
  library.impl("set_accumulate_grads_", TORCH_BOX((&set_grads<Backend, AccumulateTensor>)));
  library.impl("planned_accumulate_", TORCH_BOX(&planned_accumulate<Backend>));
}

AIMFAIR_REGISTER(add_accumulate)

}  // namespace
}  // namespace aimfair::ops

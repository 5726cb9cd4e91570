#include <torch/csrc/stable/library.h>

// The schemas of all operators, in one place because callers and saved graphs depend on them: names and order of the
// arguments must not change. aimfair/selective/ops.py documents the operators; accumulate.cpp, topk.cpp, mask.cpp and
// step.cpp check the arguments and run them.

STABLE_TORCH_LIBRARY(aimfair, m) {
  m.def(
      "accumulate_(Tensor(a!)[] grads, Tensor(b!)[] sums, Tensor(c!)[] squares, Tensor(d!)[] second_sums,"
      " Tensor(e!) square_norms, Tensor(f!) nonfinite, float weight, float second_weight, Tensor? grad_scale,"
      " bool zero_grads) -> ()");
  m.def(
      "select_(Tensor(a!) bits, Tensor(b!) rank, int k, bool largest, str criterion, Tensor[] a, Tensor[] b,"
      " float scale_a, float scale_b, str divisor_criterion, Tensor[] c, Tensor[] d, float scale_c, float scale_d,"
      " float eps) -> ()");
  m.def(
      "select_segments_(Tensor(a!) bits, Tensor(b!) rank, int[] units, int[] ks, int[] groups, bool largest,"
      " str criterion, Tensor[] a, Tensor[] b, float scale_a, float scale_b, str divisor_criterion, Tensor[] c,"
      " Tensor[] d, float scale_c, float scale_d, float eps) -> ()");
  m.def(
      "count_keys_(Tensor(a!) counts, int first, int bits, bool largest, str criterion, Tensor[] a, Tensor[] b,"
      " float scale_a, float scale_b, str divisor_criterion, Tensor[] c, Tensor[] d, float scale_c, float scale_d,"
      " float eps) -> ()");
  m.def(
      "count_equal_(Tensor(a!) counts, int key, bool largest, str criterion, Tensor[] a, Tensor[] b, float scale_a,"
      " float scale_b, str divisor_criterion, Tensor[] c, Tensor[] d, float scale_c, float scale_d, float eps) -> ()");
  m.def(
      "select_above_(Tensor(a!) bits, Tensor(b!) rank, int key, Tensor ties, bool largest, str criterion, Tensor[] a,"
      " Tensor[] b, float scale_a, float scale_b, str divisor_criterion, Tensor[] c, Tensor[] d, float scale_c,"
      " float scale_d, float eps) -> ()");
  m.def(
      "unit_scores_(Tensor(a!)[] out, str criterion, Tensor[] a, Tensor[] b, float scale_a, float scale_b,"
      " str divisor_criterion, Tensor[] c, Tensor[] d, float scale_c, float scale_d, float eps) -> ()");
  m.def("expand_units_(Tensor(a!) bits, Tensor(b!) rank, Tensor unit_bits, int[] numels, int[] units) -> ()");
  m.def("pack_bits_(Tensor(a!) bits, Tensor(b!) rank, Tensor[] bools) -> ()");
  m.def("unpack_bits_(Tensor(a!)[] bools, Tensor bits) -> ()");
  m.def("rank_(Tensor(a!) rank, Tensor bits) -> ()");
  m.def(
      "masked_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] masters, Tensor(f!)[] steps, Tensor? bits, Tensor? rank,"
      " int[] first_blocks, Tensor lr, float beta1, float beta2, float eps, float weight_decay, bool maximize,"
      " bool compact, bool stochastic_rounding, int seed, Tensor? grad_scale, Tensor? found_inf) -> ()");
  m.def(
      "masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] masters,"
      " Tensor(d!)[] steps, Tensor? bits, Tensor? rank, int[] first_blocks, Tensor lr, float momentum,"
      " float dampening, float weight_decay, bool nesterov, bool maximize, bool compact, bool stochastic_rounding,"
      " int seed, Tensor? grad_scale, Tensor? found_inf) -> ()");
  // The same in two parts, so that the lists are checked once and not at every call.
  m.def(
      "plan_accumulate(Tensor(a!)[] grads, Tensor(b!)[] sums, Tensor(c!)[] squares, Tensor(d!)[] second_sums,"
      " bool zero_grads) -> Tensor");
  m.def("set_accumulate_grads_(Tensor(a!) plan, int tensors, int blocks, int[] addresses) -> ()");
  m.def(
      "planned_accumulate_(Tensor(a!) plan, int tensors, int blocks, Tensor(b!) square_norms, Tensor(c!) nonfinite,"
      " float weight, float second_weight, Tensor? grad_scale, bool zero_grads) -> ()");
  m.def(
      "plan_adamw(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] masters, Tensor(f!)[] steps, Tensor? bits, Tensor? rank,"
      " int[] first_blocks, bool compact, bool stochastic_rounding) -> Tensor");
  m.def(
      "plan_sgd(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] masters,"
      " Tensor(d!)[] steps, Tensor? bits, Tensor? rank, int[] first_blocks, bool compact, bool stochastic_rounding)"
      " -> Tensor");
  m.def("set_grads_(Tensor(a!) plan, int tensors, int blocks, int[] addresses) -> ()");
  m.def(
      "planned_adamw_(Tensor(a!) plan, int tensors, int blocks, bool amsgrad, Tensor? bits, Tensor? rank, bool compact,"
      " bool stochastic_rounding, int moment_bits, Tensor lr, float beta1, float beta2, float eps, float weight_decay, "
      "bool maximize,"
      " int seed, Tensor? grad_scale, Tensor? found_inf) -> ()");
  m.def(
      "planned_sgd_(Tensor(a!) plan, int tensors, int blocks, Tensor? bits, Tensor? rank, bool compact,"
      " bool stochastic_rounding, int moment_bits, Tensor lr, float momentum, float dampening, float weight_decay, "
      "bool nesterov,"
      " bool maximize, int seed, Tensor? grad_scale, Tensor? found_inf) -> ()");
}

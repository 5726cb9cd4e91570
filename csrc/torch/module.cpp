#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "aimfair/cpu.h"
#include "aimfair/version.h"
#include "plan_memory.h"

// The Python module aimfair._C. Loading it registers the operators (schemas.cpp and a file for each family); pybind11
// binds the facts of the build, the choice of the CPU path, and the check of the addresses that a plan holds.

namespace {

using aimfair::cpu::Path;
constexpr Path kPaths[] = {Path::scalar, Path::avx2, Path::avx512, Path::neon};

std::vector<std::string> cpu_paths() {
  std::vector<std::string> names;
  for (const Path path : kPaths) {
    if (aimfair::cpu::path_usable(path)) names.emplace_back(aimfair::cpu::path_name(path));
  }
  return names;
}

void set_cpu_path(const std::string& name) {
  for (const Path path : kPaths) {
    if (name == aimfair::cpu::path_name(path) && aimfair::cpu::set_path(path)) return;
  }
  std::string usable;
  for (const std::string& path : cpu_paths()) usable += (usable.empty() ? "" : ", ") + path;
  throw std::invalid_argument("no CPU path '" + name + "' on this processor; there are " + usable);
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = AIMFAIR_VERSION;
  info["compiler"] = AIMFAIR_COMPILER;
  info["build_type"] = AIMFAIR_BUILD_TYPE;
  info["sanitizers"] = AIMFAIR_SANITIZERS;
  info["torch_abi"] = "2.11";                               // TORCH_TARGET_VERSION: this and later
  info["cuda"] = AIMFAIR_CUDA_VERSION;                      // "" without CUDA sources
  info["cuda_architectures"] = AIMFAIR_CUDA_ARCHITECTURES;  // "" without CUDA sources
#ifdef AIMFAIR_EMULATED
  info["emulated"] = true;
#else
  info["emulated"] = false;
#endif
  info["cpu_paths"] = cpu_paths();
  info["cpu_path"] = aimfair::cpu::path_name(aimfair::cpu::path());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info);
  module.def("cpu_paths", &cpu_paths);
  module.def("set_cpu_path", &set_cpu_path, pybind11::arg("name"));
  using aimfair::python::PlanMemory;
  pybind11::class_<PlanMemory>(module, "PlanMemory")
      .def(pybind11::init<const pybind11::list&, const pybind11::list&, bool>(), pybind11::arg("lists"),
           pybind11::arg("grads"), pybind11::arg("writes_grads") = false)
      .def("holds", &PlanMemory::holds, pybind11::arg("lists"))
      .def("moved_grads", &PlanMemory::moved_grads, pybind11::arg("grads"));
}

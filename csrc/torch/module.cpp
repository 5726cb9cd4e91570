#include <stdexcept>
#include <string>
#include <vector>

#include "aimfair/cpu.h"
#include "aimfair/version.h"
#include "plan_memory.h"
#include "python_abi.h"

// The Python module aimfair._C. Loading it registers the operators (schemas.cpp and a file for each family); Python
// sees the facts of the build, the choice of the CPU path, and the check of the addresses that a plan holds.

namespace {

using aimfair::cpu::Path;
using aimfair::python::check;
using aimfair::python::guarded;
using aimfair::python::none;
using aimfair::python::Owned;
using aimfair::python::owned;

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

Owned text(const std::string& text) {
  return owned(PyUnicode_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
}

Owned texts(const std::vector<std::string>& texts) {
  Owned list = owned(PyList_New(0));
  for (const std::string& entry : texts) check(PyList_Append(list.get(), text(entry).get()));
  return list;
}

Owned build_info() {
  Owned info = owned(PyDict_New());
  const auto set = [&](const char* name, const Owned& value) {
    check(PyDict_SetItemString(info.get(), name, value.get()));
  };
  set("version", text(AIMFAIR_VERSION));
  set("compiler", text(AIMFAIR_COMPILER));
  set("build_type", text(AIMFAIR_BUILD_TYPE));
  set("sanitizers", text(AIMFAIR_SANITIZERS));
  set("torch_abi", text("2.11"));                               // TORCH_TARGET_VERSION: this and later
  set("cuda", text(AIMFAIR_CUDA_VERSION));                      // "" without CUDA sources
  set("cuda_architectures", text(AIMFAIR_CUDA_ARCHITECTURES));  // "" without CUDA sources
#ifdef AIMFAIR_EMULATED
  set("emulated", owned(PyBool_FromLong(1)));
#else
  set("emulated", owned(PyBool_FromLong(0)));
#endif
  set("cpu_paths", texts(cpu_paths()));
  set("cpu_path", text(aimfair::cpu::path_name(aimfair::cpu::path())));
  return info;
}

PyMethodDef functions[] = {
    {"build_info", [](PyObject*, PyObject*) { return guarded(build_info); }, METH_NOARGS, nullptr},
    {"cpu_paths", [](PyObject*, PyObject*) { return guarded([] { return texts(cpu_paths()); }); }, METH_NOARGS,
     nullptr},
    {"set_cpu_path",
     [](PyObject*, PyObject* name) {
       return guarded([&] {
         const Owned bytes = owned(PyUnicode_AsUTF8String(name));
         set_cpu_path(PyBytes_AsString(bytes.get()));
         return none();
       });
     },
     METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "aimfair._C", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return guarded([] {
    Owned module = owned(PyModule_Create(&definition));
    aimfair::python::add_plan_memory(module.get());
    return module;
  });
}

#pragma once

#include <Python.h>

#include <exception>
#include <memory>
#include <stdexcept>

// Python's stable ABI (Py_LIMITED_API, set by cmake/AimfairPython.cmake), so that one module serves Python 3.11 and
// later: owned references, and exceptions of C++ as those of Python.

namespace aimfair::python {

struct Release {
  void operator()(PyObject* object) const { Py_DecRef(object); }
};
using Owned = std::unique_ptr<PyObject, Release>;

// Thrown when an exception of Python is set.
struct PythonError {};

// Takes over a new reference that the C API returned; null stands for an exception.
inline Owned owned(PyObject* object) {
  if (!object) throw PythonError{};
  return Owned(object);
}

inline void check(int status) {
  if (status < 0) throw PythonError{};
}

// The reference that body() returns. What it throws becomes an exception of Python, for which null is returned.
template <class Body>
PyObject* guarded(const Body& body) noexcept {
  try {
    return body().release();
  } catch (const PythonError&) {
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

inline Owned none() {
  Py_IncRef(Py_None);
  return Owned(Py_None);
}

}  // namespace aimfair::python

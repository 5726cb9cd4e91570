from scikit_build_core.setuptools.wrapper import setup

# The extension keeps to Python's stable ABI (cmake/AimfairPython.cmake): one wheel for this Python and later ones.
setup(cmake_source_dir=".", options={"bdist_wheel": {"py_limited_api": "cp311"}})

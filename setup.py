import os

from scikit_build_core.setuptools.wrapper import setup

# The extension keeps to Python's stable ABI (cmake/AimfairPython.cmake): one wheel for this Python and later ones.
options = {"bdist_wheel": {"py_limited_api": "cp311"}}
if local := os.environ.get("AIMFAIR_LOCAL_VERSION"):  # cu12 or cpu, say: which build of a version this is
    options["egg_info"] = {"tag_build": f"+{local}"}
setup(cmake_source_dir=".", options=options)

"""Without the pipeline's packages the kernels are tested alone."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("pydantic") else ["test_engines.py"]

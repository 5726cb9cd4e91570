"""Settings of a run's files; no result depends on them."""

from pathlib import PurePosixPath
from typing import Self

from pydantic import Field, model_validator

from aimfair.base.settings import Problem, Settings, Url


class RunSettings(Settings):
    """Where the results go, besides the run directory."""

    storage: Url | None = Field(
        None, description="URL, such as s3://bucket/folder, to which files of the run are copied after every stage"
    )
    upload: list[str] = Field(
        ["*"], min_length=1, description="patterns of those files, such as report.html or seeds/*; * matches / as well"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for pattern in self.upload:
            if not pattern or PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
                raise Problem(("upload",), f"found {pattern!r}, expected patterns of paths inside the run directory")
        return self

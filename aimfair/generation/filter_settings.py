"""Settings of the filters: which generated images are not kept."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import Folder, FolderOrName, Problem, Settings, require_words

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


MOST_BITS = 24
"""In which near-duplicates differ; unrelated images differ in about 32 of 64."""

ATTEMPTS = 50
"""At one image; if filters reject two of three, one image in a billion gets this far."""


def is_function(name: str) -> bool:
    """Whether it names a function of the user's, as module:function."""
    return _FUNCTION.fullmatch(name) is not None


class AttributeCheck(Settings):
    """A model that says which value of an attribute an image shows."""

    model: FolderOrName = Field(
        description="CLIP or SigLIP, which need no training, or an image classifier of transformers: a folder"
        " (beginning with /, ./, ../ or ~/) or an id on the hub; or the file of an ONNX classifier, .onnx"
    )
    labels: list[list[str]] = Field(
        [],
        description="for each value, the labels of the classifier that stand for it (!label: its absence), or texts for"
        " CLIP and SigLIP; []: the prompts without contexts",
    )
    least: float = Field(
        0.0, ge=0, lt=1, description="probability of the value that it should show, below which an image is rejected"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for value, labels in enumerate(self.labels):
            require_words(("labels", value), labels)
        seen = [label for labels in self.labels for label in labels]
        if twice := next((label for label in seen if seen.count(label) > 1), None):
            raise Problem(("labels",), f"found {twice!r} twice, expected each label for one value")
        return self


class FaceCheck(Settings):
    """A face detector; images without exactly one face are rejected."""

    model: Folder = Field(description="the file of an ONNX detector: YuNet, SCRFD, UltraFace or one of their layout")
    score: float = Field(0.6, gt=0, lt=1, description="from which a detection is a face")
    overlap: float = Field(
        0.4, gt=0, lt=1, description="intersection over union above which two detections are the same face"
    )
    smallest: float = Field(
        0.0, ge=0, lt=1, description="height of a face over that of the image, below which it does not count"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.suffix != ".onnx":
            raise Problem(("model",), f"found {self.model}, expected a file whose name ends in .onnx")
        return self


class QualityCheck(Settings):
    """A score of every image; the worst of each group are rejected."""

    model: FolderOrName = Field(
        description="what gives the score, more is better: the file of an ONNX model with one output; an image"
        " classifier of transformers with one; CLIP or SigLIP, with texts; or your own function, as module:function"
    )
    worst: float = Field(
        0.1, gt=0, le=0.5, description="share of a group's first images that is rejected, and later ones below them"
    )
    attempts: int = Field(
        3,
        ge=1,
        le=50,
        description="times that an image is replaced for its score; then it is kept: its prompt may always score low",
    )
    texts: Annotated[list[str], Field(max_length=2)] = Field(
        [], description="CLIP and SigLIP: two texts, the score is the probability of the first"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.texts:
            require_words(("texts",), self.texts)
            if len(set(self.texts)) != 2:
                raise Problem(("texts",), f"found {self.texts!r}, expected two texts, such as good photo and bad photo")
            if is_function(self.model) or self.model.endswith(".onnx"):
                raise Problem(("texts",), f"{self.model} reads no texts; leave them out")
        return self


class FilterSettings(Settings):
    """Images to reject besides black, single-coloured, non-finite and duplicate ones."""

    near_duplicates: int | None = Field(
        None,
        ge=0,
        le=MOST_BITS,
        description="images of a group whose 64-bit dHashes differ in at most this many bits; null: kept",
    )
    near_duplicates_share: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description=f"instead: as many bits, at most {MOST_BITS}, as reject no larger share of a group's first images",
    )
    near_duplicates_attempts: int | None = Field(
        None,
        ge=1,
        le=ATTEMPTS - 1,
        description="near_duplicates_share: times that an image is replaced as a near-duplicate; then it is kept: its"
        f" prompt may always give the same; null: {ATTEMPTS - 1}",
    )
    clip: FolderOrName | None = Field(
        None,
        description="images that this CLIP model places closer to another group: a folder (beginning with /,"
        " ./, ../ or ~/) or an id on the hub",
    )
    clip_margin: float = Field(
        0.0, ge=-2, le=2, description="margin by which the cosine with the own group must exceed that with any other"
    )
    target: AttributeCheck | None = Field(None, description="images that show another class than they should")
    protected: AttributeCheck | None = Field(
        None, description="images that show another value of the protected attribute than they should"
    )
    faces: FaceCheck | None = Field(None, description="images that do not show exactly one face")
    quality: QualityCheck | None = Field(None, description="the worst images of each group, by a score")
    safety: bool = Field(False, description="images that the safety checker of generate.model rejects")
    hooks: list[str] = Field([], description="images that your own functions reject, each given as module:function")

    @property
    def attributes(self) -> dict[Literal["target", "protected"], AttributeCheck]:
        """The checks of attributes that are set."""
        found: dict[Literal["target", "protected"], AttributeCheck | None] = {
            "target": self.target,
            "protected": self.protected,
        }
        return {attribute: check for attribute, check in found.items() if check is not None}

    @property
    def by_share(self) -> bool:
        """Whether a decision depends on all images of a group."""
        return self.quality is not None or self.near_duplicates_share is not None

    @property
    def most_near_duplicates(self) -> int | None:
        """How often an image is replaced as a near-duplicate before it is kept; None: always, with a number of bits."""
        if self.near_duplicates_share is None:
            return None
        return self.near_duplicates_attempts or ATTEMPTS - 1

    @property
    def hashed(self) -> bool:
        """Whether near-duplicates are searched."""
        return self.near_duplicates is not None or self.near_duplicates_share is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.clip is None and self.clip_margin != 0:
            raise Problem(("clip_margin",), f"found {self.clip_margin}, expected 0 without filters.clip")
        if self.near_duplicates is not None and self.near_duplicates_share is not None:
            raise Problem(
                ("near_duplicates_share",), "filters.near_duplicates gives the bits; leave one of the two out"
            )
        if self.near_duplicates_share is None and self.near_duplicates_attempts is not None:
            raise Problem(
                ("near_duplicates_attempts",),
                f"found {self.near_duplicates_attempts}, expected null without filters.near_duplicates_share",
            )
        for index, hook in enumerate(self.hooks):
            if not is_function(hook):
                raise Problem(("hooks", index), f"found {hook!r}, expected module:function, as in faces:count")
        return self

"""Settings of a job of synthetic images."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import FolderOrUrl, Problem, Settings
from aimfair.data.settings import Style
from aimfair.diffusion.settings import TextToImageSettings
from aimfair.generation.filter_settings import FilterSettings


class EmojiSettings(Settings):
    """Synthetic images for ``data.kind`` emoji: the people of the training images in another style."""

    style: Style = Field("twemoji", description="the drawing style")
    degradation: float = Field(
        0.0, ge=0, le=1, description="strength of blur, noise, colour cast and loss of detail; 0: none"
    )


class PairSettings(Settings):
    """Counterfactual pairs: images of the same class, contexts and noise, one for each protected value."""

    held_out: int = Field(
        100,
        ge=0,
        le=10**6,
        description="further pairs of each class that train nothing: evaluate counts on how many of them a classifier"
        " changes its mind; 0: none",
    )
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="edit real training images (SDEdit) instead of beginning from noise: share of the steps that are"
        " done; the more, the less is left of the image; null: begin from noise",
    )


class GenerateSettings(TextToImageSettings):
    """Synthetic images: which model makes them, how many, and which are kept."""

    folder: FolderOrUrl | None = Field(
        None,
        description="folder, or its URL, of existing images to copy instead of generating any: subfolders <y>_<a>, the"
        " numbers of class and protected value, or the synthetic/ of another run",
    )
    emoji: EmojiSettings | None = Field(
        None, description="draw emoji instead of generating images, if the real images are emoji"
    )
    pairs: PairSettings | None = Field(
        None,
        description="make the balanced set of counterfactual pairs, whose images differ in the protected value alone;"
        " null: each image has noise of its own",
    )
    balanced_per_group: int = Field(300, ge=1, le=10**6, description="images of each group in the balanced set")
    biased_total: int = Field(1000, ge=1, le=10**7, description="images in the biased set")
    minority_ratio: float | None = Field(
        None, gt=0, le=1, description="minority over majority group size in it; null: data.minority_ratio"
    )
    disjoint: bool = Field(True, description="the two sets share no image")
    seed: int = Field(0, ge=0, description="the seed of each image is derived from this, its prompt and its number")
    max_rejections: float = Field(
        0.2, ge=0, le=10, description="rejected images over wanted ones, above which generation stops"
    )
    image_format: Literal["png", "webp"] = Field("webp", description="of the files; both are lossless")
    storage: Literal["files", "webdataset"] = Field(
        "files",
        description="files: each image in its own; webdataset: many in a tar file with their labels, for a million",
    )
    images_per_shard: int = Field(10_000, ge=1, le=10**6, description="webdataset: images in a tar file")
    filters: FilterSettings = FilterSettings()

    @property
    def stored_as(self) -> dict[str, Any]:
        """Facts of a set that tell how its images are stored; none for files."""
        if self.storage == "files":
            return {}
        return {"storage": self.storage, "images_per_shard": self.images_per_shard}

    @property
    def in_use(self) -> bool:
        return self.instead is None

    @property
    def held_out_pairs(self) -> int:
        """Of each class."""
        return 0 if self.pairs is None else self.pairs.held_out

    @property
    def edits(self) -> bool:
        """Whether images are made from real ones."""
        return self.pairs is not None and self.pairs.strength is not None

    @property
    def instead(self) -> str | None:
        """The setting that takes the place of prompts and model; None: they are used."""
        if self.folder is not None:
            return "generate.folder"
        return "generate.emoji" if self.emoji is not None else None

    @model_validator(mode="after")
    def _check_job(self) -> Self:
        if self.folder is not None and self.emoji is not None:
            raise Problem(("emoji",), "images are copied from generate.folder; leave one of the two out")
        if self.instead is not None and self.filters != FilterSettings():
            raise Problem(("filters",), f"images of {self.instead} are not filtered; leave one of the two out")
        if self.instead is not None and self.pairs is not None:
            raise Problem(("pairs",), f"images of {self.instead} are not made in pairs; leave one of the two out")
        if self.edits:
            self._check_edits()
        return self

    def _check_edits(self) -> None:
        assert self.pairs is not None
        assert self.pairs.strength is not None
        strength = self.pairs.strength
        if int(strength * self.steps) < 1:
            raise Problem(
                ("pairs", "strength"),
                f"found {strength}, expected at least {1 / self.steps:.3g}, one of generate.steps {self.steps}",
            )
        if self.engine not in ("auto", "eager"):
            raise Problem(("engine",), f"found {self.engine!r}, expected eager: only it edits images (pairs.strength)")
        if self.guidance_interval != (0, 1):
            raise Problem(
                ("guidance_interval",),
                f"found {list(self.guidance_interval)}, expected [0, 1] with pairs.strength: images are edited with"
                " guidance in every step",
            )
        if self.shortcuts:
            raise Problem(
                (next(iter(self.shortcuts)),), "images are edited by the plain model (pairs.strength); leave it out"
            )

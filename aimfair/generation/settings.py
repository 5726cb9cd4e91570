"""Settings of the synthetic images."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import Folder, FolderOrName, Problem, Settings

_HOOK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


class FilterSettings(Settings):
    """What is not kept beside images that are black, of one colour, not finite or there twice."""

    near_duplicates: int | None = Field(
        None,
        ge=0,
        le=24,
        description="images of a group whose 64-bit dHash differs in so many bits at most; null: all kept",
    )
    clip: FolderOrName | None = Field(
        None,
        description="images that this CLIP finds closer to another group: a folder of transformers (beginning with /,"
        " ./, ../ or ~/) or an id on the hub",
    )
    clip_margin: float = Field(
        0.0, ge=-2, le=2, description="by how much the cosine with the own group must exceed that with any other"
    )
    safety: bool = Field(False, description="what the safety checker of generate.model objects to")
    hooks: list[str] = Field([], description="what functions of yours give a reason for, each as module:function")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.clip is None and self.clip_margin != 0:
            raise Problem(("clip_margin",), f"found {self.clip_margin}, expected 0 without filters.clip")
        for index, hook in enumerate(self.hooks):
            if not _HOOK.fullmatch(hook):
                raise Problem(("hooks", index), f"found {hook!r}, expected module:function, as in faces:count")
        return self


class TensorRtSettings(Settings):
    """Engines tensorrt and tensorrt-rtx."""

    profile: Literal["static", "dynamic"] = Field(
        "static",
        description="batches that an engine takes; static: of one size, smaller ones are filled up; dynamic: of all"
        " sizes up to it, which is slower",
    )
    cuda_graphs: bool = Field(True, description="launch a batch as one CUDA graph")
    workspace_gb: float | None = Field(
        None, gt=0, description="GPU memory that one operation may take for itself; null: all there is"
    )
    optimization_level: int = Field(3, ge=0, le=5, description="of the builder; higher: slower to build")
    targets: list[int] | None = Field(
        None,
        min_length=1,
        description="tensorrt-rtx: compute capabilities times ten, such as 86 and 120; null: of the GPU that is there,"
        " and without one all that it knows",
    )


class GenerateSettings(Settings):
    """Synthetic images."""

    model: FolderOrName = Field(
        "digits",
        description="'digits' (shipped), a folder in the layout of diffusers (beginning with /, ./, ../ or ~/), or"
        " an id on the hub",
    )
    folder: Folder | None = Field(
        None,
        description="images made elsewhere, which are copied instead of generating any: folders named <y>_<a>, the"
        " numbers of class and protected value, or the synthetic/ of another run",
    )
    engine: Literal["auto", "eager", "compile", "onnxruntime", "tensorrt", "tensorrt-rtx"] = Field(
        "auto",
        description="what runs the model; eager: PyTorch; compile: torch.compile; onnxruntime: an exported copy;"
        " tensorrt and tensorrt-rtx: one on NVIDIA GPUs; auto: onnxruntime on a CPU, eager on a GPU",
    )
    tensorrt: TensorRtSettings = TensorRtSettings()
    steps: int = Field(20, ge=1, description="denoising steps")
    guidance_scale: float = Field(3.0, ge=0, description="classifier-free guidance; 1 or less: none")
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="shares of the steps between which there is guidance; the others take half the time"
    )
    scheduler: Literal["as_saved", "ddim", "dpmpp_2m", "unipc"] = Field(
        "as_saved", description="as_saved: the one in the model's folder"
    )
    negative_prompt: str = Field("", description="what to steer away from, with guidance")
    render_size: int | None = Field(
        None, ge=8, description="pixels along each side, as generated; null: the model's own"
    )
    batch_size: int = Field(64, ge=1, description="images at a time; halved when memory runs out")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the generator's weights")
    balanced_per_group: int = Field(300, ge=1, description="images of each group in the balanced set")
    biased_total: int = Field(1000, ge=1, description="images in the biased set, with bias between its groups")
    bias: float | None = Field(
        None, gt=0, le=1, description="size of a minority group over that of a majority group in it; null: data.bias"
    )
    disjoint: bool = Field(True, description="the two sets share no image")
    allow_download: bool = Field(False, description="may fetch the model from the hub")
    seed: int = Field(0, ge=0, description="each image has its own, derived from this, its prompt and its number")
    max_rejections: float = Field(
        0.2, ge=0, le=10, description="rejected images over wanted ones, above which generation is given up"
    )
    image_format: Literal["png", "webp"] = Field("webp", description="of the files; both are lossless")
    filters: FilterSettings = FilterSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folder is not None and self.filters != FilterSettings():
            raise Problem(("filters",), "images of generate.folder are not filtered; leave one of the two out")
        start, stop = self.guidance_interval
        if not 0 <= start < stop <= 1:
            raise Problem(("guidance_interval",), f"found [{start}, {stop}], expected 0 <= first < last <= 1")
        if self.engine == "onnxruntime" and self.dtype == "bfloat16":
            raise Problem(("dtype",), "found 'bfloat16', expected float32 or float16, which engine onnxruntime can run")
        if self.engine.startswith("tensorrt") and self.tensorrt.profile == "static" and (start, stop) != (0, 1):
            raise Problem(
                ("tensorrt", "profile"),
                "found 'static', expected 'dynamic' with a guidance_interval: a static engine runs whole batches, and"
                " steps without guidance would take as long as the others",
            )
        if self.engine == "tensorrt" and self.tensorrt.targets is not None:
            raise Problem(("tensorrt", "targets"), "engine tensorrt builds for the GPU that is there; leave it out")
        return self

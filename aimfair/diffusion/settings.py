"""Settings of a text-to-image model: which one, how it samples, and what runs it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import FolderOrName, Problem, Settings


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


class TextToImageSettings(Settings):
    """A text-to-image model and how it samples."""

    model: FolderOrName = Field(
        "digits",
        description="'digits' (shipped), a folder in the layout of diffusers (beginning with /, ./, ../ or ~/), or"
        " an id on the hub",
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
    allow_download: bool = Field(False, description="may fetch the model from the hub")

    @model_validator(mode="after")
    def _check_model(self) -> Self:
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

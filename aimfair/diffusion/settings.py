"""Settings of a text-to-image model: which one, how it samples, and which engine runs it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import FolderOrName, Problem, Settings

_WITHOUT: dict[str, Any] = {
    "guidance_interval": (0.0, 1.0),
    "decoder": None,
    "quantization": None,
    "step_cache": None,
    "step_cache_interval": 3,
    "channels_last": False,
    "compile_regions": False,
}
"""Every setting that trades likeness for speed, with the value that does not."""


class TensorRtSettings(Settings):
    """Engines tensorrt and tensorrt-rtx."""

    profile: Literal["static", "dynamic"] = Field(
        "static",
        description="batch sizes of an engine; static: one, smaller batches are padded; dynamic: all up to batch_size,"
        " which is slower",
    )
    cuda_graphs: bool = Field(True, description="launch a batch as one CUDA graph")
    workspace_gb: float | None = Field(
        None, gt=0, description="GPU memory limit of the builder's workspace; null: all there is"
    )
    optimization_level: int = Field(3, ge=0, le=5, description="of the builder; higher builds more slowly")
    targets: list[int] | None = Field(
        None,
        min_length=1,
        description="tensorrt-rtx: compute capabilities times ten, such as 86 and 120; null: that of the local GPU,"
        " or, without one, all supported",
    )


class LoraSettings(Settings):
    """A low-rank adaptation of the model, which is added to its weights."""

    weights: FolderOrName = Field(
        description="a .safetensors file or a folder with one (beginning with /, ./, ../ or ~/), or an id on the hub"
    )
    file: str | None = Field(
        None,
        pattern=r"^[^/\\]+\.safetensors$",
        description="name of the file, where there are several; null: the only one, on the hub"
        " pytorch_lora_weights.safetensors",
    )
    scale: float = Field(1.0, ge=-10, le=10, description="factor of what it adds")


class TextToImageSettings(Settings):
    """A text-to-image model and how it samples."""

    model: FolderOrName = Field(
        "digits",
        description="'digits' (shipped), a folder in the layout of diffusers or a .safetensors file (beginning with /,"
        " ./, ../ or ~/), or an id on the hub",
    )
    base: FolderOrName | None = Field(
        None,
        description="of a .safetensors file: the model that it is a version of, from which configuration, tokenizers"
        " and missing parts are taken, a folder or an id on the hub; null: for a whole model, the configuration of the"
        " one that diffusers recognises",
    )
    engine: Literal["auto", "eager", "compile", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt"] = Field(
        "auto",
        description="what runs the model; eager: PyTorch; compile: torch.compile; onnxruntime: ONNX Runtime;"
        " tensorrt, tensorrt-rtx, torch-tensorrt: on NVIDIA GPUs; auto: onnxruntime on a CPU, eager on a GPU",
    )
    tensorrt: TensorRtSettings = TensorRtSettings()
    steps: int = Field(20, ge=1, description="denoising steps")
    guidance_scale: float = Field(3.0, ge=0, description="scale of classifier-free guidance; 1 or less: none")
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="part of the steps with guidance, as fractions; the other steps take half the time"
    )
    scheduler: Literal["as_saved", "ddim", "ddim_trailing", "dpmpp_2m", "euler_trailing", "lcm", "tcd", "unipc"] = (
        Field(
            "as_saved",
            description="as_saved: the one in the model folder; for models of few steps: euler_trailing (Lightning),"
            " ddim_trailing (Hyper), lcm, tcd",
        )
    )
    loras: list[LoraSettings] = Field(
        [],
        description="low-rank adaptations that are added to the model's weights, such as {weights: FOLDER, scale: 0.8}",
    )
    negative_prompt: str = Field("", description="what guidance steers away from")
    render_size: int | None = Field(
        None, ge=8, description="pixels along each side of generated images; null: the model's default"
    )
    decoder: FolderOrName | None = Field(
        None,
        description="a small decoder in place of the model's, an AutoencoderTiny of diffusers such as TAESD: a folder"
        " (beginning with /, ./, ../ or ~/) or an id on the hub; null: the model's",
    )
    quantization: Literal["int8", "fp8"] | None = Field(
        None,
        description="round weights and inputs of the denoiser's layers to 8 bits, with ranges measured on prompts of"
        " the run; int8: engines onnxruntime, tensorrt, tensorrt-rtx; fp8: the latter two; null: none",
    )
    step_cache: Literal["deep", "taylorseer"] | None = Field(
        None,
        description="keep activations between steps, in engine eager; deep: UNets, inner blocks of earlier steps"
        " (DeepCache); taylorseer: Flux and other transformers, extrapolated attention; null: none",
    )
    step_cache_interval: int = Field(3, ge=1, le=100, description="steps from one that is computed in full to the next")
    channels_last: bool = Field(False, description="convolutions with channels last in memory; engines eager, compile")
    compile_regions: bool = Field(
        False,
        description="engine compile: compile each repeated block of the denoiser once, in place of the whole: seconds"
        " in place of minutes, somewhat slower",
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        64,
        description="images at a time; halved when out of memory; auto: the largest that fits and is faster than half"
        " of it, found by trying before the first image",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the generator's weights")
    allow_download: bool = Field(False, description="allow downloading the model from the hub")

    @property
    def in_use(self) -> bool:
        """Whether the model is run at all."""
        return True

    @property
    def images_at_a_time(self) -> int:
        """``batch_size``; as long as it is auto, the default."""
        return 64 if self.batch_size == "auto" else self.batch_size

    @property
    def shortcuts(self) -> dict[str, Any]:
        """The settings in use that trade likeness to the plain model for speed, in JSON types."""
        values = self.model_dump(mode="json", include=set(_WITHOUT))
        return {name: values[name] for name, plain in _WITHOUT.items() if getattr(self, name) != plain}

    @property
    def plain(self) -> Self:
        """Without shortcuts, in engine eager."""
        return self.model_copy(update={**_WITHOUT, "engine": "eager"})

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if not self.in_use:
            return self
        start, stop = self.guidance_interval
        if not 0 <= start < stop <= 1:
            raise Problem(("guidance_interval",), f"found [{start}, {stop}], expected 0 <= first < last <= 1")
        if self.engine == "onnxruntime" and self.dtype == "bfloat16":
            raise Problem(("dtype",), "found 'bfloat16', expected float32 or float16 with engine onnxruntime")
        if (kind := self.quantization) is not None:
            engines = ["tensorrt", "tensorrt-rtx", *(["auto", "onnxruntime"] if kind == "int8" else [])]
            if self.engine not in engines:
                raise Problem(("engine",), f"found {self.engine!r}, expected {' or '.join(engines)} with {kind}")
            if self.dtype == "bfloat16":
                raise Problem(("dtype",), f"found 'bfloat16', expected float32 or float16 with quantization {kind}")
        if self.engine not in ("auto", "eager") and self.step_cache is not None:
            raise Problem(("engine",), f"found {self.engine!r}, expected eager with step_cache {self.step_cache}")
        if self.step_cache is not None and (start, stop) != (0, 1):
            raise Problem(
                ("step_cache",),
                "expected null with a guidance_interval: activations of whole batches do not fit halves",
            )
        if self.step_cache is None and self.step_cache_interval != 3:
            raise Problem(("step_cache_interval",), f"found {self.step_cache_interval}, expected 3 without step_cache")
        if self.engine not in ("auto", "eager", "compile") and self.channels_last:
            raise Problem(("engine",), f"found {self.engine!r}, expected eager or compile with channels_last")
        if self.quantization is not None and (self.step_cache is not None or self.channels_last):
            raise Problem(("quantization",), "expected null with step_cache or channels_last, which engine eager runs")
        if self.engine != "compile" and self.compile_regions:
            raise Problem(("engine",), f"found {self.engine!r}, expected compile with compile_regions")
        if self.engine.startswith("tensorrt") and self.tensorrt.profile == "static" and (start, stop) != (0, 1):
            raise Problem(
                ("tensorrt", "profile"),
                "found 'static', expected 'dynamic' with a guidance_interval: a static engine pads every batch, so"
                " steps without guidance would save no time",
            )
        if self.engine == "tensorrt" and self.tensorrt.targets is not None:
            raise Problem(("tensorrt", "targets"), "engine tensorrt builds for the local GPU; leave it out")
        return self

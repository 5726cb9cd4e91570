"""Every setting and its default: one tree, validated. Nothing is configured anywhere else.

``aimfair.config_file`` reads it from YAML and command-line flags. A key is named by its path, such as ``train.lr``.
"""

import os
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from aimfair.selective.choices import SIZES, Criterion, Granularity, Rule

BIASED = "biased"
"""The name, beside those of methods, of the model that no method has touched."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HOOK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")


class Problem(ValueError):
    """A setting that only another one makes wrong.

    Args:
        key: where it is, seen from the node that found it.
    """

    def __init__(self, key: tuple[str | int, ...], message: str):
        super().__init__(message)
        self.key = key


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _absolute_if_folder(name: str) -> str:
    """Folders are told from names by how they begin, so that nothing depends on which folders happen to exist."""
    return str(_absolute(Path(name))) if name.startswith(("/", "./", "../", "~/")) else name


Folder = Annotated[Path, AfterValidator(_absolute)]
FolderOrName = Annotated[str, AfterValidator(_absolute_if_folder)]


class Settings(BaseModel):
    """A node of the tree: unknown keys, NaN and infinity are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class DataSettings(Settings):
    """The real images."""

    kind: Literal["digits", "table", "celeba", "utkface"] = Field("digits", description="layout of the data set")
    root: Folder | None = Field(None, description="folder of the data set; digits needs none")
    target: str = Field(
        "at_least_five",
        description="what is predicted: digits: at_least_five or digit; table: a column; celeba: an attribute;"
        " utkface: gender",
    )
    protected: str = Field(
        "ink", description="protected attribute: digits: ink; table: a column; celeba: an attribute; utkface: white"
    )
    image_size: int = Field(32, ge=8, le=2048, description="pixels along each side, as the model sees them")
    bias: float = Field(
        1 / 9, gt=0, le=1, description="size of a minority group over that of a majority group in biased sets"
    )
    majority: list[int] = Field(
        [1, 0], description="for each target class, the number of the protected value that dominates it in biased sets"
    )
    train_images: int | None = Field(
        None,
        ge=1,
        description="biased training images; null: all that the bias allows, of a table all its rows",
    )
    seed: int = Field(0, ge=0, description="of the splits and of the choice of biased images")
    max_pixels: int = Field(50_000_000, ge=1, description="larger images are refused before they are decoded")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images or rows above which the data set is refused"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "digits":
            if self.root is None:
                raise Problem(("root",), f"missing; {self.kind} needs the folder of the data set")
        else:
            if self.target not in ("at_least_five", "digit"):
                raise Problem(("target",), f"found {self.target!r}, expected 'at_least_five' or 'digit' for digits")
            if self.protected != "ink":
                raise Problem(("protected",), f"found {self.protected!r}, expected 'ink' for digits")
        if self.kind == "utkface" and (self.target, self.protected) != ("gender", "white"):
            raise Problem((), "utkface has target 'gender' and protected 'white'")
        return self

    def group_shape(self) -> tuple[int, int] | None:
        """(Y target classes, A protected values); None where only the table itself can tell."""
        if self.kind == "table":
            return None
        return (10 if self.kind == "digits" and self.target == "digit" else 2), 2


class LanguageModelSettings(Settings):
    """The language model that writes prompts; base URL and key of an endpoint come from the environment alone."""

    model: FolderOrName = Field(
        "",
        description="openai: its name at the endpoint; transformers: a folder (beginning with /, ./, ../ or ~/)",
    )
    per_request: int = Field(10, ge=1, le=200, description="prompts asked for at a time")
    temperature: float | None = Field(None, ge=0, le=2, description="of sampling; null: the model's own")
    max_tokens: int | None = Field(
        None, ge=1, description="of one reply; null: what the endpoint gives, 2048 for transformers"
    )
    json_mode: bool = Field(True, description="openai: ask for JSON by response_format; false where that is unknown")
    max_words: int = Field(40, ge=1, description="of one prompt; more are refused")
    avoid: list[str] = Field(
        [], description="words that would give a group away, such as he or beard; targets and protected always are"
    )
    similarity: float = Field(
        0.7, gt=0, le=1, description="share of common word triples (Jaccard) from which two prompts count as one"
    )
    max_fruitless: int = Field(5, ge=1, description="replies in a row without a usable prompt before giving up")
    timeout: float = Field(120.0, gt=0, description="openai: seconds within which an answer must be there, to its end")
    retries: int = Field(5, ge=0, description="openai: of a request that met a timeout, 429 or 5xx")
    max_wait: float = Field(300.0, gt=0, description="openai: longest Retry-After, in seconds, that is waited for")


class PromptSettings(Settings):
    """Contextual prompts: the same contexts in every group (y, a)."""

    provider: Literal["grammar", "openai", "transformers"] = Field(
        "grammar",
        description="who writes the prompts; grammar: these settings alone; openai: an endpoint that speaks its"
        " protocol; transformers: a local chat model",
    )
    vocabulary: FolderOrName | None = Field(
        None,
        description="whence the words that are not given here: a vocabulary that comes with aimfair, or a .yaml file"
        " (beginning with /, ./, ../ or ~/)",
    )
    per_group: int = Field(50, ge=1, description="prompts of each group")
    template: str = Field(
        "a handwritten {target} in {protected} ink, {contexts}",
        description="the prompt, with {target}, {protected} and {contexts} where the words go",
    )
    targets: list[list[str]] = Field(description="for each target class the words for it, used in turn")
    protected: list[list[str]] = Field(description="for each protected value the words for it, used in turn")
    contexts: dict[str, list[str]] = Field(description="contextual attribute -> its values")
    contexts_per_prompt: int = Field(3, ge=0, description="contextual attributes in one prompt")
    seed: int = Field(0, ge=0, description="of the choice of contexts")
    llm: LanguageModelSettings = LanguageModelSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, classes in (("targets", self.targets), ("protected", self.protected)):
            if len(classes) < 2:
                raise Problem((name,), f"found {len(classes)} lists of words, expected at least 2")
            for index, words in enumerate(classes):
                require_words((name, index), words)
        if self.vocabulary is not None and "template" not in self.model_fields_set:
            raise Problem(("template",), f"missing; the vocabulary {self.vocabulary!r} has none; add it there or here")
        for attribute, values in self.contexts.items():
            require_words(("contexts", attribute), values)
            if len(set(values)) < len(values):
                raise Problem(("contexts", attribute), "the same value stands there twice")
        if self.contexts_per_prompt > len(self.contexts):
            raise Problem(
                ("contexts_per_prompt",),
                f"found {self.contexts_per_prompt}, expected at most {len(self.contexts)}, the number of contexts",
            )
        self._check_template()
        if self.provider == "openai" and not self.llm.model:
            raise Problem(("llm", "model"), "missing; openai needs the name of a model at the endpoint")
        if self.provider == "transformers" and not Path(self.llm.model).is_absolute():
            raise Problem(
                ("llm", "model"),
                f"found {self.llm.model!r}, expected the folder of a chat model, beginning with /, ./, ../ or ~/",
            )
        if self.llm.avoid:
            require_words(("llm", "avoid"), self.llm.avoid)
        return self

    def _check_template(self) -> None:
        expected = {"target", "protected"} | ({"contexts"} if self.contexts_per_prompt else set())
        shown = " ".join(f"{{{name}}}" for name in sorted(expected))
        try:
            fields = [field for field in string.Formatter().parse(self.template) if field[1] is not None]
        except ValueError as error:
            raise Problem(("template",), f"{error}; expected {shown}, and no other braces") from error
        found = [f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
                 for _, name, spec, conversion in fields]  # fmt: skip
        if sorted(found) != sorted(f"{{{name}}}" for name in expected):
            raise Problem(("template",), f"found {' '.join(found) or 'no placeholders'}, expected each of {shown} once")


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
    biased_total: int = Field(1000, ge=1, description="images in the biased set, with data.bias between its groups")
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


class ModelSettings(Settings):
    """The classifier."""

    pretrained: FolderOrName | None = Field(
        None,
        description="an image classifier or backbone of transformers: a folder (beginning with /, ./, ../ or ~/) or an"
        " id on the hub",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="instead of pretrained: the arguments of a transformers configuration, model_type among them",
    )
    allow_download: bool = Field(False, description="may fetch pretrained from the hub")
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="subtracted from red, green, blue in [0, 1]")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="divides them then")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained is not None and self.config:
            raise Problem(("config",), "model.pretrained is given too; give one of the two")
        if self.config and not isinstance(self.config.get("model_type"), str):
            raise Problem(("config",), "model_type is missing, for example model_type: resnet")
        if min(self.std) <= 0:
            raise Problem(("std",), f"found {list(self.std)}, expected numbers above 0")
        return self


class AugmentSettings(Settings):
    """Random changes of training images."""

    shift: int = Field(0, ge=0, description="pixels, at most, along each axis")
    crop_scale: tuple[float, float] = Field((1.0, 1.0), description="least and greatest area of a random resized crop")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="least and greatest width over height of it")
    flip: bool = Field(False, description="left to right, half of the images")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, (low, high), limit in (("crop_scale", self.crop_scale, 1.0), ("crop_ratio", self.crop_ratio, 100.0)):
            if not 0 < low <= high <= limit:
                raise Problem((name,), f"found [{low}, {high}], expected 0 < least <= greatest <= {limit:g}")
        return self


class OptimizerSettings(Settings):
    """One training."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="which optimizer")
    lr: float = Field(1e-3, gt=0, description="learning rate at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled for adamw, coupled for sgd")
    epochs: int = Field(15, ge=1, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images in one step; kept when memory forces smaller parts")
    schedule: Literal["constant", "step", "cosine"] = Field("constant", description="course of the learning rate")
    step_epochs: int = Field(10, ge=1, description="step only: epochs between divisions of lr by 10")
    keep: Literal["last", "best_validation"] = Field("last", description="which epoch's weights are kept")
    augment: AugmentSettings = AugmentSettings()


class FinetuneSettings(OptimizerSettings):
    """Fine-tuning on balanced synthetic images."""

    batchnorm: Literal["freeze", "adapt"] = Field(
        "freeze", description="running statistics: as the biased model has them, or following the synthetic images"
    )
    state: Literal["dense", "compact"] = Field(
        "compact", description="optimizer state of all weights, or of the selected ones"
    )


class SensitivitySettings(Settings):
    """Gradients of the biased model on real biased, synthetic biased and synthetic fair images."""

    batch_size: int = Field(64, ge=1, description="images whose mean loss gives one gradient")
    batches: int | None = Field(None, ge=1, description="of each source, at most; null: all of the smallest source")
    train_mode: bool = Field(
        False, description="gradients with BatchNorm and dropout in training mode, as the paper takes them"
    )


class MethodSettings(Settings):
    """How one method chooses the weights that it tunes; the words of aimfair.Sensitivity.select."""

    rule: Rule = Field("intersection", description="how scores become a selection")
    criterion: Criterion = Field("difference", description="bias score")
    domain_criterion: Criterion | None = Field(None, description="domain score; null: as criterion, where that works")
    granularity: Granularity = Field("element", description="what is selected as one")
    density: float | None = Field(None, gt=0, le=1, description="share that is selected")
    k: int | None = Field(None, ge=1, description="number that is selected")
    bias: float | int | None = Field(
        None, gt=0, description="intersection: top share (1.0 is all) or number (1 is one) by bias score"
    )
    domain: float | int | None = Field(
        None, gt=0, description="intersection: bottom share (1.0 is all) or number (1 is one) by domain score"
    )
    source: Literal["real_biased", "synthetic_biased", "synthetic_fair"] | None = Field(
        None, description="fisher and magnitude: whose gradients; null: synthetic_fair"
    )
    head: str | None = Field(None, description="head_only: name of the module; null: the last one with parameters")
    lr: float | None = Field(None, gt=0, description="instead of finetune.lr")
    batchnorm: Literal["freeze", "adapt"] | None = Field(None, description="instead of finetune.batchnorm")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for name in ("density", "k", "bias", "domain", "head") if getattr(self, name) is not None}
        if given not in SIZES[self.rule]:
            ways = " or ".join(" and ".join(sorted(way)) or "no size" for way in SIZES[self.rule])
            raise Problem((), f"rule {self.rule!r} takes {ways}, found {' and '.join(sorted(given)) or 'none'}")
        for name in ("bias", "domain"):
            share = getattr(self, name)
            if isinstance(share, float) and share > 1:
                raise Problem((name,), f"found {share}, expected a share up to 1.0, or a whole number")
        one_source = self.criterion in ("fisher", "magnitude")
        if self.source is not None and not one_source:
            raise Problem(("source",), f"criterion {self.criterion!r} compares two sources and takes none")
        if self.domain_criterion in ("fisher", "magnitude"):
            raise Problem(("domain_criterion",), f"found {self.domain_criterion!r}, expected one that compares sources")
        return self


class EvaluateSettings(Settings):
    """Metrics on the test images."""

    batch_size: int = Field(256, ge=1, description="images at a time")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
    replicates: int = Field(10_000, ge=100, description="bootstrap replicates")
    small_group: int = Field(30, ge=0, description="groups with fewer images are flagged")


class Config(Settings):
    """The whole tree."""

    title: str = Field("aimfair run", description="heading of the report")
    seeds: list[int] = Field([100, 200, 300], min_length=1, description="one baseline and one of each method for each")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto: cuda where there is one")
    threads: int | None = Field(None, ge=1, description="CPU threads; null: torch's own choice")
    checkpoint_seconds: float = Field(30.0, ge=0, description="between checkpoints of a training")
    data: DataSettings = DataSettings()
    prompts: PromptSettings
    generate: GenerateSettings = GenerateSettings()
    model: ModelSettings
    train: OptimizerSettings = OptimizerSettings()
    sensitivity: SensitivitySettings = SensitivitySettings()
    finetune: FinetuneSettings = FinetuneSettings()
    methods: dict[str, MethodSettings] = Field(description="name -> how it selects; the biased model is always there")
    default_method: str = Field(description="the method of the report's headline")
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise Problem(("seeds",), f"found {self.seeds}, expected different numbers, none below 0")
        if not _DEVICE.fullmatch(self.device):
            raise Problem(("device",), f"found {self.device!r}, expected auto, cpu, cuda or cuda:N")
        if (self.model.pretrained is None) == (not self.model.config):
            raise Problem(("model",), "give model.pretrained or model.config")
        self._check_groups()
        for name in self.methods:
            if name == BIASED or not _FILE_NAME.fullmatch(name):
                raise Problem(
                    ("methods", name),
                    f"expected a name of letters, digits, - and _, at most 64, and not {BIASED!r}",
                )
        if self.default_method not in self.methods:
            raise Problem(
                ("default_method",),
                f"found {self.default_method!r}, expected one of methods: {', '.join(self.methods) or 'none'}",
            )
        return self

    def _check_groups(self) -> None:
        targets, protected = len(self.prompts.targets), len(self.prompts.protected)
        shape = self.data.group_shape()
        if shape is not None and targets != shape[0]:
            raise Problem(
                ("prompts", "targets"), f"found {targets} lists of words, expected {shape[0]}, one for each class"
            )
        if shape is not None and protected != shape[1]:
            raise Problem(
                ("prompts", "protected"), f"found {protected} lists of words, expected {shape[1]}, one for each value"
            )
        if len(self.data.majority) != targets:
            raise Problem(
                ("data", "majority"),
                f"found {len(self.data.majority)} numbers, expected {targets}, one for each of prompts.targets",
            )
        if not all(0 <= value < protected for value in self.data.majority):
            raise Problem(
                ("data", "majority"), f"found {self.data.majority}, expected numbers from 0 to {protected - 1}"
            )


def require_words(key: tuple[str | int, ...], words: list[str]) -> None:
    """Raises Problem unless these can be words of prompts."""
    if not words or any(not word.strip() or not word.isprintable() for word in words):
        raise Problem(
            key, f"found {words!r}, expected at least one text, none of them blank or with control characters"
        )

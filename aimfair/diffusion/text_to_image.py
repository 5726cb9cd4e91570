"""Images from text with a latent diffusion model."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, SILENT, Log
from aimfair.base.memory import MicroBatch, pieces
from aimfair.diffusion.calibration import Recorder, calibration_prompts
from aimfair.diffusion.clock import COPIES, DECODER, DENOISER, ENCODER, SCHEDULER, Clock
from aimfair.diffusion.engines.engine import Eager, Engine, Part, Quantization, Source, full_precision
from aimfair.diffusion.engines.registry import load_engine
from aimfair.diffusion.families.family import Family, Pipeline
from aimfair.diffusion.families.registry import family_of
from aimfair.diffusion.load import load_pipeline, taylor_seer
from aimfair.diffusion.lora import lora_facts
from aimfair.diffusion.model import decoder_fingerprint, decoder_folder
from aimfair.diffusion.sampler import Samples
from aimfair.diffusion.schedulers import advice, scheduler_options
from aimfair.diffusion.settings import TextToImageSettings
from aimfair.diffusion.step_cache import StepCache, install

_NEGATIVE = "generate.negative_prompt"
_CACHED_BYTES = 1 << 30  # of prompt embeddings: thousands for Stable Diffusion, 250 for Flux
_TRIALS = 3  # calls of which the fastest counts: others may use the machine
_SLICED_FROM = 256  # pixels: from this size on one image keeps the decoder busy, and a batch only costs memory

_OF_SAMPLING = {"steps", "guidance_scale", "scheduler", "negative_prompt"}
"""Settings that change what reaches the denoiser."""


class GuidanceInterval:
    """Wraps an :class:`Engine` and applies guidance only in some of the steps.

    The other steps run the denoiser on half of the batch, and images can improve: Kynkäänniemi et al.,
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models, 2024
    (arXiv 2404.07724). The interval is in fractions of the steps; in the paper, in noise levels.

    Pipelines put the negative prompts into the first half of the batch and add the scaled difference of the halves.
    Returning the second half twice makes that difference zero and leaves the prediction for the prompt.

    Args:
        engine: runs the parts.
        interval: fractions of the steps, [start, stop); (0, 1): all steps.
        steps: returns how often the pipeline calls the denoiser, known after the first call.
    """

    def __init__(self, engine: Engine, interval: tuple[float, float], steps: Callable[[], int]):
        self._engine, self._interval, self._steps = engine, interval, steps
        self._step = 0

    def begin(self) -> None:
        """Call this before each batch."""
        self._step = 0

    def run(self, part: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As :meth:`Engine.run`."""
        if part != "denoiser":
            return self._engine.run(part, inputs)
        start, stop = self._interval
        share, self._step = self._step / self._steps(), self._step + 1
        if start <= share < stop:
            return self._engine.run(part, inputs)
        outputs = self._engine.run(part, [tensor[len(tensor) // 2 :] for tensor in inputs])
        return tuple(torch.cat([output, output]) for output in outputs)


class Diffusion:
    """A loaded text-to-image model.

    An image depends on its prompt and its seed: each has its own generator on the CPU, and each prompt is embedded
    alone. The other images of a batch change rounding only, and pixels by at most one grey level.

    Args:
        folder: a model in diffusers' layout.
        settings: engine, scheduler, steps, guidance, dtype, size; ``batch_size`` is halved when out of memory.
        device: where the model runs.
        log, interrupt: for building an engine.
        prompts: of the run, for the calibration of a quantised denoiser.

    Raises:
        AimfairError: the model is damaged, of an unknown family, does not support the settings, or cannot run in
            ``settings.engine``.
        Interrupted: while building an engine.
    """

    def __init__(
        self,
        folder: Path,
        settings: TextToImageSettings,
        device: torch.device,
        log: Log = NOWHERE,
        interrupt: Interrupt = NEVER,
        prompts: Sequence[str] = (),
    ):
        self._settings = settings
        self._device = device
        self._clock = Clock(device)
        self._fitting = MicroBatch(settings.images_at_a_time)
        self._family = family_of(folder)
        self._pipeline = load_pipeline(folder, self._family, settings, device)
        self._guided = self._family.guided(self._pipeline, settings.guidance_scale)
        self._latents = self._family.latents(self._pipeline, settings.render_size)
        self.size: int = self._latents[1] * self._pipeline.vae_scale_factor
        """Pixels along each side of an image."""
        source = _source(folder, self._family, self._pipeline, settings, device, prompts)
        self._dtype_of_latents = torch.float32 if self._family.full_latents else source.dtype
        # Nothing below refers to this object, which would keep the weights in memory until garbage is collected.
        read = partial(_embed_text, self._family, self._pipeline)
        self._embed = lru_cache(max(1, _CACHED_BYTES // _bytes(source.parts[0])))(read)
        self._embed_away = cache(partial(self._family.embed_negative, self._pipeline, settings.negative_prompt))
        batches = _batches(source, settings, self._family, guided=self._guided)
        self._engine = load_engine(settings, source, batches, log, interrupt)
        self._interval = self._guidance_interval()
        self._check_negative_prompt(log)
        for line in advice(settings):
            log.warn(line)
        if self._interval or not isinstance(self._engine, Eager):
            self._family.replace(self._pipeline, self._interval or self._engine)
        denoiser = getattr(self._pipeline, self._family.denoiser)
        self._cache: StepCache | None = None
        if settings.step_cache is not None:
            self._cache = install(settings.step_cache, settings.step_cache_interval, denoiser, taylor_seer)
        clock = self._clock
        denoiser.register_forward_pre_hook(lambda *_: clock.begin(DENOISER))
        denoiser.register_forward_hook(lambda *_: clock.end())

    @property
    def seconds(self) -> Mapping[str, float]:
        """As :attr:`Sampler.seconds`."""
        return self._clock.seconds

    @property
    def small_decoders(self) -> bool:
        """As :attr:`Sampler.small_decoders`."""
        return self._family.small_decoders and self._settings.decoder is None

    def restart_clock(self) -> None:
        """:attr:`seconds` begin again at zero."""
        self._clock.seconds.clear()

    @torch.inference_mode()
    @full_precision()
    def speed_of(self, batch: int, text: str) -> float | None:
        """Images per second in a batch of this size, all of one prompt; None: it does not fit into memory."""
        texts, seeds, moments = [text] * batch, list(range(batch)), list[float]()
        try:
            for _ in range(_TRIALS + 1):  # the first warms up
                self._sample(texts, partial(self._denoise, seeds))
                moments.append(time.perf_counter())
        except torch.OutOfMemoryError:
            return None
        return batch / max(min(end - begin for begin, end in pairwise(moments)), 1e-9)

    @torch.inference_mode()
    @full_precision()
    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        """One image for each prompt and seed, in [0, 2^63).

        Raises:
            AimfairError: a prompt is too long or has unknown words, or a single image does not fit into memory.
        """
        return self._in_pieces(len(texts), lambda part: self._sample(texts[part], partial(self._denoise, seeds[part])))

    def _in_pieces(self, count: int, sample: Callable[[slice], Samples]) -> Samples:
        """``count`` images, as many at a time as fit into memory."""
        return self._fitting.attempt(lambda size: _join([sample(part) for part in pieces(count, size)]))

    def _sample(self, texts: Sequence[str], denoise: Callable[[Mapping[str, Any]], Tensor]) -> Samples:
        """``denoise``: from the arguments of the pipeline that stand for the texts to the latents of their images."""
        with self._clock.measure(ENCODER):
            embeddings = self._embeddings(texts)
        return self._decode(denoise(embeddings))

    def _denoise(self, seeds: Sequence[int], embeddings: Mapping[str, Any]) -> Tensor:
        measure = self._clock.measure
        with measure(COPIES):
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            noise = torch.stack([torch.randn(self._latents, generator=generator) for generator in generators])
            noise = self._family.arrange(noise).to(self._device, self._dtype_of_latents)
        if self._interval:
            self._interval.begin()
        if self._cache is not None:
            self._cache.begin()
        with measure(SCHEDULER):
            latents: Tensor = self._pipeline(
                **embeddings,
                latents=noise,
                generator=generators,  # schedulers that add noise at every step draw it here
                num_inference_steps=self._settings.steps,
                **self._family.options(self._settings.steps, self._settings.guidance_scale),
                **scheduler_options(self._settings.scheduler),
                height=self.size,
                width=self.size,
                output_type="latent",  # the pipeline's own decoding hides non-finite values
            ).images
        return latents

    def _decode(self, latents: Tensor) -> Samples:
        measure = self._clock.measure
        with measure(DECODER):
            at_once = _decoded_at_once(self.size, len(latents))
            decoded = [self._engine.run("decoder", (part,))[0] for part in torch.split(latents, at_once)]
            images = torch.cat(decoded).float()
            finite = images.isfinite().flatten(1).all(1)
            # -1 is black, 1 white
            pixels = images.nan_to_num(-1).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        with measure(COPIES):
            samples = Samples(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy(), finite.cpu().numpy())
        self._clock.settle()
        return samples

    def _guidance_interval(self) -> GuidanceInterval | None:
        """None: guidance in every step, or in none."""
        if (interval := self._settings.guidance_interval) == (0, 1):
            return None
        if not self._guided:
            raise AimfairError(
                f"generate.guidance_interval: found {list(interval)}, expected [0, 1]: this generate.model with"
                f" guidance_scale {self._settings.guidance_scale} has no classifier-free guidance"
            )
        if self._family.halves != "negative first":
            raise AimfairError(
                f"generate.guidance_interval: found {list(interval)}, expected [0, 1]: a {self._family.pipeline} has"
                " guidance in every step"
            )
        scheduler = self._pipeline.scheduler
        return GuidanceInterval(self._engine, interval, lambda: len(scheduler.timesteps))

    def _check_negative_prompt(self, log: Log) -> None:
        if not (text := self._settings.negative_prompt):
            return
        if self._guided:
            _refuse_unreadable(self._family, self._pipeline, text, _NEGATIVE)
        else:
            log.warn(
                f"{_NEGATIVE}: {text!r} is not used: this generate.model with guidance_scale"
                f" {self._settings.guidance_scale} has no classifier-free guidance"
            )

    def _embeddings(self, texts: Sequence[str]) -> dict[str, Any]:
        """Arguments of the pipeline."""
        names = self._family.embeddings
        arguments = dict(zip(names, self._family.batch([self._embed(text) for text in texts]), strict=True))
        if self._guided:
            away = self._family.batch([self._embed_away()] * len(texts))
            arguments |= {f"negative_{name}": tensor for name, tensor in zip(names, away, strict=True)}
        return arguments

    def refuse_unreadable(self, texts: Iterable[str]) -> None:
        """Raises AimfairError for the first prompt that is too long or has unknown words."""
        for text in texts:
            _refuse_unreadable(self._family, self._pipeline, text)


def _embed_text(family: Family, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
    """Each [1, ...]. One prompt at a time: in a batch, rounding would depend on the others."""
    _refuse_unreadable(family, pipeline, text)
    return family.embed(pipeline, text)


def _refuse_unreadable(family: Family, pipeline: Pipeline, text: str, key: str | None = None) -> None:
    """Tokenizers silently truncate long prompts and replace unknown words.

    Args:
        key: the setting that the text is; None: a generated prompt.
    """
    where = f"{key} {text!r}" if key else f"prompt {text!r}"
    shorter = "shorten it" if key else "shorten prompts.template or lower prompts.contexts_per_prompt"
    for name, (tokenizer, length, wrap) in family.vocabularies(pipeline).items():
        around = len(tokenizer.tokenize(wrap("")))
        most = length - around - tokenizer.num_special_tokens_to_add()  # beginning and end of text
        if (tokens := len(tokenizer.tokenize(wrap(text))) - around) > most:
            raise AimfairError(f"{where} has {tokens} tokens, the {name} of generate.model takes {most}; {shorter}")
        unknown = [word for word in text.split() if tokenizer.unk_token_id in _numbers(tokenizer, word)]
        if unknown:
            raise AimfairError(
                f"{where}: the {name} of generate.model does not know the words"
                f" {', '.join(map(repr, unknown))}; use others"
            )


def engine_and_source(
    folder: Path,
    settings: TextToImageSettings,
    device: torch.device,
    log: Log = NOWHERE,
    interrupt: Interrupt = NEVER,
    prompts: Sequence[str] = (),
) -> tuple[Engine, Source]:
    """The engine of a model, built if needed, and the model; raises as :class:`Diffusion`."""
    source, batches = load_source(folder, settings, device, prompts)
    return load_engine(settings, source, batches, log, interrupt), source


def load_source(
    folder: Path, settings: TextToImageSettings, device: torch.device, prompts: Sequence[str] = ()
) -> tuple[Source, dict[str, int]]:
    """The model, and part -> its largest batch; raises as :class:`Diffusion`."""
    family = family_of(folder)
    pipeline = load_pipeline(folder, family, settings, device)
    source = _source(folder, family, pipeline, settings, device, prompts)
    return source, _batches(source, settings, family, guided=family.guided(pipeline, settings.guidance_scale))


def _batches(source: Source, settings: TextToImageSettings, family: Family, *, guided: bool) -> dict[str, int]:
    """Part -> its largest batch. Prompts are embedded one by one."""
    batches = {part.name: 1 for part in source.parts}
    for part in source.parts:
        if part.name == "denoiser":
            batches[part.name] = settings.images_at_a_time * (2 if guided and family.halves != "apart" else 1)
        if part.name == "decoder":
            (pixels,) = part.outputs.values()
            batches[part.name] = _decoded_at_once(pixels.shape[-1], settings.images_at_a_time)
    return batches


def _decoded_at_once(size: int, batch: int) -> int:
    return 1 if size >= _SLICED_FROM else batch


def _source(
    folder: Path,
    family: Family,
    pipeline: Pipeline,
    settings: TextToImageSettings,
    device: torch.device,
    prompts: Sequence[str],
) -> Source:
    parts = family.parts(pipeline, family.latents(pipeline, settings.render_size))
    changes: dict[str, Any] = {}
    if (small := decoder_folder(settings.decoder, settings.allow_download)) is not None:
        changes["decoder"] = decoder_fingerprint(small)
    if settings.loras:
        changes["loras"] = lora_facts(settings)
    quantization = None
    if settings.quantization is not None:
        texts = calibration_prompts(prompts)
        sampling = settings.model_dump(mode="json", include=_OF_SAMPLING)
        quantization = Quantization(
            settings.quantization, texts, sampling, cache(lambda: _denoiser_inputs(folder, settings, device, texts))
        )
    return Source(folder, parts, getattr(torch, settings.dtype), device, changes, quantization)


def _denoiser_inputs(
    folder: Path, settings: TextToImageSettings, device: torch.device, prompts: Sequence[str]
) -> list[Sequence[Tensor]]:
    """What reaches the denoiser while the plain model makes an image of each prompt."""
    plain = Diffusion(folder, settings.plain, device, SILENT)
    recorder = Recorder(plain._engine)
    plain._family.replace(plain._pipeline, recorder)
    plain.sample(prompts, range(len(prompts)))
    return recorder.some()


def _numbers(tokenizer: Any, word: str) -> list[int]:
    """Token ids, without special tokens. T5's tokens show the word itself even where the id is that of unknown."""
    numbers: list[int] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
    return numbers


def _bytes(part: Part) -> int:
    """Of the inputs for one image."""
    return sum(math.prod(tensors.shape) * tensors.dtype.itemsize for tensors in part.inputs.values())


def _join(parts: Sequence[Samples]) -> Samples:
    return Samples(np.concatenate([part.images for part in parts]), np.concatenate([part.finite for part in parts]))

"""The engines ``tensorrt`` and ``tensorrt-rtx``: built once, cached, and run on a GPU."""

import gc
import hashlib
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.diffusion.engines import store
from aimfair.diffusion.engines.agreement import Agreement, compare
from aimfair.diffusion.engines.engine import Source
from aimfair.diffusion.engines.export import OPSET, export, exporters, path_of
from aimfair.diffusion.engines.quantize import quantize
from aimfair.diffusion.engines.tensorrt_build import RTX, Library, Plan, build, load_library
from aimfair.diffusion.engines.tensorrt_run import CudaStream, PlanRefused, TensorRt
from aimfair.diffusion.settings import TensorRtSettings


class Maker:
    """Builds and loads the engine of a model.

    Args:
        name: tensorrt or tensorrt-rtx.
        batches: part -> its largest batch.

    Raises:
        AimfairError: the package is missing, or does not support the target GPUs.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        settings: TensorRtSettings,
        batches: Mapping[str, int],
        log: Log = NOWHERE,
        interrupt: Interrupt = NEVER,
    ):
        self._library = load_library(name)
        self._source, self._settings, self._batches = source, settings, batches
        self._log, self._interrupt = log, interrupt
        self._targets = _targets(self._library, settings, source.device)

    def prepare(self) -> Agreement | None:
        """Builds the engine if it is not in the cache; needs no GPU to run it.

        Returns:
            Its agreement with eager; None if it has not run yet.

        Raises:
            AimfairError: it cannot be built, or differs from eager.
            Interrupted: as ``interrupt`` says; nothing is left behind.
        """
        return store.entry_of(self._obtain()).agreement

    def load(self) -> TensorRt:
        """The engine, ready to run; raises as :meth:`prepare`, and without a GPU."""
        if self._source.device.type != "cuda":
            raise AimfairError(
                f"generate.engine: {self._library.name} runs on an NVIDIA GPU, found device {self._source.device}"
                f" (torch {torch.__version__} sees {torch.cuda.device_count()} GPUs); run it on such a machine, or use"
                " --generate.engine onnxruntime or eager"
            )
        place = self._obtain()
        entry = store.entry_of(place)
        try:
            engine = self._open(place)
        except PlanRefused as fault:  # for example after a driver update
            self._log.warn(f"{fault}; building it again")
            store.remove(place, entry, self._interrupt)
            place = self._obtain()
            engine = self._open(place)
        if store.entry_of(place).agreement is None:
            store.record(place, compare(engine, self._source), self._interrupt)
        return engine

    def _obtain(self) -> Path:
        device = self._source.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # the builder benchmarks on it
            return store.obtain(
                self._facts(),
                self._make,
                model=str(self._source.folder),
                tools=exporters(),
                log=self._log,
                interrupt=self._interrupt,
            )

    def _make(self, folder: Path) -> Agreement | None:
        graphs = folder / "onnx"
        graphs.mkdir()
        export(self._source, graphs, self._interrupt)
        quantize(self._source, graphs, symmetric=True)
        torch.cuda.empty_cache()  # the builder needs the memory that torch caches
        for part in self._source.parts:
            batch = self._batches[part.name]
            plan = Plan(
                batch=batch,
                smallest=batch if self._padded else 1,
                workspace=None if (most := self._settings.workspace_gb) is None else round(most * 1e9),
                optimization_level=self._settings.optimization_level,
                targets=self._targets if self._library.just_in_time else (),
            )
            build(
                self._library,
                path_of(graphs, part.name),
                folder / f"{part.name}.plan",
                part,
                plan,
                self._timing(),
                self._log,
                self._interrupt,
            )
        shutil.rmtree(graphs)
        if self._source.device.type != "cuda":
            return None
        try:
            return compare(self._open(folder), self._source)
        finally:  # load opens it again, from the cache
            gc.collect()
            torch.cuda.empty_cache()

    def _open(self, folder: Path) -> TensorRt:
        return TensorRt(
            self._library,
            folder,
            self._source.parts,
            self._batches,
            padded=self._padded,
            cuda_graphs=self._settings.cuda_graphs,
            stream=CudaStream(self._source.device),
            log=self._log,
        )

    @property
    def _padded(self) -> bool:
        return self._settings.profile == "static"

    def _facts(self) -> dict[str, Any]:
        settings, device = self._settings, self._source.device
        facts = {
            "engine": self._library.name,
            **self._source.facts(),
            "device": "cuda",  # where it runs, not where it is built
            **versions(self._library.name),
            "profile": settings.profile,
            "batches": {part.name: self._batches[part.name] for part in self._source.parts},
            "workspace_gb": settings.workspace_gb,
            "optimization_level": settings.optimization_level,
            "architectures": list(self._targets),
        }
        if not self._library.just_in_time:
            facts["gpu"] = torch.cuda.get_device_name(device)  # its kernels are chosen by benchmarks
        return facts

    def _timing(self) -> Path | None:
        """The file of the builder's timing cache; under the store's lock, like every build."""
        if self._library.just_in_time:
            return None
        gpu = torch.cuda.get_device_name(self._source.device)
        digest = hashlib.sha256(f"{self._library.version} {gpu}".encode()).hexdigest()[:16]
        return store.folder() / f"{self._library.name}-timing-{digest}"


def versions(name: str) -> dict[str, Any]:
    """What images depend on besides model and settings; torch's version without its build: they export alike."""
    return {name: load_library(name).version, "torch": torch.__version__.split("+")[0], "opset": OPSET}


def _targets(library: Library, settings: TensorRtSettings, device: torch.device) -> tuple[int, ...]:
    """Compute capabilities, times ten, that the engine is for."""
    here = None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        here = 10 * major + minor
    if not library.just_in_time:
        if here is None:
            raise AimfairError(
                f"generate.engine: {library.name} builds only on the GPU that runs the engine, found device {device};"
                f" run it there, or use --generate.engine {RTX}, which builds anywhere"
            )
        return (here,)
    known = library.architectures()
    wanted = tuple(sorted(settings.targets or ([here] if here is not None else known)))
    if here is not None and here not in known:
        raise AimfairError(
            f"generate.engine: {library.name} {library.version} has no code for this GPU"
            f" ({torch.cuda.get_device_name(device)}, {here}), only for {_list(known)}; use --generate.engine"
            " tensorrt or eager"
        )
    if strange := [number for number in wanted if number not in known]:
        raise AimfairError(
            f"generate.tensorrt.targets: found {_list(strange)}, expected some of {_list(known)}, for which"
            f" {library.name} {library.version} has code; for others, such as H100 and H200, use --generate.engine"
            " tensorrt"
        )
    if here is not None and here not in wanted:
        raise AimfairError(f"generate.tensorrt.targets: found {_list(wanted)}, but this GPU is {here}; add it")
    return wanted


def _list(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, numbers))

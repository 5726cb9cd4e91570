"""``aimfair engine``: builds engines ahead of a run, lists the cached ones, and compares one with eager."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.commands.settings import Overrides, add_config, read_settings, refuse_overrides

if TYPE_CHECKING:
    import torch

    from aimfair.base.interrupt import Interrupt
    from aimfair.base.log import Log
    from aimfair.config import Config
    from aimfair.generation.settings import GenerateSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "action", choices=("build", "list", "check"), help="build: for these settings; list: all in the cache"
    )


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    if options.action == "list":
        refuse_overrides("engine list", overrides)
        return _list_engines()
    config, path = read_settings(options.config, options.run, overrides)
    return _build_or_check(options.action, config, path)


def _list_engines() -> int:
    """Prints every engine in the cache, damaged ones included."""
    from aimfair.diffusion.engines import store

    print(store.folder())
    for place, entry in store.entries():
        if isinstance(entry, str):
            print(f"{place.name[:8]}  unusable: {entry}")
            continue
        facts = dict(entry.facts)
        words = [f"{facts.pop('engine')} of {entry.model}", entry.made]
        del facts["model"]
        parts = facts.pop("parts")
        words += [f"{name} {value}" for name, value in {**facts, **entry.tools}.items()]
        megabytes = sum((place / name).stat().st_size for name in entry.files) / 1e6
        agreement = entry.agreement or "not yet compared with eager; its first run on a GPU is"
        print(f"{place.name[:8]}  {', '.join(words)}, {megabytes:.0f} MB; {agreement}")
        for name, signature in parts.items():
            print(f"{'':8}  {name}: {signature}")
    return 0


def _prompts(config: "Config", run: Path) -> list[str]:
    """Of the images, on which a quantised model is calibrated and batch sizes are tried; none if neither is asked for.

    Args:
        run: directory of the run, which may have them; prompts of a grammar need no run.
    """
    from aimfair.generation.plan import make_plan
    from aimfair.prompts.grammar import load_prompts, write_prompts

    if config.generate.quantization is None and config.generate.batch_size != "auto":
        return []
    file = run / "prompts.jsonl"
    written = file.exists() or config.prompts.provider != "grammar"
    prompts = load_prompts(file) if written else write_prompts(config.prompts)
    return list(dict.fromkeys(one.text for one in make_plan(prompts, config.generate, config.data)))


def with_batch_size(
    settings: "GenerateSettings",
    folder: Path,
    device: "torch.device",
    prompts: list[str],
    log: "Log",
    interrupt: "Interrupt",
) -> "GenerateSettings":
    """With a number in place of ``batch_size`` auto, as a run finds it, for an engine that is built for one.

    Args:
        folder: of the model.

    Raises:
        ConfigError: it is found on a GPU, and there is none.
    """
    from aimfair.diffusion.batch_size import find_batch_size
    from aimfair.diffusion.engines import tensorrt_build

    if settings.batch_size != "auto" or settings.engine not in tensorrt_build.NAMES:
        return settings
    if device.type != "cuda":
        raise ConfigError(
            f"generate.batch_size: found auto, expected a number such as 32: {settings.engine} is built for one, which"
            f" is found on the GPU that makes the images, not on {device}"
        )
    size = find_batch_size(folder, settings, device, prompts, log, interrupt)
    return settings.model_copy(update={"batch_size": size})


def _build_or_check(action: str, config: "Config", run: Path) -> int:
    """Builds the engine of the settings if it is not cached; ``check`` compares it with eager again, on this machine.

    Ctrl-C ends the build and leaves nothing behind.

    Raises:
        ConfigError: images are imported; ``generate.engine`` is eager, perhaps because auto is eager here, or has
            nothing to build ahead; or ``generate.batch_size`` is auto where it cannot be found.
        AimfairError: the engine cannot be built, or differs from eager.
    """
    from aimfair.base.device import choose_device
    from aimfair.base.interrupt import Interrupt
    from aimfair.base.log import Log
    from aimfair.diffusion.engines import store
    from aimfair.diffusion.engines.agreement import compare
    from aimfair.diffusion.engines.registry import choose_engine, prepare_engine
    from aimfair.diffusion.model import model_folder
    from aimfair.diffusion.text_to_image import engine_and_source, load_source
    from aimfair.stages.context import prepare_process

    if (instead := config.generate.instead) is not None:
        raise ConfigError(f"{instead}: takes the place of a text-to-image model, no engine is used")
    device = choose_device(config.device)
    name, reason = choose_engine(config.generate, lambda: device)
    settings = config.generate.model_copy(update={"engine": name})
    if name == "eager":
        raise ConfigError(
            f"generate.engine: found eager ({reason}), which needs no building; expected another, such as"
            " --generate.engine onnxruntime"
        )
    if name in ("compile", "torch-tensorrt") and action == "build":
        raise ConfigError(f"generate.engine: {name} is built in each run; aimfair engine check compares it with eager")

    prepare_process(config)
    folder = model_folder(settings.model, settings.allow_download, settings.base)
    log, prompts = Log(None, show=print), _prompts(config, run)
    with Interrupt() as interrupt:
        settings = with_batch_size(settings, folder, device, prompts, log, interrupt)
        if action == "build":
            source, batches = load_source(folder, settings, device, prompts)
            compared = prepare_engine(settings, source, batches, log, interrupt)
            state = "ready" if compared else "built; its first run on a GPU compares it with eager"
            print(f"{settings.engine} of {folder}: {state}, in {store.folder()}")
            return 0
        engine, source = engine_and_source(folder, settings, device, log, interrupt, prompts)
        agreement = compare(engine, source)
    print(f"{settings.engine} of {folder}: {agreement}")
    if not agreement.good:
        raise AimfairError(f"generate.engine: {settings.engine} differs from eager; use --generate.engine eager")
    return 0

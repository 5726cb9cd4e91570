"""The prompts of every group."""

from aimfair.generation.prompts import diversity, save_prompts, write_prompts
from aimfair.run.directory import Run


def run(run: Run) -> None:
    inputs = {"prompts": run.config.prompts}
    if run.is_done("prompts", inputs):
        return
    prompts = write_prompts(run.config.prompts)
    save_prompts(run.prompts, prompts)
    run.log("prompts", diversity=diversity(prompts))
    run.finish("prompts", inputs, [run.prompts])

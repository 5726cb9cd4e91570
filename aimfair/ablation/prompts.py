"""Plain prompts, which name only the two attributes, against the contextual ones of the run."""

from aimfair.ablation.options import Options, Request
from aimfair.ablation.outcomes import METRICS, Findings, Outcomes, versus_reference
from aimfair.ablation.plan import Arm, Names, Parent, Plan, variant
from aimfair.base.errors import ConfigError
from aimfair.config import Config
from aimfair.prompts.grammar import bare_template
from aimfair.prompts.settings import PromptSettings


def read(options: Options, config: Config) -> Request:
    """``--method``."""
    options.only("prompts", "method")
    if (instead := config.generate.instead) is not None:
        raise ConfigError(f"ablate prompts: the images of this run are those of {instead}, not generated from prompts")
    return Request(*options.method_of(config))


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    name = names.add(request.method, request.tune)
    plain = _plain(config.prompts)
    groups = {
        "plain": variant(config, names.methods, name, prompts=plain),
        "contextual": variant(config, names.methods, name),
    }
    prompts = {"plain": plain["per_group"], "contextual": config.prompts.per_group}
    arms = [Arm(group, name, group, facts={"prompts per group": prompts[group]}) for group in groups]
    return Plan(
        title=f"Plain against contextual prompts, {request.method}",
        question="As many images from prompts that name only the two attributes as from those of the run.",
        groups=groups,
        arms=arms,
        reference="plain",
        notes=[
            "Both use the same words for the two attributes. There are at most as many plain prompts as combinations of"
            " these words; further images of a prompt differ only in their noise."
        ],
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    return Findings([], versus_reference(outcomes, METRICS))


def _plain(settings: PromptSettings) -> dict[str, str | int]:
    wordings = min(len(targets) * len(protected) for targets in settings.targets for protected in settings.protected)
    return {
        "provider": "grammar",
        "template": bare_template(settings.template),
        "contexts_per_prompt": 0,
        "per_group": min(settings.per_group, wordings),
    }

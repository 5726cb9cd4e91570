"""The settings that a scan needs: a data set can be scanned before a model or prompts are chosen."""

from aimfair.base.settings import Settings
from aimfair.data.settings import DataSettings
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.generation.settings import GenerateSettings
from aimfair.prompts.settings import PromptSettings


class ScanSettings(Settings):
    """Some fields of :class:`aimfair.config.Config`; without ``prompts`` they are not checked."""

    data: DataSettings = DataSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    generate: GenerateSettings = GenerateSettings()
    prompts: PromptSettings | None = None

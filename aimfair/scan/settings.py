"""What a scan needs of the settings: a data set can be looked at before there is a model or a word of a prompt."""

from aimfair.base.settings import Settings
from aimfair.data.settings import DataSettings
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.generation.settings import GenerateSettings
from aimfair.prompts.settings import PromptSettings


class ScanSettings(Settings):
    """Some of the fields of :class:`aimfair.config.Config`; without ``prompts`` nothing is said of them."""

    data: DataSettings = DataSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    generate: GenerateSettings = GenerateSettings()
    prompts: PromptSettings | None = None

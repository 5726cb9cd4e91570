"""What a scan needs of the settings: a data set can be looked at before there is a model or a word of a prompt."""

from aimfair.config import DataSettings, EvaluateSettings, GenerateSettings, PromptSettings, Settings


class ScanSettings(Settings):
    """Some of the fields of :class:`aimfair.config.Config`; without ``prompts`` nothing is said of them."""

    data: DataSettings = DataSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    generate: GenerateSettings = GenerateSettings()
    prompts: PromptSettings | None = None

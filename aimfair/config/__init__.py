"""Every setting and its default: one tree, validated. Nothing is configured anywhere else.

``aimfair.config_file`` reads it from YAML and command-line flags. A key is named by its path, such as ``train.lr``.
"""

from aimfair.config.data import TABLES, UTKFACE, DataSettings
from aimfair.config.evaluate import EvaluateSettings
from aimfair.config.generate import FilterSettings, GenerateSettings, TensorRtSettings
from aimfair.config.methods import MethodSettings
from aimfair.config.model import ModelSettings
from aimfair.config.node import Problem, Settings, require_words
from aimfair.config.prompts import LanguageModelSettings, PromptSettings
from aimfair.config.training import AugmentSettings, FinetuneSettings, OptimizerSettings, SensitivitySettings
from aimfair.config.tree import BIASED, Config

__all__ = [
    "BIASED",
    "TABLES",
    "UTKFACE",
    "AugmentSettings",
    "Config",
    "DataSettings",
    "EvaluateSettings",
    "FilterSettings",
    "FinetuneSettings",
    "GenerateSettings",
    "LanguageModelSettings",
    "MethodSettings",
    "ModelSettings",
    "OptimizerSettings",
    "Problem",
    "PromptSettings",
    "SensitivitySettings",
    "Settings",
    "TensorRtSettings",
    "require_words",
]

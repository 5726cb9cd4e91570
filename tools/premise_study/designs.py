"""The comparisons, fixed before they were run."""

from tools.premise_study.domains import Regime
from tools.premise_study.run import Design

DESIGNS = {
    "smoke": Design((Regime(per_group=20),), ("full", "random", "interpolated"), trials=2, tuning=2, final=2),
}

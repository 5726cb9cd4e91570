"""The comparisons, fixed before they were run."""

from tools.premise_study.domains import Regime
from tools.premise_study.methods import METHODS
from tools.premise_study.run import Design

COMMON = ("full", "random", "linear_probe", "paper", "aimfair", "interpolated", "mixed")
"""Of the map."""

DESIGNS = {
    # every method where there is a domain gap, a strong bias and many synthetic images
    "main": Design((Regime(),), tuple(METHODS), trials=8, tuning=4, final=20),
    # the same where nobody tunes the learning rate
    "rates": Design(
        (Regime(),), ("full", "random", "aimfair"), trials=0, tuning=4, final=20, rates=(0.001, 0.003, 0.01)
    ),
    # one thing at a time from there: the domain gap, the number of images, the bias, the backbone
    "map": Design(
        (
            Regime(domain="twemoji"),
            Regime(degradation=0.4),
            Regime(per_group=20),
            Regime(per_group=50),
            Regime(minority_ratio=1 / 3),
            Regime(domain="twemoji", per_group=20),
            Regime(degradation=0.4, per_group=20),
        ),
        COMMON,
        trials=8,
        tuning=2,
        final=10,
    ),
    # two things at a time, and the largest number of images
    "crossed": Design(
        (
            Regime(per_group=400),
            Regime(degradation=0.4, per_group=50),
            Regime(degradation=0.4, minority_ratio=1 / 3),
            Regime(per_group=20, minority_ratio=1 / 3),
            Regime(degradation=0.4, backbone="vit"),
            Regime(per_group=50, backbone="vit"),
        ),
        COMMON,
        trials=8,
        tuning=2,
        final=10,
    ),
    "hundred": Design((Regime(per_group=100),), COMMON, trials=8, tuning=2, final=10),
    "faces": Design((Regime(domain="faces", degradation=0.3),), COMMON, trials=8, tuning=2, final=10),
    "worse_faces": Design((Regime(domain="faces", degradation=0.6),), COMMON, trials=8, tuning=2, final=10),
    "vit": Design((Regime(backbone="vit"),), COMMON, trials=8, tuning=2, final=10),
}

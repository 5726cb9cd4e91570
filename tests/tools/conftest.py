"""What the tests of studies share."""

import pytest

from tools.premise_study import domains


@pytest.fixture
def small(monkeypatch):
    """The study's images at 16 pixels, and trainings of an epoch."""
    base = domains.base()
    made = base.model_copy(update={
        "data": base.data.model_copy(update={"image_size": 16, "drawings": 1}),
        "train": base.train.model_copy(update={"epochs": 1}),
        "finetune": base.finetune.model_copy(update={"epochs": 1}),
    })  # fmt: skip
    for module in ("premise_study.domains", "premise_study.methods", "first_experiments.prompts"):
        monkeypatch.setattr(f"tools.{module}.base", lambda: made)
    monkeypatch.setattr(domains, "REAL_IMAGES", 100)

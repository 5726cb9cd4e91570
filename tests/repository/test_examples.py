"""The Python examples run offline and do what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.selective.models import assert_unselected_unchanged, weights

FOLDER = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_length(path):
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.slow
def test_fisher_language_model(capsys):
    fisher = example("fisher_language_model")
    losses = fisher.main()
    assert losses["fisher"][0] == losses["random"][0]  # from the same start
    assert losses["fisher"][-1] < 0.6 * losses["fisher"][0]
    assert losses["fisher"][-1] < losses["random"][-1]  # knowing where to tune is worth something
    assert "fisher: tuning 2.0% of the weights" in capsys.readouterr().out

    model, batches = fisher.small_model(), fisher.progressions(3)
    mask, before = fisher.fisher_mask(model, batches, 0.02), weights(model)
    assert mask.nnz == round(0.02 * sum(p.numel() for p in model.parameters()))
    fisher.tune(model, mask, batches)
    assert_unselected_unchanged(model, before, mask.to_bool())


def test_saliency_unlearning(capsys):
    unlearning = example("adopters/salun")
    before, after = unlearning.main()
    assert before["forgotten"] > 0.9
    assert before["retained"] > 0.9
    assert after["forgotten"] < 0.1
    assert after["retained"] > 0.9
    assert "forgotten classes: accuracy 1.000 -> 0.000 with 30% of weights" in capsys.readouterr().out

    model = nn.Sequential(nn.Linear(unlearning.FEATURES, 32), nn.ReLU(), nn.Linear(32, unlearning.CLASSES))
    start = weights(model)
    mask = unlearning.unlearn(model, *unlearning.blobs(300))
    assert mask.nnz == round(unlearning.DENSITY * mask.numel)
    assert_unselected_unchanged(model, start, mask.to_bool())


def test_saliency_is_the_gradient_magnitude():
    unlearning = example("adopters/salun")
    model, (x, y) = nn.Linear(unlearning.FEATURES, unlearning.CLASSES), unlearning.blobs(50)
    mask = unlearning.saliency_mask(model, x, y, 0.25)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    flat = torch.cat([gradient.abs().flatten() for gradient in gradients])
    chosen = torch.cat([selected.flatten() for selected in mask.to_bool().values()])
    assert flat[chosen].min() >= flat[~chosen].max()


@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize(
    "name",
    [
        "accelerate_loop",
        pytest.param("lightning_module", marks=pytest.mark.slow),
        pytest.param("transformers_trainer", marks=pytest.mark.slow),
    ],
)
def test_trainers_of_others_keep_to_the_mask(name):
    trained = example(name)
    mask, report = trained.main()
    report.require()
    assert report.selected == mask.nnz == round(trained.DENSITY * mask.numel)
    assert report.changed > 0.9 * report.selected

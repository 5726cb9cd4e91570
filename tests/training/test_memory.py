"""What selective tuning of a transformer keeps in memory, by the bytes of all tensors that are alive."""

import gc

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch._subclasses import FakeTensor

from aimfair.base.interrupt import NEVER
from aimfair.selective.mask import ParameterMask
from aimfair.training.checkpoint import CHECKPOINT, Checkpoint
from aimfair.training.loop import Training
from aimfair.training.models import build_model
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import FinetuneSettings, ModelSettings, OptimizerSettings, SensitivitySettings
from tests.training.samples import MODEL, SIZE, TRAIN, VALIDATION, Net, images, training

VIT = ModelSettings(
    config={
        "model_type": "vit", "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2,
        "intermediate_size": 256, "image_size": SIZE, "patch_size": 8,
    }
)  # fmt: skip


class Watch:
    """A task that looks at the memory of tensors at every step: how much more there is than when it was made."""

    def __init__(self) -> None:
        gc.collect()
        self.earlier = tensors_among(gc.get_objects())
        gc.freeze()  # from here on gc.get_objects() has what is new: a look takes milliseconds
        self.most, self.before = 0, self.alive()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.most = max(self.most, self.alive() - self.before)

    def alive(self) -> int:
        """Bytes of all tensors that Python can reach, each storage once; gradients among them."""
        storages = {}
        for found in (*self.earlier, *tensors_among(gc.get_objects())):
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(storages.values())


def tensors_among(objects: list[object]) -> list[torch.Tensor]:
    """Without those of an export and sparse ones, which have no storage."""
    tensors = [
        found for found in objects if issubclass(type(found), torch.Tensor) and not isinstance(found, FakeTensor)
    ]
    return [tensor for tensor in tensors if tensor.layout == torch.strided]


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(VIT, 2, 100)


@pytest.mark.parametrize(
    ("statistics", "times"),
    [("signed", 2), *(pytest.param(*of, marks=pytest.mark.slow) for of in (("sum", 3), ("all", 6)))],
)
def test_sensitivity_keeps_its_statistics_and_no_gradients(model, statistics, times):
    sources = {source: images(8, seed) for seed, source in enumerate(SOURCES)}
    settings = SensitivitySettings(batch_size=4, statistics=statistics)
    watch = Watch()
    measure_sensitivity(model, sources, settings, VIT, seed=1, task=watch)
    weights = bytes_of(model)
    assert times * weights < watch.most < (times + 0.2) * weights


@pytest.mark.parametrize(
    ("density", "in_backward"), [(0.01, False), (0.01, True), pytest.param(0.1, False, marks=pytest.mark.slow)]
)
def test_fine_tuning_keeps_gradients_and_the_state_of_selected_weights(density, in_backward):
    model = build_model(VIT, 2, 100)
    mask = ParameterMask.random(model, density)
    settings = FinetuneSettings(lr=0.001, epochs=1, batch_size=16, step_in_backward=in_backward)
    watch = Watch()
    Training(model, TRAIN, VALIDATION, settings, VIT, 1, mask, task=watch).fit()
    weights = bytes_of(model)
    kept = 2 * density + (not in_backward)  # exp_avg and exp_avg_sq, and gradients
    assert 0.9 * kept * weights < watch.most < (kept + 0.2) * weights  # torch's AdamW: 3


def test_the_best_epoch_and_the_checkpoint_hold_what_is_trained(tmp_path):
    model = Net()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    settings = OptimizerSettings(lr=0.01, epochs=2, batch_size=16, keep="best_validation")
    work = training(model, settings, checkpoint=Checkpoint(tmp_path, 0), interrupt=NEVER)
    work.fit()
    trained = {"head.weight", "head.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(work._kept) == trained
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        held = {key.removeprefix("model/") for key in file.keys() if key.startswith("model/")}  # noqa: SIM118
    assert held == trained


def test_a_checkpoint_of_other_tensors_is_refused(tmp_path):
    from aimfair.training.checkpoint import changing_tensors, copy_tensors

    model = Net()
    whole = changing_tensors(model)
    model.convolution.requires_grad_(False)
    with pytest.raises(ValueError, match="it holds 9 tensors of the model, expected the 7 that are trained"):
        copy_tensors(whole, model)


def test_predictions_keep_nothing(model):
    from aimfair.training.predict import predict

    watch = Watch()
    predict(model, VALIDATION, MODEL, batch_size=4, device=torch.device("cpu"), task=watch)
    assert watch.most < 0.2 * bytes_of(model)

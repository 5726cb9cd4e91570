"""Precision, memory order, compilation and checkpointing change how a model is run, not what it is."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aimfair.base.errors import AimfairError
from aimfair.training.batch_gradient import BatchGradient
from aimfair.training.execution import logits, prepare, repeated_blocks
from aimfair.training.feed import Normalize
from aimfair.training.loop import Training
from aimfair.training.models import build_model
from aimfair.training.predict import predict_logits
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import ModelSettings, OptimizerSettings, SensitivitySettings
from tests.training.samples import MODEL, TRAIN, VALIDATION, Net, images, state_bits
from tests.training.test_families import FAMILIES

CPU = torch.device("cpu")
X = Normalize(MODEL, CPU)(TRAIN.images[:6])
Y = torch.from_numpy(TRAIN.target[:6])


class Blocks(nn.Module):
    """Repeated blocks with everything that a second forward pass could count twice."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 4, 3, stride=2)
            self.blocks = nn.Sequential(*(Block() for _ in range(3)))
            self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(torch.relu(self.norm(self.convolution(x))))


def with_(**changes: object) -> ModelSettings:
    return MODEL.model_copy(update=changes)


def gradients(model: nn.Module, settings: ModelSettings) -> tuple[float, dict[str, torch.Tensor]]:
    prepare(model, settings)
    loss = BatchGradient(model, 6)(X, Y, seed=1).loss
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def saved_bytes(model: nn.Module) -> int:
    """Of what the graph of a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}
    parameters = {p.data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits(model, X)
    return sum(kept.values())


class TestCheckpointing:
    @pytest.mark.parametrize("train", [False, True])
    @pytest.mark.parametrize("family", ["blocks", *FAMILIES])
    def test_it_changes_no_bit(self, family, train):
        """Nor does dropout, nor are running statistics moved twice."""
        made = Blocks() if family == "blocks" else build_model(ModelSettings(config=FAMILIES[family]), 2, 1)
        for module in made.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
        plain, twice = made.train(train), copy.deepcopy(made)
        loss, expected = gradients(plain, MODEL)
        loss_twice, found = gradients(twice, with_(checkpointing=True))
        assert loss == loss_twice
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert state_bits(twice) == state_bits(plain)

    @pytest.mark.parametrize("train", [False, True])
    @pytest.mark.parametrize("family", ["blocks", "vit", "convnext", "clip"])
    def test_it_keeps_less(self, family, train):
        config = {**FAMILIES.get(family, {}), "depths": [3, 3]} if family == "convnext" else FAMILIES.get(family)
        model = Blocks() if config is None else build_model(ModelSettings(config=config), 2, 1)
        model.train(train)
        prepare(model, MODEL)
        before = saved_bytes(model)
        prepare(model, with_(checkpointing=True))
        assert saved_bytes(model) < 0.6 * before
        prepare(model, MODEL)
        assert saved_bytes(model) == before

    def test_stages_are_looked_into(self):
        model = build_model(ModelSettings(config={**FAMILIES["resnet"], "depths": [2, 1]}), 2, 1)
        assert [type(block).__name__ for block in repeated_blocks(model)] == ["ResNetBasicLayer"] * 3
        assert len(repeated_blocks(build_model(ModelSettings(config=FAMILIES["clip"]), 2, 1))) == 2

    def test_a_model_without_repeated_blocks_is_refused(self):
        with pytest.raises(AimfairError, match=r"model\.checkpointing: Net has no repeated blocks"):
            prepare(Net(), with_(checkpointing=True))

    def test_copies_stand_alone(self):
        model = Blocks()
        prepare(model, with_(checkpointing=True))
        other = copy.deepcopy(model)
        with torch.no_grad():
            model.blocks[0].convolution.weight.zero_()
        logits(other, X).sum().backward()
        assert model.blocks[0].convolution.weight.grad is None
        assert other.blocks[0].convolution.weight.grad.abs().sum() > 0

    def test_sensitivity_and_training_are_the_same(self):
        sets = dict(zip(SOURCES, (images(8, seed) for seed in (1, 2, 3)), strict=True))
        settings = SensitivitySettings(batch_size=4, train_mode=True)
        plain, twice = (
            measure_sensitivity(Blocks(), sets, settings, with_(checkpointing=on), seed=1).mean("real_biased")
            for on in (False, True)
        )
        assert all(torch.equal(plain[name], twice[name]) for name in plain)
        assert state_bits(trained(Blocks(), MODEL)) == state_bits(trained(Blocks(), with_(checkpointing=True)))


def trained(model: nn.Module, settings: ModelSettings) -> nn.Module:
    optimizer = OptimizerSettings(lr=0.01, epochs=2, batch_size=16)
    Training(model, TRAIN, VALIDATION, optimizer, settings, 100).fit()
    return model


class TestAutocast:
    @pytest.mark.parametrize("family", ["resnet", "vit", "convnext"])
    def test_it_stays_close(self, family):
        model = build_model(ModelSettings(config=FAMILIES[family]), 2, 1).eval()
        prepare(model, MODEL)
        exact = logits(model, X)
        loss, expected = gradients(model, MODEL)
        low_loss, found = gradients(model, with_(autocast="bfloat16"))
        scores = logits(model, X)
        assert scores.dtype == torch.float32
        assert not torch.equal(scores, exact)
        torch.testing.assert_close(scores, exact, rtol=0.05, atol=0.05)
        assert low_loss == pytest.approx(loss, rel=0.02)
        for name, grad in found.items():
            assert grad.dtype == torch.float32
            assert F.cosine_similarity(grad.flatten(), expected[name].flatten(), dim=0) > 0.95 or (
                expected[name].norm() < 1e-4
            ), name

    def test_checkpoints_are_computed_again_in_the_same_type(self):
        plain, twice = Blocks().eval(), Blocks().eval()
        _, expected = gradients(plain, with_(autocast="bfloat16"))
        _, found = gradients(twice, with_(autocast="bfloat16", checkpointing=True))
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_training_and_prediction_obey(self):
        low = with_(autocast="bfloat16")
        model = trained(Blocks(), low)
        assert state_bits(model) != state_bits(trained(Blocks(), MODEL))
        assert all(p.dtype == torch.float32 for p in model.parameters())
        scores = predict_logits(model, VALIDATION, Normalize(low, CPU), 8)
        prepare(model, MODEL)
        assert not torch.equal(scores, predict_logits(model, VALIDATION, Normalize(MODEL, CPU), 8))


@pytest.mark.parametrize("wanted", [False, True])
def test_images_are_channels_last_if_asked(wanted):
    seen = []
    model = Net()
    model.convolution.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    prepare(model, with_(channels_last=wanted))
    scores = [
        logits(model.eval(), X.contiguous(memory_format=order))
        for order in (torch.channels_last, torch.contiguous_format)
    ]
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in seen] == [wanted] * 2
    assert torch.equal(*scores)
    assert model.convolution.weight.is_contiguous()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its own parts
class TestCompile:
    @pytest.fixture(autouse=True)
    def clean(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.slow
    def test_it_stays_close_and_keeps_names(self):
        plain, compiled = Blocks().eval(), Blocks().eval()
        loss, expected = gradients(plain, MODEL)
        compiled_loss, found = gradients(compiled, with_(compile=True))
        assert found.keys() == expected.keys()
        assert compiled.state_dict().keys() == plain.state_dict().keys()
        assert compiled_loss == pytest.approx(loss, rel=1e-4)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)

    @pytest.mark.slow
    def test_one_compilation_serves_all_sizes_of_batches(self):
        from torch._dynamo.utils import counters

        counters.clear()
        model = Blocks().eval()
        prepare(model, with_(compile=True))
        with torch.no_grad():
            scores = {size: logits(model, X[:size]) for size in (6, 3, 4, 2)}
        assert counters["stats"]["unique_graphs"] == 1
        for size, found in scores.items():
            torch.testing.assert_close(found, logits(Blocks().eval(), X[:size]), rtol=1e-3, atol=1e-5)

    @pytest.mark.slow
    def test_a_batch_is_halved_when_memory_runs_out(self):
        class Small(Blocks):
            def forward(self, x):
                if len(x) > 3:
                    raise torch.OutOfMemoryError("out of memory")
                return super().forward(x)

        small = Small().eval()
        _, found = gradients(small, with_(compile=True))
        _, expected = gradients(Blocks().eval(), MODEL)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)

    def test_what_cannot_be_compiled_is_refused_in_a_line(self, monkeypatch):
        from torch._dynamo.exc import BackendCompilerFailed

        def fail(*_):
            raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)

        model = Net()
        prepare(model, with_(compile=True))
        monkeypatch.setattr(model, "_compiled_call_impl", fail)
        with pytest.raises(AimfairError, match=r"torch\.compile fails on Net: .*set it to false") as refusal:
            logits(model, X)
        assert "\n" not in str(refusal.value)

    def test_it_is_undone(self):
        model = Net()
        prepare(model, with_(compile=True))
        assert model._compiled_call_impl is not None
        prepare(model, MODEL)
        assert model._compiled_call_impl is None

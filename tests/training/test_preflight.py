"""What a later stage could not use is refused before the first image is made, in a line that names the setting."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.commands import cli
from aimfair.config import Config
from aimfair.config import load as config_file
from aimfair.run.directory import Run
from aimfair.stages import preflight
from aimfair.stages.pipeline import run_stages
from tests.tiny_run import SIZE, settings

WEIGHTS = 3 * SIZE * SIZE


@pytest.fixture(autouse=True)
def decoded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))


def linear(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(WEIGHTS, outputs))


class Wrapped(nn.Module):
    """A linear model whose logits go through a function."""

    def __init__(self, function, outputs: int = 2):
        super().__init__()
        self.linear, self.function = linear(outputs), function

    def forward(self, x: Tensor):
        return self.function(self.linear(x))


def more(num_classes):
    return linear(1000)


def half_precision(num_classes):
    return linear(num_classes).half()


def frozen_counter(num_classes):
    made = linear(num_classes)
    made.count = nn.Parameter(torch.arange(3), requires_grad=False)
    return made


def one_logit(num_classes):
    return linear(1)


def pair(num_classes):
    return Wrapped(lambda scores: (scores, scores))


def squeezed(num_classes):
    return Wrapped(torch.squeeze)


def detached(num_classes):
    return Wrapped(torch.detach)


def not_a_number(num_classes):
    return Wrapped(lambda scores: scores / 0)


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def other_size(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, num_classes))


def viewed(num_classes):
    return Viewed()


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WEIGHTS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(len(x), -1))


def normed(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(WEIGHTS, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes))


class Batches(nn.Module):
    """Fails in training mode, as a module of the user's may."""

    def __init__(self):
        super().__init__()
        self.linear = linear(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyError("augmentation")
        return self.linear(x)


def training_only(num_classes):
    return Batches()


class Trained(nn.Module):
    """Other logits in training mode than in evaluation mode."""

    def __init__(self, train):
        super().__init__()
        self.linear, self.of_training = linear(2), train

    def forward(self, x: Tensor):
        return self.of_training(self.linear(x)) if self.training else self.linear(x)


def auxiliary(num_classes):
    return Trained(lambda scores: (scores, scores))


def more_in_training(num_classes):
    return Trained(lambda scores: torch.cat([scores, scores], 1))


def infinite_loss(num_classes):
    return Trained(lambda scores: scores * 1e38)


def complex_logits(num_classes):
    return Wrapped(lambda scores: torch.complex(scores, scores))


def sparse_logits(num_classes):
    return Wrapped(Tensor.to_sparse)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.values, self.head = nn.Embedding(256, 2, sparse=True), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.values(((x + 1) * 127).long()).mean((1, 2, 3)))


def sparse_gradient(num_classes):
    return Embedded()


def gradient_not_a_number(num_classes):
    made = linear(2)
    made[1].weight.register_hook(lambda gradient: gradient / 0)
    return made


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.scale = linear(2), None

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale or nn.Linear(2, 2)
        return self.scale(self.linear(x))


def made_while_it_runs(num_classes):
    return Growing()


def on_meta(num_classes):
    return linear(2).to("meta")


class ExtraState(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear(2)

    def get_extra_state(self) -> dict:
        return {"version": 1}


def extra_state(num_classes):
    return ExtraState()


def sparse_buffer(num_classes):
    made = linear(2)
    made.register_buffer("adjacency", torch.eye(3).to_sparse())
    return made


def wrapped_in_data_parallel(num_classes):
    return nn.DataParallel(linear(2))


def ends_the_process(num_classes):
    raise SystemExit("usage: train.py")


class Fixed(nn.Module):
    """Takes no new attributes."""

    def __init__(self):
        super().__init__()
        self.linear = linear(2)
        self.ready = True

    def __setattr__(self, name: str, value: object) -> None:
        if "ready" in self.__dict__:
            raise AttributeError(f"{name} cannot be set")
        super().__setattr__(name, value)


def fixed(num_classes):
    return Fixed()


class Growth(nn.Module):
    """Has a buffer that grows with every batch."""

    def __init__(self):
        super().__init__()
        self.linear = linear(2)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, x.detach().mean((1, 2, 3))])
        return self.linear(x)


def growing_buffer(num_classes):
    return Growth()


class Chain(nn.Module):
    """Keeps BatchNorm in evaluation mode, by a train() that does not return the model."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = linear(2), nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def train_returns_nothing(num_classes):
    return Chain()


def model(name: str, **more: object) -> dict:
    return {"model": {"factory": f"{__name__}:{name}", "config": {}, **more}}


MODELS = {
    "more": "gives 1000 logits for an image, expected 2, one for each class of the data; the function must use",
    "one_logit": "gives 1 logit for an image, expected 2, .*a head with one logit is not supported",
    "half_precision": r"weights are half precision \(1\.weight, 1\.bias\): make it float32, and set model\.auto",
    "frozen_counter": "parameter 'count' is torch.int64, expected float32",
    "pair": r"the model Wrapped returned tuple for \d images, expected logits of shape",
    "squeezed": r"the model Wrapped returned \[2\] for 1 images, expected logits",
    "detached": "its logits do not depend on its weights",
    "not_a_number": "gives NaN or infinite logits",
    "lazy": r"1\.weight, 1\.bias have no shape yet \(lazy modules\)",
    "other_size": r"fails on a batch of \d images of 32 x 32 pixels \(data\.image_size\): RuntimeError: mat1 and mat2",
    "viewed": r"set model\.channels_last to false",
    "auxiliary": r"the model Trained returned tuple for \d images",
    "more_in_training": "in training mode gives 4 logits for an image, expected 2",
    "infinite_loss": "in training mode: its loss is NaN or infinite",
    "complex_logits": "returned logits of torch.complex64 .*, expected floating-point numbers",
    "sparse_logits": "returned logits of torch.float32 and torch.sparse_coo, expected .* in a dense tensor",
    "sparse_gradient": r"the gradient of values\.weight is sparse",
    "gradient_not_a_number": r"the gradient of 1\.weight is NaN or infinite",
    "made_while_it_runs": r"makes or replaces scale\.weight, scale\.bias while it runs",
    "on_meta": r"1\.weight has no values \(it is on the meta device\)",
    "extra_state": "'_extra_state' in its state_dict is of type dict, expected tensors alone",
    "sparse_buffer": "adjacency is of layout torch.sparse_coo, expected a dense tensor",
    "wrapped_in_data_parallel": "returned DataParallel, which wraps a model; return the model itself",
    "ends_the_process": r"failed: SystemExit: usage: train\.py",
    "fixed": "failed: AttributeError: aimfair_origin cannot be set",
    "growing_buffer": "a trained model does not load again: .*mismatched: seen",
    "training_only": r"fails in training mode on a batch of \d images .*: KeyError: 'augmentation'",
}


@pytest.mark.parametrize("name", MODELS)
def test_models(photographs: Path, tmp_path: Path, name: str) -> None:
    refused(
        settings(photographs, **model(name)),
        tmp_path,
        rf"model\.factory: {re.escape(__name__)}:{name}: .*{MODELS[name]}",
    )


def test_a_normalisation_that_float32_cannot_hold(photographs: Path, tmp_path: Path) -> None:
    config = settings(photographs, **model("more", std=[1e-300, 1, 1]))
    refused(config, tmp_path, r"^model\.mean, model\.std: found .*, which make images infinite$")


@pytest.mark.parametrize("key", ["train", "finetune"])
def test_batches_of_one_image(photographs: Path, tmp_path: Path, key: str) -> None:
    sections = {key: {"batch_size": 1, **({"batchnorm": "adapt"} if key == "finetune" else {})}}
    message = (
        rf"^{key}\.batch_size: found 1; model\.factory: .*on a batch of 1 .*: ValueError: Expected more than 1 value"
    )
    refused(settings(photographs, **model("normed"), **sections), tmp_path, message)
    frozen = settings(photographs, **model("normed"), finetune={"batch_size": 1, "batchnorm": "freeze"})
    check(frozen, tmp_path / "frozen")


def test_batches_of_sensitivity_that_no_source_fills(photographs: Path, tmp_path: Path) -> None:
    sections = {"generate": {"biased_total": 60, "balanced_per_group": 15}, "sensitivity": {"batch_size": 49}}
    message = r"^sensitivity\.batch_size: found 49, expected at most 48, the images for training$"
    refused(settings(photographs, **sections), tmp_path, message)
    sections["generate"]["biased_total"] = 40
    refused(settings(photographs, **sections), tmp_path, r"at most 40, the images of generate\.biased_total$")


def test_a_pretrained_model_of_another_size(photographs: Path, tmp_path: Path) -> None:
    from aimfair.training.models import build_model, save_model
    from aimfair.training.settings import ModelSettings

    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = build_model(ModelSettings(config={"model_type": "vit", **tower, "image_size": 16, "patch_size": 8}), 2, 1)
    save_model(vit, tmp_path / "vit")
    config = settings(photographs, model={"pretrained": str(tmp_path / "vit"), "config": {}})
    refused(
        config,
        tmp_path,
        r"model\.pretrained: .*vit: ViT.* 32 x 32 pixels \(data\.image_size\): ValueError: Input image",
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"rule": "head_only", "head": "clasifier"}, "no parameter belongs to the module 'clasifier'; did you mean"),
        ({"kind": "last_layer_retrain", "head": "clasifier"}, "no parameter belongs to the module 'clasifier'"),
        ({"rule": "blocks", "blocks": ["resnet.encoder.stages.9"]}, "no parameter belongs to the module"),
        ({"rule": "all", "freeze": ["nothing"]}, "no parameter belongs to the module 'nothing'"),
        ({"rule": "ratio", "density": 1e-9}, "selects nothing"),
        ({"rule": "top_k", "k": 10**9}, "expected"),
    ],
)
def test_methods(photographs: Path, tmp_path: Path, method: dict, message: str) -> None:
    config = settings(photographs, methods={"mine": method}, default_method="mine")
    refused(config, tmp_path, rf"methods\.mine: .*{message}")


def test_a_train_that_returns_nothing(photographs: Path, tmp_path: Path) -> None:
    head = {"rule": "head_only", "head": None}
    check(
        settings(photographs, **model("train_returns_nothing"), methods={"mine": head}, default_method="mine"), tmp_path
    )


@pytest.mark.parametrize(("key", "where"), [("train", "train"), ("finetune", "methods.full")])
def test_a_training_that_diverges_is_named(photographs: Path, tmp_path: Path, key: str, where: str) -> None:
    config = settings(photographs, **{key: {"lr": 1e30}}, methods={"full": {"rule": "all"}}, default_method="full")
    refused(config, tmp_path, rf"^{where}: .* NaN or infinite .* lower lr")


def test_a_mask_of_weights_that_have_no_part_in_the_logits(photographs: Path, tmp_path: Path) -> None:
    config = settings(
        photographs,
        **model("beside"),
        methods={"full": {"rule": "blocks", "blocks": ["unused"]}},
        default_method="full",
    )
    refused(config, tmp_path, r"^methods\.full: the logits do not depend on any weight that is trained")


def beside(num_classes):
    made = Wrapped(lambda scores: scores)
    made.unused = nn.Linear(2, 2)
    return made


def test_an_intersection_that_a_few_images_leave_empty_is_no_error(photographs: Path, tmp_path: Path) -> None:
    rule = {"rule": "intersection", "bias_k": 1, "domain_k": 1}
    check(settings(photographs, methods={"mine": rule}, default_method="mine"), tmp_path)


def test_epochs_of_the_first_training(photographs: Path) -> None:
    with pytest.raises(ValueError, match="found 3, expected at most 2"):
        settings(photographs, methods={"jtt": {"kind": "jtt", "first_epochs": 3}}, default_method="jtt")


def test_what_can_be_used_leaves_nothing_behind(photographs: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    check(settings(photographs), tmp_path)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "config.yaml", "log.jsonl"}
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_real_images(photographs: Path, tmp_path: Path) -> None:
    """As ``aimfair generate`` alone, perhaps on a machine that has none."""
    config = settings(photographs, **model("more"), data={"root": "/nowhere"})
    (tmp_path / "config.yaml").write_text(config_file.dump(config))
    with Run.open(tmp_path / "run", config, quiet=True) as run, pytest.raises(AimfairError, match="1000 logits"):
        run_stages(run, ("prompts", "generate"))
    assert not (tmp_path / "run" / "synthetic").exists()


def test_a_run_stops_with_one_line_before_any_image(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(config_file.dump(settings(photographs, **model("more"))))
    assert cli.main(["run", "--config", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "run"), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: model.factory: {__name__}:more: Sequential gives 1000 logits")
    assert not (tmp_path / "run" / "synthetic").exists()


def refused(config: Config, folder: Path, message: str) -> None:
    with pytest.raises(AimfairError, match=message) as raised:
        check(config, folder)
    assert len(str(raised.value).splitlines()) == 1


def check(config: Config, folder: Path) -> None:
    with Run.open(folder / "run", config, quiet=True) as run:
        preflight.check(run, real_images=True)

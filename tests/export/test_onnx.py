import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.export import onnx
from aimfair.training.execution import logits
from aimfair.training.models import build_model
from aimfair.training.settings import ModelSettings

TINY = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "image_size": 16, "patch_size": 8},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["resnet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("vit", "convnext"))]
)
def test_the_file_says_what_the_model_says(tmp_path: Path, kind: str) -> None:
    from aimfair.diffusion.engines.onnx_runtime import open_file

    model = build_model(ModelSettings(config={"model_type": kind, **TINY[kind]}), 3, seed=0).eval()
    x = torch.randn(9, 3, 16, 16)
    agreement = onnx.export(model, x, tmp_path)
    assert agreement.difference < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"], "weights inside"
    run = open_file(tmp_path / "model.onnx")
    for size in (1, 2, 5, 17):
        more = torch.randn(size, 3, 16, 16)
        with torch.inference_mode():
            torch.testing.assert_close(run(more), logits(model, more), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_a_file_that_says_something_else_is_refused(value: float) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(batch) + (value if len(batch) == 3 else 0)

    with pytest.raises(AimfairError, match=re.escape("model.onnx: in batches of 3 a logit differs by ")):
        onnx.compare(model, run, torch.randn(10, 3, 2, 2), 20)


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * (1 if float(x.sum()) > 0 else 2)


def test_a_model_that_cannot_be_expressed(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"^model\.onnx: the model cannot be exported: .*--no-onnx$"):
        onnx.export(Unexportable(), torch.randn(2, 3, 4, 4), tmp_path)


def test_a_model_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_INSIDE", 10)
    with pytest.raises(AimfairError, match="in one file"):
        onnx.export(nn.Linear(4, 2), torch.randn(2, 3, 4, 4), tmp_path)

"""Weights that are missing, broken or of another shape are refused by name; the library says nothing by itself."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aimfair.base.checked_weights import load_model, load_tokenizer
from aimfair.base.errors import AimfairError

HEAD = "lm_head.weight"
Weights = dict[str, Tensor]


@pytest.fixture
def folder(chat_folder: Path, tmp_path: Path) -> Path:
    """What :func:`load_model` needs of a chat model, to be broken."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((chat_folder / name).read_bytes())
    return tmp_path


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.fixture
def loud(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """transformers as it is found, on the terminal of this test: other tests make it silent."""
    from transformers.utils import logging as library

    handler = logging.StreamHandler()
    library.add_handler(handler)
    library.set_verbosity_warning()
    library.enable_progress_bar()
    yield
    library.remove_handler(handler)


def refused(folder: Path) -> str:
    from transformers import AutoModelForCausalLM

    with pytest.raises(AimfairError) as error:
        load_model("some.key", folder, AutoModelForCausalLM, dtype="auto")
    message = str(error.value)
    assert message.startswith(f"some.key: {folder}: ")
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("loud")
def test_whole_weights_load_without_a_word(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model("some.key", folder, AutoModelForCausalLM, dtype="auto")
    assert torch.equal(model.state_dict()[HEAD], load_file(folder / "model.safetensors")[HEAD])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_none(folder: Path, dtype: torch.dtype) -> None:
    def one_nan(weights: Weights) -> Weights:
        weights[HEAD][3, 1] = torch.nan
        return {name: tensor.to(dtype) for name, tensor in weights.items()}

    rewrite(folder, one_nan)
    assert f"{HEAD} holds NaN or infinite weights; fetch or copy it again" in refused(folder)


def test_numbers_of_eight_bits(tmp_path: Path) -> None:
    class Quantized(torch.nn.Module):
        """As a quantized checkpoint is loaded, for which there is no quantizer here."""

        @classmethod
        def from_pretrained(cls, _: str, *, value: float, **__: Any) -> tuple[torch.nn.Module, dict[str, list[str]]]:
            module = cls()
            module.register_buffer("whole", torch.ones(2, dtype=torch.int8))
            module.register_buffer("scaled", torch.tensor([1.0, value]).to(torch.float8_e4m3fn))
            return module, {"missing_keys": [], "mismatched_keys": []}

    load_model("some.key", tmp_path, Quantized, value=2.0)
    with pytest.raises(AimfairError, match="scaled holds NaN"):
        load_model("some.key", tmp_path, Quantized, value=torch.nan)


@pytest.mark.usefixtures("loud")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {name: weights[name] for name in weights if name != HEAD}, f"{HEAD} is missing; fetch"),
        (lambda weights: {**weights, HEAD: weights[HEAD][:, :8].clone()}, rf"{HEAD} has shape \(\d+, 8\), expected \("),
    ],
)
def test_weights_that_would_be_random(
    folder: Path, change: Callable[[Weights], Weights], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, change)
    assert re.search(message, refused(folder))
    assert capfd.readouterr() == ("", "")


def test_tied_weights_are_saved_once(folder: Path) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = True
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    assert HEAD not in load_file(folder / "model.safetensors")
    model = load_model("some.key", folder, transformers.AutoModelForCausalLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("size", [0, 5, 4000])
def test_a_file_that_was_cut(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    assert size < file.stat().st_size
    file.write_bytes(file.read_bytes()[:size])
    assert "not a usable AutoModelForCausalLM: " in refused(folder)


def test_a_tokenizer_that_is_broken(chat_folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((chat_folder / name).read_bytes())
    load_tokenizer("some.key", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(AimfairError, match=re.escape(f"some.key: {tmp_path}: not a usable AutoTokenizer: ")):
        load_tokenizer("some.key", tmp_path)

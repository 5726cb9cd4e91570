"""A chat model of a few thousand random weights, from a folder."""

import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.config import Config
from aimfair.prompts.grammar import load_prompts
from aimfair.prompts.providers.local import LocalModel
from aimfair.prompts.settings import LanguageModelSettings
from aimfair.run.directory import Run
from aimfair.stages import prompts
from tests.conftest import POSITIONS
from tests.prompts.chat_server import briefs_in, good
from tests.prompts.test_providers import events, tree

CPU = torch.device("cpu")


def settings(folder: Path, **changes: object) -> LanguageModelSettings:
    return LanguageModelSettings.model_validate({"model": str(folder), "max_tokens": 24, **changes})


def run_stage(path: Path, folder: Path, **llm: object) -> None:
    values = tree("transformers", **{"model": str(folder), "max_tokens": 24, **llm})
    with Run.open(path, Config.model_validate(values), quiet=True) as run:
        prompts.run(run)


def test_junk_is_refused_with_counts(chat_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AimfairError, match=r"0 of 6 templates after 2 replies \(\d+ tokens in, \d+ out\).*(cut off|not JSON) \d"
    ):
        run_stage(tmp_path, chat_folder)
    assert not (tmp_path / "prompts.jsonl").exists()
    replies = events(tmp_path, "prompts reply")
    assert [sum(event["refused"].values()) for event in replies] == [1, 1]
    assert all(1 <= event["tokens_out"] <= 24 and event["tokens_in"] > 1000 for event in replies)


def answer_with(monkeypatch: pytest.MonkeyPatch, text: Any) -> None:
    """Puts tokens of a text where the model's own would be."""
    original = LocalModel.__init__

    def init(self: LocalModel, *args: Any, **options: Any) -> None:
        original(self, *args, **options)

        def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            message = self._tokenizer.decode(input_ids[0])
            assert re.fullmatch(r"<user>.*<assistant>", message, re.DOTALL)
            new = self._tokenizer(text(briefs_in(message.removesuffix("<assistant>"))) + "<end>")["input_ids"]
            return torch.cat([input_ids, torch.tensor([new])], dim=1)

        self._model.generate = generate

    monkeypatch.setattr(LocalModel, "__init__", init)


def test_a_good_answer(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, good)
    run_stage(tmp_path, chat_folder, max_tokens=4000)
    found = load_prompts(tmp_path / "prompts.jsonl")
    assert len(found) == 24
    assert "old0 warm0 far0" in found[0].text


def test_short_junk_is_no_json(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, lambda _: "junk")
    with pytest.raises(AimfairError, match="refused: not JSON 2"):
        run_stage(tmp_path, chat_folder)


def texts(folder: Path, seed: int, **changes: object) -> Sequence[str]:
    model = LocalModel(settings(folder, **changes), seed, CPU)
    return [model.ask("hello", {}).text for _ in range(2)]


def test_sampling_depends_on_the_seed_alone(chat_folder: Path) -> None:
    before = torch.get_rng_state()
    first = texts(chat_folder, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert texts(chat_folder, 0) == first
    assert first[0] != first[1]
    assert texts(chat_folder, 1) != first
    cold = texts(chat_folder, 0, temperature=0.0)
    assert cold[0] == cold[1]
    assert texts(chat_folder, 0, temperature=0.5) != first


def test_a_request_longer_than_the_context(chat_folder: Path) -> None:
    model = LocalModel(settings(chat_folder), 0, CPU)
    with pytest.raises(AimfairError, match=rf"the request has \d+ tokens, the model takes {POSITIONS}; lower"):
        model.ask("x" * POSITIONS, {})
    assert 1 <= model.ask("x" * (POSITIONS - 25), {}).tokens_out <= 25 - len("<user><assistant>")


def test_a_signal_ends_a_reply(chat_folder: Path) -> None:
    with Interrupt() as interrupt:
        model = LocalModel(settings(chat_folder, max_tokens=4000), 0, CPU, interrupt=interrupt)
        steps = 0

        def count(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                signal.raise_signal(signal.SIGTERM)

        model._model.register_forward_hook(count)
        with pytest.raises(Interrupted):
            model.ask("hello", {})
    assert steps <= 4


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "has no config.json, expected the folder of a chat model"),
        ("model.safetensors", "not a usable AutoModelForCausalLM: "),
        ("tokenizer.json", "not a usable AutoTokenizer: "),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_a_folder_that_lacks_something(chat_folder: Path, tmp_path: Path, lost: str, message: str) -> None:
    copy = Path(shutil.copytree(chat_folder, tmp_path / "copy"))
    (copy / lost).unlink()
    with pytest.raises(AimfairError, match=rf"prompts\.llm\.model: .*{re.escape(message)}"):
        LocalModel(settings(copy), 0, CPU)


def test_weights_that_cannot_be_used(chat_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(chat_folder, tmp_path / "copy"))
    file = copy / "model.safetensors"
    where = re.escape(f"prompts.llm.model: {copy}: ")
    whole = load_file(file)
    for broken, message in (
        ({**whole, "lm_head.weight": whole["lm_head.weight"] * torch.nan}, "lm_head.weight holds NaN or infinite"),
        ({name: whole[name] for name in whole if name != "lm_head.weight"}, "lm_head.weight is missing"),
    ):
        save_file(broken, file, metadata={"format": "pt"})
        with pytest.raises(AimfairError, match=where + message):
            LocalModel(settings(copy), 0, CPU)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AimfairError, match=where + "not a usable AutoModelForCausalLM: "):
        LocalModel(settings(copy), 0, CPU)

"""What the folder is worth to somebody without aimfair, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.commands import cli
from aimfair.evaluation.flips import FlipResult, Flips
from aimfair.evaluation.results import Difference, Results
from aimfair.export import onnx
from aimfair.export.write import choose, export_run
from aimfair.generation.settings import PairSettings
from aimfair.run.directory import Run
from aimfair.stages.context import splits_of
from aimfair.training.execution import logits
from aimfair.training.feed import Normalize
from aimfair.training.history import HISTORY
from aimfair.training.models import load_model
from tests.tiny_run import CLASSES, SEEDS, TITLE, VALUES, settings

WITHOUT_AIMFAIR = "import sys\nsys.modules['aimfair'] = None  # any import of it fails\n"


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("export") / "model"
    assert cli.main(["export", "--run", str(finished), "--to", str(to), "--quiet", "--license", "apache-2.0"]) == 0
    return to


def test_a_delta_makes_the_model_of_the_biased_one(finished, tmp_path):
    """And back: bit for bit, by the command line."""
    to, config = tmp_path / "model", Run.config_of(finished)
    assert config is not None
    with Run.open(finished, config, quiet=True) as run:
        base = run.model(SEEDS[0], "biased") / "model.safetensors"
    export = ["export", "--run", str(finished), "--seed", str(SEEDS[0]), "--no-onnx", "--quiet"]
    assert cli.main([*export, "--delta", "--to", str(to)]) == 0
    delta, result = str(to / "delta.safetensors"), to / "model.safetensors"
    assert cli.main(["delta", "apply", delta, str(base), "--to", str(tmp_path / "fair.safetensors")]) == 0
    assert (tmp_path / "fair.safetensors").read_bytes() == result.read_bytes()
    assert cli.main(["delta", "revert", delta, str(result), "--to", str(tmp_path / "biased.safetensors")]) == 0
    assert (tmp_path / "biased.safetensors").read_bytes() == base.read_bytes()


def test_a_delta_of_the_biased_model_is_refused(finished, capsys):
    assert cli.main(["export", "--run", str(finished), "--method", "biased", "--delta", "--quiet"]) == 2
    assert capsys.readouterr().err == "error: --delta: biased is what a delta applies to; choose a method\n"


def test_flips_are_those_of_the_run(run: Run, tmp_path: Path) -> None:
    pairs = run.config.generate.model_copy(update={"pairs": PairSettings(held_out=2)})
    run.config = run.config.model_copy(update={"generate": pairs})
    with pytest.raises(AimfairError, match=r"flips.*aimfair evaluate"):
        export_run(run, to=tmp_path / "model", with_onnx=False)
    one = FlipResult(
        seeds=[0.5] * len(SEEDS), mean=0.5, std=0, interval=(0, 1), by_class=[0.5, 0.5], accuracy=[1, 0.75],
        versus_biased=Difference(mean=0, over_images=(0, 0), over_seeds=(0, 0), support=4),
    )  # fmt: skip
    Flips(
        protected="ink", target_names=list(CLASSES), protected_names=list(VALUES), seeds=list(SEEDS), pairs=[2, 2],
        default_method="aimfair", confidence=0.95, replicates=1, methods={"biased": one, "aimfair": one},
    ).save(run.flips)  # fmt: skip
    run.finish("flips", {}, [run.flips])
    export_run(run, to=tmp_path / "model", with_onnx=False)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "## When the protected attribute alone changes\n\n4 pairs of synthetic images" in card


def programs(card: str) -> list[str]:
    """The code in a card."""
    return re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


def answers(program: str, folder: Path, photo: Path) -> dict[str, float]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AIMFAIR + program, str(folder), str(photo)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    pairs = (line.rpartition(" ") for line in done.stdout.splitlines())
    return {label: float(score) for label, _, score in pairs}


def probabilities(run: Run, method: str, seed: int, number: int) -> np.ndarray:
    model = load_model(run.finetuned(seed, method)).eval()
    x = Normalize(run.config.model, torch.device("cpu"))(splits_of(run).test.images[number : number + 1])
    with torch.inference_mode():
        return logits(model, x).softmax(1)[0].numpy()


def test_files(folder: Path, run: Run) -> None:
    mark = json.loads((folder / "export.json").read_text())
    seed = mark["seed"]
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "model.onnx", "preprocessor_config.json", "export.json",
    }  # fmt: skip
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (run.finetuned(seed, "aimfair") / weights).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["ResNetForImageClassification"]
    assert config["id2label"] == {str(number): name for number, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: number for number, name in enumerate(CLASSES)}
    assert mark["files"].keys() == {file.name for file in folder.iterdir()} - {"export.json"}


@pytest.mark.slow
def test_the_code_in_the_card_runs_without_aimfair_and_says_the_same(folder: Path, run: Run) -> None:
    with_transformers, with_onnx = programs((folder / "README.md").read_text())
    seed = json.loads((folder / "export.json").read_text())["seed"]
    answered = [probabilities(run, "aimfair", seed, image) for image in range(len(splits_of(run).test))]
    number = max(range(len(answered)), key=lambda image: abs(answered[image][0] - 0.5))
    photo = run.config.data.root / splits_of(run).test.ids[number]
    expected = dict(zip(CLASSES, answered[number].tolist(), strict=True))
    assert abs(expected[CLASSES[0]] - 0.5) > 0.02, "the classes can be told apart"
    assert answers(with_onnx, folder, photo) == pytest.approx(expected, abs=1e-5)
    assert answers(with_transformers, folder, photo) == pytest.approx(expected, abs=0.01)


def test_the_difference_of_preprocessing_is_measured_and_told(folder: Path) -> None:
    mark = json.loads((folder / "export.json").read_text())["preprocessing"]
    assert mark["images"] == 40
    assert 0 < mark["pixels"] < 30
    assert mark["probability"] < 0.01
    assert f"{mark['pixels']:.0f} of 255 grey levels" in (folder / "README.md").read_text()


def test_the_card_tells_the_numbers_of_the_run(folder: Path, run: Run) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    results = Results.load(run.results)
    seed = json.loads((folder / "export.json").read_text())["seed"]
    of_seed = next(one for one in results.methods["aimfair"].seeds if one.seed == seed)
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found["accuracy"] == pytest.approx(of_seed.overall["accuracy"], abs=1e-6)
    assert found["worst_group_accuracy"] == pytest.approx(of_seed.overall["worst_group_accuracy"], abs=1e-6)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    for text in (
        *("4 | 6 | 8", "20 | 6 | 10", "20 | 6 | 12", "4 | 6 | 10"),  # images of the groups in train, val and test
        *("30.0% of all", "24 prompts", "24 images in the balanced set", "by validation accuracy"),
        "Only 8 test images in group",
    ):
        assert text in card.text, text
    assert str(run.config.data.root) not in card.content, "local paths are not published"


def test_names_stay_names(folder: Path) -> None:
    import markdown_it
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0", "the title cannot end the metadata and begin its own"
    assert card.data.eval_results[0].dataset_name == " ".join(TITLE.split())
    page = markdown_it.MarkdownIt("commonmark").enable("table").render(card.text)
    assert not {"<b>", "<script>", "<i>", "<s>", "<em>", 'javascript:b"', "<a "} & set(re.findall(r"<\w+[ >]", page))
    assert page.count("<h1>") == 1
    assert len(set(re.findall(r"<table>.*?</table>", page, re.DOTALL))) == 4
    for name in (*CLASSES, *VALUES):
        shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert shown in page, name


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.9, 0.8), 7), ((0.8, 0.9), 8), ((0.8, 0.8), 7)], ids=["first", "second", "equal"]
)
def test_the_seed_is_chosen_by_validation_alone(run: Run, accuracies: tuple[float, float], best: int) -> None:
    paths = [run.finetuned(seed, "full") / HISTORY for seed in SEEDS]
    before = [path.read_bytes() for path in paths]
    try:
        for path, accuracy in zip(paths, accuracies, strict=True):
            history = json.loads(path.read_text())
            history["epochs"][history["kept_epoch"] - 1]["validation_accuracy"] = accuracy
            path.write_text(json.dumps(history).ljust(path.stat().st_size))  # the run looks at sizes
        choice = choose(run, "full")
        assert (choice.seed, choice.validation_accuracy) == (best, max(accuracies))
        assert "without test images" in choice.reason
        assert choose(run, "full", seed=8).seed == 8
    finally:
        for path, content in zip(paths, before, strict=True):
            path.write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fulll"}, "--method fulll: expected one of biased, linear_probe, full"),
        ({"seed": 4}, "--seed 4: expected one of 7, 8"),
        ({"license": "mit\n---"}, "--license"),
    ],
)
def test_refusals(run: Run, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        export_run(run, to=tmp_path / "model", **{"with_onnx": False, **changes})
    assert not list(tmp_path.glob("*model*"))


def test_a_run_that_is_not_evaluated(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run.open(tmp_path / "run", settings(photographs), quiet=True).close()
    for seed in ([], ["--seed", "7"]):  # without one, no validation accuracy is there to choose it by
        assert cli.main(["export", "--run", str(tmp_path / "run"), *seed, "--no-onnx"]) == 1
        assert "step 'evaluate' is not finished; do it first" in (said := capsys.readouterr().err), said
    assert cli.main(["export", "--run", str(tmp_path / "none")]) == 2
    assert cli.main(["export", "--run", str(tmp_path / "run"), "--train.lr", "1"]) == 2


def test_a_missing_package_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(AimfairError, match=re.escape("onnxruntime not installed; model.onnx needs: pip install")):
        export_run(run, to=tmp_path / "model")


def test_without_onnx_and_by_default_into_the_run(finished: Path) -> None:
    assert (
        cli.main(["export", "--run", str(finished), "--method", "biased", "--seed", "7", "--no-onnx", "--quiet"]) == 0
    )
    to = finished / "export" / "biased-7"
    assert not (to / "model.onnx").exists()
    card = (to / "README.md").read_text()
    assert "This is the biased model itself" in card
    assert len(programs(card)) == 1
    assert cli.main(["export", "--run", str(finished), "--method", "biased", "--seed", "7", "--no-onnx"]) == 1
    again = ["--overwrite", "--method", "biased", "--seed", "7", "--no-onnx", "--quiet"]
    assert cli.main(["export", "--run", str(finished), *again]) == 0

"""Every ablation on a small run: what it compares, what it writes, and what of the run it does not do again."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from aimfair.ablation import criteria, generator_speed
from aimfair.ablation.options import Options
from aimfair.ablation.outcomes import difference
from aimfair.ablation.registry import ABLATIONS
from aimfair.ablation.run import ablate as ablate_run
from aimfair.base.errors import AimfairError
from aimfair.commands import cli
from aimfair.evaluation.predictions import Predictions
from aimfair.evaluation.results import Results
from aimfair.report import wording
from aimfair.run.directory import Run
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.models import load_model
from tests.cluster.inline_pool import InlinePool


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What main sets is undone."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setenv("COLUMNS", "250")


def files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file but logs, locks and ablations -> inode, time, size."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and "ablations" not in path.parts and path.name not in ("log.jsonl", ".lock")
    }


def events(run: Path, event: str) -> list[str]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["event"] == event]


def counts(run: Path, method: str) -> list[list[list[list[int]]]]:
    """Of each seed."""
    return [seed.counts for seed in Results.load(run / "results.json").methods[method].seeds]


def ablate(parent: Path, name: str, *flags: str) -> Path:
    """The folder of an ablation, which left the run it varies as it was."""
    before, log = files(parent), (parent / "log.jsonl").read_bytes()
    assert cli.main(["ablate", name, "--run", str(parent), "--quiet", *flags]) == 0
    assert files(parent) == before
    assert (parent / "log.jsonl").read_bytes() == log
    folder = parent / "ablations" / name
    page = (folder / "ablation.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=.?http", page)
    return folder


def table(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of table.csv by arm; the other files must tell of the same arms."""
    with (folder / "table.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    data = json.loads((folder / f"{folder.name}.json").read_text())
    assert [arm["label"] for arm in data["arms"]] == [arm for arm in rows if arm != "biased"]
    text = (folder / "table.md").read_text()
    page = (folder / "ablation.html").read_text()
    assert all(arm in text and arm in page for arm in rows)
    return rows


def test_density_chooses_the_learning_rate_by_validation_and_trains_no_baseline(parent, capsys):
    # a request whose masks cannot be selected is not in the way of the next
    assert cli.main(["ablate", "density", "--run", str(parent), "--quiet", "--values", "1e-9"]) == 1
    assert "selects nothing" in capsys.readouterr().err

    folder = ablate(parent, "density", "--values", "0.1,1/2", "--lrs", "0.002,0.01")
    rows = table(folder)
    assert list(rows) == [
        "0.1, lr 0.002", "0.1, lr 0.01", "0.5, lr 0.002", "0.5, lr 0.01", "full fine-tuning", "biased",
    ]  # fmt: skip
    assert [round(float(row["tuned"]), 2) for arm, row in rows.items() if arm != "biased"] == [0.1, 0.1, 0.5, 0.5, 1]
    for density in ("0.1", "0.5"):
        of = [row for row in rows.values() if row["density"] == density]
        best = max(of, key=lambda row: (float(row["validation_accuracy"]), -float(row["validation_loss"])))
        assert [row["choice"] for row in of] == ["chosen" if row is best else "" for row in of]
    out = capsys.readouterr().out
    assert out.count("full fine-tuning") >= 2
    assert "Page: " in out

    run = folder / "arms"
    assert not (run / "synthetic" / "decoded").exists(), "a copy for each variant is large"
    taken = events(run, "step taken over")
    assert {"prompts", "generate", "train/7", "train/8", "sensitivity/7", "finetune/7/full"} <= set(taken)
    done = events(run, "step finished")
    assert not [step for step in done if not step.startswith(("select", "finetune", "evaluate"))]
    weights = Path("seeds/7/baseline/model.safetensors")
    assert (run / weights).samefile(parent / weights)
    assert counts(run, "biased") == counts(parent, "biased")
    data = json.loads((folder / "density.json").read_text())
    full = Results.load(parent / "results.json").methods["full"]
    assert data["arms"][-1]["mean"] == full.mean
    versus = Results.load(run / "results.json").methods[data["arms"][0]["method"]].versus["full"]["accuracy"]
    assert data["arms"][0]["minus_reference"]["accuracy"]["mean"] == versus.mean

    # across runs differences are computed again: of one run they are those of its results
    results, name = Results.load(run / "results.json"), data["arms"][0]["method"]
    mine, other = (Predictions.load(run, [7, 8], method) for method in (name, "full"))
    for metric, found in difference(mine, other, results, {}).items():
        expected = results.methods[name].versus["full"][metric]
        assert found.mean == pytest.approx(expected.mean, nan_ok=True)
        assert found.over_seeds == pytest.approx(expected.over_seeds, nan_ok=True)
        assert found.over_images == pytest.approx(expected.over_images, abs=0.05, nan_ok=True)
    with pytest.raises(AimfairError, match=r"predictions\.csv: no predictions of 'nobody'"):
        Predictions.load(run, [7], "nobody")
    with pytest.raises(AimfairError, match="different test images"):
        difference(mine, replace(other, ids=other.ids[::-1]), results, {})

    # a second time nothing is done again, and the runs of an ablation are runs
    before = files(run)
    ablate(parent, "density", "--values", "0.1,1/2", "--lrs", "0.002,0.01")
    assert files(run) == before
    assert cli.main(["report", "--run", str(run), "--quiet"]) == 0
    assert "Worst-group accuracy" in (run / "report.html").read_text()

    # other values are refused, or taken with --overwrite; what both have in common stays
    command = ["ablate", "density", "--run", str(parent), "--quiet", "--values", "0.1", "--lrs", "0.002"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert "this ablation was made with other settings" in error
    assert "--overwrite" in error
    assert "--run" not in error
    kept = run / "seeds/7/finetuned" / data["arms"][0]["method"] / "model.safetensors"
    inode = kept.stat().st_ino
    assert cli.main([*command, "--overwrite"]) == 0
    assert list(table(folder)) == ["0.1, lr 0.002", "full fine-tuning", "biased"]
    assert kept.stat().st_ino == inode


@pytest.mark.slow
def test_criteria_leaves_out_what_cannot_be_selected_and_says_why(parent, monkeypatch):
    words = "relative_difference,fisher,top_k,random,element,row"
    folder = ablate(parent, "criteria", "--values", words, "--density", "0.2")
    rows = table(folder)
    sizes = {arm: float(row["tuned"]) for arm, row in rows.items() if row["tuned"] and "as it is" not in arm}
    assert all(0.199 < size < 0.25 for size in sizes.values()), sizes
    assert list(rows) == [
        "top_k relative_difference element", "top_k relative_difference row", "top_k fisher element",
        "top_k fisher row", "random element", "random row", "aimfair as it is", "biased",
    ]  # fmt: skip

    select = criteria.select_mask

    def refuse(sensitivity, name, method, seed):
        if method.criterion == "fisher":
            raise AimfairError(f"methods.{name}: no squares were kept")
        return select(sensitivity, name, method, seed)

    monkeypatch.setattr(criteria, "select_mask", refuse)
    folder = ablate(
        parent, "criteria", "--values", "fisher,difference,top_k,element", "--density", "0.2", "--overwrite"
    )
    assert list(table(folder)) == ["top_k difference element", "aimfair as it is", "biased"]
    assert "Left out: top_k fisher element (no squares were kept)." in (folder / "ablation.html").read_text()


def test_minority_ratio_keeps_baselines_and_compares_sets_of_one_size(parent):
    flags = ("--values", "1/3,1", "--generate.balanced_per_group", "4")
    folder = ablate(parent, "minority-ratio", *flags)
    rows = table(folder)
    assert list(rows) == ["ratio 1/3", "ratio 1", "biased"]
    assert rows["ratio 1/3"]["biased images"] == rows["ratio 1"]["biased images"]
    for arm, minority in (("ratio 1/3", 1 / 3), ("ratio 1", 1.0)):
        run = folder / rows[arm]["run"]
        config = Run.config_of(run)
        assert config is not None
        assert config.generate.minority_ratio == pytest.approx(minority)
        assert config.data == Run.config_of(parent).data
        assert {"train/7", "train/8"} <= set(events(run, "step taken over"))
        records = [json.loads(line) for line in (run / "synthetic" / "manifest.jsonl").read_text().splitlines()]
        biased = [(row["y"], row["a"]) for row in records if "biased" in row["sets"]]
        assert len(biased) == int(rows[arm]["biased images"])
        if minority == 1:
            assert len({biased.count(group) for group in set(biased)}) == 1
        else:
            assert biased.count((0, 0)) < biased.count((0, 1))


@pytest.mark.slow
def test_variants_side_by_side_give_what_they_give_one_after_another(parent, tmp_path):
    paths = tmp_path / "one", tmp_path / "several"
    for path, pool in zip(paths, (None, InlinePool(lose={"ratio-1: finetune 7 aimfair": 1})), strict=True):
        shutil.copytree(parent, path, ignore=shutil.ignore_patterns("ablations"))
        ablate_run(
            "minority-ratio",
            path,
            Options(values="1/3,1"),
            {"generate.balanced_per_group": "4", "cluster.cpus": "1"},
            overwrite=False,
            quiet=True,
            pool=lambda run, pool=pool: nullcontext(pool),
        )
    assert pool.made.count("ratio-1: finetune 7 aimfair") == 2
    one, several = (path / "ablations" / "minority-ratio" for path in paths)
    rows = [
        {arm: {name: value for name, value in row.items() if "seconds" not in name} for arm, row in table(path).items()}
        for path in (one, several)
    ]
    assert rows[0] == rows[1]
    for results in one.glob("*/results.json"):
        assert results.read_bytes() == (several / results.relative_to(one)).read_bytes()
    assert not list(several.glob("*/synthetic/decoded"))


def test_minority_ratio_refuses_when_a_group_has_too_few_images(parent, capsys):
    assert cli.main(["ablate", "minority-ratio", "--run", str(parent), "--quiet", "--values", "1/4,1"]) == 1
    assert "without an empty group" in capsys.readouterr().err


@pytest.mark.slow
def test_images_are_those_of_the_run_and_no_more(parent, capsys):
    folder = ablate(parent, "images", "--values", "3,5")
    rows = table(folder)
    assert [rows[arm]["images per group"] for arm in ("3 per group", "5 per group")] == ["3", "5"]
    for number in (3, 5):
        config = Run.config_of(folder / f"images-{number}")
        assert config is not None
        assert config.generate.balanced_per_group == number
        assert config.generate.folder == (parent / "synthetic").resolve()
        assert config.sensitivity.batches == 1, "how well gradients are estimated is not varied"
    assert float(rows["3 per group"]["accuracy_minus_reference_low_images"]) <= 0.5
    assert cli.main(["ablate", "images", "--run", str(parent), "--quiet", "--values", "3,100"]) == 2
    assert "--values: found 100, but the images of" in capsys.readouterr().err
    command = ["ablate", "images", "--run", str(parent), "--quiet", "--values", "3"]
    assert cli.main(command) == 1
    assert "images-5: of an ablation with other arms; replace it with --overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["images-3"]


@pytest.mark.slow
def test_prompts_compares_new_plain_images_with_those_of_the_run(parent):
    folder = ablate(parent, "prompts")
    assert list(table(folder)) == ["plain", "contextual", "biased"]
    assert "generate" in events(folder / "contextual", "step taken over")
    assert "generate" in events(folder / "plain", "step finished")
    assert {"train/7", "train/8"} <= set(events(folder / "plain", "step taken over"))
    texts = {json.loads(line)["text"] for line in (folder / "plain" / "prompts.jsonl").read_text().splitlines()}
    assert "a handwritten zero in green ink" in texts
    assert counts(folder / "contextual", "aimfair") == counts(parent, "aimfair")


def test_generators_are_judged_by_speed_distance_and_loss(parent, monkeypatch, capsys):
    monkeypatch.setattr(generator_speed, "_SECONDS", 0)
    monkeypatch.setattr(generator_speed, "_BATCHES", 1)
    folder = ablate(parent, "generators", "--values", "seed=1;steps=1")
    rows = table(folder)
    assert list(rows) == ["the run", "seed=1", "biased"]
    assert [rows[arm]["seed"] for arm in ("the run", "seed=1")] == ["0", "1"]
    assert counts(folder / "own", "aimfair") == counts(parent, "aimfair")
    assert "generate" in events(folder / "own", "step taken over")
    assert "generate" in events(folder / "seed=1", "step finished")
    assert {"prompts", "train/7", "train/8"} <= set(events(folder / "seed=1", "step taken over"))
    data = json.loads((folder / "generators.json").read_text())
    real = [data["kid"][arm]["KID to real"] for arm in ("the run", "seed=1")]
    assert real[0] != real[1]
    assert data["kid"]["seed=1"].keys() == {"KID to real", "KID to the run"}
    assert rows["the run"]["KID to the run"] == ""
    assert data["speeds"]["seed=1"]["images"] == 44
    assert "“steps=1”: the settings of the run itself, not repeated." in data["notes"]
    worst = wording.points(data["arms"][1]["minus_reference"]["worst_group_accuracy"]["mean"])
    said = f"Other noise alone (seed=1) changes, in points, worst-group accuracy {worst}, "
    assert sum(said in sentence for sentence in data["sentences"]) == 1

    # measured together and kept; a faster arm is judged, by another margin without another run
    file = folder / "speed.json"
    speeds = json.loads(file.read_text())
    assert all(len(of["seconds"]) == 2 for of in speeds["of"].values())
    speeds["of"]["seed=1"]["seconds"] = [min(speeds["of"]["own"]["seconds"]) / 4]
    file.write_text(json.dumps(speeds))
    before = files(folder / "seed=1")
    ablate(parent, "generators", "--values", "seed=1", "--margin", "0.3")
    assert files(folder / "seed=1") == before
    again = json.loads((folder / "generators.json").read_text())
    assert again["arms"][1]["speed"] == "4.00x"
    assert again["margin"] == 0.3
    assert again["judged"]["seed=1"]["confidence"] == pytest.approx(0.95)
    assert again["kid"] == data["kid"]
    minus = again["arms"][1]["minus_reference"]["accuracy"]
    assert again["judged"]["seed=1"]["loss"]["accuracy"] == pytest.approx(
        -min(minus["over_images"][0], minus["over_seeds"][0]), abs=0.05
    )
    assert again["arms"][1]["verdict"] == "too few test images"
    assert again["sentences"][0].startswith("No faster setting is recommended: none is shown to lose at most 30.0")
    assert "may be up to 100.0 points worse" in again["sentences"][0], "whatever two seeds leave open"
    assert again["sentences"][0] in (folder / "table.md").read_text().replace("\\", "")

    command = ["ablate", "generators", "--run", str(parent), "--quiet", "--values"]
    assert cli.main([*command, "seed=1;model=./none"]) == 1
    assert "--values: arm 'model=./none': generate.model" in capsys.readouterr().err
    assert cli.main([*command, "seed=1;render_size=33"]) == 1, "which only the loaded model refuses"
    assert "error: render_size=33: generate.render_size" in capsys.readouterr().err


def test_selective_measures_time_and_memory(parent):
    folder = ablate(parent, "selective", "--values", "aimfair,linear_probe")
    assert list(table(folder)) == ["linear_probe", "aimfair", "full fine-tuning", "biased"]
    sizes = json.loads((folder / "selective.json").read_text())["bytes"]
    full = sizes["full fine-tuning"]
    weights = full["weights"]
    assert full["gradients"] == weights
    assert full["optimizer"] == pytest.approx(2 * weights, rel=0.05), "two moments of float32 for each weight"
    assert sizes["aimfair"]["optimizer"] == pytest.approx(0.3 * full["optimizer"], rel=0.05)
    assert sizes["linear_probe"]["gradients"] < 0.05 * weights
    assert all(
        one["total"] == sum(one[key] for key in ("weights", "gradients", "optimizer", "mask")) for one in sizes.values()
    )


def test_blocks_freezes_one_at_a_time(parent):
    """Also with gradients that are not those of the parent, of one seed."""
    for flags in (["--sensitivity.batches", "1", "--seeds", "7"], ["--overwrite"]):
        folder = ablate(parent, "blocks", *flags)
        rows = table(folder)
        assert len(rows) == 6
        whole = float(rows["aimfair"]["tuned"])
        for arm, row in rows.items():
            if arm.startswith("without"):
                share = float(row["frozen share of the selected"])
                assert float(row["tuned"]) == pytest.approx(whole * (1 - share), abs=1e-5)


def test_premise_correlates_what_was_predicted_with_what_was_measured(parent):
    folder = ablate(parent, "premise")
    rows = table(folder)
    data = json.loads((folder / "premise.json").read_text())
    assert data["blocks"] == [arm for arm in rows if arm != "biased"]
    assert data["spearman"]["selected"]["n"] == len(rows) - 1 >= 8
    gains = [float(rows["biased"]["eo_mean"]) - float(rows[arm]["eo_mean"]) for arm in data["blocks"]]
    assert [sum(of) / 2 for of in data["measured_gain_in_eo_mean"]] == pytest.approx(gains)
    assert any(word in data["sentences"][0] for word in ("No evidence", "agrees", "contradicts"))


@pytest.mark.slow
def test_premise_predicts_by_the_gradients_of_the_models_that_it_tunes(parent):
    """Flags change them, and give seeds that the run has not."""
    folder = ablate(parent, "premise", "--seeds", "7,99", "--sensitivity.batches", "1", "--overwrite")
    data = json.loads((folder / "premise.json").read_text())
    assert data["seeds"] == [7, 99]
    run = folder / "arms"
    config, of_parent = Run.config_of(run), Run.config_of(parent)
    assert config is not None
    assert of_parent is not None
    criterion = of_parent.methods["aimfair"].criterion
    for column, seed in enumerate((7, 99)):
        model = load_model(run / "seeds" / str(seed) / "baseline", config.model)
        own = Sensitivity.load(run / "seeds" / str(seed) / "sensitivity.safetensors", model)
        assert own.batches["synthetic_fair"] == 1
        head = own.unit_scores(criterion, contrast="bias")
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        names = [name for name in head if name.startswith("classifier")]
        mean = sum(float(head[name]) * sizes[name] for name in names) / sum(sizes[name] for name in names)
        found = data["predicted"]["bias"][next(i for i, b in enumerate(data["blocks"]) if b.startswith("classifier"))]
        assert found[column] == pytest.approx(mean, rel=1e-5)


def test_the_help_names_every_ablation(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["ablate", "--help"])
    assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {what}" in out for name, what in ABLATIONS.items())


def test_every_ablation_is_tested_here():
    text = Path(__file__).read_text()
    assert all(f'ablate(parent, "{name}"' in text for name in ABLATIONS)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("density", "--values", "0.1,2"), "--values: found '2', expected a share above 0, up to 1"),
        (("density", "--values", "1/0"), "--values: found '1/0', expected a share"),
        (("density", "--values", "nan"), "--values: found 'nan', expected a share"),
        (("density", "--lrs", "-1"), "--lrs: found '-1', expected a number above 0"),
        (("density", "--method", "paper2"), "--method: found 'paper2', expected one of linear_probe"),
        (("density", "--method", "full"), "has the rule 'all', which has no density"),
        (("density", "--density", "0.1"), "--density: not valid for the ablation density"),
        (("criteria", "--values", "fischer"), "--values: found 'fischer', expected some of difference"),
        (("images", "--values", "2.5"), "--values: found '2.5', expected a whole number above 0"),
        (("images", "--values", "1"), "--values: found 1, expected at least 2"),
        (("density", "--values", "0.1,0.100001"), "two arms have the label '0.1', because their values are too close"),
        (
            ("minority-ratio", "--values", "0.12301,0.12302", "--generate.balanced_per_group", "4"),
            "two arms have the label",
        ),
        (("generators", "--values", "steps=2;steps=0"), "--values: arm 'steps=0': steps: found 0, expected greater"),
        (("generators", "--values", "steps=1"), "--values: found 'steps=1', the settings of the run itself"),
        (("generators", "--margin", "2"), "--margin: found '2', expected a share above 0, up to 1"),
        (("generators", "--features", "nowhere"), "--features: nowhere has no config.json, expected the folder"),
        (("generators", "--generate.folder", "x"), "ablate generators: the images of this run are those of generate"),
        (("density", "--margin", "0.1"), "--margin: not valid for the ablation density"),
        (("premise", "--method", "full"), "--method: 'full' selects every block entirely"),
        (("selective", "--method", "full"), "--method: 'full' is full fine-tuning itself"),
        (("prompts", "--lrs", "0.1"), "--lrs: not valid for the ablation prompts"),
        (("premise", "--finetune.lrr", "0.1"), "--finetune.lrr: unknown key"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(parent, capsys, flags, message):
    before = sorted(parent.rglob("*"))
    name, *rest = flags
    assert cli.main(["ablate", name, "--run", str(parent), "--quiet", *rest]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(parent.rglob("*")) == before


def test_an_unknown_ablation_or_no_run_is_refused(parent, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["ablate", "colour", "--run", str(parent)])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["ablate", "bias-ratio", "--run", str(parent)])
    assert "bias-ratio is now called minority-ratio" in capsys.readouterr().err
    assert cli.main(["ablate", "density"]) == 2
    assert cli.main(["ablate", "density", "--run", str(tmp_path / "none")]) == 2
    assert "there is no run yet" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


# -- interrupted, unfinished -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_ablation_of_an_unfinished_run_continues(parent, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy, ignore=shutil.ignore_patterns("ablations"))
    for step in ("sensitivity/8", "select/8/aimfair", "finetune/8/aimfair", "evaluate", "report"):
        (copy / "stages" / f"{step}.json").unlink()
    command = [sys.executable, "-m", "aimfair", "ablate", "blocks", "--run", str(copy), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    record, deadline = copy / "ablations/blocks/arms/stages/select/8/aimfair.json", time.monotonic() + 300
    while not record.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert "the same command continues" in error
    assert not (copy / "ablations/blocks/ablation.html").exists()
    assert (copy / "stages/sensitivity/8.json").exists(), "the run's own work is done in the run"
    assert not (copy / "stages/evaluate.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (copy / "ablations/blocks/arms/stages").rglob("*.json")}

    assert cli.main(command[3:]) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    whole = json.loads((ablate(parent, "blocks") / "blocks.json").read_text())
    again = json.loads((copy / "ablations/blocks/blocks.json").read_text())
    assert [arm["mean"] for arm in again["arms"]] == [arm["mean"] for arm in whole["arms"]]

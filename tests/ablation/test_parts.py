"""The parts of ablations by themselves: taking over, ranks, blocks, charts, numbers."""

import math
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aimfair.ablation import blocks, options, premise
from aimfair.ablation import run as ablation_run
from aimfair.ablation.outcomes import difference
from aimfair.ablation.plan import Names, from_parent, variant
from aimfair.base.errors import ConfigError
from aimfair.base.files import write_text
from aimfair.evaluation.predictions import Predictions
from aimfair.generation.filter_settings import FilterSettings
from aimfair.generation.settings import GenerateSettings
from aimfair.methods import Tune
from aimfair.report import charts
from aimfair.run.directory import Run
from aimfair.run.records import Records
from aimfair.selective.selection import names_under
from tests.report.made_up import made_up_config

# -- taking over finished steps ----------------------------------------------------------------------------------------


@pytest.fixture
def family(tmp_path):
    """A run with a finished step, and a variant of it."""
    config = made_up_config()
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        folder = run.baseline(1)
        folder.mkdir(parents=True)
        write_text(folder / "model.txt", "weights")
        run.finish("train/1", {"lr": 1}, [folder])
    with Run.open(tmp_path / "run" / "ablations" / "density" / "arms", config, quiet=True) as variant:
        yield run, variant


def test_a_step_with_the_same_inputs_is_taken_over(family):
    run, variant = family
    assert not variant.is_done("train/1", {"lr": 2})
    assert not variant.baseline(1).exists()
    assert variant.is_done("train/1", {"lr": 1})
    assert (variant.baseline(1) / "model.txt").samefile(run.baseline(1) / "model.txt")
    assert variant.digest_of("train/1") == run.digest_of("train/1")
    assert not list(variant.path.rglob("*.tmp"))


def test_what_becomes_of_the_origin_does_not_reach_the_variant(family):
    run, variant = family
    variant.is_done("train/1", {"lr": 1})
    write_text(run.baseline(1) / "model.txt", "others!")
    assert (variant.baseline(1) / "model.txt").read_text() == "weights"
    write_text(variant.baseline(1) / "model.txt", "mine...")
    assert (run.baseline(1) / "model.txt").read_text() == "others!"


def test_a_step_half_taken_over_is_taken_over_again(family):
    _, variant = family
    assert variant.is_done("train/1", {"lr": 1})
    (variant.path / "stages" / "train" / "1.json").unlink()  # killed before the record
    assert variant.is_done("train/1", {"lr": 1})
    assert not list(variant.path.rglob("*.tmp"))


def test_without_hard_links_files_are_copied(family, monkeypatch):
    run, variant = family

    def refuse(*_: object) -> None:
        raise OSError(18, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    assert variant.is_done("train/1", {"lr": 1})
    copy = variant.baseline(1) / "model.txt"
    assert copy.read_text() == "weights"
    assert not copy.samefile(run.baseline(1) / "model.txt")


def test_a_step_that_is_begun_anew_meanwhile_is_not_taken_over(family, monkeypatch):
    run, variant = family
    record = run.path / "stages" / "train" / "1.json"
    link = os.link

    def slow(source: Path, target: Path) -> None:
        link(source, target)
        record.unlink(missing_ok=True)

    monkeypatch.setattr(os, "link", slow)
    assert not variant.is_done("train/1", {"lr": 1})
    assert not variant.has_record("train/1")


def test_a_step_that_lost_files_is_not_taken_over(family):
    run, variant = family
    (run.baseline(1) / "model.txt").unlink()
    assert not variant.is_done("train/1", {"lr": 1})


def test_only_runs_in_the_folder_of_ablations_have_an_origin(tmp_path, family, monkeypatch):
    run, variant = family
    assert run.origin is None
    assert variant.origin == run.path.resolve()
    (variant.path.parent / "others").mkdir()
    monkeypatch.chdir(variant.path.parent / "others")
    with Run.open(Path("."), made_up_config(), quiet=True) as here:
        assert here.origin == run.path.resolve()
    with Run.open(tmp_path / "ablations" / "x" / "y", made_up_config(), quiet=True) as other:
        assert other.origin is None, "there is no run above it"


def test_opening_a_run_leaves_the_writers_of_its_variants_alone(family):
    run, variant = family
    busy, stray = variant.path / ".results.json.12.tmp", run.path / "seeds" / ".model.txt.12.tmp"
    busy.touch()
    stray.touch()
    Run.open(run.path, run.config, quiet=True).close()
    assert busy.exists()
    assert not stray.exists()


def test_records_of_the_same_inputs_but_another_step_are_not_taken_over(family):
    run, variant = family
    assert not Records(variant.path).adopt("train/2", {"lr": 1}, Records(run.path))


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_blocks_share_no_parameter_and_leave_none_out():
    names = [
        "pos_embed", "net.stem.conv.weight", "net.stem.norm.weight", "net.layers.0.a.weight", "net.layers.0.b.weight",
        "net.layers.1.a.weight", "net.norm.weight", "head.weight", "head.bias",
    ]  # fmt: skip
    found = blocks.blocks_of(names)
    assert found == {
        "pos_embed": ["pos_embed"],
        "net": ["net.stem", "net.norm"],
        "net.layers.0": ["net.layers.0"],
        "net.layers.1": ["net.layers.1"],
        "head": ["head"],
    }
    held = [name for modules in found.values() for name in names_under(names, modules)]
    assert sorted(held) == sorted(names)


def test_a_module_is_no_part_of_one_whose_name_begins_like_it():
    assert names_under(["net.1.weight", "net.10.weight", "net.1"], ["net.1"]) == ["net.1.weight", "net.1"]


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_spearman_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(3)
    one, other = (random.integers(0, 5, size=(20, 9)).astype(float) for _ in range(2))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert premise.spearman(one, other) == pytest.approx(np.array(expected))


def test_a_constant_side_has_no_correlation():
    assert np.isnan(premise.spearman(np.ones((1, 4)), np.arange(4.0)[None]))
    found = premise.agreement(np.ones((4, 2)), np.arange(8.0).reshape(4, 2), 0.95, 100, np.random.default_rng(0))
    assert math.isnan(found.rho)
    assert found.sentence.startswith("Undefined")
    assert found.as_dict() == {"rho": None, "low": None, "high": None, "n": 4}


def test_sentences_follow_the_interval():
    random = np.random.default_rng(1)
    x = np.arange(12.0)[:, None] + random.normal(0, 0.5, size=(12, 5))
    agrees = premise.agreement(x, 2 * x + random.normal(0, 0.5, size=x.shape), 0.95, 500, np.random.default_rng(0))
    assert agrees.low > 0.5
    assert "agrees" in agrees.sentence
    contradicts = premise.agreement(x, -x, 0.95, 500, np.random.default_rng(0))
    assert "contradicts" in contradicts.sentence
    assert contradicts.rho == pytest.approx(-1)
    noise = premise.agreement(x[:5], random.normal(size=(5, 5)), 0.95, 500, np.random.default_rng(0))
    assert "No evidence" in noise.sentence


# -- differences between runs ------------------------------------------------------------------------------------------


def test_differences_between_runs_resample_clusters():
    """Eight images per patient: ten patients carry less information than eighty images."""
    n, seeds = 80, 2
    number = np.arange(n)
    target, protected = number % 2, number // 2 % 2
    ids = tuple(f"{i}.png" for i in number)
    right = np.tile(target, (seeds, 1))
    wrong = np.where(number // 8 % 2 == 0, right, 1 - right)
    one, other = (Predictions(ids, target, protected, predicted) for predicted in (right, wrong))
    results = SimpleNamespace(protected_names="ab", target_names="xy", replicates=300, confidence=0.95)
    width = {
        name: float(np.ptp(difference(one, other, results, clusters)["accuracy"].over_images))
        for name, clusters in (("images", {}), ("patients", {i: f"p{int(i[:-4]) // 8}" for i in ids}))
    }
    assert width["patients"] > 2 * width["images"]


# -- options, names ----------------------------------------------------------------------------------------------------


def test_numbers_are_read_sorted_and_without_repeats():
    assert options.shares("--values", "1/2, 0.1,.5", ()) == [0.1, 0.5]
    assert options.counts("--values", "300,25", ()) == [25, 300]
    assert options.positive("--lrs", None, (1.0,)) == [1.0]
    assert options.words("--values", "c,a", ("a", "b", "c")) == ["a", "c"]


def test_a_method_of_the_run_keeps_its_name_and_others_get_one_that_can_be_a_file():
    config = made_up_config()
    names = Names(config)
    assert names.add("whatever", config.methods["full"]) == "full"
    new = names.add("without ../net.0 <b>", Tune(rule="top_k", density=0.2))
    assert new == "without_net_0_b"
    assert names.add("full", Tune(rule="top_k", density=0.3)) == "full_2"
    assert names.add("again", Tune(rule="top_k", density=0.2)) == new


def test_variants_draw_from_images_that_were_filtered_and_made_in_pairs(family):
    config = made_up_config()
    made = {"pairs": {"held_out": 3}, "filters": {"near_duplicates": 2}, "folder": None, "emoji": None}
    config = variant(config, config.methods, config.default_method, generate=made)
    parent = SimpleNamespace(flags=frozenset(), run=family[0], config=config)
    drawn = variant(config, config.methods, config.default_method, generate=from_parent(parent, balanced_per_group=4))
    assert drawn.generate.folder == family[0].synthetic.resolve()
    assert (drawn.generate.pairs, drawn.generate.filters) == (None, FilterSettings())
    assert drawn.generate.balanced_per_group == 4
    parent.flags = frozenset({"generate.folder"})
    assert from_parent(parent, balanced_per_group=4) == {"balanced_per_group": 4}


# -- charts ------------------------------------------------------------------------------------------------------------


def test_the_frontier_is_of_those_that_none_beats():
    points = [charts.Point(x, y, "", "after") for x, y in ((1, 3), (2, 2), (1.5, 1), (3, 1), (0, math.nan), (2, 2))]
    assert charts.frontier(points, up=True) == [0, 1, 5, 3]
    assert charts.frontier(points, up=False) == [3]


@pytest.mark.parametrize("values", [[0.5], [0, 1], [0.497, 0.519], [-0.2, 0.17], [3, 3e6], [1e-9, 2e-9], [0.0, 0.0]])
def test_ticks_enclose_the_values_and_are_few(values):
    found = charts.ticks(values)
    assert found[0] <= min(values) + 1e-12
    assert found[-1] >= max(values) - 1e-12
    assert 2 <= len(found) <= 7


def test_a_scatter_is_well_formed_and_escapes_labels():
    points = [charts.Point(0.1 * i, 0.2, f"<b>{i}&", "after", 0.0, 0.9) for i in range(12)]
    chart = charts.scatter([*points, charts.Point(math.nan, 1, "x", "after")], x_name="a<b", y_name="c", joined=[0, 1])
    root = xml.fromstring(chart)
    assert len(root.findall(".//circle")) == 12
    assert len(root.findall(".//line[@class='joined']")) == 1
    assert "<b>" not in chart
    assert charts.scatter([charts.Point(math.nan, 1, "x", "after")], x_name="a", y_name="b") == ""


def test_points_are_numbered_as_in_the_legend():
    """Without labels in the plot, points that are close together stay readable."""
    points = [charts.Point(0.5, 0.5 + 0.001 * i, label, "after") for i, label in enumerate(("0.05", "0.1", "full"))]
    root = xml.fromstring(charts.scatter([charts.Point(0.1, 0.2, "", "after"), *points], x_name="a", y_name="b"))
    assert [item.text.strip() for item in root.findall(".//li")] == ["0.05", "0.1", "full"]
    marks = {group.find("text").text: float(group.find("circle").get("cy")) for group in root.findall(".//g")[1:]}
    assert sorted(marks, key=marks.__getitem__) == ["3", "2", "1"]
    assert root.find(".//g").find("text") is None


# -- the model behind selections ---------------------------------------------------------------------------------------


def test_blocks_and_freeze_select_whole_modules(tmp_path):
    from aimfair.methods.tune import select_mask
    from aimfair.selective.sensitivity import Sensitivity

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    sensitivity = Sensitivity(model)
    alone = select_mask(sensitivity, "x", Tune(rule="blocks", blocks=["1"]), 0)
    assert alone.nnz_per_tensor == [0, 0, 8, 2]
    rest = select_mask(sensitivity, "x", Tune(rule="all", freeze=["1"]), 0)
    assert rest.nnz_per_tensor == [12, 4, 0, 0]


@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
@pytest.mark.parametrize("rule", ["top_k", "ratio", "random", "intersection"])
def test_a_density_of_weights_is_met_with_the_fewest_units(rule, granularity):
    from aimfair.methods.tune import select_mask
    from aimfair.selective.sensitivity import Sensitivity

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for width in (2, 4, 8, 16)))
    sensitivity = Sensitivity(model)
    for source in ("real_biased", "synthetic_biased", "synthetic_fair"):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        sensitivity.update(source)
    settings = {"rule": rule, "granularity": granularity}
    for density in (0.02, 0.3, 1.0):
        method = Tune(**settings, density=density, density_of="weights")
        mask = select_mask(sensitivity, "x", method, 3)
        target = round(density * mask.numel)
        assert mask.nnz >= target
        if granularity == "element":
            assert mask.nnz <= target + 1
        elif rule != "intersection":
            by_k = [select_mask(sensitivity, "x", Tune(**settings, k=k), 3) for k in range(1, 9)]
            fewest = next((one for one in by_k if one.nnz >= target), None)
            assert fewest is None or fewest == mask
            frozen = select_mask(sensitivity, "x", method.model_copy(update={"freeze": ["1"]}), 3)
            assert frozen.nnz == mask.nnz - mask.nnz_per_tensor[2] - mask.nnz_per_tensor[3]
    with pytest.raises(ValueError, match="without a density"):
        Tune(rule="top_k", k=3, density_of="weights")


def test_minority_ratios_that_are_near_are_told_apart():
    from aimfair.ablation.minority_ratio import ratio

    assert [ratio(value) for value in (1 / 9, 0.1111, 0.5, 1.0, 1e-5)] == ["1/9", "0.111", "1/2", "1", "1e-05"]


@pytest.mark.slow
def test_taking_over_is_killed_at_every_point(tmp_path):
    """kill -9 before each call that touches the disk; see ``crash_points``."""
    command = [sys.executable, "-m", "tests.ablation.crash_points", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


def test_settings_of_a_method_that_do_not_go_together_are_one_line():
    with pytest.raises(ConfigError, match=r"^rule 'top_k' takes density or k, found none$"):
        options.checked({"rule": "top_k"})
    with pytest.raises(ConfigError, match="has the rule 'head_only', which has no density"):
        options.with_density("density", "probe", Tune(rule="head_only"), 0.1)
    swept = options.with_density(
        "density", "paper", Tune(rule="intersection", bias_density=0.5, domain_density=0.5), 0.1
    )
    assert (swept.density, swept.bias_density, swept.domain_density) == (0.1, None, None)


def test_a_model_of_few_blocks_is_cut_further_in():
    names = [f"net.stages.{stage}.layers.{layer}.{what}" for stage in (0, 1) for layer in (0, 1) for what in "wb"]
    names += ["head.weight", "head.bias"]
    assert list(blocks.blocks_of(names)) == ["net.stages.0", "net.stages.1", "head"]
    assert list(blocks.blocks_of(names, least=3)) == ["net.stages.0", "net.stages.1", "head"]
    finer = [f"net.stages.{stage}.layers.{layer}" for stage in (0, 1) for layer in (0, 1)]
    assert list(blocks.blocks_of(names, least=4)) == [*finer, "head"]
    assert list(blocks.blocks_of(names, least=100)) == [*finer, "head"]
    for least in (1, 4, 100):
        found = blocks.blocks_of(names, least)
        held = [name for modules in found.values() for name in names_under(names, modules)]
        assert sorted(held) == sorted(names)


def test_a_run_with_imported_or_drawn_images_lacks_no_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(ablation_run, "_is_finished", lambda _, step: step != "prompts")
    monkeypatch.setattr(ablation_run, "run_stages", lambda _, stages: done.extend(stages))
    for settings in ({"folder": Path("images")}, {"emoji": {}}, {}):
        config = SimpleNamespace(seeds=[1], generate=GenerateSettings.model_validate(settings))
        ablation_run._finish_shared(SimpleNamespace(config=config, log=SimpleNamespace(tell=done.append)))  # type: ignore[arg-type]
    assert done == ["this run is not finished: first its prompts", "prompts"]

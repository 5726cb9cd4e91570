"""The page as text: what it says, what it leaves out, and that it needs nothing beside it."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.data.images import ImageSet, Splits
from aimfair.evaluation.compare import compare
from aimfair.evaluation.flips import Flips
from aimfair.evaluation.flips import measure as measure_flips
from aimfair.evaluation.results import Results
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.generation.manifest import Manifest, write_manifest
from aimfair.generation.summary import GenerationSummary
from aimfair.prompts.diversity import measure
from aimfair.prompts.grammar import load_prompts
from aimfair.report import page
from aimfair.report.material import Material, Pair, Replies
from aimfair.run.directory import Run
from aimfair.stages import report
from aimfair.stages.evaluate import experiment
from tests.report.conftest import open_run
from tests.report.made_up import made_up_config, made_up_predictions, made_up_splits

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>alert('x')</script>\"'&<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Texts, links and structure; fails on tags that do not nest."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html.replace("<wbr>", ""))  # names are whole texts
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def material(run: Run) -> Material:
    return report.gather(run)


def changed(material: Material, **changes: object) -> Material:
    return Material(**{**vars(material), **changes})  # type: ignore[arg-type]


def test_a_whole_report(material: Material) -> None:
    html = page.render(material)
    seen = Page(html)
    results = material.results
    default, biased = results.methods["aimfair"].mean, results.methods["biased"].mean
    for metric in ("worst_group_accuracy", "eo_mean", "accuracy"):
        assert f"{100 * biased[metric]:.1f}%" in seen.text
        assert f"{100 * default[metric]:.1f}%" in seen.text
    assert "Worst-group accuracy rose from" in seen.text
    assert "tunes 9." in seen.text
    assert "90 training, 60 test images" in seen.text
    for text in ("below five · red", "clearly better than", "a handwritten zero in green ink", "stages.1", "generate"):
        assert text in seen.text, text
    assert "There are no" not in seen.text
    assert "The run has no" not in seen.text
    assert seen.text.count("Cautions") == 0
    images = [attributes for tag, attributes in seen.tags if tag == "img"]
    assert len(images) == 4 * (6 + 6)
    assert all(attributes["alt"] and attributes["src"].startswith("data:image/png;") for attributes in images)  # type: ignore[union-attr]


def test_it_needs_nothing_beside_it(material: Material) -> None:
    html = page.render(material)
    seen = Page(html)
    for tag, attributes in seen.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), value
    assert "url(" not in html
    assert "@import" not in html
    policies = [a for tag, a in seen.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert [policy["content"] for policy in policies] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]


def test_links_and_headings_lead_somewhere(material: Material) -> None:
    seen = Page(page.render(material))
    ids = {attributes["id"] for _, attributes in seen.tags if "id" in attributes}
    links = {(attributes["href"] or "")[1:] for tag, attributes in seen.tags if tag == "a"}
    assert links
    assert links == ids
    levels = [int(tag[1]) for tag, _ in seen.tags if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in attributes for tag, attributes in seen.tags if tag == "th")


def test_texts_of_the_run_are_escaped(run: Run) -> None:
    records = Manifest(run.synthetic).records
    write_manifest(run.synthetic, [record.model_copy(update={"text": EVIL}) for record in records.values()])
    try:
        material = report.gather(run)
    finally:
        write_manifest(run.synthetic, records.values())
    results = material.results.model_copy(update={"title": EVIL, "target_names": [EVIL, "b"], "cautions": [EVIL]})
    prompts = [prompt.model_copy(update={"contexts": {EVIL: EVIL}}) for prompt in load_prompts(run.prompts)]
    prompts[0] = prompts[0].model_copy(update={"contexts": {}})  # so that groups differ, in what is evil
    diversity = measure(prompts, material.config.prompts)
    replies = Replies(1, 1, {EVIL: 1}, 1, 1)
    html = page.render(changed(material, results=results, diversity=diversity, replies=replies, settings=EVIL))
    seen = Page(html)
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in seen.tags)
    assert seen.text.count("alert(1)") >= 30
    assert "alert(1)>" not in html


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("masks", "The run has no masks."),
        ("history.json", "The run has no training history."),
        ("prompts.jsonl diversity.json", "The run has no prompts."),
        ("images", "There are no synthetic images of this group in the run."),
        ("generation.json", "The run has no record of how its images were generated."),
        ("manifest.jsonl", "There are no synthetic images of this group in the run."),
    ],
)
def test_what_is_missing_is_said(finished: Path, tmp_path: Path, gone: str, said: str) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    found = [part for name in gone.split() for part in path.rglob(name)]
    assert found
    for part in found:
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    with open_run(path) as run:
        text = Page(page.render(report.gather(run))).text
    assert said in text
    assert "Worst-group accuracy rose" in text


def test_the_bias_of_the_generator(run: Run) -> None:
    material = report.gather(run)
    assert material.generation is not None
    groups = [(0, 0), (0, 1), (1, 0), (1, 1)]
    kept = [group for group in groups for _ in range(300)]
    rejected = [((1, 0), "shows_y0_a0")] * 100 + [((1, 0), "shows_y_unclear_a1")] * 50 + [((0, 1), "black")] * 3
    biased = GenerationSummary.of(kept, rejected, checked=["target", "protected"])
    text = Page(page.render(changed(material, generation=biased))).text
    names = [material.results.group_name(*group) for group in groups]
    assert f"The generator is biased: 33.3% of its images of {names[2]} were rejected, 0.0% of {names[0]}" in text
    assert f"{names[2]} 450 300 33.3% 0 150" in text
    assert "Class that a classifier sees in the generated images" in text
    assert f"{names[2]} 450 22.2% 66.7% 11.1%" in text  # 100, 300 and 50 unclear
    assert f"{names[2]} 450 88.9% 11.1%" in text
    alike = GenerationSummary.of(kept, rejected[-3:])
    text = Page(page.render(changed(material, generation=alike))).text
    assert "biased:" not in text
    assert "sees in the generated images" not in text


def test_prompts_of_older_runs_are_measured_for_the_report(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    with open_run(path) as run:
        expected = report.gather(run).diversity
        run.diversity.unlink()
        assert report.gather(run).diversity == expected
        assert expected is not None
        run.diversity.write_text("{}")
        with pytest.raises(AimfairError, match=r"diversity\.json: provider: .*remove the file"):
            report.gather(run)


def section(html: str, name: str) -> str:
    start = html.index(f'<section id="{name}">')
    return html[start : html.index("</section>", start) + len("</section>")]


def test_how_varied_the_prompts_are(material: Material) -> None:
    part = section(page.render(material), "prompts")
    seen = Page(part)
    assert material.diversity is not None
    for wording, name in ((material.diversity.plain, "plain"), (material.diversity.contextual, "contextual")):
        for key in ("distinct_1", "distinct_2", "similarity"):
            mean = sum(getattr(one, key) for one in wording) / 4
            assert re.search(rf"{name} {100 * mean:.1f}%", seen.text), (name, key)
    assert "Contexts are the same in every group." in seen.text
    assert "tilt" in seen.text
    assert "3 of 3" in seen.text
    assert part.count('<svg class="dots"') == 3
    stacks = re.findall(r'<svg class="stacks".*?</svg>', part, re.DOTALL)
    assert len(stacks) == 3
    tilt = stacks[1]  # four prompts of six, in three values, in each of four groups
    end = 0.0
    for kind in range(3):
        widths = re.findall(rf'class="part{kind}" x="([0-9.]+)%" y="\d+" width="([0-9.]+)%"', tilt)
        assert len(set(widths)) == 1
        assert len(widths) == 4
        assert float(widths[0][0]) == pytest.approx(end, abs=0.02)  # each part begins where the last one ends
        end += float(widths[0][1])
    assert end == pytest.approx(100 * 4 / 6, abs=0.05)
    assert "tokens" not in seen.text


def test_groups_that_differ_are_named_with_the_attribute(run: Run, material: Material) -> None:
    prompts = load_prompts(run.prompts)
    contexts = [f"on blue paper {number}" for number in range(20)]
    changed_ones = [
        prompt.model_copy(update={"contexts": {"paper": contexts[i % 20], "ink_pot": "full"}})
        if (prompt.y, prompt.a) == (1, 0)
        else prompt
        for i, prompt in enumerate(prompts)
    ]
    settings = material.config.prompts.model_copy(update={"provider": "openai"})
    replies = Replies(3, 6, {"not JSON": 2, "too similar to another": 1}, 1234, 56)
    diversity = measure(changed_ones, settings)
    text = Page(section(page.render(changed(material, diversity=diversity, replies=replies)), "prompts")).text
    assert "Contexts differ between groups , most in paper: 100.0% between below five · green and five or more" in text
    assert "ink pot" in text
    assert "different values the language model produced" in text
    assert "asked 3 times in this run: 1,234 tokens in, 56 out, 6 templates accepted." in text
    assert "Refused: not JSON (2), too similar to another (1)." in text


def test_replies_are_counted_over_all_that_a_run_asked(run: Run) -> None:
    assert report.gather(run).replies is None
    log = run.path / "log.jsonl"
    before = log.read_bytes()
    run.log("prompts reply", accepted=4, refused={"markup": 1}, tokens_in=100, tokens_out=20)
    run.log("prompts reply", accepted=2, refused={"markup": 1, "refusal": 1}, tokens_in=50, tokens_out=10)
    try:
        assert report.gather(run).replies == Replies(2, 6, {"markup": 2, "refusal": 1}, 150, 30)
    finally:
        log.write_bytes(before)


def test_how_the_images_were_made(material: Material) -> None:
    text = Page(page.render(material)).text
    assert "58 images were generated, 48 kept" in text
    assert "Generated Kept Rejected black too_dark" in " ".join(text.split())
    assert "17 12 29.4% 2 3" in " ".join(text.split())
    assert "10.6 images/s (1,058 images in 1 min 40 s)" in text
    assert "13.2 images/s" in text
    assert "text encoder 1%, denoiser 70%, scheduler 2%, decoder 6%, filters 2%, waiting for files 2%, rest 18%" in text
    assert "8.0 s in all threads together" in text
    assert "quantization int8, guidance_interval [0.2, 0.8]: 2.6 times the speed of the plain model" in text


def test_a_damaged_account_of_the_images(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    (path / "generation.json").write_text("{")
    with open_run(path) as run, pytest.raises(AimfairError, match=r"generation\.json: .*JSON.*; remove it"):
        report.gather(run)


def test_undefined_numbers_are_dashes(material: Material) -> None:
    config, splits = made_up_config(seeds=[100]), made_up_splits((60, 60, 20, 0))
    results = compare(experiment(config), splits, made_up_predictions(splits, config), {})
    text = Page(page.render(changed(material, config=config, results=results, splits=splits, settings=""))).text
    assert "nan" not in text
    assert "1 of 4 groups has no test images: worst-group accuracy of all is undefined." in text
    assert "No test images in group five or more · red" in text
    assert "Only 20 test images in group five or more · green" in text
    assert "One seed:" in text
    assert "over seeds" not in text.split("Accuracy of each group")[0]


@pytest.mark.parametrize("kind", ["erm", "last_layer_retrain", "synthetic_only"])
def test_the_first_sentence_is_of_the_method(material: Material, kind: str) -> None:
    config = made_up_config(methods={name: {"kind": kind} for name in material.config.methods})
    methods = {name: of.model_copy(update={"density": None}) for name, of in material.results.methods.items()}
    results = material.results.model_copy(update={"methods": methods})
    text = Page(page.render(changed(material, config=config, results=results))).text
    assert f"aimfair {config.methods['aimfair'].summary(None, material.synthetic_images)}; before is the" in text
    assert "tunes" not in text
    assert ("which aimfair has not seen" in text) == (kind != "synthetic_only")


def test_factors_of_the_protected_attribute_are_named(material: Material) -> None:
    data = {
        "kind": "table", "root": "/", "target": "digit", "protected": "ink", "intersect_with": ["stroke"],
        "majority": [0, 1],
    }  # fmt: skip
    config = made_up_config(data=data)
    results = material.results.model_copy(update={"intersections": {}})
    text = Page(page.render(changed(material, config=config, results=results))).text
    assert "grouped by each attribute that the protected one is made of (ink, stroke)." in text
    assert "no other stage reads" not in text


def test_many_masks_stand_in_a_table_that_opens(material: Material) -> None:
    masks = material.masks
    many = {**{f"other-{i}": masks["random"] for i in range(6)}, "aimfair": masks["aimfair"]}
    part = section(page.render(changed(material, masks=many)), "mask")
    before, after = part.split("Every block, all 7 methods")
    assert "aimfair" in before
    assert "other-" not in before.split("<table")[1]
    assert all(name in after for name in many)
    assert "Every block, all" not in section(page.render(material), "mask")


def ten_class_results() -> tuple[Results, Splits]:
    config = made_up_config(replicates=100)
    generator = np.random.default_rng(0)
    target, protected = np.repeat(np.arange(10), 60), np.tile([0, 1], 300)
    images = generator.integers(255, size=(600, 8, 8, 3), dtype=np.uint8)
    test = ImageSet(images, target, protected, tuple(map(str, range(600))))
    splits = Splits(test, test, test, tuple(f"digit {i}" for i in range(10)), ("green", "red"))
    logits = {}
    for name in ("biased", *config.methods):
        of_seeds = [generator.normal(size=(600, 10)).astype(np.float32) for _ in config.seeds]
        for one in of_seeds:
            one[np.arange(600), target] += 2
        logits[name] = of_seeds
    predicted = {name: [one.argmax(axis=1) for one in of] for name, of in logits.items()}
    return compare(experiment(config), splits, predicted, {}, logits), splits


def test_ten_classes(material: Material) -> None:
    results, splits = ten_class_results()
    text = Page(page.render(changed(material, results=results, splits=splits, diversity=None))).text
    assert all(f"digit {y} · {ink}" in text for y in range(10) for ink in ("green", "red"))
    assert "No clear change of worst-group accuracy" in text


def test_confusions_of_ten_classes(material: Material) -> None:
    results = ten_class_results()
    part = section(page.render(changed(material, results=results[0], splits=results[1], diversity=None)), "groups")
    assert part.count('<table class="confusion">') == 2
    first = np.mean([seed.counts for seed in results[0].methods["aimfair"].seeds], axis=0)[1, 3]
    row = part[part.index("<caption>red") :].split('<th scope="row">digit 3</th>')[1].split("</tr>")[0]
    shown = re.findall(r"--share: ([0-9.]+)", row)
    assert [float(share) for share in shown] == pytest.approx(first / first.sum(), abs=1e-4)
    two = section(page.render(material), "groups")
    assert "confusion" not in two


def test_probabilities_before_and_after(material: Material) -> None:
    part = section(page.render(material), "certainty")
    text = Page(part).text
    before, after = (material.results.methods[name] for name in ("biased", "aimfair"))
    for score in ("auroc", "calibration_error", "brier"):
        for method in (before, after):
            assert f"{method.scores_mean.overall[score]:.3f} ± {method.scores_std.overall[score]:.3f}" in text
            assert f"{method.scores_mean.by_value[score][1]:.3f} ±" in text
            assert f"{method.scores_mean.gap[score]:.3f} ±" in text
    config, splits = made_up_config(replicates=100), made_up_splits()
    none = compare(experiment(config), splits, made_up_predictions(splits, config), {})
    html = page.render(changed(material, results=none, splits=splits))
    assert "The results contain no metrics of probabilities." in section(html, "certainty")
    assert "no further attributes of the test images" in section(html, "attributes")


def test_other_attributes_and_intersections(material: Material) -> None:
    part = section(page.render(material), "attributes")
    text = Page(part).text
    audit = material.results.intersections["stroke"]
    y, a = audit.methods["aimfair"].worst_present_group
    name = f"{material.results.target_names[y]} · {audit.value_names[a]}"
    rate = audit.methods["aimfair"].by_group.mean[a][y]
    assert f"{name}, {100 * rate:.1f}%" in text, "the worst intersection is named"
    assert "of the 10 of 12 groups that have test images" in text
    assert "2 groups have no test images" in text
    assert "No test images in group below five · red · faint" in text
    assert part.count("<b>· empty</b>") == 2
    sizes = np.array(audit.test_images)
    assert (
        part.count("<b>· small</b>")
        == ((sizes > 0) & (sizes < 30)).sum() + (np.array(material.results.attributes["stroke"].test_images) < 30).sum()
    )
    worst = audit.methods["aimfair"].mean["worst_present_group_accuracy"]
    assert (
        f"Worst group with test images {100 * audit.methods['biased'].mean['worst_present_group_accuracy']:.1f}%"
        in text
    )
    assert f"{100 * worst:.1f}%" in text
    alone = material.results.attributes["stroke"].methods["aimfair"]
    for metric in ("worst_group_accuracy", "eo_mean", "group_std", "demographic_parity"):
        assert f"{100 * alone.mean[metric]:.1f}%" in text


def test_both_worst_groups_are_named_and_readers_of_groups_marked(material: Material) -> None:
    part = section(page.render(material), "methods")
    text = Page(part).text
    for method in material.results.methods.values():
        assert f"{100 * method.mean['worst_group_accuracy']:.1f}%" in text
        assert f"{100 * method.of_mean_rates['worst_group_accuracy']:.1f}%" in text
    assert "Seed-averaged worst group" in text
    assert "† Its training reads the protected attribute" in text
    assert text.count("†") == 2
    assert re.search(r"full †", text)
    assert "All start from the same biased models" in text
    other = material.results.methods["full"].model_copy(update={"density": None})
    mixed = material.results.model_copy(update={"methods": {**material.results.methods, "full": other}})
    assert "Methods with a share under “Tuned” start from" in section(
        page.render(changed(material, results=mixed)), "methods"
    )
    unmarked = {name: of.model_copy(update={"reads_groups": False}) for name, of in material.results.methods.items()}
    results = material.results.model_copy(update={"methods": unmarked})
    assert "†" not in page.render(changed(material, results=results))


def test_the_stage_is_done_once(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    with open_run(path) as run:
        report.run(run)
        first = run.report.read_bytes()
        report.run(run)
        assert run.report.read_bytes() == first, "it would show another time"
        run.report.unlink()
        report.run(run)
        assert b"Coloured digits" in run.report.read_bytes()
        run.finish("evaluate", {"other": 1}, [run.results])
        run.report.write_text("x" * len(run.report.read_bytes()))
        report.run(run)
        assert b"Coloured digits" in run.report.read_bytes(), "other results make another report"


def test_damaged_lines_of_the_log_cost_their_times_only(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-30] + b"\xff\x00\n[]\n" + log.read_bytes())
    with open_run(tmp_path / "run") as run:
        assert report.gather(run).stage_seconds["train"] >= 80.2
    warning = json.loads(log.read_text(errors="replace").splitlines()[-1])
    assert warning["message"].startswith(f"{log}: 2 damaged lines are left out")


def test_a_damaged_mask_says_what_to_do(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    with open_run(tmp_path / "run") as run:
        path = run.mask(run.config.seeds[0], "full")
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(
            AimfairError, match=rf"{path.name}: not a usable .*; remove it and do: aimfair select --run "
        ):
            report.gather(run)


# -- counterfactual pairs ----------------------------------------------------------------------------------------------


def with_pairs(material: Material, name: str = "ink") -> Material:
    """Of four pairs: all flip for the biased model, at the last seed three, and none for the others."""
    target, results = np.array([0, 0, 1, 1]), material.results
    flipping, steady = np.array([[0, 1]] * 4), np.stack([target, target], axis=1)
    less = np.array([[0, 1], [0, 1], [0, 1], [1, 1]])
    predicted = {
        method: [flipping, flipping, less] if method == "biased" else [steady] * 3 for method in results.methods
    }
    flips = Flips(
        protected=name, target_names=results.target_names, protected_names=results.protected_names,
        seeds=results.seeds, default_method="aimfair", confidence=0.95, replicates=200, pairs=[2, 2],
        methods=measure_flips(target, predicted, 2, EvaluateSettings(replicates=200)),
    )  # fmt: skip
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    samples = [Pair(y, [image, image + 200], f"{name} in green", {"biased": [0, 1], "aimfair": [y, y]}) for y in (0, 1)]
    return changed(material, flips=flips, pairs=samples)


def test_pairs_and_their_flips(material: Material) -> None:
    html = page.render(with_pairs(material))
    seen = Page(html)
    section = Page(html[html.index('<section id="pairs">') :].partition("</section>")[0] + "</section>")
    assert "When ink alone changes, aimfair changes its mind on 0.0% of 4 pairs, the biased model on 91.7%" in seen.text
    assert "too few pairs to judge" in section.text
    assert "\N{MINUS SIGN}91.7" in section.text
    images = [attributes for tag, attributes in section.tags if tag == "img"]
    assert [one["alt"] for one in images] == [
        f"{y}, {a}" for y in ("below five", "five or more") for a in ("green", "red")
    ]
    assert section.text.count("biased flips") == 2
    assert section.text.count("✓ below five ✗ five or more") == 1
    assert section.text.count("✗ below five ✓ five or more") == 1
    assert any(attributes.get("href") == "#pairs" for _, attributes in seen.tags)
    assert 'id="pairs"' not in page.render(material)
    assert "made from" not in section.text


def test_pairs_of_real_images_show_those(material: Material) -> None:
    from_noise = with_pairs(material)
    real = np.zeros((8, 8, 3), dtype=np.uint8)
    html = page.render(changed(from_noise, pairs=[replace(pair, source=real) for pair in from_noise.pairs]))
    alts = [attributes.get("alt") for tag, attributes in Page(html).tags if tag == "img"]
    assert (alts.count("below five, real"), alts.count("five or more, real")) == (1, 1)
    assert "the real validation image that they are made from" in Page(html).text


def test_names_of_pairs_are_escaped(material: Material) -> None:
    html = page.render(with_pairs(material, EVIL))
    assert EVIL not in html
    Page(html)

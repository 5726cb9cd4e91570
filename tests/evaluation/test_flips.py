"""Flips of held-out pairs: shares counted by hand, intervals against other ways, the stage and its record."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.data.decode import content_digest
from aimfair.data.images import ImageSet
from aimfair.evaluation.flips import FlipResult, Flips, measure
from aimfair.evaluation.intervals import resampled_means, student_t
from aimfair.evaluation.predictions import load_logits
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.generation.manifest import ImageRecord, Manifest, file_name, write_manifest
from aimfair.generation.plan import HELD_OUT, make_plan
from aimfair.generation.settings import PairSettings
from aimfair.prompts.grammar import write_prompts
from aimfair.run.directory import Run
from aimfair.stages import flips, report
from aimfair.stages.context import provide_splits
from aimfair.training.models import build_model, load_model, save_model
from aimfair.training.predict import predict
from aimfair.training.settings import ModelSettings
from tests.report.made_up import draw, made_up_config, made_up_splits

SETTINGS = EvaluateSettings(replicates=4000)
TARGET = np.array([0, 0, 0, 0, 1, 1])


def of(*rows: tuple[int, int]) -> np.ndarray:
    return np.array(rows)


BIASED = [
    of((0, 1), (0, 1), (0, 0), (1, 1), (1, 0), (1, 1)),
    of((0, 1), (0, 0), (0, 0), (1, 0), (1, 1), (1, 1)),
]
FAIR = [
    of((0, 0), (0, 1), (0, 0), (1, 1), (1, 1), (1, 1)),
    of((0, 0), (0, 0), (0, 0), (0, 0), (1, 1), (1, 1)),
]


def test_shares_counted_by_hand() -> None:
    found = measure(TARGET, {"biased": BIASED, "fair": FAIR}, 2, SETTINGS)
    biased, fair = found["biased"], found["fair"]
    assert biased.seeds == pytest.approx([3 / 6, 2 / 6])
    assert (biased.mean, biased.std) == pytest.approx((2.5 / 6, np.std([3 / 6, 2 / 6], ddof=1)))
    assert biased.by_class == pytest.approx([(2 / 4 + 2 / 4) / 2, (1 / 2 + 0) / 2])
    assert biased.accuracy == pytest.approx([(5 / 6 + 5 / 6) / 2, (2 / 6 + 5 / 6) / 2])
    assert biased.versus_biased is None
    assert fair.versus_biased is not None
    assert fair.seeds == pytest.approx([1 / 6, 0])
    assert fair.versus_biased.mean == pytest.approx((-2 / 6 - 2 / 6) / 2)
    assert fair.versus_biased.over_seeds == pytest.approx(student_t(np.array([-2 / 6, -2 / 6]), 0.95))
    assert fair.versus_biased.support == 6


def test_a_pair_of_three_flips_if_any_image_differs() -> None:
    predicted = [of((0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1), (1, 1, 1), (0, 1, 0))]  # type: ignore[arg-type]
    assert measure(TARGET, {"biased": predicted}, 2, SETTINGS)["biased"].seeds == [3 / 6]


def test_means_are_resampled_within_strata_and_paired() -> None:
    generator = np.random.default_rng(0)
    strata = np.repeat([0, 1], (40, 10))
    values = generator.integers(0, 4, (2, 50)) * (1 + 5 * strata)
    values[1, :] = values[0, :] + (strata == 0)
    found = resampled_means(values, strata, 6000, generator)
    assert found.shape == (2, 6000)
    assert np.allclose(found[1] - found[0], 40 / 50)  # the same draws, and as many of each stratum
    spread = np.sqrt(sum((strata == s).sum() * values[0, strata == s].var() for s in (0, 1))) / 50
    assert found[0].mean() == pytest.approx(values[0].mean(), abs=4 * spread / np.sqrt(6000))
    assert found[0].std() == pytest.approx(spread, rel=0.05)


def test_the_interval_of_the_difference_uses_the_same_pairs() -> None:
    """A model that flips on a part of the other's pairs: the difference is surer than of two independent samples."""
    target = np.zeros(200, dtype=np.int64)
    many = np.zeros((200, 2), dtype=np.int64)
    many[:100, 1] = 1
    few = many.copy()
    few[:10] = 0
    found = measure(target, {"biased": [many], "fair": [few]}, 1, SETTINGS)
    low, high = found["fair"].versus_biased.over_images  # type: ignore[union-attr]
    assert low < -10 / 200 < high < 0
    assert high - low < 0.07  # 1.96 * 2 * sqrt(0.05 * 0.95 / 200) = 0.06; independent ones: 0.2
    assert found["biased"].interval == pytest.approx((0.43, 0.57), abs=0.011)


def test_no_flip_at_all_is_not_certainty() -> None:
    none = [np.zeros((50, 2), dtype=np.int64)]
    found = measure(np.zeros(50, dtype=np.int64), {"biased": none}, 1, SETTINGS)["biased"]
    assert found.mean == 0
    assert found.interval == pytest.approx((0, 0.0713), abs=1e-3)  # Wilson's: z^2 / (n + z^2)


def made_up(**methods: FlipResult) -> Flips:
    return Flips(
        protected="ink", target_names=["a", "b"], protected_names=["green", "red"], seeds=[1], default_method="fair",
        confidence=0.95, replicates=100, pairs=[4, 2], methods=methods,
    )  # fmt: skip


def test_the_file(tmp_path: Path) -> None:
    one_seed = measure(TARGET, {"biased": BIASED[:1], "fair": FAIR[:1]}, 2, SETTINGS)
    whole, path = made_up(**one_seed), tmp_path / "flips.json"
    whole.save(path)
    assert Flips.load(path).model_dump_json() == whole.model_dump_json()
    assert "NaN" not in path.read_text()
    path.write_text("{}")
    with pytest.raises(AimfairError, match=r"flips\.json: .*remove it and do: aimfair evaluate --run"):
        Flips.load(path)


# -- the stage ---------------------------------------------------------------------------------------------------------

NETWORK = {"config": {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1],
                      "layer_type": "basic"}}  # fmt: skip


def write_pairs(run: Run) -> list[np.ndarray]:
    """A balanced set and three held-out pairs of each class, drawn; the images in the order of the manifest."""
    plan = make_plan(write_prompts(run.config.prompts), run.config.generate, run.config.data)
    (run.synthetic / "images").mkdir(parents=True)
    images, records = [], []
    for planned in plan:
        image = draw(np.random.default_rng(planned.seed), planned.y, planned.a)
        image[0, 0, 0] = planned.image % 256  # no two alike
        file = file_name(planned.image, content_digest(Image.fromarray(image)))
        Image.fromarray(image).save(run.synthetic / file)
        records.append(ImageRecord(**planned.model_dump(), file=file, attempt=0, rejected=[]))
        images.append(image)
    write_manifest(run.synthetic, records)
    run.finish("generate", {}, [run.synthetic / "manifest.jsonl", run.synthetic / "images"])
    return images


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    config = made_up_config(
        seeds=[1, 2],
        model=NETWORK,
        methods={"aimfair": {"rule": "ratio", "density": 0.1}},
        generate={"balanced_per_group": 2, "biased_total": 8, "pairs": {"held_out": 3}},
    )
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        provide_splits(run, made_up_splits((2, 2, 2, 2), (2, 2, 2, 2)))
        for seed in config.seeds:
            for folder, weights in ((run.baseline(seed), seed), (run.finetuned(seed, "aimfair"), 10 * seed)):
                save_model(build_model(ModelSettings(config=NETWORK["config"]), 2, weights), folder)
            run.finish(f"train/{seed}", {}, [run.baseline(seed)])
            run.finish(f"finetune/{seed}/aimfair", {}, [run.finetuned(seed, "aimfair")])
        yield run


def test_the_stage_predicts_held_out_pairs_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pairs(run)
    flips.run(run)
    found = Flips.load(run.flips)
    assert found.pairs == [3, 3]
    held = [record for record in Manifest(run.synthetic).records.values() if HELD_OUT in record.sets]
    by_pair: dict[int, list[ImageRecord]] = {}
    for record in held:
        by_pair.setdefault(record.pair or 0, []).append(record)
    for s, seed in enumerate(run.config.seeds):
        for name in ("biased", "aimfair"):
            model = load_model(run.model(seed, name), run.config.model)
            flipped = []
            for of_pair in by_pair.values():
                pixels = np.stack([images[record.image] for record in of_pair])
                some = ImageSet(pixels, np.zeros(2, int), np.zeros(2, int), ("a", "b"))
                predicted = predict(model, some, run.config.model, batch_size=2, device=torch.device("cpu"))
                flipped.append(len(set(predicted.argmax(axis=1))) > 1)
            assert found.methods[name].seeds[s] == pytest.approx(np.mean(flipped))
    assert "When ink alone changes, aimfair changes its mind on" in capsys.readouterr().out
    samples = report.sample_pairs(run)
    assert [sample.y for sample in samples] == [0, 0, 0, 1, 1, 1]
    for sample in samples:
        first, second = next(one for one in by_pair.values() if one[0].text == sample.text and one[0].y == sample.y)
        assert np.array_equal(sample.images, [images[first.image], images[second.image]])
        logits, place = load_logits(run.logits_of_pairs(1, "aimfair")), held.index(first)
        assert sample.predicted["aimfair"][0] == logits[place].argmax()


def test_the_stage_is_done_again_for_other_images_and_not_otherwise(run: Run) -> None:
    write_pairs(run)
    flips.run(run)
    before = run.flips.stat().st_mtime_ns, run.logits_of_pairs(1, "biased").stat().st_mtime_ns
    flips.run(run)
    assert before == (run.flips.stat().st_mtime_ns, run.logits_of_pairs(1, "biased").stat().st_mtime_ns)
    record = next(one for one in Manifest(run.synthetic).records.values() if HELD_OUT in one.sets)
    Image.new("RGB", (32, 32), "red").save(run.synthetic / record.file)
    run.finish("generate", {}, [run.synthetic / "manifest.jsonl", run.synthetic / "images"])
    flips.run(run)
    assert before[1] < run.logits_of_pairs(1, "biased").stat().st_mtime_ns


def test_without_held_out_pairs_there_is_no_file(run: Run) -> None:
    run.flips.write_text("of other settings")
    settings = run.config.generate.model_copy(update={"pairs": PairSettings(held_out=0)})
    run.config = run.config.model_copy(update={"generate": settings})
    assert flips.steps(run) == []
    flips.run(run)
    assert not run.flips.exists()

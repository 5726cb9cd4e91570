"""Generators judged by what they buy: arms, non-inferiority, distances of images."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aimfair.ablation import generator_speed, generators
from aimfair.ablation.generator_arms import facts_of, read_arms
from aimfair.ablation.image_distance import HeadInputs, PretrainedFeatures, features_of, kid
from aimfair.ablation.noninferiority import judge_losses
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE
from aimfair.base.progress import Progress
from aimfair.config import Config
from aimfair.data.images import ImageSet
from aimfair.diffusion.engines import quantize, tensorrt
from aimfair.diffusion.sampler import Samples
from aimfair.evaluation.intervals import student_t
from aimfair.evaluation.results import Difference
from aimfair.generation.filters.towers import View
from aimfair.generation.manifest import Manifest
from aimfair.generation.plan import PlannedImage
from aimfair.run.directory import Run
from aimfair.stages.generate import Models, load_models
from aimfair.training.feed import Normalize
from aimfair.training.models import build_model
from tests.report.made_up import made_up_config

METRICS = ("worst_group_accuracy", "eo_mean", "accuracy")


@pytest.fixture(scope="module")
def config() -> Config:
    return made_up_config()


# -- arms --------------------------------------------------------------------------------------------------------------


def test_arms_are_settings_of_generate(config):
    own = config.generate.steps
    typed = f' steps=3 ; generate.steps=3, guidance_interval=[0.2, 0.8];steps={own};negative_prompt="a; b, c";'
    arms, same = read_arms(typed, config)
    assert [arm.label for arm in arms] == [
        "steps=3", "steps=3,guidance_interval=[0.2, 0.8]", "negative_prompt=a; b, c"
    ]  # fmt: skip
    assert same == [f"steps={own}"]
    assert arms[1].config.generate == config.generate.model_copy(update={"steps": 3, "guidance_interval": (0.2, 0.8)})
    assert arms[2].config.generate.negative_prompt == "a; b, c"
    assert arms[0].config.model_copy(update={"generate": config.generate}) == config
    assert facts_of(config, arms) == {"steps": own, "guidance_interval": "[0.0, 1.0]", "negative_prompt": ""}
    assert facts_of(config, read_arms("render_size=64", config)[0]) == {"render_size": "null"}
    groups = [arm.group for arm in arms]
    assert len(set(groups)) == 3
    assert all(Path(group).name == group and group.isascii() and " " not in group for group in groups)


def test_lists_and_quotes_of_an_arm_are_not_split(config):
    nested = "loras=[{weights: ./a, scale: 0.5}, {weights: './b;,]', scale: 1}]"
    arms, _ = read_arms(f"{nested},steps=3; negative_prompt='it''s; [', seed=5 ;negative_prompt=it's, steps=9", config)
    assert [arm.keys for arm in arms] == [("loras", "steps"), ("negative_prompt", "seed"), ("negative_prompt", "steps")]
    loras = [(Path(one.weights), one.scale) for one in arms[0].config.generate.loras]
    assert loras == [
        (Path("./a").resolve(), 0.5),
        (Path("./b;,]").resolve(), 1),
    ]
    assert [arm.config.generate.negative_prompt for arm in arms[1:]] == ["it's; [", "it's"]
    assert arms[0].config.generate.steps == 3


def test_what_an_arm_needs_is_looked_for_before_hours_of_work(config, monkeypatch):
    def missing() -> str:
        raise AimfairError("generate.quantization needs onnxruntime")

    monkeypatch.setattr(generators, "model_folder", lambda *_: Path())
    monkeypatch.setattr(tensorrt, "versions", lambda name: {name: "10.0"})
    monkeypatch.setattr(quantize, "version", missing)
    arms, _ = read_arms("engine=tensorrt-rtx,quantization=int8", config)
    request = generators.Request("aimfair", config.methods["aimfair"], arms, [], 0.02, None)
    with pytest.raises(AimfairError, match=r"^--values: arm 'engine=tensorrt-rtx,quantization=int8': .*needs onnx"):
        generators.plan(SimpleNamespace(config=config), request)


def test_without_values_the_steps_vary(config):
    four = config.model_copy(update={"generate": config.generate.model_copy(update={"steps": 4})})
    assert [arm.label for arm in read_arms(None, four)[0]] == ["steps=1", "steps=2", "steps=8"]
    one = config.model_copy(update={"generate": config.generate.model_copy(update={"steps": 1})})
    assert [arm.label for arm in read_arms(None, one)[0]] == ["steps=2"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("steps=3;steps=0", "--values: arm 'steps=0': steps: found 0, expected greater than or equal to 1"),
        ("steps=3;stepz=2", "--values: arm 'stepz=2': stepz: unknown key; did you mean generate.steps?"),
        ("steps", "--values: arm 'steps': found 'steps', expected key=value, as in 'steps=4;"),
        ("steps=3,steps=4", "--values: arm 'steps=3,steps=4' sets steps twice"),
        ("engine=fast", "--values: arm 'engine=fast': engine: found \"fast\", expected 'auto', 'eager'"),
        ("engine=onnxruntime,dtype=bfloat16", "arm 'engine=onnxruntime,dtype=bfloat16': dtype: found 'bfloat16'"),
        ("balanced_per_group=3", "'balanced_per_group=3': generate.balanced_per_group is the same for all arms"),
        ("steps=3;generate.steps=3", "the arms 'steps=3' and 'steps=3' have the same settings; drop one"),
        ("loras=[{weights: ./a},steps=3", "--values: 'loras=[{weights: ./a},steps=3': found '[' that is not closed"),
        ("steps=3]", "--values: 'steps=3]': found ']' without the bracket that opens it"),
        ("loras=[}]", "found '}' without the bracket that opens it"),
        ("negative_prompt='a;steps=3", 'found "\'" that is not closed'),
        ("negative_prompt='a' b", "--values: 'a' b is not YAML: "),
        (";", "--values: found ';'; expected arms to compare with the run"),
    ],
)
def test_an_arm_that_cannot_be_used_is_named(config, typed, message):
    with pytest.raises(ConfigError) as error:
        read_arms(typed, config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# -- non-inferiority ---------------------------------------------------------------------------------------------------


def difference(low: float, high: float, seeds: tuple[float, float] | None = None, support: int = 100) -> Difference:
    return Difference(mean=(low + high) / 2, over_images=(low, high), over_seeds=seeds or (low, high), support=support)


def judge(**differences: dict[str, Difference]):
    return judge_losses(
        list(differences), lambda label, _: differences[label], METRICS, margin=0.02, confidence=0.95, small_group=30
    )


def same(**others: Difference) -> dict[str, Difference]:
    return dict.fromkeys(METRICS, difference(-0.01, 0.01)) | others


def test_every_interval_of_every_metric_excludes_a_larger_loss():
    judged = judge(
        same=same(),
        better=same(eo_mean=difference(-0.5, -0.4), accuracy=difference(0.4, 0.5)),
        images=same(accuracy=Difference(mean=0, over_images=(-0.03, 0.01), over_seeds=(0, 0.01), support=100)),
        seeds=same(worst_group_accuracy=difference(-0.01, 0.01, seeds=(-0.021, 0.01))),
        unfair=same(eo_mean=difference(-0.01, 0.03)),
        one_seed=same(accuracy=difference(-0.01, 0.01, seeds=(math.nan, math.nan))),
        few=same(accuracy=difference(-0.01, 0.01, support=29)),
    )
    assert [label for label, one in judged.items() if one.holds] == ["same", "better"]
    assert judged["unfair"].loss["eo_mean"] == 0.03
    assert judged["better"].loss == {"worst_group_accuracy": 0.01, "eo_mean": -0.4, "accuracy": -0.4}
    assert math.isnan(judged["one_seed"].loss["accuracy"])


def test_holm_judges_by_the_arms_that_are_left():
    """Each arm holds up to a confidence; the m that are left are judged at 1 - 0.05 / m."""

    def holding(**limits: float) -> dict[str, float]:
        def at(label: str, confidence: float) -> dict[str, Difference]:
            width = 0.01 if confidence < limits[label] else 0.03
            return dict.fromkeys(METRICS, difference(-width, width))

        judged = judge_losses(list(limits), at, METRICS, margin=0.02, confidence=0.95, small_group=30)
        return {label: round(one.confidence, 4) for label, one in judged.items() if one.holds}

    assert holding(a=0.98, b=0.98, c=0.98) == {}, "none holds at 0.9833"
    assert holding(a=0.99, b=0.98, c=0.96) == {"a": 0.9833, "b": 0.975, "c": 0.95}
    assert holding(a=0.99, b=0.97, c=0.96) == {"a": 0.9833}, "neither of the two holds at 0.975"


def test_arms_that_lose_more_are_hardly_ever_recommended():
    """Simulated: of three arms that all lose exactly the margin, one holds in at most 2.5 percent of cases."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(1500):
        of = {label: generator.normal(-0.02, 0.01, 6) for label in "abc"}

        def at(label: str, confidence: float, of=of) -> dict[str, Difference]:
            low, high = student_t(of[label], confidence).tolist()
            return {"accuracy": Difference(mean=0, over_images=(low, high), over_seeds=(low, high), support=None)}

        judged = judge_losses("abc", at, ("accuracy",), margin=0.02, confidence=0.95, small_group=1)
        wrong += any(one.holds for one in judged.values())
    assert 0.012 < wrong / 1500 < 0.038  # 0.025 and three standard errors


def test_the_sentence_says_what_the_intervals_allow():
    speed = {generators.OWN: 10.0, "a": 20.0, "b": 40.0, "c": 30.0}
    fine, lossy = same(), same(eo_mean=difference(0.0, 0.045))
    say = lambda judged, chosen: generators._recommendation(judged, chosen, speed, 0.02, METRICS, 30)  # noqa: E731
    found = say(judge(a=fine, b=lossy, c=fine), "c")
    assert found.startswith("Recommended: c, 3.0 times as fast as the run's own setting.")
    assert "worst-group accuracy 1.0, equalized odds (mean) 1.0 and accuracy 1.0" in found
    found = say(judge(b=lossy), None)
    assert "none is shown to lose at most 2.0 points. Closest is b" in found
    assert "equalized odds (mean) may be up to 4.5 points worse" in found
    none = same(accuracy=difference(-0.01, 0.01, seeds=(math.nan, math.nan)))
    assert "cannot be shown with one seed" in say(judge(a=none), None)
    few = judge(a=same(eo_mean=difference(-0.01, 0.01, support=29)), b=lossy)
    assert [generators._verdict(label, few[label], None) for label in "ab"] == ["too few test images", "not shown"]
    found = say(few, None)
    assert "the intervals of a exclude losses of more than 2.0 points, but fewer than 30 test images" in found
    assert "decide its equalized odds (mean), and" in found
    assert "Closest" in say(judge(a=same(eo_mean=difference(-0.01, 0.03, support=29))), None)
    assert say({}, None) == "No setting is faster than the run's."


# -- speed -------------------------------------------------------------------------------------------------------------


@dataclass
class FakeRun:
    """As much of a run as a measurement needs."""

    config: Config
    path: Path
    images: str = "these"
    synthetic: Path = Path("none")
    generation: Path = Path("none")
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    interrupt: Interrupt = NEVER

    def digest_of(self, step: str) -> str:
        return self.images if step == "generate" else ""


def test_speeds_are_kept_for_the_same_images_on_the_same_machine(config, monkeypatch, tmp_path):
    """And measured at the batch size that was found."""
    loaded, sizes = [], set()

    class Fake:
        def sample(self, texts, seeds):
            sizes.add(len(texts))
            return Samples(np.zeros((len(texts), 1, 1, 3), np.uint8), np.ones(len(texts), bool))

    plan = [PlannedImage(image=i, y=0, a=0, prompt="", text="", replica=0, seed=i, sets=[]) for i in range(5)]

    def load(run):
        loaded.append(run)
        return Models(Fake(), [], plan, batch_size=3)

    monkeypatch.setattr(generator_speed, "load_models", load)
    monkeypatch.setattr(generator_speed, "_SECONDS", 0)
    run = FakeRun(config, tmp_path)
    found = generator_speed.measure({"own": run}, run, tmp_path)
    assert (found["own"].images, sizes, len(loaded)) == (3, {3}, 2)
    assert generator_speed.measure({"own": run}, run, tmp_path) == found
    assert len(loaded) == 2
    other = replace(run, images="of another model")
    generator_speed.measure({"own": other}, other, tmp_path)
    assert len(loaded) == 4
    monkeypatch.setattr(generator_speed, "environment", lambda: {"Processor": "another"})
    generator_speed.measure({"own": other}, other, tmp_path)
    assert len(loaded) == 6


def test_a_batch_size_that_is_auto_is_found_on_this_machine(parent, monkeypatch):
    monkeypatch.setattr("aimfair.diffusion.batch_size.find_batch_size", lambda *_: 7)
    own = Run.config_of(parent)
    assert own is not None
    auto = own.model_copy(update={"generate": own.generate.model_copy(update={"batch_size": "auto"})})
    models = [load_models(Run.attach(parent, config, NOWHERE, Progress(quiet=True))) for config in (own, auto)]
    assert [one.batch_size for one in models] == [own.generate.images_at_a_time, 7]
    assert len(models[1].plan) == len(Manifest(parent / "synthetic").records)


# -- distances ---------------------------------------------------------------------------------------------------------


def test_kid_is_the_unbiased_estimate_over_all_pairs(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(7, 3, generator=generator), torch.randn(5, 3, generator=generator) + 0.5

    def kernel(a, b):
        return (float(a.double() @ b.double()) / 3 + 1) ** 3

    def mean(pairs):
        values = [kernel(a, b) for a, b in pairs]
        return sum(values) / len(values)

    expected = (
        mean((x[i], x[j]) for i in range(7) for j in range(7) if i != j)
        + mean((y[i], y[j]) for i in range(5) for j in range(5) if i != j)
        - 2 * mean((a, b) for a in x for b in y)
    )
    assert kid(x, y) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("aimfair.ablation.image_distance._ROWS", 2)
    assert kid(x, y) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="sets of 1 and 5"):
        kid(x[:1], y)


def test_kid_of_small_sets_is_unbiased():
    generator = torch.Generator().manual_seed(2)
    values = [kid(*torch.randn(2, 10, 4, generator=generator)) for _ in range(400)]
    mean, error = np.mean(values), np.std(values) / 20
    assert abs(mean) < 3 * error
    assert min(values) < 0


def test_features_are_what_the_last_layer_sees(config, monkeypatch):
    model = build_model(config.model, 2, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    extract = HeadInputs(model, config.model, 32, torch.device("cpu"), "KID")
    labels = np.zeros(5, dtype=np.int64)
    images = ImageSet(pixels, labels, labels, tuple("abcde"))
    found = features_of(images, extract)
    with torch.inference_mode():
        normal = Normalize(config.model, torch.device("cpu"))(pixels)
        expected = model(normal).logits
        assert torch.allclose(model.classifier[1](found), expected, atol=1e-6)
    monkeypatch.setattr("aimfair.ablation.image_distance.MOST", 3)
    assert torch.allclose(features_of(images, extract), found[[0, 2, 4]], atol=1e-6)


def test_features_of_a_vision_model_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    tower = {**size, "intermediate_size": 8}
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    clip = transformers.CLIPConfig(vision_config=tower, text_config={"hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}, projection_dim=4)  # fmt: skip
    dino = transformers.Dinov2Config(**size)
    for config, kind, width in ((clip, transformers.CLIPModel, 4), (dino, transformers.Dinov2Model, 8)):
        folder = tmp_path / config.model_type
        model = kind(config).eval()
        model.save_pretrained(folder)
        extract = PretrainedFeatures(folder, torch.device("cpu"))
        found = extract(pixels)
        assert found.shape == (3, width)
        view = View("", folder, 16, torch.device("cpu"))(pixels)
        with torch.inference_mode():
            output = model.get_image_features(pixel_values=view) if width == 4 else model(pixel_values=view)
        expected = output if isinstance(output, torch.Tensor) else output.pooler_output
        assert torch.allclose(found, expected, atol=1e-6)

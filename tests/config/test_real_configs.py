"""The settings of the paper, from start to report, on small folders in exactly the layouts of the real data sets.

Images are drawn: a face whose mouth tells Smiling and whose hair tells Male. The models are as large as they must be
to have the layouts of the real ones: a Stable Diffusion that reads the words of the prompts, and a ResNet-18, which has
62 tensors of parameters, with eight channels.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from aimfair.commands.settings import BUNDLED
from aimfair.config import Config
from aimfair.config import load as config_file
from aimfair.data.biased_subset import group_sizes
from aimfair.prompts.grammar import write_prompts

CELEBA, UTKFACE = "celeba-smiling-male", "utkface-gender-white"
SIZE = 16
"""Pixels along each side, of all images that a model sees."""

FLAGS = {
    "device": "cpu",
    "threads": "1",
    "seeds": "100",
    "data.image_size": str(SIZE),
    "prompts.per_group": "6",
    "generate.steps": "2",
    "generate.render_size": str(SIZE),
    "generate.batch_size": "32",
    "generate.dtype": "float32",  # engines of the CPU take no bfloat16
    "generate.balanced_per_group": "12",
    "generate.biased_total": "40",
    "train.epochs": "1",
    "train.batch_size": "32",
    "finetune.epochs": "1",
    "finetune.batch_size": "16",
    "sensitivity.batch_size": "16",
    "methods.erm.epochs": "1",
    "methods.jtt.upweight": "2",
    "evaluate.replicates": "200",
    "tune.trials": "2",
    "tune.methods": "paper,aimfair,last_layer",
}


def settings(name: str, **overrides: str) -> Config:
    return config_file.load(BUNDLED / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name", sorted(file.stem for file in BUNDLED.glob("*-*.yaml")))
def test_settings_of_the_paper(name: str) -> None:
    """arXiv 2503.05665 and its authors' public code."""
    config = settings(name)
    tree = config.model_dump(mode="json")
    common = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 128, "keep": "best_validation"}
    augment = {"crop_scale": [0.08, 1.0], "crop_ratio": [3 / 4, 4 / 3], "flip": True, "shift": 0}
    expected = {
        "data": {"image_size": 224, "fit": "stretch", "majority": [1, 0]},
        "prompts": {"per_group": 50},
        "generate": {
            "steps": 50, "guidance_scale": 9.0, "scheduler": "ddim", "render_size": 512, "negative_prompt": "",
            "balanced_per_group": 5000, "biased_total": 20000, "disjoint": False,
        },
        "model": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "train": {**common, "lr": 0.01, "epochs": 15, "schedule": "step", "step_epochs": 10, "augment": augment},
        "finetune": {**common, "lr": 0.06, "epochs": 10, "batchnorm": "adapt", "augment": augment},
        "sensitivity": {"batch_size": 128, "train_mode": True, "batches": None},
    }  # fmt: skip
    for node, values in expected.items():
        assert {key: tree[node][key] for key in values} == values, node
    assert config.seeds == [*range(100, 1001, 100)]
    paper = config.methods["paper"]
    assert (paper.rule, paper.criterion, paper.granularity) == ("intersection", "difference", "tensor")
    assert (paper.bias_k, paper.domain_k, paper.lr) == (55, 55, None)
    assert config.tuned == list(config.methods)
    assert config.space("paper").density is None
    assert not config.space("paper").rules  # tuning leaves the paper's selection as it is
    sizes = group_sizes(config.data.majority, 2, config.data.minority_ratio, 20_000)
    assert sizes.tolist() == [[1000, 9000], [9000, 1000]]
    if config.data.kind == "celeba":
        assert config.data.train_images == 20_000


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of a few thousand random weights that knows every word of the prompts of both tasks."""
    import transformers

    from tests.diffusion.tiny_models import save, stable_diffusion
    from tools.digits_diffusion.architecture import learn_merges

    texts = [
        prompt.text.lower()
        for name in (CELEBA, UTKFACE)
        for prompt in write_prompts(settings(name, **{"prompts.per_group": FLAGS["prompts.per_group"]}).prompts)
    ]
    merges = learn_merges(sorted({word for text in texts for word in re.findall("[a-z]+", text)}))
    symbols = sorted({symbol for text in texts for symbol in text if not symbol.isspace()})
    tokens = [f"{symbol}{end}" for end in ("", "</w>") for symbol in symbols]
    tokens += [*("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]

    def build() -> object:
        last = len(tokens) - 1
        model = stable_diffusion()
        model.tokenizer = transformers.CLIPTokenizer(
            vocab={token: number for number, token in enumerate(tokens)}, merges=merges, model_max_length=77
        )
        model.text_encoder = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=last - 1,
                eos_token_id=last,
                pad_token_id=last,
            )
        )
        return model

    return save(build, tmp_path_factory.mktemp("generator") / "tiny")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 for a thousand classes, as the hub's, of few channels."""
    import transformers

    from tests.diffusion.tiny_models import save

    def build() -> object:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [2, 2, 2, 2]}
        return transformers.ResNetForImageClassification(
            transformers.ResNetConfig(**sizes, layer_type="basic", num_labels=1000)
        )

    return save(build, tmp_path_factory.mktemp("resnet") / "tiny")


# -- data sets ---------------------------------------------------------------------------------------------------------


def draw(path: Path, smiling: bool, dark: bool, number: int, size: tuple[int, int]) -> None:
    """A face: the corners of the mouth up or down, dark hair or fair, and noise that makes every image different."""
    width, height = size
    image = Image.new("RGB", size, (120, 150, 180))
    pen = ImageDraw.Draw(image)
    x, y = width // 2, height // 2
    pen.ellipse((x - width // 3, y - height // 3, x + width // 3, y + height // 3), fill=(225, 180, 150))
    pen.rectangle(
        (x - width // 3, y - height // 3, x + width // 3, y - height // 6),
        fill=(40, 25, 20) if dark else (240, 220, 90),
    )
    mouth = (x - width // 5, y, x + width // 5, y + height // 4)
    pen.chord(mouth, 0, 180, fill=(250, 250, 250)) if smiling else pen.chord(mouth, 180, 360, fill=(90, 20, 20))
    noise = np.random.default_rng(number).integers(-12, 13, (height, width, 3))
    pixels = np.clip(np.asarray(image).astype(np.int64) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)


CELEBA_ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]
CELEBA_GROUPS = {0: (12, 108, 108, 12), 1: (20, 20, 20, 20), 2: (23, 20, 21, 16)}
"""Images of the groups (y, a) = (0, 0), (0, 1), (1, 0), (1, 1) in each partition: 400 in all."""


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images of 178 x 218 pixels and the two lists, in the form in which CelebA's authors hand them out."""
    root = tmp_path_factory.mktemp("celeba")
    groups = [(0, 0), (0, 1), (1, 0), (1, 1)]
    attributes, partitions = [], []
    number = 0
    for partition, sizes in CELEBA_GROUPS.items():
        labels = [group for group, size in zip(groups, sizes, strict=True) for _ in range(size)]
        for smiling, male in np.random.default_rng(partition).permutation(labels).tolist():
            number += 1
            file = f"{number:06d}.jpg"
            draw(root / "img_align_celeba" / file, bool(smiling), bool(male), number, (178, 218))
            values = (-1, 1 if male else -1, 1 if smiling else -1, 1)
            attributes.append(f"{file} " + " ".join(f"{value:2d}" for value in values))
            partitions.append(f"{file} {partition}")
    header = [str(number), " ".join(CELEBA_ATTRIBUTES) + " "]
    (root / "list_attr_celeba.txt").write_text("\n".join([*header, *attributes]) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(partitions) + "\n")
    assert number == 400
    return root


MALFORMED = ("39_1_20170116174525125.jpg.chip.jpg", "61_1_20170109142408075.jpg.chip.jpg", "53__0_2017.jpg.chip.jpg")
"""Names that lack race or gender; the first two are in the copies that are handed out."""


@pytest.fixture(scope="module")
def utkface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 good images in three folders, three with malformed names, three copies, and a copy with another gender."""
    root = tmp_path_factory.mktemp("utkface")
    number = 0
    for gender in (0, 1):
        for race in (0, 1, 2, 3, 4):
            for _ in range(100 if race == 0 else 25):
                number += 1
                name = f"{20 + number % 60}_{gender}_{race}_201701{number:011d}.jpg.chip.jpg"
                draw(root / f"part{1 + number % 3}" / name, bool(gender), race == 0, number, (200, 200))
    files = sorted(root.rglob("*.jpg"))
    for copy, file in enumerate(files[:3]):
        file.with_name(f"1_{file.name.split('_')[1]}_{file.name.split('_')[2]}_{copy}.jpg.chip.jpg").write_bytes(
            file.read_bytes()
        )
    age, gender, rest = files[3].name.split("_", 2)
    files[3].with_name(f"{age}_{1 - int(gender)}_{rest}").write_bytes(files[3].read_bytes())
    for name in MALFORMED:
        draw(root / "part1" / name, True, True, 10_000 + len(name), (200, 200))
    return root


# -- whole runs --------------------------------------------------------------------------------------------------------


def run(name: str, flags: dict[str, str], run: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """``aimfair run --config NAME``."""
    words = [part for key, value in {**FLAGS, **flags}.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "aimfair", "run", "--config", name, "--run", str(run), "--quiet", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def counts(predictions: Path) -> list[int]:
    """Test images of the groups (0, 0), (0, 1), (1, 0), (1, 1)."""
    rows: Sequence[list[str]] = [line.split(",") for line in predictions.read_text().splitlines()[1:]]
    groups = [(row[1], row[2]) for row in rows]
    return [groups.count(group) for group in (("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"))]


def require_all_methods(folder: Path, name: str) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert list(results["methods"]) == ["biased", *settings(name).methods]
    for method in results["methods"].values():
        assert 0 <= method["mean"]["worst_group_accuracy"] <= method["mean"]["accuracy"] <= 1
    assert results["methods"]["full"]["density"] == 1.0
    assert 0 < results["methods"]["paper"]["density"] < 1
    report = (folder / "report.html").read_text()
    assert all(method in report for method in results["methods"])
    assert settings(name).title in report


@pytest.mark.slow
def test_celeba_from_start_to_report(tmp_path: Path, celeba: Path, generator: Path, resnet: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in celeba.rglob("*")}
    flags = {
        "data.root": str(celeba),
        "data.train_images": "200",
        "generate.model": str(generator),
        "model.pretrained": str(resnet),
    }
    done = run(CELEBA, flags, tmp_path / "run", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    require_all_methods(tmp_path / "run", CELEBA)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["target_names"], results["protected_names"]) == (["not Smiling", "Smiling"], ["not Male", "Male"])
    assert counts(tmp_path / "run" / "seeds" / "100" / "predictions.csv") == list(CELEBA_GROUPS[2])
    assert {file: file.stat().st_mtime_ns for file in celeba.rglob("*")} == before, "the data set is read only"


@pytest.mark.slow
def test_utkface_with_malformed_names_and_copies(tmp_path: Path, utkface: Path, generator: Path, resnet: Path) -> None:
    flags = {"data.root": str(utkface), "generate.model": str(generator), "model.pretrained": str(resnet)}
    done = run(UTKFACE, flags, tmp_path / "run", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    require_all_methods(tmp_path / "run", UTKFACE)
    told = " ".join(str(event.get("message", "")) for event in events(tmp_path / "run"))
    assert f"{len(MALFORMED)} of 407 rows" in told
    assert "3 of 404 images left out, copies of others" in told
    assert "2 of 404 images left out, copies with different labels" in told
    groups = counts(tmp_path / "run" / "seeds" / "100" / "predictions.csv")
    assert len(set(groups)) == 1, "a balanced test set"

"""The filters beside that of black and constant images."""

import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.data.decode import dhash
from aimfair.generation.filter_settings import FilterSettings
from aimfair.generation.filters import filter_facts, load_filters
from aimfair.generation.filters.clip import ClipAgreement, clip_folder, fingerprint, plain_texts
from aimfair.generation.filters.hooks import Hook
from aimfair.generation.filters.pixels import NearDuplicates
from aimfair.generation.filters.safety import SafetyChecker
from aimfair.generation.filters.towers import View
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import prompt_settings

CPU = torch.device("cpu")
PROMPTS = prompt_settings()
GROUPS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(seed: int, size: int = 64) -> Image.Image:
    return Image.fromarray(noise(6, 6, 3, seed=seed)).resize((size, size), Image.Resampling.BICUBIC)


# -- near-duplicates ---------------------------------------------------------------------------------------------------


def distance(first: Image.Image, second: Image.Image) -> int:
    return (int(dhash(first), 16) ^ int(dhash(second), 16)).bit_count()


def test_the_hash_sees_what_the_eye_sees() -> None:
    image = smooth(1)
    assert distance(image, image.resize((48, 48), Image.Resampling.LANCZOS)) <= 2
    brighter = Image.fromarray((np.asarray(image) * 0.8 + 40).astype(np.uint8))
    assert distance(image, brighter) <= 2
    assert min(distance(image, smooth(seed)) for seed in range(2, 30)) > 8
    assert len(dhash(image)) == 16


def in_turn(hashes: np.ndarray, bits: int) -> list[bool]:
    """The definition, one after the other."""
    kept: list[int] = []
    added = []
    for value in hashes.tolist():
        added.append(all((value ^ other).bit_count() > bits for other in kept))
        if added[-1]:
            kept.append(value)
    return added


@pytest.mark.parametrize("bits", [0, 3, 20])
def test_near_duplicates_are_those_of_the_definition(bits: int) -> None:
    generator = np.random.default_rng(bits)
    centres = generator.integers(0, 2**64, 60, dtype=np.uint64)
    flips = np.uint64(1) << generator.integers(0, 64, (1300, 3), dtype=np.uint64)
    hashes = centres[generator.integers(0, 60, 1300)] ^ np.bitwise_xor.reduce(flips, axis=1)
    hashes[1100:] = hashes[generator.integers(0, 1100, 200)]
    index = NearDuplicates(bits)
    added = [*index.add(hashes[:700]), *index.add(hashes[700:]), *index.add(hashes[:0])]  # more than one block
    assert added == in_turn(hashes, bits)
    assert 0 < sum(added) < 1300


def test_the_memory_of_a_comparison_does_not_grow_with_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, near = [], NearDuplicates._near
    monkeypatch.setattr(NearDuplicates, "_near", lambda *args: (sizes.append(len(args[2])), near(*args))[1])
    assert NearDuplicates(6).add(np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64)).all()
    assert max(sizes) <= 512


def test_twenty_thousand_take_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    start = time.process_time()
    assert NearDuplicates(6).add(hashes).all()
    assert time.process_time() - start < 10


# -- CLIP --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights that reads letters."""
    import string

    import transformers

    transformers.utils.logging.disable_progress_bar()
    letters = [*string.ascii_lowercase, ","]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("models") / "clip"
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={
                    **tower, "vocab_size": len(tokens), "bos_token_id": len(tokens) - 2,
                    "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1,
                },
                vision_config={**tower, "image_size": 16, "patch_size": 4},
                projection_dim=8,
            )
        )  # fmt: skip
        for weights in model.parameters():  # as they are drawn, all images are alike to it
            if weights.ndim > 1:
                weights.data.normal_(std=0.5)
    model.save_pretrained(folder)
    transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    ).save_pretrained(folder)
    return folder


def test_plain_texts() -> None:
    texts = plain_texts(prompt_settings(template="a photo, {contexts}, of a {target} in {protected}"))
    assert texts[0, 0] == ["a photo, of a one in green", "a photo, of a two in green"]
    assert list(texts) == GROUPS
    assert plain_texts(prompt_settings())[1, 1] == ["a six in red", "a seven in red"]


def test_an_image_is_kept_in_the_group_that_clip_finds_nearest(clip: Path) -> None:
    import transformers

    texts = plain_texts(prompt_settings())
    images = np.stack([np.asarray(smooth(seed, 24)) for seed in range(12)])
    decided = np.array([ClipAgreement(clip, texts, 0.0, CPU).reasons(images, [group] * 12) for group in GROUPS])
    assert set(decided.flat) == {None, "other_group"}
    assert ((decided == None).sum(axis=0) == 1).all()  # noqa: E711 - of each image exactly one group
    # The same from transformers' own forward, with its own tokenizer and an image of the size it takes.
    model = transformers.CLIPModel.from_pretrained(clip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    small = np.stack([np.asarray(smooth(seed, 16)) for seed in range(12)])
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((small / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    words = tokenizer([text for group in GROUPS for text in texts[group]], padding=True, return_tensors="pt")
    with torch.inference_mode():
        out = model(pixel_values=pixels, **words)
    of_groups = torch.nn.functional.normalize(out.text_embeds.unflatten(0, (4, 2)).mean(1), dim=-1)
    nearest = (out.image_embeds @ of_groups.T).argmax(1)
    ours = ClipAgreement(clip, texts, 0.0, CPU)
    assert ours.reasons(small, [GROUPS[i] for i in nearest]) == [None] * 12
    assert len(set(nearest.tolist())) > 1


def test_a_margin_rejects_more(clip: Path) -> None:
    texts = plain_texts(prompt_settings())
    images = np.stack([np.asarray(smooth(seed, 24)) for seed in range(8)])
    kept = [
        sum(ClipAgreement(clip, texts, margin, CPU).reasons(images, [group] * 8).count(None) for group in GROUPS)
        for margin in (-2.0, 0.0, 0.001, 2.0)
    ]
    assert kept[0] == 32
    assert kept[1] == 8
    assert 8 >= kept[2] >= kept[3] == 0


def test_a_clip_that_cannot_be_used(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(AimfairError, match=r"generate.filters.clip: .* has no config.json"):
        clip_folder(str(tmp_path), False)
    with pytest.raises(AimfairError, match=r"generate.filters.clip: 'openai/clip' is not in the hub's cache"):
        clip_folder("openai/clip", False)
    (tmp_path / "config.json").write_text((clip / "config.json").read_text())
    with pytest.raises(AimfairError, match=r"not a usable CLIPModel"):
        ClipAgreement(tmp_path, plain_texts(prompt_settings()), 0.0, CPU)
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle can run code
    with pytest.raises(AimfairError, match=r"not a usable CLIPModel"):
        ClipAgreement(tmp_path, plain_texts(prompt_settings()), 0.0, CPU)


def test_a_clip_with_broken_weights(tmp_path: Path, clip: Path) -> None:
    folder = Path(shutil.copytree(clip, tmp_path / "clip"))
    whole = load_file(folder / "model.safetensors")
    for broken, message in (
        ({**whole, "logit_scale": torch.tensor(torch.inf)}, "logit_scale holds NaN or infinite weights"),
        ({name: whole[name] for name in whole if name != "logit_scale"}, "logit_scale is missing"),
    ):
        save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(AimfairError, match=re.escape(f"generate.filters.clip: {folder}: {message}")):
            ClipAgreement(folder, plain_texts(prompt_settings()), 0.0, CPU)


# -- safety checker ----------------------------------------------------------------------------------------------------


def tiny_checker() -> Any:
    """A checker of random weights."""
    import diffusers.pipelines.stable_diffusion.safety_checker as library
    import transformers

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = library.StableDiffusionSafetyChecker(
            transformers.CLIPConfig(vision_config={**tower, "image_size": 16, "patch_size": 4}, projection_dim=8)
        )
        torch.nn.init.normal_(checker.concept_embeds)
    return checker


def test_safety(tmp_path: Path) -> None:
    import diffusers.pipelines.stable_diffusion.safety_checker as library

    checker = tiny_checker()
    checker.special_care_embeds_weights.data.fill_(2)
    checker.concept_embeds_weights.data.fill_(2)  # no cosine is so large
    images = np.stack([np.asarray(smooth(seed, 24)) for seed in range(6)])
    checker.save_pretrained(tmp_path / "safety_checker")
    assert SafetyChecker(tmp_path, CPU).reasons(images, GROUPS[:1] * 6) == [None] * 6
    with torch.inference_mode():
        embeds = checker.visual_projection(checker.vision_model(View("key", tmp_path, 16, CPU)(images))[1])
        cosines = library.cosine_distance(embeds, checker.concept_embeds)[:, 3]
    checker.concept_embeds_weights.data[3] = cosines.median()
    checker.save_pretrained(tmp_path / "safety_checker")
    found = SafetyChecker(tmp_path, CPU).reasons(images, GROUPS[:1] * 6)
    assert found == ["unsafe" if cosine > cosines.median() + 1e-3 else None for cosine in cosines]
    assert set(found) == {None, "unsafe"}
    assert SafetyChecker(tmp_path, CPU).reasons(images[::-1].copy(), GROUPS[:1] * 6) == found[::-1]


def test_a_checker_that_cannot_be_used(tmp_path: Path) -> None:
    part = tmp_path / "safety_checker"
    tiny_checker().save_pretrained(part)
    where = re.escape(f"generate.filters.safety: {part}: ")
    whole = load_file(part / "model.safetensors")
    weights = whole["visual_projection.weight"]
    for broken, message in (
        ({**whole, "visual_projection.weight": weights * torch.nan}, "visual_projection.weight holds NaN or infinite"),
        (
            {name: whole[name] for name in whole if name != "concept_embeds_weights"},
            "concept_embeds_weights is missing",
        ),
    ):
        save_file(broken, part / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(AimfairError, match=where + message):
            SafetyChecker(tmp_path, CPU)
    (part / "model.safetensors").unlink()
    torch.save(whole, part / "pytorch_model.bin")  # a pickle can run code
    with pytest.raises(AimfairError, match=where + "not a usable StableDiffusionSafetyChecker: "):
        SafetyChecker(tmp_path, CPU)
    save_file(whole, part / "model.safetensors", metadata={"format": "pt"})
    view = tmp_path / "feature_extractor" / "preprocessor_config.json"
    view.parent.mkdir()
    view.write_text("{")
    with pytest.raises(AimfairError, match=re.escape(f"generate.filters.safety: {view}: Invalid JSON: ")):
        SafetyChecker(tmp_path, CPU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image_mean": [0.5, 0.5', "Invalid JSON: "),
        ("[]", "Input should be an object"),
        ('{"image_mean": [0.5, 0.5]}', r"image_mean\.2: Field required"),
        ('{"image_mean": [0.5, 0.5, NaN]}', r"image_mean\.2: Input should be a finite number"),
        ('{"image_std": [0.5, 0, 0.5]}', r"image_std\.1: Input should be greater than 0"),
    ],
)
def test_a_damaged_preprocessor(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(text)
    with pytest.raises(AimfairError, match=re.escape(f"generate.filters.clip: {file}: ") + message):
        View("generate.filters.clip", tmp_path, 16, CPU)


def test_the_preprocessor_says_what_grey_is(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0.2, 0.6], "image_std": [1, 1, 0.5]}')
    view = View("key", tmp_path, 4, CPU)(np.full((1, 8, 8, 3), 102, dtype=np.uint8))
    torch.testing.assert_close(view[0, :, 1, 1], torch.tensor([0.4, 0.2, -0.4]))


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_hooks.py"
    path.write_text(
        "def dark(images, groups):\n"
        "    assert images.shape == (len(groups), 4, 4, 3)\n"
        "    found = ['too_dark' if image.mean() < 50 + 100 * a else None for image, (y, a) in zip(images, groups)]\n"
        "    images[:] = 0\n"
        "    return found\n"
        "def short(images, groups): return []\n"
        "def number(images, groups): return [1] * len(images)\n"
        "def markup(images, groups): return ['<b>'] * len(images)\n"
        "def partner(images, groups): return [None, 'partner', None, None]\n"
        "def shows(images, groups): return [None, None, None, 'shows_a1']\n"
        "def broken(images, groups): raise KeyError('face')\n"
        "text = 'no function'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_hooks", raising=False)
    return path


def test_a_hook_sees_images_and_groups(hooks: Path) -> None:
    images = np.stack([np.full((4, 4, 3), level, dtype=np.uint8) for level in (20, 100, 100, 200)])
    assert Hook("my_hooks:dark").reasons(images, GROUPS) == ["too_dark", "too_dark", None, None]
    assert images[3].min() == 200


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("my_hooks:short", "0 answers for 4 images"),
        ("my_hooks:number", "answered 1, expected None or a reason"),
        ("my_hooks:markup", "answered '<b>', expected None or a reason"),
        ("my_hooks:partner", "answered 'partner', a reason of aimfair's own (not_finite, black, "),
        ("my_hooks:shows", "answered 'shows_a1', a reason of aimfair's own"),
        ("my_hooks:broken", "KeyError: 'face'"),
        ("my_hooks:text", "a str, expected a function"),
        ("my_hooks:absent", "AttributeError: module 'my_hooks' has no attribute 'absent'"),
    ],
)
def test_a_hook_that_cannot_be_used(hooks: Path, hook: str, message: str) -> None:
    with pytest.raises(AimfairError) as error:
        Hook(hook).reasons(noise(4, 4, 4, 3), GROUPS)
    assert str(error.value).startswith(f"generate.filters.hooks: {hook}: ")
    assert message in str(error.value)


# -- settings ----------------------------------------------------------------------------------------------------------


def facts_of(model: Path, **filters: object) -> dict[str, Any]:
    return filter_facts(GenerateSettings.model_validate({"filters": filters}), PROMPTS, model)


def test_what_tells_filters_apart(tmp_path: Path, clip: Path, hooks: Path) -> None:
    assert facts_of(tmp_path) == {}
    assert load_filters(GenerateSettings(), PROMPTS, tmp_path, CPU) == []
    filters = {"near_duplicates": 3, "clip": str(clip), "clip_margin": 0.1, "hooks": ["my_hooks:dark"]}
    facts = facts_of(tmp_path, **filters)
    assert facts["near_duplicates"] == 3
    assert facts["clip"]["margin"] == 0.1
    assert facts["clip"]["model"] == fingerprint(clip)
    assert facts["clip"]["texts"][3] == [1, 1, ["a six in red", "a seven in red"]]
    loaded = load_filters(GenerateSettings.model_validate({"filters": filters}), PROMPTS, tmp_path, CPU)
    assert [type(one) for one in loaded] == [ClipAgreement, Hook]
    hooks.write_text(hooks.read_text() + "# changed\n")
    changed = facts_of(tmp_path, **filters)
    assert changed["hooks"] != facts["hooks"]
    assert {**changed, "hooks": 0} == {**facts, "hooks": 0}
    with pytest.raises(AimfairError, match=r"generate.filters.hooks: absent:f: Python finds no module absent"):
        facts_of(tmp_path, hooks=["absent:f"])
    with pytest.raises(AimfairError, match=r"generate.filters.safety: .*digits-diffusion has no safety_checker"):
        facts_of(Path(__file__).parents[2] / "aimfair/assets/digits-diffusion", safety=True)


@pytest.mark.parametrize("hook", ["faces", "faces:", "os.path:join:x", "../faces:f", "a b:c"])
def test_hooks_are_named_by_module_and_function(hook: str) -> None:
    with pytest.raises(ValueError, match="expected module:function"):
        FilterSettings(hooks=[hook])

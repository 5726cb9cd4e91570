"""Checks of what an image shows: attributes, faces, and a score of quality."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.generation.filter_settings import FaceCheck, FilterSettings, QualityCheck
from aimfair.generation.filters import filter_facts, load_filters
from aimfair.generation.filters.attributes import Attributes, texts_of
from aimfair.generation.filters.faces import Faces
from aimfair.generation.filters.quality import Quality
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.shown import confusions, reason, values_in
from tests.generation.samples import prompt_settings

CPU = torch.device("cpu")
PROMPTS = prompt_settings()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(count: int, size: int) -> np.ndarray:
    small = [Image.fromarray(noise(4, 4, 3, seed=seed)) for seed in range(count)]
    return np.stack([np.asarray(one.resize((size, size), Image.Resampling.BICUBIC)) for one in small])


def settings(**filters: Any) -> GenerateSettings:
    return GenerateSettings.model_validate({"filters": filters})


def onnx_file(path: Path, nodes: Sequence[Any], outputs: Sequence[str], shape: Sequence[Any], **constants: Any) -> Path:
    """A model of the input x, float32 ``shape``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


# -- attributes --------------------------------------------------------------------------------------------------------


def means_of_channels(path: Path, shape: Sequence[Any] = ("B", 3, "H", "W")) -> Path:
    """An ONNX classifier whose three logits are the means of red, green and blue, as it sees them."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["logits"])]
    return onnx_file(path, nodes, ["logits"], shape)


def flat(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colours, dtype=np.uint8)[:, None, None], (len(colours), 8, 8, 3)).copy()


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def test_an_image_must_show_both_attributes_each_on_its_own(tmp_path: Path) -> None:
    model = str(means_of_channels(tmp_path / "colours.onnx"))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "red", "1": "green", "2": "blue"}}))
    filters = {
        "target": {"model": model, "labels": [["red"], ["green", "blue"]]},
        "protected": {"model": model, "labels": [["red", "green"], ["blue"]]},
    }
    checks = Attributes(settings(**filters), PROMPTS, CPU)
    images = flat(RED, GREEN, BLUE, RED, BLUE)
    groups = [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)]
    assert checks.reasons(images, groups) == [None, "shows_y1_a0", None, "shows_y0_a0", "shows_y1_a1"]
    assert Attributes(settings(target=filters["target"]), PROMPTS, CPU).reasons(images, groups) == [
        None, None, None, "shows_y0", "shows_y1",
    ]  # fmt: skip


def test_the_right_value_must_be_likely_enough(tmp_path: Path) -> None:
    model = str(means_of_channels(tmp_path / "colours.onnx"))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    image = flat((255, 0, 51))  # logits 1, 0 and 0.2
    share = np.exp(1) / (np.exp(1) + 1 + np.exp(0.2))
    for least, expected in ((share - 1e-3, None), (share + 1e-3, "shows_y_unclear")):
        check = {"model": model, "labels": [["0"], ["1", "2"]], "least": least}
        assert Attributes(settings(target=check), PROMPTS, CPU).reasons(image, [(0, 0)]) == [expected]


def test_labels_that_an_image_can_have_several_of(tmp_path: Path) -> None:
    model = str(means_of_channels(tmp_path / "colours.onnx"))
    config = {"id2label": {"0": "red", "1": "smiling", "2": "blue"}, "problem_type": "multi_label_classification"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check = {"model": model, "labels": [["!smiling"], ["smiling"]]}
    found = Attributes(settings(target=check), PROMPTS, CPU).reasons(flat(GREEN, RED), [(1, 0), (1, 0)])
    assert found == [None, "shows_y0"]
    with pytest.raises(AimfairError, match=r"target.labels: found 'smile', expected labels .* 'smiling', 'blue', each"):
        Attributes(settings(target={**check, "labels": [["smile"], ["red"]]}), PROMPTS, CPU)


@pytest.mark.parametrize("operations", [["Softmax"], ["Softmax", "Identity"], ["Exp", "shares"]])
def test_a_classifier_that_gives_probabilities(tmp_path: Path, operations: list[str]) -> None:
    """The same decisions as of its logits."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["0"])]
    for number, operation in enumerate(operations):
        here, there = f"{number}", f"{number + 1}"
        if operation == "shares":
            nodes += [helper.make_node("ReduceSum", [here, "axis"], ["sum"])]
            nodes += [helper.make_node("Div", [here, "sum"], [there])]
        else:
            nodes.append(helper.make_node(operation, [here], [there]))
    model = onnx_file(tmp_path / "a.onnx", nodes, [f"{len(operations)}"], (1, 3, "H", "W"), axis=np.array([1]))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    image = flat((255, 0, 51))  # logits 1, 0 and 0.2
    share = np.exp(1) / (np.exp(1) + 1 + np.exp(0.2))
    for least, expected in ((share - 1e-3, None), (share + 1e-3, "shows_y_unclear")):
        check = {"model": str(model), "labels": [["0"], ["1", "2"]], "least": least}
        assert Attributes(settings(target=check), PROMPTS, CPU).reasons(image, [(0, 0)]) == [expected]


def test_a_classifier_that_gives_a_probability_for_each_label(tmp_path: Path) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["logits"])]
    nodes.append(helper.make_node("Sigmoid", ["logits"], ["y"]))
    model = onnx_file(tmp_path / "a.onnx", nodes, ["y"], (1, 3, "H", "W"))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [0.2, 0.2, 0.2]}')
    image = flat((102, 0, 0))  # a logit of 2
    share = 1 / (1 + np.exp(-2))
    for labels, least, expected in (
        ([["0"], ["!0"]], share - 1e-3, None),
        ([["0"], ["!0"]], share + 1e-3, "shows_y_unclear"),
        ([["!0"], ["0"]], 0.0, "shows_y1"),
    ):
        check = {"model": str(model), "labels": labels, "least": least}
        assert Attributes(settings(target=check), PROMPTS, CPU).reasons(image, [(0, 0)]) == [expected]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("models") / "vit"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
                patch_size=8, id2label={0: "cat", 1: "dog", 2: "bird"}, label2id={"cat": 0, "dog": 1, "bird": 2},
            )
        )  # fmt: skip
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.data.normal_(std=0.5)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "do_resize": true,'
        ' "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1]}'
    )
    return folder


def test_a_classifier_of_transformers(vit: Path) -> None:
    import transformers

    images = smooth(12, 16)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.3, 0.2, 0.1])
    pixels = torch.tensor(((images / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.inference_mode():
        shares = transformers.ViTForImageClassification.from_pretrained(vit)(pixel_values=pixels).logits.softmax(1)
    dog, others = shares[:, 1], shares[:, 0] + shares[:, 2]
    checks = Attributes(settings(target={"model": str(vit), "labels": [["cat", "bird"], ["dog"]]}), PROMPTS, CPU)
    found = checks.reasons(images, [(1, 0)] * 12)
    assert found == [None if one > other else "shows_y0" for one, other in zip(dog, others, strict=True)]
    assert set(found) == {None, "shows_y0"}


def test_a_classifier_whose_configuration_names_no_class(vit: Path, tmp_path: Path) -> None:
    """As older versions exported them."""
    shutil.copytree(vit, other := tmp_path / "vit")
    values = json.loads((other / "config.json").read_text())
    assert values.pop("architectures")
    (other / "config.json").write_text(json.dumps(values))
    first, second = (
        Attributes(settings(target={"model": str(folder), "labels": [["cat", "bird"], ["dog"]]}), PROMPTS, CPU)
        for folder in (vit, other)
    )
    images = smooth(12, 16)
    assert first.reasons(images, [(1, 0)] * 12) == second.reasons(images, [(1, 0)] * 12)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP of random weights that reads words."""
    import tokenizers
    import transformers

    words = ["<pad>", "</s>", *["a", "in", "one", "two", "six", "seven", "green", "red", "good", "bad"]]
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "<pad>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("models") / "siglip"
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.SiglipModel(
            transformers.SiglipConfig(
                text_config={**tower, "vocab_size": len(words), "max_position_embeddings": 8, "pad_token_id": 0},
                vision_config={**tower, "image_size": 16, "patch_size": 8},
            )
        )
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.data.normal_(std=0.5)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", model_max_length=8
    ).save_pretrained(folder)
    return folder


def test_siglip_needs_no_labels(siglip: Path) -> None:
    import transformers

    assert texts_of("protected", PROMPTS)[1] == ["a one in red", "a two in red", "a six in red", "a seven in red"]
    images = smooth(12, 16)
    found = Attributes(settings(protected={"model": str(siglip)}), PROMPTS, CPU).reasons(images, [(0, 1)] * 12)
    model = transformers.SiglipModel.from_pretrained(siglip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(siglip)
    pixels = torch.tensor((images / 127.5 - 1).transpose(0, 3, 1, 2), dtype=torch.float32)
    words = tokenizer(
        [text for some in texts_of("protected", PROMPTS) for text in some], padding="max_length", return_tensors="pt"
    )
    with torch.inference_mode():
        out = model(pixel_values=pixels, input_ids=words["input_ids"])
    values = torch.nn.functional.normalize(out.text_embeds.unflatten(0, (2, 4)).mean(1), dim=-1)
    nearest = (out.image_embeds @ values.T).argmax(1).tolist()
    assert found == [None if value == 1 else "shows_a0" for value in nearest]
    assert len(set(found)) == 2


def test_models_that_cannot_check_an_attribute(tmp_path: Path, vit: Path) -> None:
    def check(model: object, **changes: Any) -> None:
        Attributes(settings(target={"model": str(model), **changes}), PROMPTS, CPU)

    where = "generate.filters.target"
    with pytest.raises(AimfairError, match=rf"{where}.labels: missing; .* of the 2 values .* of 'cat', 'dog', 'bird'"):
        check(vit)
    with pytest.raises(AimfairError, match=rf"{where}.labels: found 'fish', expected labels of the classifier: 'cat'"):
        check(vit, labels=[["fish"], ["dog"]])
    with pytest.raises(AimfairError, match=rf"{where}.model: found 'a.onnx', expected a path that begins"):
        check("a.onnx")
    with pytest.raises(AimfairError, match=rf"{where}.model: {tmp_path}/a.onnx: there is no such file"):
        check(tmp_path / "a.onnx")
    with pytest.raises(AimfairError, match=rf"{where}.model: {tmp_path} has no config.json, expected the folder of"):
        check(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(AimfairError, match=r"found model_type 'bert' and architecture BertModel, expected clip or sig"):
        check(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "a.onnx").write_bytes(b"junk")
    with pytest.raises(AimfairError, match=rf"{where}.model: {tmp_path}/a.onnx: onnxruntime .* cannot load it: ") as e:
        check(tmp_path / "a.onnx")
    assert "eager" not in str(e.value)
    for shape, found in (((1, 1, 8, 8), "[1, 1, 8, 8]"), ((4, 3, 8, 8), "[4, 3, 8, 8]")):
        means_of_channels(tmp_path / "a.onnx", shape)
        with pytest.raises(AimfairError, match=re.escape(f"inputs x tensor(float) {found}; expected one")):
            check(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="found 'dog' twice, expected each label for one value"):
        settings(target={"model": "a/b", "labels": [["dog"], ["cat", "dog"]]})


def test_the_words_of_what_is_shown() -> None:
    for shown in ({"target": 3}, {"protected": -1}, {"target": -1, "protected": 12}):
        assert values_in(reason((1, 2), shown) or "") == shown  # type: ignore[arg-type]
    assert reason((1, 2), {"target": 1, "protected": 2}) is None
    assert [values_in(word) for word in ("shows", "shows_y", "shows_a1_y0", "black", "shows_y1_b")] == [None] * 5


def test_confusions_count_what_reached_the_check() -> None:
    rejected = [
        ((0, 0), "black"), ((0, 0), "shows_y1_a0"), ((0, 0), "near_duplicate"), ((0, 1), "shows_y0_a0"),
        ((0, 1), "shows_y_unclear_a1"), ((1, 0), "other_group"),
    ]  # fmt: skip
    groups = [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = confusions(groups, dict.fromkeys(groups, 5), rejected, ["target", "protected"])
    assert [(one.shown, one.unclear) for one in found] == [
        ([6, 1], 0), ([6, 0], 1), ([0, 5], 0), ([0, 5], 0), ([7, 0], 0), ([1, 6], 0), ([5, 0], 0), ([0, 5], 0),
    ]  # fmt: skip
    assert found[0].right == 6 / 7
    assert confusions(groups, dict.fromkeys(groups, 5), rejected, ["protected"]) == found[4:]


# -- faces -------------------------------------------------------------------------------------------------------------


def pooled(name: str, stride: int, channel: str = "channel") -> list[Any]:
    """``name``: [1, N, 1], the mean of each stride x stride cell of the first channel."""
    return [
        helper.make_node("Gather", ["x", channel], [f"{name}_c"], axis=1),
        helper.make_node("AveragePool", [f"{name}_c"], [f"{name}_p"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("Reshape", [f"{name}_p", "column"], [f"{name}_r"]),
    ]


SHAPES = {"channel": np.array([0]), "column": np.array([1, -1, 1]), "rows": np.array([-1, 1])}


def yunet(path: Path) -> Path:
    """Sure of a face where a cell of 8 x 8 is blue, its first channel; of the width e times 8."""
    nodes, constants = [], dict[str, Any](SHAPES, zero=np.float32(0), full=np.float32(255))
    for stride in (8, 16, 32):
        count = (64 // stride) ** 2
        nodes += pooled(f"cls{stride}", stride)
        nodes += [
            helper.make_node("Div", [f"cls{stride}_r", "full"], [f"d{stride}"]),
            helper.make_node("Mul", [f"d{stride}", f"on{stride}"], [f"cls_{stride}"]),
            helper.make_node("Identity", [f"one{stride}"], [f"obj_{stride}"]),
            helper.make_node("Identity", [f"box{stride}"], [f"bbox_{stride}"]),
        ]
        constants[f"on{stride}"] = np.float32(stride == 8)
        constants[f"one{stride}"] = np.ones((1, count, 1), dtype=np.float32)
        constants[f"box{stride}"] = np.tile(np.array([0.5, 0.5, 1, 1], dtype=np.float32), (1, count, 1))
    outputs = [f"{kind}_{stride}" for kind in ("bbox", "cls", "obj") for stride in (8, 16, 32)]
    return onnx_file(path, nodes, outputs, (1, 3, 64, 64), **constants)


def scrfd(path: Path) -> Path:
    """Sure of a face where a cell of 8 x 8 is red; two equal anchors at each point, 8 pixels to each side."""
    nodes, constants = [], dict[str, Any](SHAPES, two=np.array([1, 1, 2]))
    for stride in (8, 16, 32):
        count = 2 * (64 // stride) ** 2
        nodes += pooled(f"s{stride}", stride)
        nodes += [
            helper.make_node("Tile", [f"s{stride}_r", "two"], [f"t{stride}"]),
            helper.make_node("Reshape", [f"t{stride}", "rows"], [f"u{stride}"]),
            helper.make_node("Mul", [f"u{stride}", f"on{stride}"], [f"score{stride}"]),
            helper.make_node("Identity", [f"b{stride}"], [f"box{stride}"]),
        ]
        constants[f"on{stride}"] = np.float32(stride == 8)
        constants[f"b{stride}"] = np.ones((count, 4), dtype=np.float32)
    outputs = [f"{kind}{stride}" for kind in ("score", "box") for stride in (8, 16, 32)]
    return onnx_file(path, nodes, outputs, (1, 3, 64, 64), **constants)


def ultraface(path: Path) -> Path:
    """Sure of a face where a cell of 8 x 8 is red; its box is the cell. Images are twice as wide as high."""
    nodes = [*pooled("s", 8), helper.make_node("Concat", ["s_r", "s_r"], ["scores"], axis=2),
             helper.make_node("Identity", ["cells"], ["boxes"])]  # fmt: skip
    row, column = (one.reshape(-1) for one in np.mgrid[:4, :8])
    cells = np.stack([column / 8, row / 4, (column + 1) / 8, (row + 1) / 4], axis=1)[None].astype(np.float32)
    return onnx_file(path, nodes, ["scores", "boxes"], (1, 3, 32, 64), **SHAPES, cells=cells)


def with_squares(*corners: tuple[int, int], colour: Sequence[int], size: int = 64, side: int = 8) -> np.ndarray:
    """uint8 [size, size, 3], black but for squares with these left upper corners."""
    image = np.zeros((size, size, 3), dtype=np.uint8)
    for left, top in corners:
        image[top : top + side, left : left + side] = colour
    return image


@pytest.mark.parametrize(("detector", "colour"), [(yunet, (0, 0, 255)), (scrfd, (255, 0, 0))])
def test_exactly_one_face(tmp_path: Path, detector: Any, colour: Sequence[int]) -> None:
    faces = Faces(FaceCheck(model=detector(tmp_path / "faces.onnx")))
    images = [
        with_squares(*corners, colour=colour) for corners in ([], [(16, 40)], [(0, 0), (40, 40)], [(0, 0), (0, 16)])
    ]
    assert faces.reasons(np.stack(images), [(0, 0)] * 4) == ["no_face", None, "several_faces", "several_faces"]
    expected = [16 + 4 - 4 * np.e, 40 + 4 - 4 * np.e, 16 + 4 + 4 * np.e, 40 + 4 + 4 * np.e]
    expected = expected if detector is yunet else [8, 32, 24, 48]
    assert np.allclose(faces.find(images[1]), [expected], atol=1e-4)
    larger = images[1].repeat(2, 0).repeat(2, 1)  # found in an image of half its size
    assert np.allclose(faces.find(larger), 2 * np.array([expected]), atol=1e-3)
    other = with_squares((16, 40), colour=colour[::-1])
    assert faces.reasons(other[None], [(0, 0)]) == ["no_face"]


def test_overlapping_detections_are_one_face_and_small_ones_none(tmp_path: Path) -> None:
    model = scrfd(tmp_path / "faces.onnx")
    near = with_squares((16, 40), (24, 40), colour=(255, 0, 0))  # boxes of 16 x 16, 8 apart: a third is common
    for overlap, count in ((0.32, 1), (0.34, 2)):
        assert len(Faces(FaceCheck(model=model, overlap=overlap)).find(near)) == count
    for smallest, count in ((0.24, 1), (0.26, 0)):
        image = with_squares((16, 40), colour=(255, 0, 0))
        assert len(Faces(FaceCheck(model=model, smallest=smallest)).find(image)) == count
    assert len(Faces(FaceCheck(model=model, score=0.9)).find(with_squares((16, 40), colour=(200, 0, 0)))) == 0


def test_a_detector_that_sees_wide_images(tmp_path: Path) -> None:
    faces = Faces(FaceCheck(model=ultraface(tmp_path / "faces.onnx")))
    image = with_squares((16, 32), colour=(255, 0, 0), side=16)  # becomes 32 x 32, beside 32 columns of nothing
    assert np.allclose(faces.find(image), [[16, 32, 32, 48]], atol=1e-4)


def test_detectors_of_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AimfairError) as error:
        Faces(FaceCheck(model=means_of_channels(tmp_path / "a.onnx")))
    assert str(error.value).startswith(f"generate.filters.faces.model: {tmp_path}/a.onnx: for an image of 640 x 640")
    assert "outputs logits [1, 3]; expected those of YuNet: cls_8, " in str(error.value)
    nodes = [*pooled("s", 8), helper.make_node("Concat", ["s_r", "s_r"], ["scores"], axis=2),
             helper.make_node("Identity", ["cells"], ["boxes"])]  # fmt: skip
    few = np.zeros((1, 3, 4), dtype=np.float32)  # boxes for three of the 64 scores
    model = onnx_file(tmp_path / "b.onnx", nodes, ["scores", "boxes"], (1, 3, 64, 64), **SHAPES, cells=few)
    with pytest.raises(AimfairError, match=r"outputs scores \[1, 64, 2\]; boxes \[1, 3, 4\]; expected those of"):
        Faces(FaceCheck(model=model))
    with pytest.raises(ValueError, match=r"expected a file whose name ends in \.onnx"):
        FilterSettings.model_validate({"faces": {"model": "/models/faces.pt"}})


# -- quality -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores.py").write_text(
        "def bright(images, groups): return images.mean((1, 2, 3)) + [100 * y for y, _ in groups]\n"
        "def short(images, groups): return [1.0]\n"
        "def undefined(images, groups): return [float('nan')] * len(images)\n"
        "def broken(images, groups): raise KeyError('x')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)


def scores(model: object, **changes: Any) -> list[float]:
    check = QualityCheck.model_validate({"model": str(model), **changes})
    return Quality(check, False, CPU).scores(flat((10, 10, 10), (20, 20, 20)), [(0, 0), (1, 0)])


def test_scores_of_a_function(functions: None) -> None:
    assert scores("my_scores:bright") == [10, 120]
    for name, message in (
        ("short", r"an array of shape \(1,\), expected \(2,\)"), ("undefined", "a score of nan"),
        ("broken", "KeyError: 'x'"), ("absent", "has no attribute 'absent'"),
    ):  # fmt: skip
        with pytest.raises(AimfairError, match=rf"^generate.filters.quality.model: .*{message}"):
            scores(f"my_scores:{name}")


def test_scores_of_models(tmp_path: Path, siglip: Path, vit: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["score"], keepdims=0),
        helper.make_node("Reshape", ["score", "s"], ["y"]),
    ]
    model = onnx_file(tmp_path / "a.onnx", nodes, ["y"], (1, 3, "H", "W"), s=np.array([1, 1]))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert scores(model) == pytest.approx([10 / 255, 20 / 255], rel=1e-3)
    good = scores(siglip, texts=["good", "bad"])
    assert all(0 < one < 1 for one in good)
    assert scores(siglip, texts=["bad", "good"]) == pytest.approx([1 - one for one in good], abs=1e-5)
    with pytest.raises(AimfairError, match=r"quality.texts: missing; CLIP and SigLIP need two"):
        scores(siglip)
    with pytest.raises(AimfairError, match=r"quality.model: .*: 3 numbers for an image, expected one, its score"):
        scores(vit)
    with pytest.raises(ValueError, match="reads no texts"):
        scores(model, texts=["good", "bad"])


def test_what_tells_the_checks_apart(tmp_path: Path, functions: None) -> None:
    model, detector = means_of_channels(tmp_path / "a.onnx"), scrfd(tmp_path / "b.onnx")
    check = {"model": str(model), "labels": [["0"], ["1"]]}
    filters = {
        "target": check, "faces": {"model": str(detector)}, "quality": {"model": "my_scores:bright"},
        "near_duplicates_share": 0.1, "near_duplicates_attempts": 5,
    }  # fmt: skip
    facts = filter_facts(settings(**filters), PROMPTS, tmp_path)
    assert sorted(facts) == ["faces", "near_duplicates_attempts", "near_duplicates_share", "quality", "target"]
    loaded = load_filters(settings(**filters), PROMPTS, tmp_path, CPU)
    assert [type(one) for one in loaded] == [Attributes, Faces, Quality]
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "0", "1": "1", "2": "2"}}))
    changed = filter_facts(settings(**filters), PROMPTS, tmp_path)
    assert changed["target"]["model"] != facts["target"]["model"]
    assert filter_facts(settings(target={**check, "least": 0.5}), PROMPTS, tmp_path)["target"]["least"] == 0.5
    yunet(detector)
    assert filter_facts(settings(**filters), PROMPTS, tmp_path)["faces"] != facts["faces"]


@pytest.mark.parametrize("inner", [False, True], ids=["of the graph", "of a constant"])
def test_weights_beside_an_onnx_file_tell_checks_apart(tmp_path: Path, inner: bool) -> None:
    """Whatever their name, and wherever they are."""
    path, weights = tmp_path / "a.onnx", numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")
    value = helper.make_node("Constant", [], ["w"], value=weights) if inner else None
    graph = helper.make_graph([value] if value else [], "graph", [], [], [] if value else [weights])
    model = helper.make_model(graph)
    onnx.save(
        model, path, save_as_external_data=True, location="some weights [1]", size_threshold=0, convert_attribute=True
    )
    filters = {
        "faces": {"model": str(path)},
        "target": {"model": str(path), "labels": [["0"], ["1"]]},
    }
    before = filter_facts(settings(**filters), PROMPTS, tmp_path)
    assert before == filter_facts(settings(**filters), PROMPTS, tmp_path)
    (tmp_path / "some weights [1]").write_bytes(bytes(256))
    after = filter_facts(settings(**filters), PROMPTS, tmp_path)
    assert before["faces"]["model"] != after["faces"]["model"]
    assert before["target"]["model"] != after["target"]["model"]

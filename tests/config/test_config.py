"""Settings: defaults under files under flags, refusals that say where and what, and exact round trips."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aimfair.base.errors import ConfigError
from aimfair.config import Config, strict_yaml
from aimfair.config import load as config_file
from aimfair.methods import Tune

BUNDLED = sorted((Path(config_file.__file__).parents[1] / "configs").glob("*.yaml"))
PAPER = {"celeba-smiling-male", "celeba-smiling-young", "celeba-young-male", "utkface-gender-white"}
DEMO = next(path for path in BUNDLED if path.stem == "demo")


def demo(**overrides: str) -> Config:
    """The settings of the demo; ``__`` stands for the dots of a key."""
    return config_file.load(DEMO, {key.replace("__", "."): text for key, text in overrides.items()})


def refusal(tmp_path: Path, text: str) -> str:
    """What is said of a file, with FILE for its path."""
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config_file.load(path)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(path), "FILE")


def flag_refusal(**overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        demo(**overrides)
    return str(caught.value)


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_settings_load_and_round_trip(path, tmp_path):
    config = config_file.load(path)
    (tmp_path / "config.yaml").write_text(config_file.dump(config), encoding="utf-8")
    assert config_file.load(tmp_path / "config.yaml") == config


def test_what_is_bundled():
    assert {path.stem for path in BUNDLED} == {"demo", "premise", *PAPER}


def test_the_tasks_of_the_paper_differ_in_data_and_words_alone():
    trees = [config_file.load(path).model_dump() for path in BUNDLED if path.stem in PAPER]
    for tree in trees:
        assert (tree["prompts"]["per_group"], tree["data"]["majority"]) == (50, [1, 0])
        for key in ("title", "data", "prompts"):
            del tree[key]
    assert trees[1:] == trees[:-1]


def test_flags_over_file_over_defaults():
    config = demo(train__lr="1e-2", seeds="7, 8", title="a: [b", model__config__depths="2,2")
    assert config.train.lr == 0.01
    assert config.seeds == [7, 8]
    assert config.title == "a: [b"
    assert config.model.config["depths"] == "2,2"  # a free tree: YAML, as in the file
    assert config.train.epochs == 20  # the file's
    assert config.evaluate.confidence == 0.95  # the default


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.lr", "1", 1.0),
        ("train.lr", ".5", 0.5),
        ("train.epochs", "3", 3),
        ("train.augment.flip", "true", True),
        ("train.augment.crop_scale", "0.5, 1", (0.5, 1.0)),
        ("train.augment.crop_scale", "[0.5, 1]", (0.5, 1.0)),
        ("title", "null", "null"),
        ("title", "12", "12"),
        ("threads", "null", None),
        ("threads", "2", 2),
        ("generate.scheduler", "ddim", "ddim"),
        ("generate.batch_size", "8", 8),
        ("generate.batch_size", "auto", "auto"),
        ("model.config.hidden_sizes", "[8, 8]", [8, 8]),
        ("methods.full.lr", "0.5", 0.5),
        ("methods.paper.bias_density", "1", 1.0),
        ("methods.paper.bias_density", "0.5", 0.5),
        ("prompts.contexts.size", "tiny,huge", ["tiny", "huge"]),
        ("prompts.protected", "[[blue], [black, grey]]", [["blue"], ["black", "grey"]]),
    ],
)
def test_values_of_flags(key, text, value):
    found = config_file.load(DEMO, {key: text})
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_new_method_by_flags():
    config = demo(methods__mine__rule="top_k", methods__mine__density="0.2", default_method="mine")
    assert config.methods["mine"] == Tune(rule="top_k", density=0.2)


def test_names_of_methods_are_names_of_folders():
    """Which some disks do not tell apart by case."""
    said = flag_refusal(methods__New__rule="all", methods__nEW__rule="all")
    assert said.endswith("methods.nEW: differs from 'New' only by case; give one of them another name")
    assert "methods.Biased: expected a name of letters" in flag_refusal(methods__Biased__rule="all")


def test_images_are_not_shifted_out_of_sight():
    said = flag_refusal(finetune__augment__shift="10000000000")
    assert said.startswith("--finetune.augment.shift: found 10000000000, expected less than data.image_size")


def test_folders_are_recorded_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    celeba = next(path for path in BUNDLED if "celeba" in path.stem)
    for given_, recorded in (("data", tmp_path / "data"), ("~/d/../e", "/home/somebody/e"), ("/x", "/x")):
        assert config_file.load(celeba, {"data.root": given_}).data.root == Path(recorded)
    for given_, recorded in (("./m", str(tmp_path / "m")), ("~/m", "/home/somebody/m"), ("org/name", "org/name")):
        assert demo(generate__model=given_).generate.model == recorded


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        demo().train.lr = 2.0


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n  lrr: 1\n", "FILE:2: train.lrr: unknown key; did you mean train.lr?"),
        ("lr: 1\n", "FILE:1: lr: unknown key; did you mean train.lr or finetune.lr"),
        ("\ntrian:\n  lr: 1\n", "FILE:2: trian: unknown key; did you mean train?"),
        ("methods:\n  a: {rul: all}\n", "FILE:2: methods.a.rul: unknown key; did you mean methods.a.rule?"),
        ("train:\n  epochs: '3'\n", 'FILE:2: train.epochs: found "3", expected a whole number'),
        ("train:\n  epochs: 3.0\n", "FILE:2: train.epochs: found 3.0, expected a whole number"),
        ("train:\n  epochs: true\n", "FILE:2: train.epochs: found true, expected a whole number"),
        ("train:\n  lr: yes\n", 'FILE:2: train.lr: found "yes", expected a number'),
        ("train:\n  lr: .inf\n", "FILE:2: train.lr: found Infinity, expected a finite number"),
        ("train:\n  lr: .nan\n", "FILE:2: train.lr: found NaN, expected a finite number"),
        ("train:\n  lr: -1e-3\n", "FILE:2: train.lr: found -0.001, expected greater than 0"),
        ("train: 3\n", "FILE:1: train: found 3, expected keys and values"),
        ("data:\n  kind: mnist\n", "FILE:2: data.kind: found \"mnist\", expected 'digits', 'emoji', 'table'"),
        ("seeds:\n- 1\n- x\n", 'FILE:3: seeds.1: found "x", expected a whole number'),
        ("seeds: []\n", "FILE:1: seeds: "),
        ("methods:\n  a:\n    bias_k: x\n", 'FILE:3: methods.a.bias_k: found "x"'),
        ("methods:\n  a: {bias_k: 0.5}\n", "FILE:2: methods.a.bias_k: found 0.5, expected a whole number"),
        ("methods:\n  a: {bias_density: 2}\n", "FILE:2: methods.a.bias_density: found 2, expected less than or equal"),
        (
            "methods:\n  a: {bias: 55}\n",
            "FILE:2: methods.a.bias: unknown key; it was renamed to methods.a.bias_density (a",
        ),
        (
            "evaluate: {replicates: 1000000001}\n",
            "FILE:1: evaluate.replicates: found 1000000001, expected less than or",
        ),
        ("methods:\n  a: {kind: erm, rule: all}\n", "FILE:2: methods.a.rule: not valid for kind 'erm', only for tune"),
        ("methods:\n  a: {kind: [jtt]}\n", "FILE:2: methods.a.kind: found ['jtt'], expected one of tune, erm,"),
        ("methods:\n  a: {kind: dro}\n", "FILE:2: methods.a.kind: found 'dro', expected one of tune, erm,"),
        ("methods:\n  a: {kind: jtt, upweight: 0}\n", "FILE:2: methods.a.upweight: found 0, expected greater than or"),
        (
            "methods:\n  a: {kind: jtt, upweight: 1000000000}\n",
            "FILE:2: methods.a.upweight: found 1000000000, expected less than",
        ),
        ("threads: 1000000\n", "FILE:1: threads: found 1000000, expected less than or equal to 1024"),
        ("device: cuda:99999999999999999999\n", "FILE:1: device: found 'cuda:99999999999999999999', expected auto"),
        ("methods:\n  a: {kind: jtt, up: 0}\n", "FILE:2: methods.a.up: unknown key; did you mean"),
        ("title: a\n", "FILE: prompts: missing"),
        ("title: a\ntitle: b\n", "FILE:2: duplicate key 'title'"),
        ("train:\n  lr: 1\n  lr: 1\n", "FILE:3: duplicate key 'lr'"),
        ("1: a\n", "FILE:1: found the key '1', expected a string"),
        ("a: &x [1]\nb: *x\n", "FILE:2: aliases are not supported"),
        ("a: !!python/object/apply:os.system [true]\n", "FILE:1: found the tag 'tag:yaml.org,2002:python/object"),
        ("a: !!binary aGk=\n", "FILE:1: found the tag"),
        ("a: [1\n", "FILE:2: "),
        ("a: b: c\n", "FILE:1: "),
        ("\ta: 1\n", "FILE:1: "),
        ("a: 1\n---\nb: 2\n", "FILE:2: "),
        ("- a\n", "FILE: expected keys and values, found list"),
        ("", "FILE: expected keys and values, found nothing"),
        ("[" * 2000, "FILE: "),
        (f"seeds: [{'9' * 5000}]", "FILE: "),
    ],
)
def test_files_are_refused_with_line_and_key(tmp_path, text, said):
    lines = refusal(tmp_path, text).splitlines()
    assert any(line.startswith(said) for line in lines), lines


def test_renamed_keys_are_refused_with_the_new_name(tmp_path, monkeypatch):
    renamed = {"train.rate": "train.lr", "methods.<name>.share": "methods.<name>.density or methods.<name>.k"}
    monkeypatch.setattr("aimfair.config.errors.RENAMED", renamed)
    said = "FILE:2: train.rate: unknown key; it was renamed to train.lr"
    assert said in refusal(tmp_path, "train:\n  rate: 1\n").splitlines()
    said = "FILE:2: methods.a.share: unknown key; it was renamed to methods.a.density or methods.a.k"
    assert said in refusal(tmp_path, "methods:\n  a: {share: 1}\n").splitlines()
    assert flag_refusal(train__rate="1") == "--train.rate: unknown key; it was renamed to train.lr"
    assert flag_refusal(methods__paper__share="1").endswith("methods.paper.density or methods.paper.k")


def test_every_fault_has_its_line(tmp_path):
    said = refusal(
        tmp_path,
        DEMO.read_text()
        .replace("train:\n  optimizer: adamw\n  lr: 0.003", "train:\n  optimizer: adamw\n  lr: 0")
        .replace("image_size", "imagesize"),
    )
    assert [line.split(": ")[1] for line in said.splitlines()] == ["data.imagesize", "train.lr"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("title: f\xfcr".encode("latin-1"))
    for name, reason in (("latin.yaml", "not UTF-8"), ("none.yaml", "No such file"), (".", "Is a directory")):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read: .*{reason}"):
            config_file.load(tmp_path / name if name != "." else Path("."))


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("train.lrr", "1", "--train.lrr: unknown key; did you mean train.lr?"),
        ("prompts.contexts", "3", "--prompts.contexts: found 3, expected keys and values"),
        ("methods..rule", "all", "--methods..rule: unknown key"),
        ("title.x", "1", "--title.x: unknown key"),
        ("train.lr", "0", "--train.lr: found 0, expected greater than 0"),
        ("seeds", "1,x", '--seeds: seeds.1: found "x", expected a whole number'),
        ("seeds", "1,1", "--seeds: found [1, 1], expected different numbers"),
        ("seeds", "-1", "--seeds: found [-1], expected different numbers, none below 0"),
        ("seeds", "[1", "--seeds: '[1' is not YAML"),
        ("device", "gpu", "--device: found 'gpu'"),
        ("data.kind", "celeba", "data.root: missing; celeba needs the folder"),
        ("data.target", "digits", "--data.target: found 'digits', expected 'at_least_five' or 'digit'"),
        ("data.target", "digit", "prompts.targets: found 2 lists of words, expected 10"),
        ("data.majority", "0", "--data.majority: found 1 numbers, expected 2"),
        ("data.majority", "0,2", "--data.majority: found [0, 2], expected numbers from 0 to 1"),
        ("prompts.targets", "[[a]]", "--prompts.targets: found 1 lists of words, expected at least 2"),
        ("prompts.protected", "[[a], []]", "--prompts.protected: prompts.protected.1: found [], expected at least one"),
        ("prompts.protected", "[[a], [b], [c]]", "--prompts.protected: found 3 lists of words, expected 2"),
        ("prompts.contexts.size", "a, ' '", "--prompts.contexts.size: found ['a', ' ']"),
        ("prompts.contexts.size", "a,a", "--prompts.contexts.size: a value occurs twice"),
        ("prompts.contexts_per_prompt", "5", "--prompts.contexts_per_prompt: found 5, expected at most 3"),
        ("prompts.contexts_per_prompt", "0", "prompts.template: found {target} {protected} {contexts}, expected each"),
        ("prompts.template", "a {target} {protected}", "--prompts.template: found {target} {protected}, expected each"),
        ("prompts.template", "{target!r} {protected} {contexts}", "--prompts.template: found {target!r}"),
        ("prompts.template", "{target} {protected} {contexts} {target}", "--prompts.template: found"),
        ("prompts.template", "{target} {protected} {contexts} {", "--prompts.template: "),
        ("model.pretrained", "org/name", "model.config: model.pretrained is given too"),
        ("model.config", "{}", "model: give model.pretrained, model.factory or model.config"),
        ("model.config", "{depths: [1]}", "--model.config: model_type is missing"),
        ("model.std", "1,1,0", "--model.std: found [1.0, 1.0, 0.0], expected numbers above 0"),
        ("train.epochs", "1000000000", "--train.epochs: found 1000000000, expected less than or equal to 1000000"),
        ("methods.full.epochs", "1000001", "--methods.full.epochs: found 1000001, expected less than or equal to 1"),
        ("train.augment.crop_scale", "1,0.5", "--train.augment.crop_scale: found [1.0, 0.5]"),
        ("train.augment.crop_scale", "0.5,1.5", "--train.augment.crop_scale: found [0.5, 1.5]"),
        ("default_method", "none", "--default_method: found 'none', expected one of methods: linear_probe, "),
        ("methods.biased.rule", "all", "methods.biased: expected a name"),
        ("methods.a/b.rule", "all", "methods.a/b: expected a name"),
        ("methods.full.k", "3", "methods.full: rule 'all' takes no size, found k"),
        ("methods.aimfair.k", "3", "methods.aimfair: rule 'ratio' takes density or k, found density and k"),
        ("methods.paper.bias_k", "3", "methods.paper: rule 'intersection' takes bias_density and domain_density or"),
        ("methods.paper.bias", "55", "--methods.paper.bias: unknown key; it was renamed to methods.paper.bias_d"),
        ("methods.paper.source", "real_biased", "--methods.paper.source: criterion 'difference' compares two"),
        ("methods.paper.domain_criterion", "fisher", "--methods.paper.domain_criterion: found 'fisher'"),
    ],
)
def test_flags_are_refused_by_name(key, text, said):
    with pytest.raises(ConfigError) as caught:
        config_file.load(DEMO, {key: text})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_does_not_hide_what_is_wrong_with_the_file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(DEMO.read_text().replace("train:\n", "train: 3\nxtrain:\n"))
    with pytest.raises(ConfigError, match=r"train: found 3, expected keys"):
        config_file.load(path, {"train.lr": "1"})


def test_without_a_file_what_has_no_default_is_named():
    with pytest.raises(ConfigError) as caught:
        config_file.load(None)
    assert str(caught.value).splitlines() == [
        f"{key}: missing, and it has no default" for key in ("prompts", "model", "methods", "default_method")
    ]


# -- YAML --------------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_what_is_written_is_read(tree):
    assert strict_yaml.parse(strict_yaml.write(tree))[0] == tree


@settings(deadline=None)
@example("1e-3")
@example("2.E5")
@example("true")
@example("\x85<z\U000c39d3j")
@given(st.text(alphabet="-+.0123456789eE_:xobnaif~tru", max_size=8))
def test_strings_that_look_like_something_else_stay_strings(text):
    assert strict_yaml.parse(strict_yaml.write([text]))[0] == [text]


@settings(deadline=None)
@given(st.text())
def test_any_string_is_read_or_refused(text):
    try:
        strict_yaml.parse(text)
    except yaml.YAMLError as error:
        reason = strict_yaml.reason(error)
    else:
        return
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), ("+2", 2), ("0", 0), (".inf", math.inf),
        ("no", "no"), ("on", "on"), ("010", "010"), ("12:30", "12:30"), ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"), ("0x10", "0x10"), ("<<", "<<"), ("=", "="), ("True", True), ("~", None),
        ("", None),
    ],
)  # fmt: skip
def test_yaml_without_surprises(text, value):
    assert strict_yaml.parse(text)[0] == value


@settings(max_examples=20, deadline=None)
@given(lr=st.floats(1e-300, 1e300), title=st.text(), seeds=st.lists(st.integers(0, 2**62), min_size=1, unique=True))
def test_settings_round_trip(lr, title, seeds):
    config = demo()
    changed = config.model_copy(
        update={"title": title, "seeds": seeds, "train": config.train.model_copy(update={"lr": lr})}
    )
    tree, _ = strict_yaml.parse(config_file.dump(changed))
    assert Config.model_validate(tree) == changed


# -- listings ----------------------------------------------------------------------------------------------------------


def test_differences():
    assert config_file.differences(demo(), demo()) == []
    assert config_file.differences(demo(), demo(train__lr="0.5", methods__new__rule="all")) == [
        f"train.lr: {config_file.load(DEMO).train.lr} -> 0.5",
        "methods.new: new",
    ]
    assert config_file.differences(demo(methods__new__rule="all"), demo()) == ["methods.new: gone"]


def test_a_url_with_credentials_is_refused_and_not_repeated():
    for key in ("data.root", "generate.model", "model.pretrained", "generate.folder"):
        for url in ("s3://key:hunter2@bucket/x", "https://host/x?X-Amz-Signature=hunter2"):
            with pytest.raises(ConfigError, match=f"^--{key}: expected a URL without user, password or") as caught:
                demo(**{key.replace(".", "__"): url})
            assert "hunter2" not in str(caught.value)


def test_every_key_is_described():
    fields = dict(config_file.keys())
    assert [key for key in fields if not fields[key].description] == []


def test_the_reference_has_types_defaults_and_limits():
    text = config_file.reference()
    for line in (
        "train.lr = 0.001    (float, > 0)",
        "threads = null    (int or null, >= 1, <= 1024)",
        "data.root = null    (folder or URL or null)",
        'generate.image_format = "webp"    (png or webp)',
        "prompts.targets = required    (list[list[string]])",
        "methods.<name>.density = null    (float or null, > 0, <= 1)",
    ):
        assert line in text.splitlines()

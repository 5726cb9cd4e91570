"""Vocabularies: those that come with aimfair give nothing away; one's own are found, joined, and refused by line."""

import re
from collections import Counter
from pathlib import Path

import pytest

from aimfair.base.errors import ConfigError
from aimfair.commands import cli
from aimfair.config import Config, vocabulary
from aimfair.config import load as config_file
from aimfair.prompts.grammar import write_prompts
from aimfair.prompts.providers.templates import make_briefs, make_message
from aimfair.run.directory import Run
from aimfair.stages import prompts

PAPER = {
    "celeba-smiling-male": {"expression", "gender"},
    "celeba-smiling-young": {"expression", "age"},
    "celeba-young-male": {"age", "gender"},
    "utkface-gender-white": {"gender", "descent"},
}
"""Vocabulary -> its attributes, whose hints it must not hold."""
PARTS = {"faces", "no-hints-of-age", "no-hints-of-descent", "no-hints-of-expression", "no-hints-of-gender"}
TELLING = {
    "age": {"age"},
    "expression": {"expression"},
    "gender": {"hair_length", "beard", "make_up"},
    "descent": {"hair_colour", "skin"},
}
"""Attribute -> contexts that speak of it."""

REST = """
model: {config: {model_type: resnet}}
methods: {full: {rule: all}}
default_method: full
"""
WORDS = """include: [faces, ./more.yaml]
template: a {target} {protected}, {contexts}
targets: [[cat], [dog]]
protected: [[indoors], [outdoors]]
contexts:
  fur: [with long fur, with short fur]
  lighting: [at noon, at midnight]
contexts_per_prompt: 3
avoid: [leash]
"""
MORE = "contexts: {tail: [with a curled tail, with a straight tail]}\navoid: [collar, leash]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config that uses a vocabulary of its own, which includes two; also the working directory."""
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "pets.yaml").write_text(WORDS)
    (tmp_path / "words" / "more.yaml").write_text(MORE)
    (tmp_path / "my.yaml").write_text("prompts:\n  vocabulary: ./words/pets.yaml\n  per_group: 4\n" + REST)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(**flags: str) -> Config:
    return config_file.load(Path("my.yaml"), {f"prompts.{name.replace('__', '.')}": text for name, text in
                                              flags.items()})  # fmt: skip


def refusal(**flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**flags)
    return str(caught.value)


# -- those that come with aimfair --------------------------------------------------------------------------------------


def test_what_is_bundled() -> None:
    assert set(vocabulary.names()) == set(PAPER) | PARTS


@pytest.mark.parametrize("name", PAPER)
def test_contexts_give_neither_attribute_away(name: str) -> None:
    settings = config_file.load(Path(config_file.__file__).parents[1] / "configs" / f"{name}.yaml").prompts
    names = set(settings.contexts)
    assert {"facial_features", "hair", "accessories", "head_pose", "lighting", "background"} <= names
    assert ("age" in names) == ("age" not in PAPER[name])
    assert not names & set().union(*(TELLING[attribute] for attribute in PAPER[name]))
    of_groups = [word for words in (*settings.targets, *settings.protected) for word in words]
    assert settings.llm.avoid
    for word in (*of_groups, *settings.llm.avoid):
        for values in settings.contexts.values():
            for value in values:
                assert not re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", value.casefold()), (word, value)


@pytest.mark.parametrize("name", PAPER)
def test_prompts_of_every_group_read_well(name: str) -> None:
    settings = config_file.load(Path(config_file.__file__).parents[1] / "configs" / f"{name}.yaml").prompts
    written = write_prompts(settings)
    assert len(written) == 200
    for prompt in written:
        assert not re.search(r"\ba [aeiou]", prompt.text), prompt.text
        assert len(prompt.text.split()) <= 40, "CLIP reads 77 tokens"
        assert len(prompt.contexts) == 4


@pytest.mark.parametrize("name", PAPER)
def test_a_language_model_is_told_the_contexts_and_what_to_avoid(name: str) -> None:
    config = config_file.load(Path(config_file.__file__).parents[1] / "configs" / f"{name}.yaml")
    settings, briefs = config.prompts, make_briefs(config.prompts)
    message = make_message(settings, config.data.target, config.data.protected, briefs[:10], Counter())
    (names,) = re.findall(r"^Contexts vary over: (.*?)\.", message, re.MULTILINE)
    assert names.split(", ") == list(settings.contexts)
    (avoided,) = re.findall(r"never these words: (.*);$", message, re.MULTILINE)
    words = [word for of in (*settings.targets, *settings.protected) for word in of]
    assert set(avoided.split(", ")) == {*words, *settings.llm.avoid}
    assert f"target attribute: {config.data.target}" in message
    assert f"protected attribute {config.data.protected}" in message
    used = Counter(name for brief in briefs for name in brief.contexts)
    assert max(used.values()) - min(used.values()) <= 2, "every context about as often as the others"
    assert set(used) == set(settings.contexts)


def test_no_value_is_written_down_twice() -> None:
    """Shared words stand in files that are included."""
    found = [vocabulary.strict_yaml.read(path)[0] for path in vocabulary.BUNDLED.glob("*.yaml")]
    avoided = [word for tree in found for word in tree.get("avoid", [])]
    assert {word for word in avoided if avoided.count(word) > 1} == {"bald", "balding"}  # of age and of gender


# -- one's own ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_includes_add_contexts_and_words_to_avoid() -> None:
    settings = load().prompts
    faces = vocabulary.strict_yaml.read(vocabulary.BUNDLED / "faces.yaml")[0]["contexts"]
    assert list(settings.contexts) == ["fur", "lighting", *(name for name in faces if name != "lighting"), "tail"]
    assert settings.contexts["lighting"] == ["at noon", "at midnight"]  # the including file's
    assert settings.contexts["hair"] == faces["hair"]
    assert settings.llm.avoid == ["leash", "collar"]
    assert (settings.targets, settings.contexts_per_prompt) == ([["cat"], ["dog"]], 3)


@pytest.mark.usefixtures("folder")
def test_what_the_config_gives_stands() -> None:
    Path("my.yaml").write_text(
        "prompts:\n  vocabulary: ./words/pets.yaml\n  targets: [[tabby], [poodle]]\n  contexts: {sky: [blue, grey]}\n"
        "  contexts_per_prompt: 1\n  llm: {max_words: 9}\n" + REST
    )
    settings = load().prompts
    assert settings.targets == [["tabby"], ["poodle"]]
    assert settings.contexts == {"sky": ["blue", "grey"]}
    assert settings.protected == [["indoors"], ["outdoors"]]
    assert (settings.llm.max_words, settings.llm.avoid) == (9, ["leash", "collar"])


@pytest.mark.usefixtures("folder")
def test_flags_stand_over_all_and_a_vocabulary_by_flag_over_the_words_of_the_file() -> None:
    assert load(contexts__fur="with no fur").prompts.contexts["fur"] == ["with no fur"]
    assert load(contexts__fur="with no fur").prompts.contexts["tail"] == ["with a curled tail", "with a straight tail"]
    other = load(vocabulary="celeba-young-male", targets="[[aged], [new]]").prompts
    assert other.targets == [["aged"], ["new"]]
    assert other.protected == [["female"], ["male"]]
    assert "fur" not in other.contexts
    assert "leash" not in other.llm.avoid
    assert "beard" in other.llm.avoid
    Path("my.yaml").write_text(
        Path("my.yaml")
        .read_text()
        .replace(
            "  per_group: 4",
            "  targets: [[p], [q]]\n"
            "  contexts: {sky: [blue]}\n  contexts_per_prompt: 1\n  llm: {avoid: [x], max_words: 9}",
        )
    )
    assert load().prompts.targets == [["p"], ["q"]]
    other = load(vocabulary="celeba-young-male").prompts
    assert other.targets == [["middle-aged", "senior"], ["young", "youthful"]]
    assert "sky" not in other.contexts
    assert (other.contexts_per_prompt, other.llm.max_words) == (4, 9)
    assert "x" not in other.llm.avoid
    assert load(vocabulary="null", targets="[[x], [y]]", protected="[[v], [w]]", contexts="{a: [b, c], d: [e], f: [g]}",
                template="{target} {protected} {contexts}").prompts.vocabulary is None  # fmt: skip


@pytest.mark.usefixtures("folder")
def test_a_run_keeps_the_words_and_notices_other_ones(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prompts", "--quiet", "--run", "run"]
    assert cli.main([*command, "--config", "my.yaml"]) == 0
    record = Path("run/stages/prompts.json").read_text()
    config = Run.config_of(Path("run"))
    assert config == load()
    pets = Path("words/pets.yaml")
    pets.write_text(WORDS.replace("with long fur", "with curly fur"))
    assert Run.config_of(Path("run")) == config
    assert cli.main(command) == 0
    assert cli.main([*command, "--config", "my.yaml"]) == 1
    assert 'prompts.contexts.fur: ["with long fur", "with short fur"] -> ["with curly' in capsys.readouterr().err
    assert Path("run/stages/prompts.json").read_text() == record
    assert cli.main([*command, "--config", "my.yaml", "--overwrite"]) == 0
    assert Path("run/stages/prompts.json").read_text() != record
    pets.unlink()
    assert cli.main(command) == 0


@pytest.mark.usefixtures("folder")
def test_where_the_words_came_from_changes_no_prompt() -> None:
    def write(config: Config) -> bytes:
        with Run.open(Path("run"), config, overwrite=True, quiet=True) as run:
            prompts.run(run)
        return Path("run/stages/prompts.json").read_bytes()

    config = load()
    record = write(config)
    assert (
        write(config.model_copy(update={"prompts": config.prompts.model_copy(update={"vocabulary": None})})) == record
    )
    assert write(load(seed="1")) != record


def test_the_example_of_the_documentation(folder: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (folder / "words" / "pets.yaml").write_text(example)
    (folder / "words" / "light.yaml").write_text("contexts: {light: [at noon, at midnight]}\n")
    settings = load().prompts
    assert list(settings.contexts) == ["fur", "pose", "light"]
    assert len(write_prompts(settings)) == 16


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("contexts:", "contxts:", "pets.yaml:5: contxts: unknown key; expected one of include, template, targets, pro"),
        ("targets: [[cat]", "targets: [cat", 'pets.yaml:3: targets.0: found "cat", expected a list'),
        ("[[cat], [dog]]", "[[cat]]", "pets.yaml:3: prompts.targets: found 1 lists of words, expected at least 2"),
        ("with long fur", "' '", "pets.yaml:6: prompts.contexts.fur: found [' ', 'with short fur'], expected"),
        ("at midnight", "at noon", "pets.yaml:7: prompts.contexts.lighting: a value occurs twice"),
        ("prompt: 3", "prompt: 30", "pets.yaml:8: prompts.contexts_per_prompt: found 30, expected at most 8"),
        ("[leash]", "['']", "pets.yaml:9: avoid: found [''], expected at least one string"),
        ("[leash]", "[3]", "pets.yaml:9: avoid.0: found 3, expected a string"),
        ("{protected}, ", "", "pets.yaml:2: prompts.template: found {target} {contexts}, expected each of"),
        ("targets: ", "targits: ", "pets.yaml:3: targits: unknown key"),
        ("avoid: ", "\tavoid: ", "pets.yaml:9: "),
        ("protected: [[indoors], [outdoors]]\n", "", "my.yaml:1: prompts.protected: missing, and it has no default"),
        (
            "faces",
            "face",
            "pets.yaml:1: found 'face', expected the path of a vocabulary, beginning with /, ./, ../ or ",
        ),
        ("./more.yaml", "./none.yaml", "pets.yaml:1: found './none.yaml', expected a vocabulary; there is no file "),
        ("./more.yaml", "../words/pets.yaml", "pets.yaml:1: include: ../words/pets.yaml includes this file"),
    ],
)
def test_files_are_refused_with_line_and_key(old: str, new: str, said: str) -> None:
    assert old in WORDS
    Path("words/pets.yaml").write_text(WORDS.replace(old, new))
    assert said in refusal()


@pytest.mark.usefixtures("folder")
def test_faults_of_what_is_included_are_told_of_its_own_file() -> None:
    Path("words/more.yaml").write_text(MORE.replace("with a straight tail", "with a curled tail"))
    assert "more.yaml:1: prompts.contexts.tail: a value occurs twice" in refusal()
    Path("words/more.yaml").write_text("include: [./pets.yaml]\n")
    assert "more.yaml:1: include: ./pets.yaml includes this file, expected no cycle" in refusal()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["none", "words/pets.yaml", "../faces", "", "."])
def test_names_that_are_none(name: str) -> None:
    said = refusal(vocabulary=name)
    assert said.startswith(f"--prompts.vocabulary: found '{name}', expected ")
    assert "\n" not in said


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts: {vocabulary: [faces]}\n", 'my.yaml:1: prompts.vocabulary: found ["faces"], expected a string'),
        ("prompts: faces\n", 'my.yaml:1: prompts: found "faces", expected keys and values'),
        ("prompts: {vocabulary: faces, llm: 3}\n", "my.yaml:1: prompts.llm: found 3, expected keys and values"),
        ("prompts: {vocabulary: faces}\n", "my.yaml:1: prompts.targets: missing"),
    ],
)
def test_configs_that_misuse_a_vocabulary(text: str, said: str) -> None:
    Path("my.yaml").write_text(text + REST)
    assert said in refusal()

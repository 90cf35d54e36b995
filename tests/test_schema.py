"""How YAML files are read, and how mappings become typed dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tuning.runs.errors import UserError
from tuning.schema import KEY, from_mapping, override, read_yaml
from tuning.training.config import TrainingArgumentsConfig
from tuning.weights.config import LoraConfig

pytestmark = pytest.mark.unit


@dataclass(frozen=True, kw_only=True)
class Job:
    """What can be written in the file, nested."""

    name: str = field(metadata=KEY)
    time: str | None = None
    cpus: int = 1
    share: float = 0.5
    wait: bool = False
    mode: Literal["auto", "manual"] = "auto"
    lines: tuple[str, ...] = ()
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of jobs."""

    title: str
    jobs: dict[str, Job] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """A config with a field that only the program sets."""

    steps: int = 10
    rate: float = 0.1
    inside: str = field(default="x", metadata={"flag": False})


@pytest.fixture
def content(tmp_path: Path):
    """Reads a text as a YAML file."""

    def read(text: str | bytes) -> Any:
        path = tmp_path / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yaml(path)

    return read


def job(text: str, content) -> Job:
    return from_mapping(File, content(f"title: x\njobs: {{a: {{{text}}}}}"), "x.yaml").jobs["a"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("12:00:00", "12:00:00"),
        ("0016", "0016"),
        ("1-00:00:00", "1-00:00:00"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("true", "true"),
        ("0x10", "0x10"),
        ("'null'", "null"),
        ("''", ""),
        ("null", None),
        ("~", None),
        ("", None),
        ("[a, ~, [1]]", ["a", None, ["1"]]),
        ("{a: {b: 1}}", {"a": {"b": "1"}}),
    ],
)
def test_a_scalar_is_the_text_that_is_written(content, written, read):
    assert content(f"key: {written}") == {"key": read}


def test_keys_are_words(content):
    assert content("1: a\ntrue: b\n010: c\n~: d") == {"1": "a", "true": "b", "010": "c", "~": "d"}


def test_an_empty_file_is_nothing(content):
    assert content("") is None and content("# a note\n") is None


def test_mappings_are_merged(content):
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2, z: 2}\nc: {<<: [*b, *a], z: 3}\nd: {<<: *b}"
    found = content(text)
    assert found["b"] == {"x": "1", "y": "2", "z": "2"} == found["d"]
    assert found["c"] == {"x": "1", "y": "2", "z": "3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "x.yaml' is not valid YAML: while parsing"),
        ("a: 1\n--- \nb: 1", "x.yaml' is not valid YAML"),
        ("a: &a [*a]", "x.yaml' is not valid YAML: it contains itself."),
        ("[" * 5000, "x.yaml' is not valid YAML"),
        (b"\xff\xfe\x00", "x.yaml' cannot be read (not UTF-8 text)."),
        ("a: 1\nb: 2\na: 3", "x.yaml' gives the key 'a' twice, in line 1 and in line 3; keep one."),
        ("a:\n  b: {c: 1, c: 1}", "gives the key 'c' twice, in line 2 and in line 2"),
        ("a: !!int 5", "has the tag 'tag:yaml.org,2002:int' in line 1; tags are not read."),
        ("a: !secret x", "has the tag '!secret' in line 1"),
        ("\n? [a]\n: b", "a key in line 2 is a list or a mapping, not a word."),
        ("a: {<<: [1]}", "'<<' in line 1 must name a mapping."),
    ],
)
def test_what_cannot_be_read_is_one_line(content, text, message):
    with pytest.raises(UserError) as caught:
        content(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml' cannot be read \(No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read_yaml(tmp_path)


def test_a_mapping_becomes_a_dataclass_with_those_inside(content):
    text = """
    title: 0016
    jobs:
      night: {time: 12:00:00, cpus: 0016, share: 1, wait: on, mode: manual, lines: [007, a b]}
      day: {sizes: [1e3, 2], time: }
    settings: {sft: {seed: 1}, pft: }
    """
    found = from_mapping(File, content(text), "x.yaml", path=Path("here"))
    night, day = found.jobs["night"], found.jobs["day"]
    assert night == Job(
        name="night", time="12:00:00", cpus=16, share=1.0, wait=True, mode="manual",
        lines=("007", "a b"),
    )  # fmt: skip
    assert day == Job(name="day", sizes=(1000, 2))
    assert (found.title, found.path) == ("0016", Path("here"))
    assert found.settings == {"sft": {"seed": "1"}, "pft": {}}


@pytest.mark.parametrize("empty", ["", "~", "null", "''"])
def test_an_empty_value_is_as_a_line_that_was_left_out(content, empty):
    assert job(f"time: {empty}, cpus: {empty}, lines: {empty}", content) == Job(name="a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml is empty; it must be a mapping of: jobs, path, settings, title."),
        ("jobs: {}", "x.yaml lacks: title."),
        ("title: ", "x.yaml lacks: title."),
        ("titel: a", "unknown key in x.yaml: 'titel'; choose from: jobs, path, settings, title. "
                     "Did you mean 'title'?"),
        ("title: [a]", "x.yaml: title is ['a']; it must be one word."),
        ("title: a\njobs: [a]", "x.yaml: jobs is ['a']; it must be a mapping."),
        ("title: a\njobs: {a: }", "x.yaml: jobs: a is empty; it must be a mapping of: cpus, lines, "
                                  "mode, share, sizes, time, wait."),
        ("title: a\nsettings: {sft: [1]}", "x.yaml: settings: sft is ['1']; it must be a mapping."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(content, text, message):
    with pytest.raises(UserError) as caught:
        from_mapping(File, content(text), "x.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: b", "unknown key in x.yaml: jobs: a: 'name'; choose from: cpus, lines,"),
        ("cpus: 12:00", "x.yaml: jobs: a: cpus is '12:00'; it must be a whole number."),
        ("cpus: 0x10", "x.yaml: jobs: a: cpus is '0x10'; it must be a whole number."),
        ("cpus: true", "x.yaml: jobs: a: cpus is 'true'; it must be a whole number."),
        ("share: [1]", "x.yaml: jobs: a: share is '['1']'; it must be a number."),
        ("wait: perhaps", "x.yaml: jobs: a: wait is 'perhaps'; it must be true or false."),
        ("mode: manuel", "unknown value of x.yaml: jobs: a: mode: 'manuel'; choose from: auto, "
                         "manual. Did you mean 'manual'?"),
        ("lines: one", "x.yaml: jobs: a: lines is 'one'; it must be a list, for example [one]."),
        ("lines: [one, ]", None),
        ("lines: [one, ~]", "x.yaml: jobs: a: lines is empty; it must be one word."),
        ("lines: [{a: b}]", "x.yaml: jobs: a: lines is {'a': 'b'}; it must be one word."),
        ("sizes: [1, many]", "x.yaml: jobs: a: sizes is 'many'; it must be a whole number."),
    ],
)  # fmt: skip
def test_what_has_the_wrong_type_is_one_line(content, text, message):
    if message is None:
        assert job(text, content).lines == ("one",)
        return
    with pytest.raises(UserError) as caught:
        job(text, content)
    assert str(caught.value).startswith(message)


def test_a_long_value_is_cut_in_the_message(content):
    with pytest.raises(UserError) as caught:
        from_mapping(File, content(f"title: [{', '.join('a' * 300)}]"), "x.yaml")
    assert len(str(caught.value)) < 140


def test_yaml_overrides_are_typed():
    found = override(
        (Flagged, LoraConfig), {"steps": 3.0, "rate": "1e-3", "target_modules": ["a", "b"]}, "here"
    )
    assert found == {"steps": 3, "rate": 0.001, "target_modules": ("a", "b")}
    assert type(found["steps"]) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown setting in here: 'learning_rat'; choose from: "),
        ({"learning_rat": 1}, "Did you mean 'learning_rate'?"),
        ({"learning_rate": "fast"}, "here: learning_rate is 'fast'; it must be a number."),
        ({"learning_rate": [1]}, "here: learning_rate is '[1]'; it must be a number."),
        ({"seed": True}, "here: seed is 'True'; it must be a whole number."),
        ({"seed": {}}, "here: seed is '{}'; it must be a whole number."),
        ({"seed": None}, "here: seed is empty; give it a value or leave the line out."),
        (["seed"], "here is ['seed']; it must be a mapping of: "),
    ],
)
def test_a_bad_override_says_where_it_stands(values, message):
    with pytest.raises(UserError) as caught:
        override((TrainingArgumentsConfig,), values, "here")
    assert message in str(caught.value)


def test_what_is_not_for_people_cannot_be_overridden():
    with pytest.raises(UserError, match="unknown setting"):
        override((Flagged,), {"inside": "y"}, "here")


@pytest.mark.parametrize("text", ['a: "\\0"', 'a: ["x\\ud800"]', '"\\udc00": 1', 'a:\n  b: "\\0"'])
def test_what_no_file_or_script_can_hold_is_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(
        UserError,
        match=r"x\.yaml' (has a character in line [12] that is no text|.* invalid Unicode char)",
    ):
        read_yaml(path)

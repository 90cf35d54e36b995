"""Names that become folders, jobs and flags."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.run_configs import pt, sft
from tests.small_site import COLLECTIONS, use
from tuning import config, run_pretrain, run_sft, run_sweetspot_pipeline
from tuning.runs.errors import UserError
from tuning.runs.names import LONGEST, require_distinct, require_fits, require_name, written

pytestmark = pytest.mark.unit

BAD = [
    "openai/gsm8k", "-x", "--force", ".hidden", "..", ".", "", " x", "x y", "x%a", "a\nb", "a\x00b",
    "a\x1b[0m", "größe", "a:b", "a'b", "$(a)", "x/", "x\n", "+x", "@x",
]  # fmt: skip
GOOD = ["x", "_x", "3b", "Llama-3.2_1B", "a@b", "a+b", "x.", "a..b"]


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_name_a_folder_is_one_line_with_a_name_that_can(name):
    with pytest.raises(UserError, match="cannot name a folder; use letters") as caught:
        require_name("dataset", name)
    assert str(caught.value).isprintable()
    assert require_name("dataset", str(caught.value).split("'")[-2])


@pytest.mark.parametrize("name", GOOD)
def test_other_names_stay_as_they_are(name):
    assert require_name("dataset", name) == written(name) == name


def test_names_that_differ_in_case_only_are_told():
    require_distinct("model", ["a", "b", "a"])
    with pytest.raises(UserError, match="model 'a' and 'A' differ in upper and lower case only"):
        require_distinct("model", ["a", "b", "A"])


def test_a_name_leaves_room_for_what_is_added():
    require_fits("run", "x" * LONGEST)
    with pytest.raises(UserError, match=rf"has {LONGEST + 1} characters; {LONGEST} are possible"):
        require_fits("run", "x" * (LONGEST + 1))
    assert len(f".{'x' * LONGEST}-{'h' * 8}_eval-{'h' * 8}-{'h' * 8}.tmp") < 255
    assert len(f".{'x' * LONGEST}.json.{'r' * 8}.tmp") < 255


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def changed(root: Path, part: str, **entries) -> None:
    content = yaml.safe_load(COLLECTIONS)
    content[part] |= entries
    (root / "collections.yaml").write_text(yaml.safe_dump(content))
    config._load.cache_clear()


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("openai/gsm8k", "x/")])
@pytest.mark.parametrize("part", ["datasets", "tasks", "models", "from_run", "alias"])
def test_the_file_is_checked_when_it_is_read(home, tmp_path, part, name):
    entry = {
        "datasets": {"datasets": {name: {"loader": "arith"}}},
        "tasks": {"tasks": {name: {"datasets": ["arith"]}}},
        "models": {"models": {name: {"hub": "a/b"}}},
        "from_run": {"models": {"x": {"from_run": name}}},
        "alias": {"tasks": {"math": {"datasets": ["arith"], "aliases": [name]}}},
    }[part]
    ((section, values),) = entry.items()
    changed(tmp_path, section, **values)
    with pytest.raises(UserError, match=r"collections\.yaml") as caught:
        config.collections()
    assert len(str(caught.value).splitlines()) == 1


def test_a_slash_in_a_dataset_is_refused_and_in_a_model_written_as_two_dashes(home, tmp_path):
    changed(tmp_path, "models", **{"org/name": {"hub": "org/name", "chat_template": "chatml"}})
    assert sft("org/name").run_name == "org--name_sft-arith-500"
    assert pt(model="org/name").run_name == "org--name_pt-arith-300"
    changed(tmp_path, "models", **{"o/n": {"hub": "o/n"}, "o--N": {"hub": "o/n"}})
    with pytest.raises(UserError, match=r"'o--[nN]' and 'o--[nN]' differ"):
        config.collections()
    changed(tmp_path, "datasets", **{"openai/gsm8k": {"loader": "arith"}})
    with pytest.raises(UserError, match=r"dataset 'openai/gsm8k' .*: 'openai--gsm8k'"):
        config.collections()


def test_an_alias_names_one_task(home, tmp_path):
    changed(tmp_path, "tasks", math={"aliases": ["math", "instruction"]})
    with pytest.raises(UserError, match="the alias 'instruction' names two tasks"):
        config.collections()


@pytest.mark.parametrize("template", ["../secrets", "x" * 300, "chat\x00ml", "chatmll"])
def test_a_chat_template_is_one_of_those_there_are(home, tmp_path, template):
    with pytest.raises(UserError, match="unknown chat template"):
        sft(chat_template=template)
    changed(tmp_path, "models", x={"hub": "a/b", "chat_template": template})
    with pytest.raises(UserError, match=r"unknown chat template|is no text"):
        config.collections()


@pytest.mark.parametrize(
    "hub", ["../x", "a/b/c", "-x", "a b", "./x", "a/../b", "a/b--c", "a/b.git", "a/b-"]
)
def test_a_hub_id_is_no_path(home, tmp_path, hub):
    changed(tmp_path, "models", x={"hub": hub})
    with pytest.raises(UserError, match=r"models: x: hub is '.*'; it must be an id of the hub"):
        config.collections()


@pytest.mark.parametrize(
    ("folder", "label"),
    [("my model (v2)", "my-model-v2-"), ("-x", "x"), ("größe%", "gr-e-"), ("…", "unnamed")],
)
def test_a_local_folder_may_be_called_anything(home, tmp_path, folder, label):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text("{}")
    made = sft(str(tmp_path / folder), chat_template="chatml")
    assert made.run_name.startswith(f"{label}_sft-arith-500")


@pytest.mark.parametrize(
    ("folder", "label"),
    [("lab/run-7/model", "run-7"), ("lab/run-8/model/checkpoint-20", "run-8-checkpoint-20"),
     ("lab/run-9/checkpoint-20", "run-9-checkpoint-20"), ("lab/models", "models")],
)  # fmt: skip
def test_a_folder_called_model_is_called_by_the_run_that_it_lies_in(home, tmp_path, folder, label):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "config.json").write_text("{}")
    made = sft(str(tmp_path / folder), chat_template="chatml")
    assert made.run_name.startswith(f"{label}_sft-arith-500")


FLAGS = ["--dataset", "arith", "--task", "math", "--total_data", "64", "--sft_data", "32",
         "--do_sft", "--perplexity_thresholds", "2"]  # fmt: skip


@pytest.mark.parametrize("name", ["a/b", "..", "x%j", "a b"])
def test_names_in_flags_are_checked(home, name):
    with pytest.raises(UserError, match=r"experiment '.*' cannot name a folder"):
        run_sweetspot_pipeline.main(["--model", "tiny", *FLAGS, "--experiment", name, "--dry_run"])
    with pytest.raises(UserError, match=r"exp_name '.*' cannot name a folder"):
        run_pretrain.main(["--use_mock_data", "--max_steps", "1", "--exp_name", name])
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("how", ["long", "longer"])
def test_a_run_whose_name_is_too_long_is_refused_before_it_trains(home, tmp_path, how):
    name = {"longer": "m" * 250, "long": "m" * 200}[how]
    changed(tmp_path, "models", **{name: {"from_run": name, "settings": {
        "pretrain": {"preset": "tiny", "max_steps": 1}}}})  # fmt: skip
    for argument in ([], ["--dry_run"]):
        with pytest.raises(UserError, match=r"run 'mmm.* has \d+ characters; 210 are possible"):
            run_sweetspot_pipeline.main(["--model", name, *FLAGS, *argument, "--experiment", "e"])
    with pytest.raises(UserError, match=r"experiment 'eee.* has 211 characters"):
        run_sweetspot_pipeline.main(["--model", "tiny", *FLAGS, "--experiment", "e" * 211])
    folder = tmp_path / ("m" * 200)
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    data = ["--dataset", "arith", "--task", "math", "--train_size", "8", "--do_training"]
    with pytest.raises(UserError, match="has 221 characters"):
        run_sft.main(["--model", str(folder), "--chat_template", "chatml", *data])
    assert list(home.glob("models/*")) == []

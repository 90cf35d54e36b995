"""Paths, and what collections.yaml may say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.small_site import COLLECTIONS, use
from tuning import config
from tuning.runs.errors import UserError
from tuning.training.config_training import preference_config, sft_config

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def changed(**changes) -> str:
    return yaml.safe_dump(yaml.safe_load(COLLECTIONS) | changes)


def model_entry(**entry) -> str:
    return changed(models={"tiny": entry})


def test_paths_follow_tuning_home(home, monkeypatch):
    assert config.models_dir() == home / "models"
    assert config.outputs_dir("math") == home / "outputs" / "math"
    assert config.reports_dir() == home / "outputs" / "reports"
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("TUNING_HOME")
        else:
            monkeypatch.setenv("TUNING_HOME", value)
        assert config.home() == config.PACKAGE
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TUNING_HOME", "~/x")
    assert config.home() == home / "x"


def test_a_home_is_made_where_it_can_be_and_nothing_is_left_in_it(home, monkeypatch):
    monkeypatch.setenv("TUNING_HOME", str(home / "a" / "b"))
    config.require_writable_home()
    assert list((home / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("where", ["{file}/below", "{file}", "/proc/none"])
def test_a_home_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, where):
    (tmp_path / "file").touch()
    root = where.format(file=tmp_path / "file")
    monkeypatch.setenv("TUNING_HOME", root)
    with pytest.raises(UserError, match=f"TUNING_HOME '{root}' cannot be written"):
        config.require_writable_home()


def test_a_file_where_folders_must_be_is_noticed_first(home, tmp_path):
    config.require_writable_home(str(tmp_path / "new" / "logs"))
    (tmp_path / "log").touch()
    for log_dir in ("log", "log/below"):
        with pytest.raises(UserError, match=r"log_dir cannot be written: '.*log' is no folder"):
            config.require_writable_home(str(tmp_path / log_dir))
    (home / "outputs").touch()
    with pytest.raises(UserError, match=r"TUNING_HOME '.*' cannot be written: '.*outputs' is no"):
        config.require_writable_home()


def test_the_content_is_read(tmp_path):
    found = config.collections()
    assert found.tasks == {"math": ("arith", "mine"), "instruction": ("later",)}
    assert found.aliases == {"gsm8k": "math", "ifeval": "instruction"}
    assert found.pft_methods == ("dpo", "kto", "grpo")
    assert found.datasets["mine"].files["validation"] == str(tmp_path / "va.jsonl")
    assert found.sft_ratio == (0.0, 0.5, 1.0)


def test_the_projects_own_file_is_valid_and_makes_every_run(monkeypatch):
    monkeypatch.delenv("TUNING_COLLECTIONS")
    found = config.collections()
    assert {"math", "instruction"} <= found.tasks.keys()
    assert found.task("gsm8k") == "math" and found.task("ifeval") == "instruction"
    assert {"dpo", "kto", "grpo"} == set(found.pft_methods)
    wanted = {"dataset": "arith", "task": "math", "train_size": 500}
    for name in found.models:
        assert sft_config(model=name, **wanted).run_name == f"{name}_sft-arith-500"
        for method in found.pft_methods:
            tail = "" if method == "dpo" else f"_{method}"
            run = preference_config(model=name, pft_method=method, **wanted)
            assert run.run_name == f"{name}_pt-arith-500{tail}"
    assert found.model("qwen2-2B").full_modules == ("embed_tokens", "lm_head")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("math", "math"),
        ("gsm8k", "math"),
        ("ifeval", "instruction"),
        ("instruction", "instruction"),
    ],
)
def test_tasks_have_aliases(name, canonical):
    assert config.collections().task(name) == canonical


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c: c.task("maths"), "unknown task 'maths'; choose from: math, instruction. "
                                    "Did you mean 'math'?"),
        (lambda c: c.dataset("aritt"), "unknown dataset 'aritt'; choose from: arith, mine, later. "
                                       "Did you mean 'arith'? Datasets are listed in "
                                       "collections.yaml."),
        (lambda c: c.dataset("arith", "ifeval"), "task 'ifeval' has no dataset 'arith'; its "
                                                 "datasets are: later."),
        (lambda c: c.method("dbo"), "unknown preference method 'dbo'; choose from: dpo, kto, grpo. "
                                    "Did you mean 'dpo'?"),
        (lambda c: c.model("tny"), "unknown model 'tny'; choose from: tiny, big. Did you mean "
                                   "'tiny'? A hub id (org/name) or a folder (./name) works too."),
        (lambda c: c.model("./none"), "unknown model './none'; choose from: tiny, big. A hub id "
                                      "(org/name) or a folder (./name) works too."),
        (lambda c: c.model("a/b/c"), "unknown model 'a/b/c'; choose from: tiny, big. A hub id "
                                     "(org/name) or a folder (./name) works too."),
    ],
)  # fmt: skip
def test_what_is_unknown_names_the_nearest(ask, message):
    with pytest.raises(UserError) as caught:
        ask(config.collections())
    assert str(caught.value) == message


def test_a_model_is_a_key_a_hub_id_or_a_folder(tmp_path, monkeypatch):
    found = config.collections()
    assert found.model("tiny").source == "run:tiny"
    assert found.model("big").source == "org/big"
    hub = found.model("Qwen/Qwen3-0.6B")
    assert (hub.name, hub.source) == ("Qwen--Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    folder = tmp_path / "my-model"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "./my-model"):
        local = found.model(name)
        assert (local.name, local.source, local.path) == ("my-model", "local", str(folder))
    (folder / "model").mkdir()
    assert found.model("./my-model/model").name == "my-model"


def test_a_model_that_names_no_thresholds_takes_those_of_all():
    found = config.collections()
    assert found.thresholds(found.model("tiny")) == (2.0, 1.6)
    assert found.thresholds(found.model("big")) == (3.0, 2.5)


def test_a_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNING_COLLECTIONS", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"none\.yaml' cannot be read \(No such file"):
        config.collections()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("", "collections.yaml is empty; it must be a mapping of: datasets, models, "),
        ("- a", "collections.yaml is ['a']; it must be a mapping of: datasets, models, "),
        ("models: {}", "lacks: datasets, perplexity_thresholds, pft_methods, sft_ratio, tasks."),
        (changed(modles={}), "Did you mean 'models'?"),
        (changed(datasets={"arith": {}}), "collections.yaml: datasets: arith lacks: loader."),
        (
            changed(datasets={"arith": {"loader": "jsonl", "tset": "x"}}),
            "unknown key in collections.yaml: datasets: arith: 'tset'; choose from: columns, "
            "loader, preference, sft, system_message, test, validation. Did you mean 'test'?",
        ),
        (
            changed(tasks={"math": {"datasets": ["arit"]}}),
            "unknown dataset in collections.yaml: tasks: math: 'arit'; choose from: arith, "
            "later, mine. Did you mean 'arith'?",
        ),
        (model_entry(hub="a/b", chat_templat="x"), "Did you mean 'chat_template'?"),
        (model_entry(hub="a/b--c"), "models: tiny: hub is 'a/b--c'; it must be an id of the hub"),
        (
            changed(models={"a/b": {"hub": "a/b"}, "a--b": {"hub": "a/c"}}),
            "collections.yaml: model 'a--b' and 'a/b' are both written 'a--b' on disk",
        ),
        (
            COLLECTIONS.replace("loader: tuluif", "loader: published"),
            "datasets: later needs one of sft, preference, validation, test.",
        ),
        (model_entry(chat_template="tiny"), "needs one of hub, from_run and path."),
        (model_entry(hub="a/b", path="/c"), "needs one of hub, from_run and path."),
        (
            model_entry(hub="a/b", full_modules="lm_head"),
            "collections.yaml: models: tiny: full_modules is 'lm_head'; it must be a list, for "
            "example [lm_head].",
        ),
        (
            changed(sft_ratio=[0.5, "half"]),
            "collections.yaml: sft_ratio is 'half'; it must be a number.",
        ),
        (
            COLLECTIONS + "sft_ratio: [1.0]\n",
            "gives the key 'sft_ratio' twice, in line 9 and in line",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(monkeypatch, tmp_path, text, message):
    use(monkeypatch, tmp_path, text)
    with pytest.raises(UserError) as caught:
        config.collections()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def hub_model(**more) -> dict:
    return {"models": {"tiny": {"hub": "a/b"} | more}}


def math_task(**entry) -> dict:
    return {"tasks": {"math": {"datasets": ["arith"]} | entry}}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"models": None}, id="no-models"),
        pytest.param({"models": ["tiny"]}, id="list-of-models"),
        pytest.param({"models": {"tiny": None}}, id="empty-model"),
        pytest.param({"models": {"tiny": "org/tiny"}}, id="model-is-a-word"),
        pytest.param(hub_model(perplexity_thresholds=["low"]), id="threshold-of-a-model"),
        pytest.param(hub_model(settings=["sft"]), id="list-of-settings"),
        pytest.param(hub_model(settings={"stf": {"seed": 1}}), id="settings-of-no-stage"),
        pytest.param(hub_model(settings={"sft": ["seed"]}), id="list-of-settings-of-a-stage"),
        pytest.param(hub_model(target_modules="q_proj"), id="target-modules-is-a-word"),
        pytest.param({"datasets": None}, id="no-datasets"),
        pytest.param({"datasets": {"arith": None}}, id="empty-dataset"),
        pytest.param({"datasets": {"arith": "arith"}}, id="dataset-is-a-word"),
        pytest.param({"tasks": None}, id="no-tasks"),
        pytest.param({"tasks": {"math": None}}, id="empty-task"),
        pytest.param(math_task(datasets="arith"), id="datasets-is-a-word"),
        pytest.param(math_task(alias=["m"]), id="unknown-key-of-a-task"),
        pytest.param(math_task(aliases="gsm8k"), id="aliases-is-a-word"),
        pytest.param({"perplexity_thresholds": 2.0}, id="thresholds-is-a-number"),
        pytest.param({"perplexity_thresholds": ["low"]}, id="threshold-is-a-word"),
        pytest.param({"sft_ratio": "half"}, id="ratio-is-a-word"),
        pytest.param({"pft_methods": ["dpo", "ppo"]}, id="unknown-method"),
        pytest.param({"pft_methods": "dpo"}, id="methods-is-a-word"),
    ],
)
def test_what_has_the_wrong_shape_is_the_users_mistake(monkeypatch, tmp_path, changes):
    """At the border or when the run is made, but never with a traceback or in silence."""
    use(monkeypatch, tmp_path, changed(**changes))
    wanted = {"model": "tiny", "dataset": "arith", "task": "math", "train_size": 10}
    with pytest.raises(UserError):
        preference_config(pft_method="dpo", **wanted)
        sft_config(**wanted)


def test_an_empty_section_of_settings_changes_nothing(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, changed(**hub_model(settings={"sft": None})))
    run = sft_config(model="tiny", dataset="arith", task="math", train_size=10)
    assert run.run_name == "tiny_sft-arith-10"


def test_an_edited_file_under_another_name_is_read_anew(monkeypatch, tmp_path):
    assert "tiny" in config.collections().models
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, changed(models={"small": {"hub": "a/b"}}))
    assert list(config.collections().models) == ["small"]


@pytest.mark.parametrize(
    "make", [config.home, lambda: config.collections().model("~nobody-here/x")]
)
def test_the_home_of_an_unknown_user_is_one_line(monkeypatch, make):
    monkeypatch.setenv("TUNING_HOME", "~nobody-here/x")
    with pytest.raises(UserError, match=r"'~nobody-here/x' is not a path here"):
        make()


def test_a_pool_may_lie_below_ones_own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    use(monkeypatch, tmp_path, COLLECTIONS.replace("te.jsonl", "~/te.jsonl"))
    files = config.collections().datasets["mine"].files
    assert files["test"] == str(tmp_path / "me" / "te.jsonl")
    use(monkeypatch, tmp_path, COLLECTIONS.replace("te.jsonl", "~nobody-here/te.jsonl"))
    config._load.cache_clear()
    with pytest.raises(UserError, match=r"'~nobody-here/te.jsonl' is not a path here"):
        config.collections()

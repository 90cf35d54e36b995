"""What of a plan is not here, and fetching it with the real client from a hub of the test's own."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import termios
from itertools import islice
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.launchers.small_hub import SmallHub
from tests.small_site import COLLECTIONS, use
from tuning.data import arith
from tuning.engine.tokenizer import train_tokenizer
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.experiments.sweetspot import Wanted, sweetspot_plan
from tuning.flags import plain
from tuning.launchers import prefetch
from tuning.plan import Plan, Stage
from tuning.runs.errors import UserError
from tuning.training.config_training import model_config, sft_config
from tuning.weights.hub import lacking, snapshot_folder

pytestmark = pytest.mark.unit

NAME = "org/big"
NOTHING = "org/none"
FETCH = """
import json, sys
from tuning.entry import exit_code
from tuning.launchers.prefetch import fetch
from tuning.plan import Plan
from tuning.runs.log import configure
configure()
sys.exit(exit_code(lambda: fetch(Plan.from_json(json.loads(sys.argv[1])))))
"""
LOAD = """
from transformers import AutoModelForCausalLM, AutoTokenizer
print(AutoModelForCausalLM.from_pretrained("org/big").num_parameters())
print(AutoTokenizer.from_pretrained("org/big")("2 + 3")["input_ids"])
"""


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return use(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A model of two layers in several shards, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("repository")
    shape = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder, max_shard_size="80KB")
    documents = islice(arith.pretraining_documents(0), 50)
    train_tokenizer(documents, 300, "").save_pretrained(folder)
    for other in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "model.gguf"):
        (folder / other).write_bytes(b"not for us")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture
def hub(repository) -> SmallHub:
    return SmallHub(NAME, repository)


def evaluated(model: str, dataset: str = "arith", run: str | None = None) -> Stage:
    """The evaluation of a base model, or of a run that stands on it."""
    config = evaluation_config(
        model_config(model), dataset=dataset, task="math", sampling=sampling_config(model),
        run=run, run_hash=run,
    )  # fmt: skip
    name = run or config.base.label
    return Stage(name=name, role="base", hash=model, evaluation=plain(config))


def trained(model: str) -> Stage:
    config = sft_config(model=model, dataset="arith", task="math", train_size=10)
    return Stage(name=config.run_name, role="sft", hash=config.hash, run=plain(config))


def plan_of(*models: str) -> Plan:
    return Plan(experiment="e", stages=tuple(map(evaluated, models)))


def python(
    tmp_path: Path, code: str, *words: str, endpoint: str = "http://127.0.0.1:9", **more: str
) -> subprocess.CompletedProcess[str]:
    """A process of its own, as the client reads its settings once."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS"))}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint} | more
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def fetch(tmp_path: Path, endpoint: str, *models: str, **more: str):
    words = json.dumps(plan_of(*(models or ("big",))).to_json())
    return python(tmp_path, FETCH, words, endpoint=endpoint, **more)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a UserError."""
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-1] == line
    return line


def test_a_fetched_model_loads_without_a_network(hub, repository, tmp_path):
    plan = plan_of("big", NAME)
    assert len(prefetch.missing(plan)) == 2
    with hub.serving() as endpoint:
        done = fetch(tmp_path, endpoint)
        assert done.returncode == 0, done.stderr
        assert prefetch.missing(plan) == []
        first = list(hub.sent)
        again = fetch(tmp_path, endpoint)
    assert "org/big: already here" in again.stdout
    assert hub.sent == first
    wanted = {p.name for p in repository.iterdir() if p.suffix == ".json"}
    wanted |= {p.name for p in repository.glob("model-*.safetensors")}
    assert wanted <= set(first) and len(set(first)) == len(first)
    assert not {"pytorch_model.bin", "consolidated.safetensors", "model.gguf"} & set(first)
    loaded = python(tmp_path, LOAD, **prefetch.offline_environment())
    assert loaded.returncode == 0, loaded.stderr
    assert "[" in loaded.stdout


def test_a_dropped_connection_leaves_no_model_and_a_second_fetch_completes_it(hub, tmp_path):
    hub.broken = sorted(name for name in hub.files if name.startswith("model-"))[1]
    with hub.serving() as endpoint:
        line = error_of(fetch(tmp_path, endpoint))
        assert "'org/big' cannot be fetched (" in line
        assert "HF_ENDPOINT" in line and "completed files are kept" in line
        assert f"'org/big' lacks {hub.broken})" in prefetch.missing(plan_of("big"))[0]
        hub.broken, before = None, len(hub.sent)
        assert fetch(tmp_path, endpoint).returncode == 0
    assert prefetch.missing(plan_of("big")) == []
    assert hub.sent[before:].count("config.json") == 0


def test_a_small_file_that_did_not_come_is_missing_too(hub, tmp_path):
    with hub.serving() as endpoint:
        assert fetch(tmp_path, endpoint).returncode == 0
    folder = snapshot_folder(NAME)
    assert folder is not None
    (folder / "tokenizer_config.json").unlink()
    assert "lacks tokenizer_config.json" in prefetch.missing(plan_of("big"))[0]


def test_pickled_weights_are_taken_where_there_are_no_others(hub, tmp_path):
    hub.files = {n: c for n, c in hub.files.items() if ".safetensors" not in n}
    with hub.serving() as endpoint:
        assert fetch(tmp_path, endpoint).returncode == 0
    assert prefetch.missing(plan_of("big")) == []


def test_a_repository_without_weights_is_no_model(hub, tmp_path):
    hub.files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.gguf": b"x"}
    with hub.serving() as endpoint:
        line = error_of(fetch(tmp_path, endpoint))
    assert "'org/big' cannot be used for training" in line
    assert "lacks model.safetensors" in line


def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(hub, tmp_path):
    with hub.serving() as endpoint:
        line = error_of(fetch(tmp_path, endpoint, NOTHING))
        assert line.startswith(
            f"error: '{NOTHING}' is not at {endpoint} (HTTP 404): check the name"
        )
        hub.gated = True
        line = error_of(fetch(tmp_path, endpoint))
        assert line.startswith("error: 'org/big' is gated (HTTP 403): request access at")
        assert "HF_TOKEN" in line and "hf auth login" in line


def test_without_a_network_the_line_says_so(hub, tmp_path):
    line = error_of(fetch(tmp_path, "http://127.0.0.1:9"))
    assert "'org/big' cannot be fetched (" in line and "HF_ENDPOINT to a mirror" in line
    line = error_of(fetch(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it" in line


def test_a_hub_that_never_answers_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(prefetch, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(UserError, match=rf"cannot be fetched \(timed out\).*{address}"):
            prefetch.fetch(plan_of("big"))


def test_stages_need_no_hub_where_all_is_here(monkeypatch):
    assert prefetch.needless(plan_of("tiny")) == prefetch.needless(plan_of("big")) == {}
    monkeypatch.setattr(prefetch, "lacking", lambda hub: [])
    assert prefetch.needless(plan_of("big")) == prefetch.offline_environment()


def test_the_bar_shows_on_a_terminal_though_stages_have_none(hub, tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    words = json.dumps(plan_of("big").to_json())
    with hub.serving() as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", FETCH, words], env=environment | {"HF_ENDPOINT": endpoint},
            stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=False,
        )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert "%|" in shown


def test_every_stage_of_an_experiment_names_its_model(home):
    wanted = Wanted(
        model="big", dataset="arith", task="math", total_data=100, sft_data=50,
        sft_values={"perplexity_thresholds": (2.0,)}, do_sft=True, do_dpo=True, do_inference=True,
    )  # fmt: skip
    plan = sweetspot_plan(wanted)
    assert prefetch.hub_models(plan) == {"big": NAME}
    assert prefetch.missing(plan) == [
        "model 'big' is incomplete in the Hugging Face cache ('org/big' lacks all files)"
    ]


def test_the_model_of_a_run_is_that_of_its_settings(home):
    stages = (
        trained("org/first"),
        evaluated("org/other", run="a"),
        Stage(name="b", role="report", hash="b"),
    )
    plan = Plan(experiment="e", stages=stages)
    assert prefetch.hub_models(plan) == {"org/first": "org/first", "org/other": "org/other"}


def test_a_plan_without_hub_models_imports_nothing(home):
    code = (
        "import json, sys\nfrom tuning.launchers.prefetch import missing\n"
        "from tuning.plan import Plan\n"
        "print(missing(Plan.from_json(json.loads(sys.argv[1]))))\n"
        "heavy = {'huggingface_hub', 'httpx', 'torch', 'transformers', 'tqdm'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = python(home, code, json.dumps(plan_of("tiny").to_json()))
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


def test_files_of_a_dataset_that_are_not_there_are_named(monkeypatch, tmp_path, said):
    use(monkeypatch, tmp_path, COLLECTIONS)
    row = {"completion": "c", "answer": "1", "chosen": "a", "rejected": "b"}
    for file in ("sft", "pt", "va", "te"):
        lines = [json.dumps(row | {"prompt": f"{file} {n}"}) + "\n" for n in range(200)]
        (tmp_path / f"{file}.jsonl").write_text("".join(lines))
    config = sft_config(model="tiny", dataset="mine", task="math", train_size=10)
    stage = Stage(name="a", role="sft", hash="a", run=plain(config))
    plan = Plan(experiment="e", stages=(stage, evaluated("tiny", "mine")))
    assert prefetch.missing(plan) == []
    (tmp_path / "va.jsonl").unlink()
    assert prefetch.missing(plan) == [f"dataset 'mine' lacks {tmp_path / 'va.jsonl'}"]
    prefetch.fetch(plan)
    assert said == [f"warning: dataset 'mine' lacks {tmp_path / 'va.jsonl'}"]


@pytest.mark.parametrize(
    ("there", "lacks"),
    [
        (("config.json", "tokenizer.json", "model.safetensors"), []),
        (("config.json", "tokenizer.model", "pytorch_model.bin"), []),
        (("tokenizer.json", "model.safetensors"), ["config.json"]),
        (("config.json", "model.safetensors"), ["a tokenizer"]),
        (("config.json", "tokenizer.json"), ["model.safetensors"]),
    ],
)
def test_a_cache_that_another_client_filled_is_judged_by_its_files(tmp_path, there, lacks):
    repository = tmp_path / "hf" / "hub" / "models--org--big"
    folder = repository / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for name in there:
        (folder / name).touch()
    assert lacking(NAME) == lacks


@pytest.mark.parametrize("name", ["org/none", "org/a--b", "org/a..b", "org/" + "a" * 100])
def test_what_the_cache_has_nothing_of_lacks_everything(name):
    assert snapshot_folder(name) is None
    assert lacking(name) == ["all files"]


def test_half_an_index_is_no_model(tmp_path):
    test_a_cache_that_another_client_filled_is_judged_by_its_files(
        tmp_path, ("config.json", "tokenizer.json"), ["model.safetensors"]
    )
    folder = snapshot_folder(NAME)
    assert folder is not None
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1-of-2.safet')
    assert lacking(NAME) == ["model.safetensors"]
    index.write_text('{"weight_map": {"a": "model-1-of-2.safetensors", "b": "x.safetensors"}}')
    (folder / "x.safetensors").touch()
    assert lacking(NAME) == ["model-1-of-2.safetensors"]

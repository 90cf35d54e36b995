"""What a plan will write, beside what runs have written."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import COLLECTIONS, copy_home, start_entry
from tests.run_configs import fork, pt, sft
from tests.small_site import use
from tuning.pipeline import footprint
from tuning.pipeline.footprint import Estimate, describe, estimate, in_words
from tuning.pipeline.plan import Wanted, sweetspot_plan
from tuning.pipeline.shapes import adapter_of, read_shape
from tuning.runs import atomic, manifest
from tuning.runs.stages import Plan, Stage
from tuning.runs.sweetspot import METADATA
from tuning.training import parents
from tuning.training.config_parts import OPTIMIZERS, LoraConfig

unit = pytest.mark.unit

LLAMA = {
    "model_type": "llama", "vocab_size": 1000, "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def model_folder(folder: Path, **changes) -> Path:
    atomic.write_json(folder / "config.json", LLAMA | changes)
    return folder


def plan_of(*stages: Stage) -> Plan:
    return Plan(experiment="e", stages=stages)


def stage_of(config, role: str, script: str, flags: list[str], **more) -> Stage:
    return Stage(
        name=config.run_name, role=role, hash=config.hash, command=(script, *flags),
        phases=("train",), train_size=getattr(config.dataset, "train_size", None), **more,
    )  # fmt: skip


def sft_stage(config) -> Stage:
    return stage_of(config, "sft", "run_sft.py", parents.sft_flags(config))


def preference_stage(config, role: str = "pt", **more) -> Stage:
    return stage_of(config, role, "run_dpo.py", parents.preference_flags(config), **more)


def finish(home: Path, config) -> None:
    folder = home / "models" / config.run_name
    atomic.write_json(folder / "config.json", {"hash": config.hash, "settings": {}})
    atomic.write_json(folder / "status.json", {"phases": {"train": {"state": "done"}}})


@pytest.fixture(scope="module")
def stopped(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an SFT run that was stopped behind a sweetspot: all that a run can leave."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("stopped") / "home")
    words = (
        "--model tiny --dataset arith --task math --train_size 320 --perplexity_thresholds 5.0 1.01"
        " --do_training --save_steps 2"
    )
    process = start_entry(home, "run_sft.py", *words.split())
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(home.glob("models/*-320*/checkpoint-*/manifest.json"))) >= 3:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    assert process.wait(timeout=60) == 75
    return home


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_runs_have_written_is_what_was_estimated(stopped, monkeypatch):
    """The adapter, a sweetspot, a checkpoint, the pre-trained model, merged weights: all within
    20%.
    """
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    monkeypatch.setenv("TUNING_HOME", str(stopped))
    config = sft(size=320, perplexity_thresholds=(5.0, 1.01), save_steps=2)
    found = estimate(plan_of(sft_stage(config)), stopped, cuda=False)
    run = stopped / "models" / config.run_name
    _, checkpoint = manifest.checkpoints(run)[-1]
    assert found.checkpoints / (footprint.KEPT + 1) == pytest.approx(size(checkpoint), rel=0.2)
    assert len(manifest.checkpoints(run)) <= footprint.KEPT
    assert found.sweetspot_count == 1, "one of the two is there already"
    reached = size(run / "checkpoint-sweetspot-5.0")
    assert found.sweetspots == pytest.approx(reached, rel=0.2)
    assert found.adapters == pytest.approx(reached + size_of_tokenizer(stopped), rel=0.2)
    fresh = estimate(plan_of(pretraining()), stopped / "elsewhere", cuda=False)
    assert fresh.full_models == pytest.approx(size(stopped / "models/tiny/model"), rel=0.2)
    merged = pt("grpo", size=32)
    full = estimate(plan_of(preference_stage(merged)), stopped, cuda=False)
    assert full.full_models == pytest.approx(size(stopped / "models/tiny/model"), rel=0.2)


def size_of_tokenizer(home: Path) -> int:
    return (home / "models/tiny/model/tokenizer.json").stat().st_size


def pretraining() -> Stage:
    from tuning.engine.run_config import pretrain_config

    return Stage(
        name="tiny", role="pretrain", hash=pretrain_config("tiny").hash, phases=("train",),
        command=("run_pretrain.py", "--model", "tiny"),
    )  # fmt: skip


def test_answers_are_no_more_than_estimated(trained_home, monkeypatch):
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    command = ("run_inference.py", "--model", "tiny", "--prompts", "8", "--n_samples", "2")
    stage = Stage(
        name="x", role="base", hash="x", trains=False, artifact="x", task="math",
        phases=("infer",), evaluation_hash="y", command=command,
    )  # fmt: skip
    found = estimate(plan_of(stage), trained_home, cuda=False)
    written = (trained_home / "outputs/math/tiny/responses.jsonl").stat().st_size
    assert written <= found.evaluations <= 20 * written
    assert (found.models, found.checkpoints) == (0, 0)


@unit
def test_checkpoints_are_as_many_as_the_trainers_keep():
    assert inspect.signature(manifest.prune).parameters["keep"].default == footprint.KEPT
    assert set(footprint.OPTIMIZER_BYTES) == set(OPTIMIZERS) - {"auto"}


@unit
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("full", [(), ("embed_tokens", "lm_head"), ("lm_head",)])
def test_an_adapter_has_the_size_that_peft_gives_it(tmp_path, tied, full):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuning.training import models

    folder = model_folder(tmp_path / "m", tie_word_embeddings=tied)
    shape = read_shape(folder)
    assert shape is not None
    base = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    assert shape.parameters == sum(p.numel() for p in base.parameters())
    lora = LoraConfig(lora_r=4, target_modules=("q_proj", "k_proj", "down_proj"), full_modules=full)
    made = adapter_of(shape, lora)
    adapted = _adapted(base.to(torch.bfloat16), lora)
    assert made.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    models.write(adapted, tmp_path / "adapter")
    assert made.bytes == pytest.approx(size(tmp_path / "adapter"), rel=0.1)


def _adapted(base, lora):
    from peft import get_peft_model

    from tuning.training import models, trainers

    adapted = get_peft_model(base, models.peft_config(lora))
    trainers.in_float32(adapted)
    return adapted


@unit
def test_a_whole_experiment_counts_every_run(small):
    wanted = Wanted(
        model="tiny", dataset="arith", task="math", total_data=1000, sft_data=500,
        thresholds=(2.0, 1.6), methods=("dpo", "grpo"), do_sft=True, do_dpo=True,
        do_inference=True, do_evaluation=True,
    )  # fmt: skip
    plan = sweetspot_plan(wanted)
    found = estimate(plan, small, cuda=False)
    assert found.adapter_count == 2 + 2 + 1, "SFT and its reference, DPO forks and theirs"
    assert found.full_model_count == 1 + 2 + 1, "pre-training, and GRPO that merges"
    assert found.sweetspot_count == 2
    assert found.unknown == ()
    assert found.evaluations > 0
    one = estimate(plan, small, cuda=False, parallel=1)
    assert one.checkpoints < found.checkpoints
    assert one.stays == found.stays
    on_gpus = estimate(plan, small, cuda=True)
    assert on_gpus.full_models < found.full_models


@unit
def test_a_fork_has_the_adapter_of_its_parent(small):
    """Whatever rank its own settings say: the parent's adapter is trained further."""
    of = sft(perplexity_thresholds=(2.0,), lora_r=64)
    more = {"parent": of.run_name, "sweetspot": "ppl-2.0", "total_data": 1000}
    continued = preference_stage(fork(of=of), "fork", **more)
    merged = preference_stage(fork(of=of, merge_parent=True, lora_r=4), "fork", **more)
    parent = estimate(plan_of(sft_stage(of)), small, cuda=False)
    both = estimate(plan_of(sft_stage(of), continued), small, cuda=False)
    assert both.adapters == 2 * parent.adapters
    other = estimate(plan_of(sft_stage(of), merged), small, cuda=False)
    assert (other.adapter_count, other.full_model_count) == (1, 1)
    from_base = estimate(plan_of(preference_stage(pt(lora_r=64))), small, cuda=False)
    assert from_base.adapters == parent.adapters


@unit
def test_sft_on_the_engine_writes_whole_models(small):
    of = sft(perplexity_thresholds=(2.0, 1.6), trainer="engine")
    found = estimate(plan_of(sft_stage(of)), small, cuda=False)
    base = estimate(plan_of(pretraining()), small, cuda=False)
    assert (found.adapter_count, found.full_model_count, found.sweetspot_count) == (0, 1, 2)
    assert found.full_models == base.full_models
    assert found.sweetspots == 2 * found.full_models
    assert found.checkpoints == pytest.approx(3 * found.full_models, rel=0.05)
    assert estimate(plan_of(sft_stage(of)), small, cuda=True).stays < 0.6 * found.stays
    more = {"parent": of.run_name, "sweetspot": "ppl-2.0", "total_data": 1000}
    forked = preference_stage(fork(of=of, lora_r=64), "fork", **more)
    from_base = estimate(plan_of(preference_stage(pt(lora_r=64))), small, cuda=False)
    both = estimate(plan_of(sft_stage(of), forked), small, cuda=False)
    assert both.adapters == from_base.adapters, "a new adapter of its own settings"


@unit
def test_a_parent_outside_of_the_plan_is_read_from_its_directory(small):
    of = sft(lora_r=64)
    stage = preference_stage(pt(parent=parents.parent_of(of, of.run_name)))
    assert estimate(plan_of(stage), small, cuda=False).unknown == ("tiny",)
    folder = small / "models" / of.run_name
    atomic.write_json(folder / "config.json", {"hash": of.hash, "settings": _plain(of)})
    found = estimate(plan_of(stage), small, cuda=False)
    assert found.adapters == estimate(plan_of(sft_stage(of)), small, cuda=False).adapters


def _plain(config):
    from tuning.flags import plain

    return json.loads(json.dumps(plain(config)))


@unit
def test_what_is_done_writes_no_more(small):
    config = sft(perplexity_thresholds=(2.0,))
    assert estimate(plan_of(sft_stage(config)), small, cuda=False).stays > 0
    folder = small / "models" / config.run_name / "checkpoint-sweetspot-2.0"
    with atomic.whole_directory(folder) as made:
        atomic.write_json(made / METADATA, {"sft_data_used": 480})
        manifest.write_manifest(made)
    assert estimate(plan_of(sft_stage(config)), small, cuda=False).sweetspot_count == 0
    finish(small, config)
    found = estimate(plan_of(sft_stage(config)), small, cuda=False)
    assert (found.stays, found.checkpoints) == (0, 0)


@unit
def test_a_short_run_makes_fewer_checkpoints(small):
    short, longer = (sft(size=n, save_steps=10) for n in (32, 5000))
    assert estimate(plan_of(sft_stage(short)), small, cuda=False).checkpoints * 3 == pytest.approx(
        estimate(plan_of(sft_stage(longer)), small, cuda=False).checkpoints, rel=0.3
    )


@unit
def test_the_optimizer_decides_the_size_of_a_checkpoint(small):
    sizes = [
        estimate(plan_of(sft_stage(sft(optimizer=o))), small, cuda=False).checkpoints
        for o in ("auto", "adamw_torch", "adamw_8bit", "sgd")
    ]
    assert sizes[0] == sizes[1] > sizes[2] > sizes[3]


@unit
def test_a_model_of_the_hub_is_known_once_it_is_here(small, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    plan = plan_of(sft_stage(sft("big")), preference_stage(pt(model="big")))
    found = estimate(plan, small, cuda=True)
    assert (found.unknown, found.models) == (("big",), 0)
    assert "not counted: what is trained from big" in describe(found)
    repository = tmp_path / "hub" / "models--org--big"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    model_folder(repository / "snapshots" / "abc")
    found = estimate(plan, small, cuda=True)
    assert (found.unknown, found.adapter_count) == ((), 2)
    tables = 2 * LLAMA["vocab_size"] * LLAMA["hidden_size"] * 4
    assert found.adapters > 2 * tables, "embed_tokens and lm_head are saved whole"


@unit
def test_a_local_folder_is_read(small, tmp_path):
    folder = model_folder(tmp_path / "mine")
    config = sft(str(folder), chat_template="chatml")
    assert estimate(plan_of(sft_stage(config)), small, cuda=False).adapter_count == 1


@unit
@pytest.mark.parametrize(
    "changes",
    [{"model_type": "mixtral"}, {"hidden_size": None}, {"vocab_size": "many"}, {"model_type": []}],
)
def test_an_unknown_architecture_is_not_guessed(tmp_path, changes):
    assert read_shape(model_folder(tmp_path / "m", **changes)) is None


@unit
@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_damaged_config_is_not_guessed(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert read_shape(tmp_path) is None


ESTIMATE = Estimate(
    adapters=900_000_000, adapter_count=3, full_models=0, full_model_count=0,
    sweetspots=300_000_000, sweetspot_count=1, checkpoints=2_100_000_000, evaluations=0,
    unknown=(), free=512_000_000_000,
)  # fmt: skip


@unit
def test_an_estimate_in_a_line():
    assert describe(ESTIMATE) == (
        "writes about 1.2 GB that stay (3 adapters 900 MB, 1 sweetspot 300 MB) and up to 2.1 GB "
        "while it runs; 512 GB are free under TUNING_HOME"
    )
    tight = describe(replace(ESTIMATE, free=1_300_000_000))
    assert "warning: that does not fit, 2 GB are lacking: free some ('tuning clean')" in tight


@unit
@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 KB"), (999_600, "1 MB"), (1_250_000, "1.2 MB"),
     (45_100_000, "45 MB"), (512e9, "512 GB"), (3e15, "3000 TB")],
)  # fmt: skip
def test_bytes_in_words(size, words):
    assert in_words(int(size)) == words


@unit
def test_no_torch_is_needed(small):
    code = (
        "import sys\nfrom pathlib import Path\nfrom tuning.pipeline import footprint\n"
        "print({'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

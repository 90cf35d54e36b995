"""What a plan will write, beside what runs have written."""

from __future__ import annotations

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
from tests.weights.test_shape import LLAMA, model_folder
from tuning.engine.run_config import pretrain_config
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.experiments.sweetspot import Wanted, sweetspot_plan
from tuning.flags import plain
from tuning.launchers.footprint import Estimate, describe, estimate, in_words
from tuning.plan import Plan, Stage
from tuning.runs import atomic, manifest
from tuning.runs.identity import FORMAT
from tuning.sweetspots.store import METADATA
from tuning.training.config_training import model_config
from tuning.training.parents import parent_of
from tuning.weights.shape import FLOAT32, read_shape

unit = pytest.mark.unit


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


@pytest.fixture
def based(small: Path) -> Path:
    """A home where `tiny` is pre-trained, with the shape of LLAMA."""
    finish(small, pretrain_config("tiny"))
    model_folder(small / "models" / "tiny" / "model")
    return small


def whole_model(home: Path) -> int:
    """The bytes of the model in `based`, in float32."""
    shape = read_shape(home / "models" / "tiny" / "model")
    assert shape is not None
    return FLOAT32 * shape.parameters


def plan_of(*stages: Stage) -> Plan:
    return Plan(experiment="e", stages=stages)


def stage_of(config, role: str, **more) -> Stage:
    return Stage(
        name=config.run_name, role=role, hash=config.hash, run=plain(config), phases=("train",),
        **more,
    )  # fmt: skip


def sft_stage(config) -> Stage:
    return stage_of(config, "sft", train_size=config.train_size)


def preference_stage(config, role: str = "pt", **more) -> Stage:
    return stage_of(config, role, train_size=config.dataset.train_size, **more)


def pretraining() -> Stage:
    return stage_of(pretrain_config("tiny"), "pretrain")


def finish(home: Path, config) -> None:
    """Make the directory of a run that is trained."""
    folder = home / "models" / config.run_name
    atomic.write_json(folder / "config.json", {"format": FORMAT, "hash": config.hash})
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
    25%.
    """
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    monkeypatch.setenv("TUNING_HOME", str(stopped))
    config = sft(size=320, perplexity_thresholds=(5.0, 1.01), save_steps=2)
    found = estimate(plan_of(sft_stage(config)), stopped, cuda=False)
    run = stopped / "models" / config.run_name
    _, checkpoint = manifest.checkpoints(run)[-1]
    assert found.checkpoints / (manifest.KEPT + 1) == pytest.approx(size(checkpoint), rel=0.25)
    assert len(manifest.checkpoints(run)) <= manifest.KEPT
    assert len(found.sweetspots) == 1, "one of the two is there already"
    reached = size(run / "checkpoint-sweetspot-5.0")
    assert found.sweetspots[0] == found.models[0] == pytest.approx(reached, rel=0.25)
    whole = size(stopped / "models/tiny/model")
    fresh = estimate(plan_of(pretraining()), stopped / "elsewhere", cuda=False)
    assert fresh.models == (pytest.approx(whole, rel=0.25),)
    merged = estimate(plan_of(preference_stage(pt("grpo", size=32))), stopped, cuda=False)
    assert merged.models == (pytest.approx(whole, rel=0.25),)


def test_answers_are_no_more_than_estimated(trained_home, monkeypatch):
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    base = model_config("tiny")
    sampling = sampling_config("tiny")
    config = evaluation_config(base, dataset="arith", task="math", sampling=sampling)
    stage = Stage(
        name="x", role="base", hash="x", trains=False, artifact="x", task="math",
        phases=("infer",), evaluation=plain(config), evaluation_hash=config.hash,
    )  # fmt: skip
    found = estimate(plan_of(stage), trained_home, cuda=False)
    written = (trained_home / "outputs/math/tiny/responses.jsonl").stat().st_size
    assert written <= found.answers <= 20 * written
    assert (found.models, found.checkpoints) == ((), 0)


@unit
def test_a_whole_experiment_counts_every_run(small):
    wanted = Wanted(
        model="tiny", dataset="arith", task="math", total_data=1000, sft_data=500,
        sft_values={"perplexity_thresholds": (2.0, 1.6)}, methods=("dpo", "grpo"), do_sft=True,
        do_dpo=True, do_inference=True, do_evaluation=True,
    )  # fmt: skip
    plan = sweetspot_plan(wanted)
    found = estimate(plan, small, cuda=False)
    whole = [size for size in found.models if size == max(found.models)]
    assert len(whole) == 1 + 2 + 1, "pre-training, and GRPO that merges"
    assert len(found.models) - len(whole) == 2 + 2 + 1, (
        "SFT and its reference, DPO forks and theirs"
    )
    assert len(found.sweetspots) == 2
    assert found.unknown == ()
    assert found.answers > 0
    one = estimate(plan, small, cuda=False, parallel=1)
    assert one.checkpoints < found.checkpoints
    assert one.stays == found.stays
    on_gpus = estimate(plan, small, cuda=True)
    assert on_gpus.stays < found.stays


@unit
def test_a_fork_has_the_adapter_of_its_parent(based):
    """Whatever rank its own settings say: the parent's adapter is trained further."""
    of = sft(perplexity_thresholds=(2.0,), lora_r=64)
    more = {"parent": of.run_name, "sweetspot": "ppl-2.0", "total_data": 1000}
    continued = preference_stage(fork(of=of), "fork", **more)
    merged = preference_stage(fork(of=of, merge_parent=True, lora_r=4), "fork", **more)
    parent = estimate(plan_of(sft_stage(of)), based, cuda=False)
    both = estimate(plan_of(sft_stage(of), continued), based, cuda=False)
    assert both.models == 2 * parent.models
    other = estimate(plan_of(sft_stage(of), merged), based, cuda=False)
    assert other.models == (*parent.models, whole_model(based))
    from_base = estimate(plan_of(preference_stage(pt(lora_r=64))), based, cuda=False)
    assert from_base.models == parent.models


@unit
def test_sft_on_the_engine_writes_whole_models(based):
    of = sft(perplexity_thresholds=(2.0, 1.6), trainer="engine")
    found = estimate(plan_of(sft_stage(of)), based, cuda=False)
    assert found.models == (whole_model(based),)
    assert found.sweetspots == 2 * found.models
    assert found.checkpoints == 3 * whole_model(based), "the weights and their two moments"
    assert estimate(plan_of(sft_stage(of)), based, cuda=True).stays == found.stays / 2
    more = {"parent": of.run_name, "sweetspot": "ppl-2.0", "total_data": 1000}
    forked = preference_stage(fork(of=of, lora_r=64), "fork", **more)
    from_base = estimate(plan_of(preference_stage(pt(lora_r=64))), based, cuda=False)
    both = estimate(plan_of(sft_stage(of), forked), based, cuda=False)
    assert both.models == found.models + from_base.models, "a new adapter of its own settings"


@unit
def test_a_base_has_the_shape_of_its_folder_or_of_its_settings(small):
    stage = sft_stage(sft(lora_r=64))
    assert estimate(plan_of(stage), small, cuda=False).unknown == ("tiny",)
    planned = estimate(plan_of(stage, pretraining()), small, cuda=False)
    assert planned.unknown == () and len(planned.models) == 2


@unit
def test_the_parent_of_a_run_need_not_be_in_its_plan(based):
    of = sft(lora_r=64)
    stage = preference_stage(pt(parent=parent_of(of, of.run_name)))
    found = estimate(plan_of(stage), based, cuda=False)
    assert found.models == estimate(plan_of(sft_stage(of)), based, cuda=False).models


@unit
@pytest.mark.parametrize("how", [{}, {"full_modules": ("lm_head",)}, {"full": True}])
def test_whole_weights_are_bfloat16_on_gpus_whatever_of_them_is_trained(based, how):
    found = estimate(plan_of(preference_stage(pt("grpo", **how))), based, cuda=True)
    assert found.models == (whole_model(based) // 2,)


@unit
def test_checkpoints_of_all_weights_are_float32_with_their_moments(based):
    """On both trainers; with 8-bit moments as many bytes less."""
    sizes = [
        estimate(plan_of(sft_stage(sft(size=32, save_steps=100, **how))), based, cuda=True)
        for how in ({"full": True, "optimizer": "adamw_torch"}, {"trainer": "engine"},
                    {"full": True, "optimizer": "adamw_8bit"})
    ]  # fmt: skip
    assert {size.models for size in sizes} == {(whole_model(based) // 2,)}
    found = [size.checkpoints for size in sizes]
    assert found[0] == found[1] == 3 * whole_model(based)
    assert found[2] == 1.5 * whole_model(based)


@unit
def test_what_is_done_writes_no_more(based):
    config = sft(perplexity_thresholds=(2.0,))
    plan = plan_of(pretraining(), sft_stage(config))
    assert len(estimate(plan, based, cuda=False).models) == 1
    folder = based / "models" / config.run_name / "checkpoint-sweetspot-2.0"
    with atomic.whole_directory(folder) as made:
        atomic.write_json(made / METADATA, {"sft_data_used": 480})
        manifest.write_manifest(made)
    assert estimate(plan, based, cuda=False).sweetspots == ()
    finish(based, config)
    found = estimate(plan, based, cuda=False)
    assert (found.stays, found.checkpoints, found.short) == (0, 0, 0)


@unit
def test_a_short_run_makes_fewer_checkpoints(based):
    one, two, many = (
        estimate(plan_of(sft_stage(sft(size=n, save_steps=10))), based, cuda=False).checkpoints
        for n in (32, 320, 5000)
    )
    assert many == 3 * one and two == 2 * one


@unit
def test_the_optimizer_decides_the_size_of_a_checkpoint(based):
    sizes = [
        estimate(plan_of(sft_stage(sft(optimizer=o))), based, cuda=False).checkpoints
        for o in ("auto", "adamw_torch", "adamw_8bit", "sgd")
    ]
    assert sizes[0] == sizes[1] > sizes[2] > sizes[3] > 0


@unit
def test_a_model_of_the_hub_is_known_once_it_is_here(small, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    plan = plan_of(sft_stage(sft("big")), preference_stage(pt(model="big")))
    found = estimate(plan, small, cuda=True)
    assert (found.unknown, found.models) == (("big",), ())
    assert "not counted: what is trained from big" in describe(found)
    repository = tmp_path / "hub" / "models--org--big"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    model_folder(repository / "snapshots" / "abc")
    found = estimate(plan, small, cuda=True)
    assert (found.unknown, len(found.models)) == ((), 2)
    tables = 2 * LLAMA["vocab_size"] * LLAMA["hidden_size"] * 4
    assert min(found.models) > tables, "embed_tokens and lm_head are saved whole"


@unit
def test_a_local_folder_is_read(small, tmp_path):
    folder = model_folder(tmp_path / "mine")
    config = sft(str(folder), chat_template="chatml")
    assert len(estimate(plan_of(sft_stage(config)), small, cuda=False).models) == 1


ESTIMATE = Estimate(
    models=(300_000_000,) * 3, sweetspots=(300_000_000,), answers=0, checkpoints=2_100_000_000,
    unknown=(), free=512_000_000_000,
)  # fmt: skip


@unit
def test_an_estimate_in_a_line():
    assert describe(ESTIMATE) == (
        "writes about 1.2 GB that stay (3 models 900 MB, 1 sweetspot 300 MB) and up to 2.1 GB of "
        "checkpoints while it runs; 512 GB are free under TUNING_HOME"
    )
    tight = describe(replace(ESTIMATE, free=1_300_000_000))
    assert tight.endswith(
        "\nwarning: not enough disk space: 2.3 GB short; run `tuning clean`, or point TUNING_HOME "
        "at another disk"
    )


@unit
def test_room_for_tokenizers_and_records_is_asked_for_too():
    assert replace(ESTIMATE, free=3_700_000_000).short == 0
    assert replace(ESTIMATE, free=3_400_000_000).short > 0


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
        "import sys\nfrom pathlib import Path\nfrom tuning.launchers import footprint\n"
        "print({'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""Which settings of how a step is computed each trainer uses, and that the others are refused; the
loss of SFT as a part of what a run is.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tests.run_configs import fork, pt, sft
from tests.small_site import COLLECTIONS, use
from tuning import run_sweetspot_pipeline
from tuning.engine.config import ComputeConfig
from tuning.runs.errors import UserError
from tuning.runs.rundir import RunDirectory
from tuning.training.config import optimizer_name, unused, used

pytestmark = pytest.mark.unit

VALUES = {
    "micro_batch_size": 2, "max_tokens_per_gpu": 4096, "gradient_checkpointing": True,
    "parallel": "ddp", "sep_size": 2, "use_compile": True, "use_liger_kernels": True,
}  # fmt: skip
TRAINERS = ("trl", "engine", "dpo", "kto", "grpo")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def made(trainer: str, **values):
    return sft(trainer=trainer, **values) if trainer in ("trl", "engine") else pt(trainer, **values)


def test_every_setting_is_used_by_some_trainer():
    assert set(VALUES) == {f.name for f in fields(ComputeConfig)}
    for name in VALUES:
        assert any(name in used(trainer) for trainer in TRAINERS)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", VALUES)
def test_a_setting_is_used_or_refused_by_name(trainer, name):
    value = {name: VALUES[name]}
    if name in used(trainer):
        config = made(trainer, **value)
        assert getattr(config.compute, name) == VALUES[name]
        assert config.hash == made(trainer).hash
    else:
        with pytest.raises(UserError, match=f"^{name} is "):
            made(trainer, **value)


def test_what_collections_yaml_says_for_all_methods_is_not_refused(monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, COLLECTIONS.replace("sft: {", "sft: {parallel: ddp, sep_size: 2, "))
    assert sft().compute.parallel == "ddp" and sft().hash == sft(trainer="trl").hash
    assert pt("kto").compute.micro_batch_size == 32


def test_each_trainer_has_defaults_of_its_own():
    assert sft(model="big").compute.micro_batch_size == 4
    assert sft(model="big", effective_batch_size=10).compute.micro_batch_size == 2
    assert sft(trainer="engine").compute.max_tokens_per_gpu == 8192
    assert sft().compute.max_tokens_per_gpu is None
    for config in (sft(), pt(), fork()):
        assert config.compute.gradient_checkpointing is None


@pytest.mark.parametrize(("chosen", "expected"), [(None, False), (True, True), (False, False)])
def test_checkpointing_with_trl_is_that_of_the_device_unless_it_is_given(chosen, expected, home):
    """None of the machines that run this has CUDA."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("the default is another one with CUDA")
    from tuning.training.trainers import arguments

    values = {} if chosen is None else {"gradient_checkpointing": chosen}
    for config in (sft(**values), pt("kto", **values)):
        found = arguments(config, RunDirectory(home / "run"), [], 5, 32)
        assert found["gradient_checkpointing"] is expected


def test_a_micro_batch_is_lowered_for_a_fork_with_little_left():
    from tuning.training.trainers import arguments

    config = fork(micro_batch_size=8)
    assert config.batch(9) == 9
    found = arguments(config, RunDirectory(Path("run")), [], 5, config.batch(9))
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (3, 3)


def test_the_default_optimizer_is_of_eight_bits_only_where_there_are_kernels_for_it():
    assert optimizer_name("auto", cuda=False) == "adamw_torch"
    assert optimizer_name("sgd", cuda=True) == "sgd"


def test_grpo_takes_whole_batches_of_prompts():
    assert (pt("dpo").steps(300), pt("grpo").steps(300)) == (2 * 10, 2 * 9)
    assert pt("grpo", num_train_epochs=0.01).steps(300) == 1


def test_a_loss_of_its_own_makes_another_run():
    assert "loss" not in sft().hashed
    assert sft(loss="cross_entropy", focal_gamma=5.0).hash == sft().hash
    others = [
        sft(loss="focal"),
        sft(loss="focal", focal_gamma=1.0),
        sft(loss="tuning.engine.losses:focal"),
    ]
    assert len({config.hash for config in (sft(), *others)}) == 4
    assert sft(loss="tuning.engine.losses.focal") == others[2]
    assert others[0].hashed["loss"] == {"loss": "focal", "focal_alpha": 1.0, "focal_gamma": 2.0}
    assert not others[0].is_default


def test_a_loss_that_is_not_there_is_refused_before_a_run_begins():
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        sft(loss="nowhere:f")
    with pytest.raises(UserError, match="Did you mean 'focal'"):
        sft(loss="focl")


def test_an_experiment_has_these_settings_for_both_of_its_stages(capsys):
    words = (
        "--model tiny --dataset arith --task math --total_data 1000 --sft_data 500 --do_sft "
        "--do_dpo --sft_micro_batch_size 4 --pft_micro_batch_size 8 --gradient_checkpointing "
        "--pft_gradient_checkpointing false --sft_loss focal --dry_run --launcher local"
    )
    assert run_sweetspot_pipeline.main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    tuned = [line for line in lines if "run_sft.py" in line]
    forked = [line for line in lines if "run_dpo.py" in line]
    assert tuned and forked
    assert all("--loss focal" in line and "--micro_batch_size 4" in line for line in tuned)
    assert all("--gradient_checkpointing True" in line for line in tuned)
    assert all("--micro_batch_size 8 --gradient_checkpointing False" in line for line in forked)


def test_a_setting_that_one_of_the_methods_uses_is_for_that_one(capsys):
    words = (
        "--model tiny --dataset arith --task math --total_data 1000 --sft_data 500 --do_sft "
        "--do_dpo --pft_micro_batch_size 8 --dry_run --launcher local --pft_method"
    )
    assert run_sweetspot_pipeline.main([*words.split(), "dpo", "kto"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "run_dpo.py" in line]
    for line in lines:
        assert ("--micro_batch_size 8" in line) == ("--pft_method dpo" in line)
    with pytest.raises(UserError, match="micro_batch_size is not used by kto"):
        run_sweetspot_pipeline.main([*words.split(), "kto"])


def test_what_is_unused_is_what_is_not_used():
    assert all(not unused(trainer) & used(trainer) for trainer in TRAINERS)

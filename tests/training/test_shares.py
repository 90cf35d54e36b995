"""How processes share the steps of a training with TRL, and which numbers of them can."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.run_configs import pt, sft
from tests.small_site import use
from tuning.runs.errors import UserError
from tuning.training.config import require_shared

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("rows", [1, 5, 16, 33, 40])
@pytest.mark.parametrize(("step", "most"), [(16, 4), (16, 16), (7, 2), (1, 1), (12, 5)])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_step_has_the_rows_of_one_process(rows, step, most, processes):
    from tuning.training.shares import Shares
    from tuning.training.trainers import passes

    order = random.Random(rows).sample(range(rows), rows)
    micro, count = passes(step, most, processes)
    at_once = -(-step // count)
    assert at_once <= micro * processes and micro <= most
    assert step % processes or micro * processes * count == step, "exactly the batch"
    ranks = [list(Shares(order, step, at_once, at=rank, of=processes)) for rank in range(processes)]
    assert len({len(batches) for batches in ranks}) == 1, "all ranks reduce as often"
    assert all(len(Shares(order, step, at_once, of=processes)) == len(b) for b in ranks)
    consumed = []
    for number, parts in enumerate(zip(*ranks, strict=True)):
        seen = [row for part in parts for row, share in part if share]
        consumed += seen
        assert consumed == order[: len(consumed)], "in the order of one process"
        at_step = number // count * step
        assert at_step < len(consumed) <= at_step + step
        for part in parts:
            own = sum(share > 0 for _, share in part)
            assert part[0][1] == pytest.approx(own * processes / len(seen))
    assert consumed == order


@pytest.mark.parametrize(
    ("run", "processes", "message"),
    [
        (lambda: sft(effective_batch_size=16, micro_batch_size=8), 3,
         "effective_batch_size 16 cannot be shared by 3 processes: .* Give one that is a multiple"),
        (lambda: pt("kto", kl_batch_size=2), 4, "kl_batch_size 2 cannot be shared by 4 processes"),
    ],
)  # fmt: skip
def test_a_number_of_processes_that_cannot_share_a_step_is_refused(
    run, processes, message, monkeypatch, tmp_path
):
    use(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=message) as error:
        require_shared(run(), processes)
    assert "\n" not in str(error.value)
    require_shared(run(), 2)
    require_shared(sft(trainer="engine"), 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend_train": "unsloth"},
         "backend_train unsloth works in a training of one process, and this one has 4; give "
         "--backend_train transformers, or train with one."),
        ({"pass_at_k_targets": (0.3,)},
         "--trainer trl measures pass@k in .* this one has 4; give --trainer engine, or train"),
        ({"pass_at_k_targets": (0.3,), "trainer": "engine", "pass_at_k_backend": "vllm"},
         "pass_at_k_backend vllm works in .* give --pass_at_k_backend hf, or train with one."),
    ],
    ids=["unsloth", "pass@k with trl", "vllm beside the engine"],
)  # fmt: skip
def test_what_one_process_does_is_refused_for_several_when_it_is_planned(
    values, message, monkeypatch, tmp_path
):
    from tuning.experiments.choices import Choices
    from tuning.experiments.stages import StageMaker
    from tuning.phases.work import require_shares

    use(monkeypatch, tmp_path)
    choices = Choices(experiment="e", dataset="arith", task="math")
    maker = StageMaker(model="tiny", choices=choices)
    stage = maker.sft_stage("sft", sft(**values), None, train=True)
    with pytest.raises(UserError, match=message):
        require_shares([stage], lambda stage: 4)
    require_shares([stage], lambda stage: 1)
    require_shares([maker.sft_stage("sft", sft(trainer="engine"), None, train=True)], lambda s: 4)


def test_trl_spreads_by_ddp_unless_it_is_told_otherwise(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path)
    for made in (sft, lambda **values: pt("grpo", **values)):
        assert made().compute.parallel == "ddp"
        assert made(parallel="fsdp2").compute.parallel == "fsdp2"
        assert made(parallel="fsdp2").hash == made().hash
        with pytest.raises(UserError, match="parallel zero1 is for --trainer engine; TRL takes"):
            made(parallel="zero1")
    assert sft(trainer="engine").compute.parallel == "fsdp2"


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_accelerate_takes_the_files(kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = Path(__file__).parents[2] / "configs" / f"accelerate_{kind}.yaml"
    found = load_config_from_file(str(file))
    assert found.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[kind]
    assert (found.fsdp_config or {}).get("fsdp_version") == {"ddp": None, "fsdp2": 2}[kind]


def test_fsdp2_is_what_its_file_says(monkeypatch, tmp_path):
    from transformers import TrainingArguments

    from tuning.engine.config import ComputeConfig
    from tuning.training import sharded

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharded.arguments(ComputeConfig(parallel="ddp")) == {}
    given = sharded.arguments(ComputeConfig(parallel="fsdp2"))
    monkeypatch.delenv("WORLD_SIZE")
    assert sharded.arguments(ComputeConfig(parallel="fsdp2")) == {}, "one process shards nothing"
    made = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)
    assert made.fsdp_plugin_args == {
        "fsdp_version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_ram_efficient_loading": False, "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": False, "reshard_after_forward": True,
    }  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharded.arguments(ComputeConfig(parallel="fsdp2")) == {}, "accelerate launch has it"


def test_what_is_drawn_depends_on_the_step_alone(monkeypatch):
    """Whatever the number of processes, and as often as the model says."""
    import torch

    from tuning.training.grpo_training import _Draws

    args = SimpleNamespace(device="cpu", temperature=2.0)
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))

    def drawn(rank: int, of: int, step: str = "7:1") -> list[int]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(of))
        count = len(scores) // of
        own = scores[rank * count : (rank + 1) * count]
        draws = _Draws(step, count, args)
        found = [draws(torch.empty(0), own) for _ in range(20)]
        assert all((one == 0).sum() == count for one in found), "one token is possible"
        return [token for one in found for token in one.argmax(dim=1).tolist()]

    whole = torch.tensor(drawn(0, 1)).reshape(20, 6)
    parts = [torch.tensor(drawn(rank, 3)).reshape(20, 2) for rank in range(3)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert drawn(0, 1) == drawn(0, 1) != drawn(0, 1, "7:2")

    monkeypatch.setenv("WORLD_SIZE", "1")
    many = _Draws("7:1", 20_000, args)(torch.empty(0), scores[:1].expand(20_000, 5))
    shares = (many == 0).float().mean(dim=0)
    assert torch.allclose(shares, torch.softmax(scores[0] / 2.0, dim=0), atol=0.015)

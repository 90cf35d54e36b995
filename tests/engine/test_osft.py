"""OSFT: nothing changes at the start, nothing leaks into the strong directions, sharded or not."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM as Model
from transformers import Qwen2Config, Qwen3Config, Qwen3MoeConfig

from tests import warm
from tests.conftest import environment
from tuning.config import CHECKOUT
from tuning.engine import osft
from tuning.engine.config import ComputeConfig, OSFTConfig
from tuning.engine.ranks import Layout
from tuning.engine.setup import open_model
from tuning.runs.errors import UserError

unit = pytest.mark.unit

CONFIG = Qwen3Config(
    vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=12, use_cache=False,
    tie_word_embeddings=False,
)  # fmt: skip
IDS = torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(5))
DOWN = "model.layers.0.mlp.down_proj"


def build(config=CONFIG, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return Model.from_config(config, dtype=dtype)


def decomposed(ratio: float, dtype=torch.float32) -> nn.Module:
    model = build(dtype=dtype)
    osft.decompose(model, ratio)
    return model


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model: nn.Module, steps: int, ids: torch.Tensor = IDS) -> float:
    """The last loss of a training hard enough to move every weight."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def leaks(model: nn.Module) -> dict[str, float]:
    modules = osft.osft_modules(model)
    return {p: osft.leak(m.base.weight, m.delta(), m.kept) for p, m in modules.items()}


def merged(model: nn.Module) -> nn.Module:
    """The plain model that a decomposed one stands for."""
    parts = osft.osft_modules(model)
    state = {}
    for name, tensor in model.state_dict().items():
        plain = osft.plain_name(name)
        if plain is not None:
            path = plain.rpartition(".")[0]
            whole = plain.endswith(".weight") and path in parts
            state[plain] = parts[path].merged_weight() if whole else tensor
    plain_model = build(model.config)
    plain_model.load_state_dict(state)
    return plain_model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


@unit
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.99])
def test_nothing_changes_at_the_start(ratio):
    torch.testing.assert_close(logits(decomposed(ratio)), logits(build()), atol=1e-6, rtol=0)


@unit
@pytest.mark.parametrize(("ratio", "kept"), [(0.001, 47), (0.25, 36), (0.5, 24), (0.999, 1)])
def test_shapes_follow_the_ratio(ratio, kept):
    model = decomposed(ratio)
    layer = osft.osft_modules(model)[DOWN]
    assert layer.kept == kept
    assert layer.Qu.shape == (48, 48 - kept)
    assert layer.M.shape == (48 - kept, 80 - kept)
    assert layer.Qv.shape == (80 - kept, 80)
    frozen = {name for name, _ in model.named_parameters()} - trained_names(model)
    assert {name.rpartition(".")[2] for name in frozen} == {"weight", "Qu", "Qv"}
    assert len(frozen) == 3 * 2 * 7
    assert {"model.embed_tokens.weight", "lm_head.weight", f"{DOWN}.M"} <= trained_names(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_optimizer_leaves_the_subspace(dtype):
    model = decomposed(0.25, dtype)
    parts = osft.osft_modules(model)
    assert {factor.dtype for part in parts.values() for factor in (part.Qu, part.M, part.Qv)} == {
        torch.float32
    }
    before = {path: part.base.weight.clone() for path, part in parts.items()}
    start = model(input_ids=IDS, labels=IDS).loss.item()
    assert train(model, 40) < 0.8 * start
    assert all(part.delta().norm() > 0.1 for part in parts.values())
    assert max(leaks(model).values()) < 1e-5
    assert all(torch.equal(part.base.weight, before[path]) for path, part in parts.items())


def test_a_plain_training_does_leak():
    model = build()
    before = model.get_submodule(DOWN).weight.detach().clone()
    train(model, 10)
    assert osft.leak(before, model.get_submodule(DOWN).weight - before, 36) > 0.1
    assert osft.leak(before, torch.zeros_like(before), 36) == 0.0


def test_merged_is_unmerged():
    model = decomposed(0.5)
    train(model, 10)
    plain = merged(model)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)
    layer = osft.osft_modules(model)[DOWN]
    assert torch.equal(
        osft.merge(layer.base.weight, layer.Qu, layer.M, layer.Qv), layer.merged_weight()
    )
    torch.testing.assert_close(layer.base.weight + layer.delta(), layer.merged_weight())


def test_merging_heeds_no_lower_precision():
    model = decomposed(0.5)
    train(model, 5)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert max(leaks(model).values()) < 1e-5
    finally:
        torch.set_float32_matmul_precision("highest")


def test_ratio_zero_freezes():
    model = decomposed(0.0)
    assert not osft.osft_modules(model)
    before = copy.deepcopy(model.state_dict())
    train(model, 5)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if any(part in name for part in osft.PATTERNS)}


def test_ratio_one_is_plain_training():
    model, plain = decomposed(1.0), build()
    assert trained_names(model) == trained_names(plain)
    assert train(model, 3) == train(plain, 3)


@unit
def test_biases_stay_with_the_base():
    sizes = CONFIG.to_dict()
    sizes.pop("model_type")
    model = build(Qwen2Config(**sizes))
    osft.decompose(model, 0.25)
    assert "model.layers.0.self_attn.q_proj.base.bias" in trained_names(model)
    assert osft.plain_name("model.layers.0.self_attn.q_proj.base.bias") == (
        "model.layers.0.self_attn.q_proj.bias"
    )


@unit
def test_plain_names():
    plain = {osft.plain_name(name) for name in decomposed(0.25).state_dict()}
    assert plain - {None} == set(build().state_dict())
    assert None in plain


@unit
@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(UserError, match=r"from 0\.0"):
        osft.decompose(build(), ratio)


@unit
def test_patterns_choose_layers():
    model = build()
    osft.decompose(model, 0.25, ["layers.1.mlp", "q_proj"])
    assert set(osft.osft_modules(model)) == {
        *(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")),
        *(f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)),
    }


@unit
def test_a_pattern_without_a_layer_is_refused():
    with pytest.raises(UserError, match=r"'q_prj'.*there are: .*o_proj.*Did you mean 'q_proj'"):
        osft.decompose(build(), 0.25, ["k_proj", "q_prj"])
    with pytest.raises(UserError, match="finds no linear layer"):
        osft.decompose(build(), 0.25, [])


@unit
def test_what_cannot_be_decomposed_is_refused():
    sizes = CONFIG.to_dict() | {"moe_intermediate_size": 16, "num_experts": 4}
    sizes.pop("model_type")
    with pytest.raises(UserError, match=r"dense models.*gate_up_proj"):
        osft.decompose(build(Qwen3MoeConfig(**sizes)), 0.25)
    tied = copy.deepcopy(CONFIG)
    tied.tie_word_embeddings = True
    with pytest.raises(UserError, match=r"embed_tokens.weight and lm_head.weight"):
        osft.decompose(build(tied), 0.25, ["lm_head"])
    osft.decompose(build(tied), 0.25)
    with pytest.raises(UserError, match="one direction"):
        osft.decompose(nn.Sequential(nn.Linear(4, 1)), 0.25, ["0"])
    with pytest.raises(ValueError, match="already"):
        osft.decompose(decomposed(0.25), 0.25)


@unit
@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_meta_has_the_same_structure(ratio):
    with torch.device("meta"):
        meta = Model.from_config(CONFIG, dtype=torch.bfloat16)
    osft.decompose(meta, ratio)
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert structure(meta) == structure(decomposed(ratio, torch.bfloat16))


def structure(model: nn.Module) -> list[tuple]:
    return [
        (name, p.shape, p.stride(), p.dtype, p.requires_grad)
        for name, p in model.named_parameters()
    ]


def test_sharded_over_two_processes(tmp_path):
    words = ["-m", "tests.engine.test_osft", str(tmp_path)]
    where = environment(tmp_path) | {"PYTHONPATH": str(CHECKOUT)}
    code, errors = warm.run_together(2, words, where, CHECKOUT, 300)
    assert code == 0, errors[-4000:]
    results = torch.load(tmp_path / "results.pt")
    for result in results.values():
        assert result["leak"] < 1e-5
        assert result["size"] > 0.1
    assert results[torch.float32]["loss"] == pytest.approx(train(decomposed(0.25), 10), abs=1e-3)


def one_of_two(directory: Path) -> None:
    """One process: a training in float32 and one that computes in bfloat16."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    results = {dtype: sharded(rank, dtype) for dtype in (torch.float32, torch.bfloat16)}
    if rank == 0:
        torch.save(results, directory / "results.pt")
    distributed.destroy_process_group()


def sharded(rank: int, dtype: torch.dtype) -> dict[str, float]:
    """All weights, bases included, come from the first process."""
    whole = decomposed(0.25)
    with torch.device("meta"):
        model = Model.from_config(CONFIG, dtype=torch.float32)
    osft.decompose(model, 0.25)
    shard(model, dtype)
    model.to_empty(device="cpu")
    for name, buffer in whole.named_buffers():
        model.get_buffer(name).copy_(buffer)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole.state_dict() if rank == 0 else {}, options=options)
    loss = torch.tensor(train(model, 10, IDS.tensor_split(2)[rank]))
    distributed.all_reduce(loss)
    layer = osft.osft_modules(model)[DOWN]
    assert all(isinstance(factor, DTensor) for factor in (layer.Qu, layer.M, layer.Qv))
    base, *factors = (
        part.full_tensor() for part in (layer.base.weight, layer.Qu, layer.M, layer.Qv)
    )
    delta = osft.merge(torch.zeros_like(base), *factors)
    leak = osft.leak(base, delta, layer.kept)
    return {"leak": leak, "size": delta.norm().item(), "loss": loss.item() / 2}


def shard(model: nn.Module, dtype: torch.dtype) -> None:
    mesh = init_device_mesh("cpu", (2,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def test_weights_in_half_precision_are_not_sharded_by_fsdp2():
    two = Layout(dp_size=2, dp_rank=0, sep_size=1, sep_rank=0, mesh=None, everyone=None)

    def read(dtype: torch.dtype) -> None:
        raise AssertionError("refused before anything is read")

    with pytest.raises(UserError, match="give --parallel ddp"):
        open_model(
            read, read, two, ComputeConfig(), osft_config=OSFTConfig(osft=True),
            dtype=torch.bfloat16,
        )  # fmt: skip


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]))

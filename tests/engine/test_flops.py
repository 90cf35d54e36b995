"""FLOPs by formula against torch's counter of what really runs, and peaks by device name."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tuning.engine import flops, osft
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

SIZES = {
    "vocab_size": 500, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, "use_cache": False,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "num_key_value_heads": 8, "head_dim": 8,
}  # fmt: skip
MODELS = {
    "heads of their own": ("Llama", {"num_key_value_heads": 8}),
    "grouped heads": ("Qwen3", {}),
    "biases, tied": ("Qwen2", {"tie_word_embeddings": True, "head_dim": 8}),
    "experts": ("Qwen3Moe", EXPERTS),
    "experts, old family": (
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "latent attention": ("DeepseekV3", LATENT),
}
IDS = torch.randint(0, 500, (2, 96), generator=torch.Generator().manual_seed(0))
SQUARES = 2 * 96**2


def build(kind: str = "Qwen3", **changes):
    """A model whose matrix products are all visible to the counter."""
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if hasattr(config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    return model.train()


def counted(model: nn.Module, backward: bool = True, **kwargs) -> int:
    """FLOPs that ran, attention in full."""
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=IDS, **kwargs).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", MODELS)
def test_training_is_what_the_counter_sees(case):
    kind, changes = MODELS[case]
    model = build(kind, **changes)
    # The counter sees both halves of attention; SQUARES are of what a causal model needs.
    expected = flops.count(model).training(IDS.numel(), 2 * SQUARES)
    assert expected == pytest.approx(counted(model), rel=1e-3)


def test_forward_is_what_the_counter_sees():
    model = build()
    expected = flops.count(model).forward(IDS.numel(), 2 * SQUARES)
    assert expected == pytest.approx(counted(model, backward=False), rel=1e-3)


def test_the_head_counts_for_tokens_with_logits():
    model = build()
    expected = flops.count(model).training(IDS.numel(), 2 * SQUARES, logit_tokens=2 * 10)
    assert expected == pytest.approx(counted(model, logits_to_keep=10), rel=1e-3)


def test_lora_has_no_weight_gradients_of_the_base():
    model = get_peft_model(build(num_hidden_layers=8), LoraConfig(r=4, target_modules="all-linear"))
    expected = flops.count(model).training(IDS.numel(), 2 * SQUARES)
    assert expected == pytest.approx(counted(model), rel=1e-2)


def test_what_peft_keeps_and_does_not_run_does_not_count():
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(build(), config)
    once = flops.count(model)
    model.add_adapter("ref", config)
    assert flops.count(model) == once
    assert once.head == 2 * 64 * 500
    assert once.head_backward == 2 * once.head


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_osft_counts_its_factors(ratio):
    model = build()
    osft.decompose(model, ratio)
    expected = flops.count(model).training(IDS.numel(), 2 * SQUARES)
    assert expected == pytest.approx(counted(model), rel=1e-3)


def test_a_model_on_the_meta_device_counts_the_same():
    with torch.device("meta"):
        model = build("Qwen3Moe", **EXPERTS)
    assert flops.count(model) == flops.count(build("Qwen3Moe", **EXPERTS))


def test_quadratic_is_attention_in_tokens():
    measured = flops.count(build())
    tokens, squares = 1000, 500_000.0
    as_tokens = tokens + measured.quadratic * squares
    assert as_tokens * (measured.linear + measured.head) == pytest.approx(
        measured.forward(tokens, squares)
    )


def test_recurrent_layers_have_no_attention():
    changes = {"num_hidden_layers": 4, "num_experts": 4, "moe_intermediate_size": 32}
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    with torch.device("meta"):
        model = build("Qwen3Next", layer_types=kinds, **changes)
    assert flops.count(model).attention == 1 * 8 * (16 + 16)


def test_experts_without_a_number_are_refused(monkeypatch):
    model = build("Qwen3Moe", **EXPERTS)
    monkeypatch.setattr(flops, "EXPERTS_OF_A_TOKEN", ("some_other_name",))
    with pytest.raises(UserError, match="how many experts a token of a qwen3_moe model"):
        flops.count(model)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H20", 148),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A40", 149.7),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peaks_in_bf16(name, tera):
    assert flops.peak_of(name, torch.bfloat16) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA L400",
        "NVIDIA A100-SXM-64GB",
        "Tesla V100-SXM2-16GB",
        "",
    ],
)
def test_no_peak_is_guessed(name):
    assert flops.peak_of(name, torch.bfloat16) is None


def test_peaks_of_other_dtypes():
    assert flops.peak_of("Tesla V100-SXM2-16GB", torch.float16) == 125e12
    assert flops.peak_of("NVIDIA A100-SXM4-40GB", torch.float32) == 19.5e12
    assert flops.peak_of("NVIDIA A100-SXM4-40GB", torch.float32, tf32=True) == 156e12
    assert flops.peak_of("NVIDIA A100-SXM4-40GB", torch.float64) is None
    assert flops.peak(torch.device("cpu"), torch.float32) is None

"""The FLOPs of a training step and the peak FLOP/s of devices, for model FLOPs utilization (MFU);
the packer weighs long documents by the same numbers.

Counted is what the model needs (PaLM, arXiv 2204.02311, appendix B): matrix products and causal
attention, forward and backward. Recomputed activations, masked halves of attention, padding and
element-wise work are not counted. torch's own FlopCounterMode is no substitute: it does not see
fused attention on a CPU, nor grouped experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from tuning.engine import peaks
from tuning.engine.osft import OSFTLinear
from tuning.runs.errors import UserError

EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
"""What configurations of transformers call the number of experts that a token is sent to."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """A model's FLOPs, by what they grow with. A multiplication and an addition are two."""

    linear: float
    """Forward, a token: the matrix products without the head."""
    linear_backward: float
    """Backward, a token: once `linear` for the gradients of the inputs, and the products of the
    weights that are trained once more."""
    head: float
    """Forward, a token whose logits are computed."""
    head_backward: float
    """Backward, a token whose logits are computed."""
    attention: float
    """Forward, a squared token of a document: the causal half of scores and weighted values.
    Backward is twice that."""

    @property
    def quadratic(self) -> float:
        """A document of n tokens costs as much as n + quadratic * n**2 tokens without attention."""
        return self.attention / (self.linear + self.head)

    def forward(self, tokens: int, squares: float, logit_tokens: int | None = None) -> float:
        """FLOPs of a forward pass over documents.

        Args:
            tokens: In all documents together.
            squares: The sum of the squares of the documents' lengths.
            logit_tokens: How many tokens get logits; all of them by default.
        """
        heads = tokens if logit_tokens is None else logit_tokens
        return tokens * self.linear + heads * self.head + squares * self.attention

    def training(self, tokens: int, squares: float, logit_tokens: int | None = None) -> float:
        """FLOPs of a forward and a backward pass over documents, described as for `forward`."""
        heads = tokens if logit_tokens is None else logit_tokens
        backward = tokens * self.linear_backward + heads * self.head_backward
        return self.forward(tokens, squares, logit_tokens) + backward + 2 * squares * self.attention


def count(model: Any) -> Flops:
    """The FLOPs of a causal language model of transformers, with adapters of peft or decomposed by
    `osft`; before it is sharded. Which weights are trained is read from `requires_grad`.

    Three simplifications: gradients are taken to reach the first layer, also where nothing before
    it is trained (LoRA: less than a layer's share too much); a layer with a sliding window counts
    as one without; a recurrent layer counts by its projections alone.

    Raises:
        UserError: for a mixture of experts whose configuration does not say how many are used.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    in_head = set() if head is None else {id(part) for part in head.modules()}
    idle = _idle(model)
    sums = {"linear": 0, "linear_backward": 0, "head": 0, "head_backward": 0}
    for module in model.modules():
        if id(module) in idle:
            continue
        kind = "head" if id(module) in in_head else "linear"
        for size, trained in _products(module, config):
            sums[kind] += 2 * size
            sums[f"{kind}_backward"] += 2 * size * (2 if trained else 1)
    return Flops(attention=_attention(config), **sums)


def peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """The vendor's FLOP/s of a device for dense products in `dtype`; None if unknown, as on a CPU.
    float32 means TF32 if torch may use it."""
    if device.type != "cuda":
        return None
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return peak_of(torch.cuda.get_device_name(device), dtype, tf32=tf32)


def peak_of(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """`peak` of a device by the name that its driver gives it. A name with anything in it that
    the table does not know, such as a partition or a laptop's variant, is unknown."""
    rates = peaks.rates_of(name)
    column = {
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
        torch.float32: "tf32" if tf32 else "fp32",
    }.get(dtype)
    if rates is None or column is None:
        return None
    rate = getattr(rates, column)
    return None if rate is None else rate * 1e12


def _products(module: nn.Module, config: Any) -> Iterator[tuple[int, bool]]:
    """Each weight that a token is multiplied by in the module itself, not in its parts: how many
    of its elements take part, and whether it is trained."""
    own = list(module.parameters(recurse=False))
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        # Not the weight's own size: quantized weights are packed.
        yield module.in_features * module.out_features, module.weight.requires_grad
    elif isinstance(module, OSFTLinear) or "Router" in name or name == "Conv1D":
        yield from ((weight.numel(), weight.requires_grad) for weight in own if weight.dim() == 2)
    elif "Experts" in name:
        for weight in own:
            if weight.dim() == 3:
                size = weight[0].numel() * _experts_of_a_token(config)
                yield size, weight.requires_grad


def _experts_of_a_token(config: Any) -> int:
    for name in EXPERTS_OF_A_TOKEN:
        number = getattr(config, name, None)
        if isinstance(number, int):
            return number
    raise UserError(
        f"cannot tell how many experts a token of a {config.model_type} model is sent to: its "
        f"configuration has none of {', '.join(EXPERTS_OF_A_TOKEN)}; take another model"
    )


def _attention(config: Any) -> float:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Multi-head latent attention (DeepSeek) has keys and values of different widths.
    keys = width
    if getattr(config, "qk_nope_head_dim", None):
        keys = config.qk_nope_head_dim + config.qk_rope_head_dim
    values = getattr(config, "v_head_dim", None) or width
    kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    layers = sum(kind not in ("linear_attention", "conv", "moe") for kind in kinds)
    # 2 FLOPs each for keys and values, and half of the square.
    return float(layers * heads * (keys + values))


def _idle(model: nn.Module) -> set[int]:
    """Ids of the modules that peft keeps but does not run: adapters that are not active, and the
    originals of modules that are trained whole."""
    idle: list[nn.Module] = []
    module: Any
    for module in model.modules():
        names = getattr(module, "adapter_layer_names", ())
        for name in names:
            idle += [
                part
                for adapter, part in attrgetter(name)(module).items()
                if isinstance(part, nn.Module) and adapter not in module.active_adapters
            ]
        if "modules_to_save" in names and set(module.active_adapters) & set(module.modules_to_save):
            idle.append(module.original_module)
    return {id(part) for module in idle for part in module.modules()}

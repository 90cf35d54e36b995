"""Orthogonal subspace fine-tuning (OSFT): full-rank training that leaves the strongest directions
of every weight alone, so that a model learns something new and forgets little.

The method is arXiv 2504.07097, which splits each weight by its singular values, freezes the large
part and projects the gradient of the small one. Adam rescales that gradient element by element and
leaves the subspace again; so here the subspace is part of the parametrization instead:

    W = W0 + Qu M Qv

Qu and Qv are bases of what is orthogonal to the k strongest left and right singular vectors of W0,
and only M trains. What can be reached is the same, for any optimizer and however M is sharded.
Weight decay pulls towards W0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tuning.runs.errors import UserError, nearest

PATTERNS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a dense transformer, without the head. Found anywhere in a name, they take
`qkv_proj` and `gate_up_proj` as well."""


class OSFTLinear(nn.Module):
    """A linear layer whose weight moves only outside the `kept` strongest directions it began with.

    `Qu`, `M` and `Qv` are float32 whatever the model is in: what M's steps add up to must not be
    lost, and a basis rounded to bfloat16 is not orthogonal. The bases are parameters without a
    gradient, not buffers, so that FSDP2 shards them.
    """

    def __init__(self, base: nn.Linear, kept: int) -> None:
        """`base` is kept, its weight frozen and its bias as it was. A layer on the meta device
        gives a module on the meta device, to be filled by a broadcast."""
        super().__init__()
        self.base = base
        self.kept = kept
        base.weight.requires_grad_(False)
        left, right = _singular_vectors(base.weight)
        rows, columns = left.shape[0] - kept, right.shape[0] - kept
        # Copies, so that the whole sets of vectors can be freed.
        left = left[:, kept:].clone(memory_format=torch.contiguous_format)
        right = right[kept:].clone(memory_format=torch.contiguous_format)
        self.Qu = nn.Parameter(left, requires_grad=False)
        """[out, out - kept], orthonormal columns."""
        self.M = nn.Parameter(torch.zeros(rows, columns, device=left.device))
        """[out - kept, in - kept]."""
        self.Qv = nn.Parameter(right, requires_grad=False)
        """[in - kept, in], orthonormal rows."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of the inputs."""
        outputs = inputs
        for factor in (self.Qv, self.M, self.Qu):
            outputs = F.linear(outputs, factor.to(inputs.dtype))
        return self.base(inputs) + outputs

    def delta(self) -> Tensor:
        """The change of the weight by training: [out, in], float32. For whole tensors only."""
        return _product(self.Qu, self.M, self.Qv).float()

    def merged_weight(self) -> Tensor:
        """The weight of the plain layer: [out, in], float32. For whole tensors only."""
        return merge(self.base.weight, self.Qu, self.M, self.Qv)

    def extra_repr(self) -> str:
        return f"trained={tuple(self.M.shape)}"


def decompose(model: nn.Module, ratio: float, patterns: Sequence[str] | None = None) -> None:
    """Restrict the training of the matched linear layers of `model` to a subspace, in place.

    Everything else stays as trainable as it was: embeddings, norms, the head, biases. The same
    weights give the same bases again on the same device, but perhaps not on another; M is valid
    only with the bases it was trained with, so they are saved and broadcast together.

    Args:
        model: A dense model, before it is sharded; may be on the meta device.
        ratio: The share of each weight's rank that is trained, from 0.0 (matched weights are
            frozen) to 1.0 (nothing is decomposed). In between at least one direction is trained
            and at least one is kept.
        patterns: Which layers: parts of their names, `PATTERNS` by default.

    Raises:
        UserError: for a ratio out of range, a pattern that matches nothing, a model with fused
            experts, or a matched weight that another layer shares.
        ValueError: for a model that is decomposed already.
    """
    if osft_modules(model):
        raise ValueError("the model is decomposed already")
    if not 0.0 <= ratio <= 1.0:
        raise UserError(
            f"OSFT's ratio is {ratio}, but it is the share of the rank that is trained, from 0.0 "
            "(none) to 1.0 (all): give one in between, 0.25 for example"
        )
    _refuse_experts(model)
    layers = _matched(model, patterns)
    _refuse_shared(model, layers)
    if ratio == 1.0:
        return
    for path, layer in layers.items():
        if ratio == 0.0:
            layer.weight.requires_grad_(False)
        else:
            model.set_submodule(path, OSFTLinear(layer, _kept(path, layer, ratio)))


def osft_modules(model: nn.Module) -> dict[str, OSFTLinear]:
    """The decomposed layers of `model` by their paths."""
    return {path: part for path, part in model.named_modules() if isinstance(part, OSFTLinear)}


def plain_name(name: str) -> str | None:
    """The name in the plain model of the tensor `name` of a decomposed one; None for the factors,
    which it does not have. The plain weight itself is computed by `merge`."""
    path, _, last = name.rpartition(".")
    if last in ("Qu", "M", "Qv"):
        return None
    return f"{path.removesuffix('.base')}.{last}" if path.endswith(".base") else name


def merge(base_weight: Tensor, Qu: Tensor, M: Tensor, Qv: Tensor) -> Tensor:
    """W0 + Qu M Qv of whole tensors, in any dtype: [out, in], float32."""
    return (base_weight.detach().double() + _product(Qu, M, Qv)).float()


def leak(base_weight: Tensor, delta: Tensor, kept: int) -> float:
    """The share of `delta` that lies within the `kept` strongest directions of `base_weight`, by
    the Frobenius norm; the larger of left and right. 0.0 if nothing has changed.

    Call it on the device that decomposed the weight: another algorithm may choose other vectors
    for singular values that are close.
    """
    left, right = _singular_vectors(base_weight)
    delta = delta.detach().double()
    size = delta.norm()
    if size == 0:
        return 0.0
    strong_left = left[:, :kept].double().T @ delta
    strong_right = delta @ right[:kept].double().T
    return float(torch.maximum(strong_left.norm(), strong_right.norm()) / size)


@torch.no_grad()
def _product(Qu: Tensor, M: Tensor, Qv: Tensor) -> Tensor:
    # float64: float32 products may be rounded to TF32 or bfloat16, and leave the subspace.
    return torch.linalg.multi_dot((Qu.double(), M.double(), Qv.double()))


@torch.no_grad()
def _singular_vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """All left ones as columns [out, out] and all right ones as rows [in, in], strongest first."""
    left, _, right = torch.linalg.svd(weight.detach().float(), full_matrices=True)
    return left, right


def _kept(path: str, layer: nn.Linear, ratio: float) -> int:
    rank = min(layer.weight.shape)
    if rank < 2:
        raise UserError(
            f"OSFT cannot split {path}: its weight {list(layer.weight.shape)} has one direction; "
            "give patterns that leave it out"
        )
    return min(max(rank - round(rank * ratio), 1), rank - 1)


def _matched(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The linear layers whose path holds a pattern; each pattern that was given must hold one."""
    linear = {path: part for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    names = sorted({path.rpartition(".")[2] for path in linear})
    for pattern in patterns or ():
        if not any(pattern in path for path in linear):
            raise UserError(
                f"OSFT finds no linear layer with '{pattern}' in its name; there are: "
                f"{', '.join(names)}.{nearest(pattern, names)}"
            )
    wanted = PATTERNS if patterns is None else patterns
    matched = {path: part for path, part in linear.items() if any(p in path for p in wanted)}
    if not matched:
        raise UserError(
            f"OSFT finds no linear layer with one of {', '.join(wanted) or 'no patterns'} in its "
            f"name; give patterns for some of: {', '.join(names)}"
        )
    return matched


def _refuse_experts(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3 and any(part in name for part in ("gate_up_proj", "expert", "moe")):
            raise UserError(
                f"OSFT takes dense models, and {name} {list(parameter.shape)} holds the experts of "
                "a mixture in one tensor; train this model with LoRA or in full"
            )


def _refuse_shared(model: nn.Module, layers: dict[str, nn.Linear]) -> None:
    """A weight that is also an embedding would be frozen there, and saved without its change."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for layer in layers.values():
        shared = names[id(layer.weight)]
        if len(shared) > 1:
            raise UserError(
                f"OSFT cannot take {' and '.join(shared)}, which are one tensor; give patterns "
                "that leave it out"
            )

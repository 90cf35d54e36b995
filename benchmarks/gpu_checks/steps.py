"""The steps of gpu_smoke.py, in the order in which the budget is spent on them.

The limits of FIRST are less than the budget together: each of them has its turn, however long the
others take. FURTHER get what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu_checks.site import MODEL


@dataclass(frozen=True, kw_only=True)
class Step:
    """A process that finds rows."""

    name: str
    runs: str
    """module:function, called with the Context of the step."""
    limit: float
    """Seconds. It begins only if as many are left."""
    packages: tuple[str, ...] = ()
    """Without these it is skipped."""
    needs: str | None = None
    """The run whose model it starts from."""


_TRL = ("transformers", "trl", "peft", "datasets")
_BITS = ("bitsandbytes", *_TRL)
_HF = ("transformers",)
_UNSLOTH = ("unsloth", "bitsandbytes", *_TRL)
_VLLM = ("vllm", "transformers")
FIRST = (
    Step(name="machine", runs="machine:run", limit=15),
    Step(name="attention", runs="attention:run", limit=35, packages=_HF),
    Step(name="engine", runs="engine:sizes", limit=70, packages=_HF),
    Step(name="base", runs="training:base", limit=45, packages=_HF),
    Step(name="sft", runs="training:sft", limit=45, packages=_TRL, needs=MODEL),
    Step(name="dpo", runs="training:dpo", limit=40, packages=_TRL, needs=MODEL),
    Step(name="grpo", runs="training:grpo", limit=45, packages=_TRL, needs=MODEL),
    Step(name="inference", runs="inference:hf", limit=45, packages=_HF, needs=MODEL),
    Step(name="four_bit", runs="training:four_bit", limit=50, packages=_BITS, needs=MODEL),
    Step(name="vllm", runs="inference:vllm", limit=80, packages=_VLLM, needs=MODEL),
)
FURTHER = (
    Step(name="kto", runs="training:kto", limit=40, packages=_TRL, needs=MODEL),
    Step(name="unsloth", runs="training:unsloth", limit=160, packages=_UNSLOTH, needs=MODEL),
    Step(name="vllm_adapter", runs="inference:adapter", limit=150, packages=_VLLM, needs=MODEL),
    Step(
        name="pass_at_k_vllm",
        runs="training:pass_at_k_vllm",
        limit=240,
        packages=(*_VLLM, *_TRL),
        needs=MODEL,
    ),
    Step(name="full", runs="training:full", limit=50, packages=_TRL, needs=MODEL),
    Step(name="pass_at_k", runs="training:pass_at_k", limit=100, packages=_TRL, needs=MODEL),
    Step(name="autotune", runs="autotune:run", limit=130, packages=_TRL, needs=MODEL),
    Step(
        name="unsloth_pass_at_k",
        runs="training:unsloth_pass_at_k",
        limit=200,
        packages=(*_VLLM, *_UNSLOTH),
        needs=MODEL,
    ),
    Step(
        name="unsloth_four_bit",
        runs="training:unsloth_four_bit",
        limit=60,
        packages=_UNSLOTH,
        needs=MODEL,
    ),
    Step(name="sft_engine", runs="training:sft_engine", limit=45, packages=_HF, needs=MODEL),
    Step(name="optimizer", runs="optimizer:run", limit=30, packages=_HF),
    Step(name="resume", runs="engine:resume", limit=45, packages=_HF),
    Step(name="sft_resume", runs="training:sft_resume", limit=90, packages=_TRL, needs=MODEL),
    Step(name="compiled", runs="engine:compiled", limit=75, packages=_HF),
    Step(name="liger", runs="engine:liger", limit=75, packages=("liger_kernel", *_HF)),
    Step(name="compiled_1b", runs="engine:compiled_billion", limit=90, packages=_HF),
)
STEPS = {step.name: step for step in (*FIRST, *FURTHER)}

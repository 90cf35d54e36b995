"""The steps of gpu_smoke.py, in the order in which a budget is spent on them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu_checks.site import MODEL


@dataclass(frozen=True, kw_only=True)
class Step:
    """A process that finds rows."""

    name: str
    runs: str
    """module:function, called with the Context of the step."""
    limit: float = 90.0
    """Seconds; less if less of the budget is left."""
    packages: tuple[str, ...] = ()
    """Without these it is skipped."""
    needs: str | None = None
    """The run whose model it starts from."""


_TRL = ("transformers", "trl", "peft", "datasets")
_STEPS = (
    Step(name="machine", runs="machine:run", limit=60),
    Step(name="attention", runs="attention:run", packages=("transformers",)),
    Step(name="engine", runs="engine:quarter", packages=("transformers",)),
    Step(name="resume", runs="engine:resume", packages=("transformers",)),
    Step(name="base", runs="training:base", packages=("transformers",)),
    Step(name="sft", runs="training:sft", packages=_TRL, needs=MODEL),
    Step(name="dpo", runs="training:dpo", packages=_TRL, needs=MODEL),
    Step(name="grpo", runs="training:grpo", packages=_TRL, needs=MODEL),
    Step(name="sft_engine", runs="training:sft_engine", packages=("transformers",), needs=MODEL),
    Step(name="inference", runs="inference:hf", packages=("transformers",), needs=MODEL),
    Step(name="sft_resume", runs="training:sft_resume", limit=120, packages=_TRL, needs=MODEL),
    Step(name="optimizer", runs="optimizer:run", limit=60, packages=("transformers",)),
    Step(
        name="four_bit",
        runs="four_bit:run",
        packages=("bitsandbytes", "transformers", "peft"),
        needs=MODEL,
    ),
    Step(name="engine_1b", runs="engine:billion", packages=("transformers",)),
    Step(name="compiled", runs="engine:compiled", limit=120, packages=("transformers",)),
    Step(name="vllm", runs="inference:vllm", limit=150, needs=MODEL),
    Step(name="compiled_1b", runs="engine:compiled_billion", limit=150, packages=("transformers",)),
)
STEPS = {step.name: step for step in _STEPS}

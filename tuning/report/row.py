"""A row of the report: one stage of an experiment and what came of it.

What people call a model depends on what stands beside it: in a sweetspot experiment there is one
whole budget, in a budget experiment numbers of examples tell runs apart, and in a grid the base
model and the seed do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

WAYS = ("fork", "pt", "reference_sft", "reference_pt")
"""The roles of models that spent a whole budget."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What scores.json holds."""

    prompts: int
    samples: int
    pass_at_k: dict[int, tuple[float, float, float]]
    """k -> (estimate, low, high), k in ascending order."""
    correct: tuple[int, ...]
    """Right answers among `samples`, for each prompt."""

    @property
    def largest_k(self) -> int:
        """The largest k of pass@k."""
        return max(self.pass_at_k)

    @property
    def first(self) -> tuple[float, float, float]:
        """pass@1 with its interval."""
        return self.pass_at_k[1]

    @property
    def per_prompt(self) -> list[float]:
        """pass@1 of each prompt."""
        return [count / self.samples for count in self.correct]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training took: tokens that the trainer counted, and seconds on its device."""

    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage of an experiment and what came of it; None stands for what is not known."""

    stage_name: str
    """The name of the stage in the plan."""
    run_name: str
    """The run's directory; of a fork whose size is not known yet, the planned name."""
    role: str
    """base, sft, sweetspot, fork, pt, reference_sft or reference_pt."""
    state: str
    """done, skipped, failed, blocked, running or pending."""
    note: str
    """Why there is no result; "" where there is one."""
    config_hash: str
    model: str | None = None
    """The base model, as collections.yaml or the command line names it."""
    counted: bool = False
    """Whether the model is called by its numbers of examples: several budgets may be compared."""
    names_model: bool = False
    """Whether other rows have another base model, so that the label names it."""
    names_seed: bool = False
    """Whether other rows have another seed, so that the label names it."""
    sft_share: int | None = None
    """SFT examples that were planned for a model that spent a budget; None of a fork."""
    pft_method: str | None = None
    parent: str | None = None
    """`run_name` of the row that this one starts from."""
    threshold: str | None = None
    """`2.0`, or `2@0.02` for a patience rule."""
    perplexity: float | None = None
    """On the validation pool: of an SFT run at its end, of a sweetspot at its step, of the base
    before the first step. A preference run measures none: a fork has that of the checkpoint that
    it starts from."""
    sft_data_used: int | None = None
    """Different SFT examples behind this model."""
    pft_data: int | None = None
    """Different preference examples behind this model."""
    cost: Cost | None = None
    """Of this run alone; of a sweetspot, of its SFT run up to its step; of the base, of
    pre-training."""
    sft_cost: Cost | None = None
    """The part of SFT in making this model from the base."""
    pft_cost: Cost | None = None
    """The part of preference tuning in making this model from the base."""
    scores: Scores | None = None
    seed: int | None = None
    train_size: int | None = None
    """What the run was given, which early stopping may not use up."""
    total_budget: int | None = None
    device: str | None = None
    config: dict[str, Any] | None = None
    """config.json of the run."""
    evaluation_config: dict[str, Any] | None = None
    curve: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """The perplexity measurements of an SFT run: step, perplexity, data_points_seen."""

    @property
    def total_data(self) -> int | None:
        """Examples behind this model, SFT and preference together."""
        if self.sft_data_used is None or self.pft_data is None:
            return None
        return self.sft_data_used + self.pft_data

    @property
    def missing(self) -> bool:
        """Whether the row has no result, for the reason in `note`."""
        return self.state != "done"

    @property
    def label(self) -> str:
        """What people call it."""
        model = f"{self.model}: " if self.names_model else ""
        return f"{model}{self._name}{self.which_seed and f', {self.which_seed}'}"

    @property
    def which_seed(self) -> str:
        """`seed 3` where that tells the run from others, otherwise ""."""
        named = self.names_seed and self.seed is not None and self.role != "base"
        return f"seed {self.seed}" if named else ""

    @property
    def _name(self) -> str:
        if self.role == "fork":
            return f"{self.method} from {self.spot}"
        if self.role == "sweetspot":
            return f"SFT to {self.spot}"
        if self.role == "base":
            return "base model"
        if self.counted:
            before = f"SFT {self.sft_share or 0:,}, then " if self.role == "pt" else ""
            return f"{before}{self.step}"
        names = {"sft": "SFT", "reference_sft": "SFT, whole budget"}
        return names.get(self.role, f"{self.method} only, whole budget")

    @property
    def step(self) -> str:
        """What this run alone did: `SFT 250` or `DPO 750`."""
        if self.role in ("base", "fork", "sweetspot"):
            return self._name
        return f"{self.method or 'SFT'} {self.train_size or 0:,}"

    @property
    def prose(self) -> str:
        """What it is called in a sentence."""
        if self.counted and self.role in ("sft", *WAYS[1:]):
            model = str(self.model) if self.names_model else ""
            named = ", ".join(filter(None, (model, self.which_seed)))
            return self._counted_prose + (f" ({named})" if named else "")
        on = "on the whole budget"
        names = {
            "base": "the base model",
            "reference_sft": f"SFT {on}",
            "reference_pt": f"{self.method} alone {on}",
        }
        return names.get(self.role, self._name)

    @property
    def _counted_prose(self) -> str:
        size = f"{self.train_size or 0:,}"
        if self.role == "pt":
            return f"SFT on {self.sft_share or 0:,} then {self.method} on {size} examples"
        whole = "all " if self.role != "sft" else ""
        alone = f"{self.method} alone" if self.method else "SFT"
        return f"{alone} on {whole}{size} examples"

    @property
    def method(self) -> str:
        """The preference method in capitals."""
        return (self.pft_method or "").upper()

    @property
    def spot(self) -> str:
        """The sweetspot in words: `ppl 2.0` or `patience 2@0.02`."""
        kind = "patience" if "@" in (self.threshold or "") else "ppl"
        return f"{kind} {self.threshold}"


def of_role(rows: Sequence[Row], *roles: str) -> list[Row]:
    """The rows of some roles."""
    return [row for row in rows if row.role in roles]


def same_weights(spot: Row, sft: Row) -> bool:
    """Whether an SFT run ended at a sweetspot, so that the two are one model."""
    if spot.role != "sweetspot" or spot.cost is None or sft.cost is None:
        return False
    return spot.cost.tokens == sft.cost.tokens


def is_counted(rows: Sequence[Row]) -> bool:
    """Whether rows are those of a budget experiment, or of several experiments in one."""
    return any(row.counted for row in rows)


def budgets(rows: Sequence[Row]) -> dict[tuple[str | None, int | None], list[Row]]:
    """The ways that were scored to spend the same budget on the same base model, a budget each.

    The seeds of one way are one entry, as if one model had given all their answers; what a budget
    tells already, its entries do not name.
    """
    found: dict[tuple[str | None, int | None], dict[tuple[Any, ...], list[Row]]] = {}
    for row in of_role(rows, *WAYS):
        if row.scores:
            start = row.parent if row.role == "fork" else None
            way = (row.role, row.pft_method, row.sft_share, row.threshold, start)
            found.setdefault((row.model, row.total_budget), {}).setdefault(way, []).append(row)
    return {key: [_pooled(same) for same in ways.values()] for key, ways in found.items()}


def _pooled(rows: Sequence[Row]) -> Row:
    """One row for the seeds of a way, with the answers of all of them to each prompt."""
    from tuning.evaluation.intervals import mean_interval
    from tuning.evaluation.pass_at_k import per_prompt

    first = replace(rows[0], names_model=False, names_seed=False)
    scored = [row.scores for row in rows if row.scores]
    if len(scored) < 2 or len({len(scores.correct) for scores in scored}) > 1:
        return first
    samples = sum(scores.samples for scores in scored)
    correct = tuple(map(sum, zip(*(scores.correct for scores in scored), strict=True)))
    mean = mean_interval(per_prompt(correct, samples, 1))
    scores = Scores(
        prompts=scored[0].prompts, samples=samples, correct=correct,
        pass_at_k={1: (mean.estimate, mean.low, mean.high)},
    )  # fmt: skip
    return replace(first, scores=scores, seed=None)

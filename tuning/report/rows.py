"""What a row of the report is: one stage of an experiment and its results.

How a row is called in tables and sentences depends on the other rows; see `labels.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuning.sweetspots.rules import Rule

WAYS = ("fork", "pt", "reference_sft", "reference_pt")
"""The roles of models that spent a whole budget."""
TUNED = ("fork", "pt", "reference_pt")
"""The roles of models that were preference-tuned."""

Budget = tuple[str | None, int | None]
"""The base model and the number of examples to spend on it."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The content of scores.json."""

    prompts: int
    samples: int
    pass_at_k: dict[int, tuple[float, float, float]]
    """k -> (estimate, low, high), k in ascending order."""
    correct: tuple[int, ...]
    """Right answers among `samples`, for each prompt; of a beam search, whether the best is."""
    parts: dict[str, float] = field(default_factory=dict)
    """The mean of each further measure of the task, a share: `format`, answers in the form asked
    for.
    """
    beyond_context: int = 0
    """Prompts that are longer than the context of the model."""

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

    def __add__(self, other: Cost) -> Cost:
        return Cost(tokens=self.tokens + other.tokens, seconds=self.seconds + other.seconds)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage of an experiment and its results; None for unknown values."""

    stage_name: str
    """The name of the stage in the plan."""
    run_name: str
    """The run's directory; of a fork of unknown size, the planned name."""
    role: str
    """base, sft, sweetspot, fork, pt, reference_sft or reference_pt."""
    state: str
    """done, skipped, failed, blocked, running or pending."""
    note: str
    """Why the stage is not done; "" if it is."""
    cause: str = ""
    """Of a skipped stage: met_by_base, unreached or no_budget_left."""
    config_hash: str
    model: str | None = None
    """The base model, as collections.yaml or the command line names it."""
    sft_share: int | None = None
    """SFT examples planned for a model that spends a whole budget; None for a fork."""
    pft_method: str | None = None
    parent: str | None = None
    """`run_name` of the row that this one starts from."""
    rule: Rule | None = None
    """Of a sweetspot, and of a fork that starts from one."""
    lowest_perplexity: float | None = None
    """Of an unreached sweetspot: the lowest perplexity that SFT measured."""
    perplexity: float | None = None
    """On the validation pool: of an SFT run at its end, of a sweetspot at its step, of the base
    before the first step. Preference tuning measures none: its row has that of its parent."""
    sft_data_used: int | None = None
    """Distinct SFT examples, those of the parents included."""
    pft_data: int | None = None
    """Distinct preference examples."""
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
    """Examples given to the run; early stopping may use fewer."""
    total_budget: int | None = None
    device: str | None = None
    config: dict[str, Any] | None = None
    """config.json of the run."""
    evaluation_config: dict[str, Any] | None = None
    before_after: Mapping[str, Any] | None = field(default=None, repr=False)
    """What the training of this run changed, as before_after.json has it; None: not measured."""
    curve: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """The perplexity measurements of an SFT run: step, perplexity, data_points_seen."""

    @property
    def total_data(self) -> int | None:
        """Distinct examples, SFT and preference together."""
        if self.sft_data_used is None or self.pft_data is None:
            return None
        return self.sft_data_used + self.pft_data

    @property
    def budget(self) -> Budget:
        """The budget that the row belongs to."""
        return self.model, self.total_budget

    @property
    def missing(self) -> bool:
        """Whether the stage is not done; `note` says why."""
        return self.state != "done"

    @property
    def method(self) -> str:
        """The preference method in capitals; "" for SFT."""
        return (self.pft_method or "").upper()


def of_role(rows: Sequence[Row], *roles: str) -> list[Row]:
    """The rows of some roles."""
    return [row for row in rows if row.role in roles]


def base_of(rows: Sequence[Row], row: Row) -> Row | None:
    """The base model that a model was made from."""
    return next((r for r in rows if r.role == "base" and r.model == row.model), None)


def largest_k(rows: Iterable[Row]) -> int:
    """The largest k of pass@k among all scores; 1 without scores."""
    return max((row.scores.largest_k for row in rows if row.scores), default=1)


def part_names(rows: Iterable[Row]) -> list[str]:
    """The further measures that any row has."""
    return list(dict.fromkeys(name for row in rows if row.scores for name in row.scores.parts))


def same_weights(spot: Row, sft: Row) -> bool:
    """Whether an SFT run ended at a sweetspot, so that the two are one model."""
    if spot.role != "sweetspot" or spot.cost is None or sft.cost is None:
        return False
    return spot.cost.tokens == sft.cost.tokens


def budgets(rows: Sequence[Row]) -> dict[Budget, list[Row]]:
    """The scored ways to spend each budget.

    The seeds of one way are pooled to one entry, as if one model had given all their answers.
    """
    found: dict[Budget, dict[tuple[Any, ...], list[Row]]] = {}
    for row in of_role(rows, *WAYS):
        if row.scores:
            start = row.parent if row.role == "fork" else None
            way = (row.role, row.pft_method, row.sft_share, row.rule, start)
            found.setdefault(row.budget, {}).setdefault(way, []).append(row)
    return {key: [_pooled(same) for same in ways.values()] for key, ways in found.items()}


def _pooled(rows: Sequence[Row]) -> Row:
    """One row for the seeds of a way, with the answers of all of them to each prompt."""
    from tuning.evaluation.intervals import mean_interval
    from tuning.evaluation.pass_at_k import per_prompt

    first = replace(rows[0], seed=None)
    scored = [row.scores for row in rows if row.scores]
    if len(scored) < 2 or len({len(scores.correct) for scores in scored}) > 1:
        return first
    samples = sum(scores.samples for scores in scored)
    correct = tuple(map(sum, zip(*(scores.correct for scores in scored), strict=True)))
    mean = mean_interval(per_prompt(correct, samples, 1))
    interval = (mean.estimate, mean.low, mean.high)
    pooled = replace(scored[0], samples=samples, correct=correct, pass_at_k={1: interval}, parts={})
    return replace(first, scores=pooled)

"""What a row of the report is: one stage of an experiment and its results.

How a row is called in tables and sentences depends on the other rows; see `labels.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    by_seed: tuple[tuple[float, ...], ...] = ()
    """Of several seeds as one: pass@1 of each prompt, for each seed."""
    prompt_error: float | None = None
    seed_error: float | None = None
    """Of several seeds as one: the standard errors of pass@1 over prompts and over seeds."""

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

    @property
    def seeds(self) -> tuple[tuple[float, ...], ...]:
        """pass@1 of each prompt, for each seed."""
        return self.by_seed or (tuple(self.per_prompt),)


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
    sft_ratio: float | None = None
    """The planned share of the budget that SFT takes, where budgets are split by shares."""
    prices: tuple[float, float] | None = None
    """Annotation cost of an SFT and of a preference example, where budgets are costs."""
    pft_method: str | None = None
    parent: str | None = None
    """`run_name` of the row that this one starts from."""
    rule: Rule | None = None
    """Of a sweetspot, and of a fork that starts from one."""
    measured: float | None = None
    """Of a sweetspot: what its measure was when it was reached."""
    best_measured: float | None = None
    """Of an unreached sweetspot: the best value of its measure."""
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
    """None for a model of no seed, and for several seeds as one row."""
    seeds: tuple[int, ...] = ()
    """Of several seeds as one row: those that were scored."""
    variant: str = ""
    """Equal for runs of one role that differ in nothing but seeds, sizes and what they start from.
    """
    train_size: int | None = None
    """Examples given to the run; early stopping may use fewer."""
    total_budget: int | None = None
    device: str | None = None
    config: dict[str, Any] | None = None
    """config.json of the run."""
    evaluation_config: dict[str, Any] | None = None
    before_after: Mapping[str, Any] | None = field(default=None, repr=False)
    """What the training of this run changed, as before_after.json has it; None: not measured."""
    curves: Mapping[str, tuple[dict[str, Any], ...]] = field(default_factory=dict, repr=False)
    """The measurements of an SFT run by the title of the measure: step, data_points_seen, and under
    the title the value, of pass@k with its interval (_low, _high)."""

    @property
    def total_data(self) -> int | None:
        """Distinct examples, SFT and preference together."""
        if self.sft_data_used is None or self.pft_data is None:
            return None
        return self.sft_data_used + self.pft_data

    @property
    def annotation_cost(self) -> float | None:
        """Of the examples used, at the prices that were given."""
        if self.prices is None or self.sft_data_used is None or self.pft_data is None:
            return None
        return self.sft_data_used * self.prices[0] + self.pft_data * self.prices[1]

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
    """The scored ways to spend each budget."""
    found: dict[Budget, list[Row]] = {}
    for row in of_role(rows, *WAYS):
        if row.scores:
            found.setdefault(row.budget, []).append(row)
    return found

"""How models are called, in tables and in sentences: with what tells the rows of a report apart.

Made once from all rows. The base model and the seed are named if several runs differ in nothing
else; numbers of examples if a budget is split by numbers, or if there are several budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuning.report.formats import count
from tuning.report.rows import Row, of_role


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The names of rows; its fields choose what is part of a name."""

    sizes: bool
    """Whether names have numbers of examples: `SFT 3,000` instead of `SFT, whole budget`."""
    totals: bool
    """Whether forks are named with their budget, of which there are several."""
    models: bool
    """Whether names have the base model."""
    seeds: bool
    """Whether names have the seed."""
    unit: str = "examples"
    """What budgets are counted in."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Labels:
        """The shortest names that tell these rows apart."""
        found = {row.total_budget for row in rows if row.total_budget is not None}
        labels = cls(
            sizes=bool(of_role(rows, "pt")) or len(found) > 1,
            totals=len(found) > 1,
            models=len({row.model for row in rows}) > 1,
            seeds=False,
            unit="of cost" if any(row.prices for row in rows) else "examples",
        )
        seeds: dict[str, set[int | None]] = {}
        for row in rows:
            seeds.setdefault(f"{row.role}: {labels.label(row)}", set()).add(row.seed)
        return replace(labels, seeds=any(len(different) > 1 for different in seeds.values()))

    def within_budget(self) -> Labels:
        """The names among the ways to spend one budget, which has one model and pooled seeds."""
        return replace(self, totals=False, models=False, seeds=False)

    def label(self, row: Row) -> str:
        """The name in tables and figures."""
        model = f"{row.model}: " if self.models else ""
        return f"{model}{', '.join(filter(None, (self._name(row), self._seed(row))))}"

    def step(self, row: Row) -> str:
        """The name beside its parent's: what this run alone did."""
        if row.role == "base":
            return row.model or self._name(row)
        name = _sized(row) if row.role == "pt" else self._name(row)
        if row.role == "fork" and row.rule:
            name = f"{row.method} from {row.rule.short}"
        return ", ".join(filter(None, (name, self._seed(row))))

    def prose(self, row: Row) -> str:
        """The name in a sentence."""
        if row.role == "base":
            name = "the base model"
        elif row.role in ("fork", "sweetspot"):
            name = self._name(row)
        else:
            name = self._counted(row) if self.sizes or row.role == "sft" else _whole(row)
        model = str(row.model) if self.models else ""
        named = ", ".join(filter(None, (model, self._seed(row))))
        return f"{name} ({named})" if named else name

    def budget(self, size: int | None) -> str:
        """`the budget`, or how large it is where numbers are named."""
        return self.sized(size) if self.sizes and size else "the budget"

    def sized(self, size: int | None) -> str:
        """`1,000 examples`, or `1,000 of cost` where examples have a price."""
        return f"{count(size)} {self.unit}"

    def _name(self, row: Row) -> str:
        spot = row.rule.words if row.rule else ""
        if row.role == "base":
            return "base model"
        if row.role == "fork":
            total = f", {count(row.total_budget)} in all" if self.totals else ""
            return f"{row.method} from {spot}{total}"
        if row.role == "sweetspot":
            return f"SFT to {spot}"
        if row.role == "pt":
            return f"SFT {count(row.sft_share)}, then {_sized(row)}"
        if self.sizes:
            return _sized(row)
        names = {"sft": "SFT", "reference_sft": "SFT, whole budget"}
        return names.get(row.role, f"{row.method} only, whole budget")

    def _seed(self, row: Row) -> str:
        named = self.seeds and row.seed is not None and row.role != "base"
        return f"seed {row.seed}" if named else ""

    def _counted(self, row: Row) -> str:
        size = count(row.train_size)
        if row.role == "sft":
            return f"SFT on {count(row.sft_data_used or row.train_size)} examples"
        if row.role == "pt":
            return f"SFT on {count(row.sft_share)} then {row.method} on {size} examples"
        return f"{f'{row.method} alone' if row.method else 'SFT'} on all {size} examples"


def _sized(row: Row) -> str:
    """`SFT 250` or `DPO 750`."""
    return f"{row.method or 'SFT'} {count(row.train_size)}"


def _whole(row: Row) -> str:
    return f"{f'{row.method} alone' if row.method else 'SFT'} on the whole budget"

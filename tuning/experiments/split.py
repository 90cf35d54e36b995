"""How a budget is split between SFT and preference tuning: shares and costs, exactly, into whole
examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import floor

from tuning.runs.errors import UserError

COSTS = ("sft_cost", "pft_cost")
DECIMALS = 12
"""Most decimals of a ratio; no number of examples can show more."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A budget of `size` and the share of SFT, in whole examples: SFT has its share rounded half
    up, preference tuning what the rest buys.
    """

    size: int
    ratio: Decimal
    sft_cost: Decimal = Decimal(1)
    pft_cost: Decimal = Decimal(1)

    @property
    def n_sft(self) -> int:
        """Examples for SFT."""
        price = Fraction(self.sft_cost)
        return min(floor(self._exact + Fraction(1, 2)), floor(self.size / price))

    @property
    def n_pt(self) -> int:
        """Examples for preference tuning; none if SFT is to have all."""
        return 0 if self.ratio == 1 else floor(self._left / Fraction(self.pft_cost))

    @property
    def _exact(self) -> Fraction:
        return Fraction(self.ratio) * self.size / Fraction(self.sft_cost)

    @property
    def _left(self) -> Fraction:
        """What SFT leaves of the budget."""
        return self.size - self.n_sft * Fraction(self.sft_cost)

    @property
    def note(self) -> str:
        """A message about the rounding; "" if the split is exact."""
        unspent = self._left - self.n_pt * Fraction(self.pft_cost)
        if self._exact == self.n_sft and not unspent:
            return ""
        exact = f"{float(self._exact):.12g}"
        text = (
            f"sft_ratio {plain(self.ratio)} of {self.size} examples is {exact}: "
            f"SFT takes {self.n_sft} and preference tuning {self.n_pt}"
        )
        if self.sft_cost == self.pft_cost == 1:
            return text
        return (
            f"sft_ratio {plain(self.ratio)} of a cost of {self.size} buys {exact} SFT examples: "
            f"SFT takes {self.n_sft}, preference tuning {self.n_pt}, and {float(unspent):.6g} of "
            "the budget is left"
        )


def exact_cost(value: object, what: str) -> Decimal:
    """Parse the cost of an example without rounding; UserError, naming `what`, unless above 0."""
    try:
        cost = Decimal(str(value).strip())
    except InvalidOperation:
        raise UserError(f"{what} is '{value}'; it must be a number above 0.") from None
    if not cost.is_finite() or not Decimal("1e-9") <= cost <= Decimal("1e9"):
        raise UserError(f"{what} is '{value}'; it must be a number above 0, at most 1e9.")
    return cost


def plain(number: Decimal) -> str:
    """A decimal without exponent and trailing zeros: `1.00` -> `1`."""
    return f"{number.normalize():f}"


def exact_ratio(value: object, what: str = "sft_ratio") -> Decimal:
    """Parse a share from 0 to 1 without rounding; UserError, naming `what`, for anything else."""
    try:
        ratio = Decimal(str(value).strip())
    except InvalidOperation:
        raise UserError(f"{what} is '{value}'; it must be a number from 0 to 1.") from None
    if not ratio.is_finite() or not 0 <= ratio <= 1:
        raise UserError(f"{what} is '{value}'; it must be a number from 0 to 1.")
    rounded = abs(ratio.quantize(Decimal(1).scaleb(-DECIMALS)))
    if rounded != ratio:
        raise UserError(f"{what} is '{value}'; it may have {DECIMALS} decimals at most.")
    return rounded.normalize()

"""One colour for each run, the same in every figure and table of the page, light and dark.

The hues are those of Okabe and Ito (2008), which people with any colour vision can tell apart.
Figures are drawn in the light colours; on the page each becomes a CSS variable, so that a dark page
can replace them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuning.report.rows import WAYS, Row, of_role

NEUTRAL = {
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#626a73", "#a3abb5"),
    "grid": ("#dde1e6", "#343b44"),
    "card": ("#fffffe", "#1a1e24"),
}
SERIES = {
    "base": ("#83898f", "#9aa1a9"),
    "sft": ("#0072b2", "#56b4e9"),
    "whole": ("#23406f", "#aac4f2"),
    "pref": ("#b0528d", "#de97c3"),
    "spot-0": ("#d98900", "#f0b13c"),
    "spot-1": ("#009e73", "#3cc9a0"),
    "spot-2": ("#d5480a", "#f58a55"),
    "spot-3": ("#7a5bc0", "#b7a0ee"),
    "spot-4": ("#8a7a1f", "#d3c25c"),
    "spot-5": ("#4aa3d9", "#8fd0f7"),
    "ramp-0": ("#e0a030", "#f2b84b"),
    "ramp-1": ("#d9774b", "#f09468"),
    "ramp-2": ("#c4526a", "#ec7f95"),
    "ramp-3": ("#9c4285", "#cf86bf"),
    "ramp-4": ("#6f4596", "#ad93dc"),
    "ramp-5": ("#46488f", "#8f9be6"),
    "ramp-6": ("#1f4379", "#7fb2ee"),
}
RAMP = tuple(name for name in SERIES if name.startswith("ramp-"))
"""An order of colours, for something that there is more and more of."""
COLOURS = NEUTRAL | SERIES
"""Name of the CSS variable -> (light, dark)."""
INK, MUTED, GRID, CARD = (NEUTRAL[name][0] for name in ("ink", "muted", "grid", "card"))
MARKERS = {"dpo": "o", "kto": "s", "grpo": "^"}
DASHES = {"dpo": "-", "kto": (0, (5, 1.6)), "grpo": (0, (1.5, 1.3))}
HUES = 6
"""Of sweetspots, splits or budgets; then they begin again."""
_BY_ROLE = {"sft": "sft", "reference_sft": "whole", "reference_pt": "pref"}


def with_variables(svg: str) -> str:
    """Replace the light colours by the variables of the page."""
    for name, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{name})")
    return svg


class Palette:
    """The colours of runs, made once from all rows.

    Within one budget each sweetspot with its forks has a colour, and so has each split. If there
    are several budgets, all ways to spend one have the same colour.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        budgets = list(dict.fromkeys(row.budget for row in of_role(rows, *WAYS)))
        self._budgets = budgets if len(budgets) > 1 else []
        shares = sorted({row.sft_share or 0 for row in of_role(rows, "pt")})
        rules = dict.fromkeys(row.rule for row in of_role(rows, "sweetspot", "fork"))
        self._kinds: list[object] = [*rules, *shares]

    def name(self, row: Row) -> str:
        """The name of the CSS variable."""
        if self._budgets and row.role in WAYS:
            return f"spot-{self._place(row) % HUES}"
        if row.role in ("sweetspot", "fork"):
            return f"spot-{self._kinds.index(row.rule) % HUES}"
        if row.role == "pt":
            return f"spot-{self._kinds.index(row.sft_share or 0) % HUES}"
        return _BY_ROLE.get(row.role, "base")

    def _place(self, row: Row) -> int:
        """The place of the row's budget; of its size, where there are more budgets than hues."""
        if len(self._budgets) <= HUES:
            return self._budgets.index(row.budget)
        return sorted({size or 0 for _, size in self._budgets}).index(row.total_budget or 0)

    def __getitem__(self, row: Row) -> str:
        """The colour on light paper."""
        return SERIES[self.name(row)][0]


def marker(method: str | None) -> str:
    """The marker of a preference method."""
    return MARKERS.get(method or "", "D")


def dashes(method: str | None) -> object:
    """The line style of a preference method."""
    return DASHES.get(method or "", "-")

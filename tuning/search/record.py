"""The record of a search: search.json in the folder of its report, beside plan.json.

It has the plan of the whole grid, of which the search chooses, the settings, and every round that
was decided. A round is recorded before anything of it is started.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuning.flags import restore
from tuning.plan import Plan, require_format
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT
from tuning.search.config import SearchConfig
from tuning.search.rounds import Belief, Round, Step

FILE = "search.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a search but for the results."""

    plan: Plan
    """Of the whole grid."""
    config: SearchConfig
    rounds: tuple[Round, ...] = field(default=())

    def write(self, folder: Path) -> None:
        """Replace search.json, atomically."""
        atomic.write_json(
            folder / FILE,
            {
                "format": FORMAT,
                "config": asdict(self.config),
                "rounds": [asdict(each) for each in self.rounds],
                "plan": self.plan.to_json(),
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder; None without one, UserError for one that was edited."""
        found = atomic.read_object(folder / FILE)
        if found is None:
            return None
        require_format(found, f"'{folder / FILE}'")
        try:
            rounds = tuple(_round(each) for each in found["rounds"])
            plan, config = Plan.from_json(found["plan"]), restore(SearchConfig, found["config"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{folder / FILE}' was edited or damaged ({error!r}); restore it, or remove it to "
                "search anew with the runs that there are."
            ) from None
        return cls(plan=plan, config=config, rounds=rounds)


def _round(value: dict[str, Any]) -> Round:
    return Round(
        steps=tuple(restore(Step, each) for each in value["steps"]),
        beliefs=tuple(restore(Belief, each) for each in value["beliefs"]),
        end=str(value["end"]),
    )

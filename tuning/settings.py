"""Settings of configs: their defaults, their flags, and which of them make up a run's identity.

A config is a frozen dataclass, and a run config is a dataclass of such parts. Two runs are the same
run when their hashed settings are equal; `setting(hashed=...)` is the only way to say that a
setting does not count, always or under a condition, and `setting(before=...)` the way to add one
later without changing the hash of any run that there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, ClassVar

from tuning.runs.errors import UserError
from tuning.runs.identity import digest
from tuning.runs.rundir import SHORT, Identity

Hashed = bool | Callable[[Any, Any], bool]
"""Whether a setting counts; a function of (the part that it is in, the whole run config)."""


def setting(
    default: Any = MISSING,
    *,
    default_factory: Any = MISSING,
    hashed: Hashed = True,
    flag: bool = True,
    before: Any = MISSING,
    **more: Any,
) -> Any:
    """A field of a config.

    Args:
        default: As for `dataclasses.field`.
        default_factory: As for `dataclasses.field`.
        hashed: Whether the setting changes the result and so belongs to the run's identity.
        flag: Whether a person may set it; the others are set by the program.
        before: For a setting that is added later: the value that describes runs from before it
            existed. At this value it is left out of the hash, whatever its default becomes. Of a
            part, that is a part with the same hashed settings.
        more: Further metadata of the field.
    """
    metadata = {"hashed": hashed, "flag": flag, **more}
    if before is not MISSING:
        metadata["before"] = before
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def hashed_settings(config: Any, run: Any = None) -> Any:
    """The settings of a config that count in `run` (default: itself) as plain JSON values.

    A part of which nothing counts is left out.
    """
    run = config if run is None else run
    if isinstance(config, tuple | list):
        return [hashed_settings(value, run) for value in config]
    if not is_dataclass(config):
        return config
    found = {}
    for entry in fields(config):
        hashed = entry.metadata.get("hashed", True)
        if not (hashed(config, run) if callable(hashed) else hashed):
            continue
        value = hashed_settings(getattr(config, entry.name), run)
        is_new = "before" in entry.metadata
        if value == {} or (is_new and value == hashed_settings(entry.metadata["before"], run)):
            continue
        found[entry.name] = value
    return found


def identity_hash(kind: str, hashed: Any) -> str:
    """The hash of what has these hashed settings."""
    return digest({"kind": kind, "settings": hashed})


def require(config: Any, name: str, holds: bool, what: str) -> None:
    """Raise UserError for a setting unless `holds`; `what` says what it must be."""
    if not holds:
        value = getattr(config, name)
        shown = "empty" if value == () else value
        raise UserError(f"{name} is {shown}; it must be {what}.")


class RunConfig:
    """What every run config has: an identity. Extended by frozen dataclasses of parts."""

    kind: ClassVar[str]

    @property
    def run_name(self) -> str:
        """The name of the run's directory, unless another run has it."""
        raise NotImplementedError

    @property
    def artifact_form(self) -> str | None:
        """`adapter` or `full`: the form of the model that the run leaves; None: it leaves none."""
        return None

    @property
    def hashed(self) -> dict[str, Any]:
        """The settings that change the result."""
        found: dict[str, Any] = hashed_settings(self)
        return found

    @property
    def hash(self) -> str:
        """Over everything that changes the result."""
        return identity_hash(self.kind, self.hashed)

    def suffixed(self, name: str, default: RunConfig) -> str:
        """`name`, with `-{hash8}` behind unless the run counts as the `default` one."""
        return name if self.hashed == default.hashed else f"{name}-{self.hash[:SHORT]}"

    def identity(
        self, run_name: str | None = None, parent: dict[str, Any] | None = None
    ) -> Identity:
        """The identity under which the run's directory is claimed."""
        from tuning.flags import plain

        return Identity(
            run_name=run_name or self.run_name,
            kind=self.kind,
            hash=self.hash,
            hashed=self.hashed,
            settings=plain(self),
            parent=parent,
            artifact=self.artifact_form,
        )

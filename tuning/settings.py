"""Settings of configs: their defaults, their flags, and which of them make up a run's identity.

A config is a frozen dataclass, and a run config is a dataclass of such parts. Two runs are the same
run when their hashed settings are equal. `setting(hashed=...)` leaves a setting out of the hash,
always or under a condition; `setting(before=...)` adds one later without changing the hash of any
existing run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, ClassVar

from tuning.runs.errors import UserError
from tuning.runs.identity import digest
from tuning.runs.rundir import SHORT, Identity

Hashed = bool | Callable[[Any, Any], bool]
"""Whether a setting is hashed; a function is called with (the part it is in, the run config)."""


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
        flag: Whether there is a flag for it; otherwise only the program sets it.
        before: For a setting that is added later: the value that describes runs from before it
            existed. At this value it is left out of the hash, whatever its default becomes. For a
            part, a part with equal hashed settings.
        more: Further metadata of the field.
    """
    metadata = {"hashed": hashed, "flag": flag, **more}
    if before is not MISSING:
        metadata["before"] = before
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def hashed_settings(config: Any, run: Any = None) -> Any:
    """The hashed settings of a config as plain JSON values; conditions see `run` (default: the
    config itself).

    Parts without any hashed setting are left out.
    """
    run = config if run is None else run
    if isinstance(config, tuple | list):
        return [hashed_settings(value, run) for value in config]
    if not is_dataclass(config):
        return config
    values = {}
    for entry in fields(config):
        hashed = entry.metadata.get("hashed", True)
        if not (hashed(config, run) if callable(hashed) else hashed):
            continue
        value = hashed_settings(getattr(config, entry.name), run)
        is_new = "before" in entry.metadata
        if value == {} or (is_new and value == hashed_settings(entry.metadata["before"], run)):
            continue
        values[entry.name] = value
    return values


def identity_hash(kind: str, hashed: Any) -> str:
    """The hash over a kind of run and its hashed settings."""
    return digest({"kind": kind, "settings": hashed})


def require(config: Any, name: str, holds: bool, what: str) -> None:
    """Raise UserError for a setting unless `holds`; `what` completes "it must be ..."."""
    if not holds:
        value = getattr(config, name)
        shown = "empty" if value == () else value
        raise UserError(f"{name} is {shown}; it must be {what}.")


class RunConfig:
    """Base of all run configs, which are frozen dataclasses of parts: name, hash and identity."""

    kind: ClassVar[str]

    @property
    def run_name(self) -> str:
        """The name of the run directory; a hash is appended if another run has it."""
        raise NotImplementedError

    @property
    def artifact_form(self) -> str | None:
        """`adapter` or `full`: the form in which the run saves its model; None if it saves none."""
        return None

    @property
    def hashed(self) -> dict[str, Any]:
        """The settings that change the result, as JSON values."""
        values: dict[str, Any] = hashed_settings(self)
        return values

    @property
    def hash(self) -> str:
        """SHA-256 over the kind and the hashed settings."""
        return identity_hash(self.kind, self.hashed)

    def suffixed(self, name: str, default: RunConfig) -> str:
        """`name`, with `-{hash8}` appended unless the hashed settings equal those of `default`."""
        return name if self.hashed == default.hashed else f"{name}-{self.hash[:SHORT]}"

    def identity(
        self, run_name: str | None = None, parent: dict[str, Any] | None = None
    ) -> Identity:
        """The identity with which the run directory is claimed."""
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

"""Configs are dataclasses; flags, YAML settings (see schema.py) and command lines are derived from
them, never written twice.

A config is a dataclass, and a run config is a dataclass of such parts. Field names are unique
across the parts of a run, so that every setting has one flat name: the flag `--learning_rate` and
the YAML key `learning_rate`. The line of documentation under a field is its `--help`.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, TypeVar

from tuning.runs.errors import UserError, choose, cut, nearest

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and whose flags take `-` and `_` alike."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)
        self._with_dashes: set[str] = set()

    def takes_dashes(self, flag: str) -> None:
        """Let the value of a flag begin with a dash."""
        self._with_dashes.add(flag)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        import sys

        given = iter(sys.argv[1:] if args is None else args)
        words = []
        for word in map(_underscored, given):
            value = next(given, None) if word in self._with_dashes else None
            words.append(word if value is None else f"{word}={value}")
        return super().parse_args(words, namespace)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("--"):
                flag = word.partition("=")[0]
                flags = [f for action in self._actions for f in action.option_strings]
                close = nearest(flag, [f for f in flags if f.startswith("--")])
                raise UserError(f"unknown flag '{cut(flag)}'; --help lists them all.{close}")
        return found, unknown

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}. See --help.")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


@cache
def documentation(config: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[statement.target.id] = " ".join(str(below.value.value).split())
    return found


@cache
def hints(config: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    return typing.get_type_hints(config)


def settable(config: type) -> list[Field[Any]]:
    """The fields of a dataclass that a person may set."""
    return [f for f in fields(config) if f.metadata.get("flag", True)]


def _scalar(hint: Any) -> tuple[type, bool, tuple[Any, ...]]:
    """(type, whether it takes several values, allowed values) of a field."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is tuple:
        return _scalar(typing.get_args(hint)[0])[0], True, ()
    if typing.get_origin(hint) is typing.Literal:
        return str, False, typing.get_args(hint)
    return hint, False, ()


def field_types(config: type, name: str) -> tuple[type, bool, tuple[Any, ...]]:
    """(type, whether it takes several values, allowed values or none) of a setting."""
    return _scalar(hints(config)[name])


def coerce(config: type, name: str, value: Any, where: str) -> Any:
    """`value` as the type of a field; a UserError says where one that does not fit came from."""
    kind, several, allowed = field_types(config, name)
    if value is None:
        return None
    if several:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(kind, v, where + name) for v in values)
    if allowed:
        return choose(f"{where}{name}", str(value), [str(option) for option in allowed])
    return convert(kind, value, where + name)


def convert(kind: type, value: Any, named: str) -> Any:
    """One value as a whole number, a number, true or false, or text; `named` is for the error."""
    try:
        if kind is bool:
            return truth(value)
        return _whole(value) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise UserError(
            f"{named} is '{cut(value)}'; it must be {words.get(kind, kind.__name__)}."
        ) from None


def _whole(value: Any) -> int:
    """A whole number, also written as 1e3 or 10.0."""
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int):
        return value
    try:
        return int(str(value))
    except ValueError:
        if not float(value).is_integer():
            raise
        return int(float(value))


def truth(value: Any) -> bool:
    """Yes or no, however it is written; ValueError for anything else."""
    text = str(value).lower()
    if text in ("true", "yes", "y", "1", "on"):
        return True
    if text in ("false", "no", "n", "0", "off"):
        return False
    raise ValueError


def add_flags(
    parser: argparse.ArgumentParser,
    config: type,
    *,
    prefix: str = "",
    skip: Iterable[str] = (),
    title: str | None = None,
) -> None:
    """A flag for every settable field, in a group that `title` names, or else the first sentence of
    the config's docstring. Flags have no default, so that `given` returns only what was set.
    """
    sentence = (config.__doc__ or "").strip().partition(".")[0]
    group = parser.add_argument_group(title or " ".join(sentence.split()))
    for entry in settable(config):
        if entry.name in skip:
            continue
        kind, several, allowed = _scalar(hints(config)[entry.name])
        allowed = ("true", "false") if kind is bool else allowed
        group.add_argument(
            f"--{prefix}{entry.name}",
            action=_Setting,
            config=config,
            entry=entry,
            nargs="*" if several else "?" if kind is bool else None,
            const="true" if kind is bool else None,
            default=argparse.SUPPRESS,
            metavar="|".join(str(a) for a in allowed) if allowed else entry.name.upper(),
        )


class _Setting(argparse.Action):
    """A flag whose help is read from the source of its config, when it is shown: that takes longer
    than all else that is done to read a command line.
    """

    def __init__(self, *, config: type, entry: Field[Any], **given: Any) -> None:
        self._documented = (config, entry)
        super().__init__(**given)

    def __call__(self, _parser: Any, namespace: Any, values: Any, _flag: Any = None) -> None:
        setattr(namespace, self.dest, values)

    @property
    def help(self) -> str:  # type: ignore[override]
        return _help(*self._documented)

    @help.setter
    def help(self, _: str | None) -> None:
        pass


def _help(config: type, entry: Field[Any]) -> str:
    text = documentation(config).get(entry.name, "").replace("%", "%%")
    default = entry.default
    if default is MISSING or default in (None, ()):
        return text
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def given(args: argparse.Namespace, configs: Iterable[type], prefix: str = "") -> dict[str, Any]:
    """What the command line set of the fields of `configs`, typed."""
    found = {}
    for config in configs:
        for entry in settable(config):
            flag = prefix + entry.name
            if hasattr(args, flag):
                found[entry.name] = coerce(config, entry.name, getattr(args, flag), "--" + prefix)
    return found


def build(config: type[T], values: Mapping[str, Any], **fixed: Any) -> T:
    """A config from those of `values` that are its fields, and from `fixed`."""
    names = {f.name for f in fields(config)}  # type: ignore[arg-type]
    return config(**({k: v for k, v in values.items() if k in names} | fixed))


def restore(config: type[T], values: Mapping[str, Any]) -> T:
    """A config from what `plain()` made of it; a setting that was added since has the value that
    describes configs from before it existed. UserError for values that `plain()` never makes.
    """
    name = config.__name__
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is {values!r:.60}, not a mapping; the file was edited.")
    types_of = hints(typing.cast(type, config))
    arguments = {}
    for entry in fields(config):  # type: ignore[arg-type]
        if entry.name not in values:
            if "before" in entry.metadata:
                arguments[entry.name] = entry.metadata["before"]
            continue
        value, hint = values[entry.name], types_of[entry.name]
        arms = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
        nested = next((arm for arm in arms if hasattr(arm, "__dataclass_fields__")), None)
        if value is not None and nested is not None:
            value = restore(nested, value)
        elif isinstance(value, list):
            value = tuple(value)
        if not fits(hint, value):
            raise UserError(f"{name}: {entry.name} is {value!r:.60}; the file was edited.")
        arguments[entry.name] = value
    try:
        return config(**arguments)
    except TypeError as error:
        if lacking := _lacking(config, arguments):
            raise UserError(f"{name} lacks {', '.join(lacking)}; the file was edited.") from error
        raise


def _lacking(config: type, arguments: Mapping[str, Any]) -> list[str]:
    """The fields without a default that have no argument."""
    needed = (f for f in fields(config) if f.default is f.default_factory is MISSING)
    return [entry.name for entry in needed if entry.name not in arguments]


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the type of a field; whole numbers are numbers, true is none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(arm, value) for arm in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(inner[0], entry) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(inner[1], entry) for entry in value.values())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def plain(config: Any) -> Any:
    """A config as JSON values, with every field."""
    if hasattr(config, "__dataclass_fields__"):
        return {f.name: plain(getattr(config, f.name)) for f in fields(config)}
    return [plain(v) for v in config] if isinstance(config, tuple) else config


def command_line(configs: Mapping[str, tuple[Any, Any]] | Sequence[tuple[Any, Any]]) -> list[str]:
    """The flags that lead from the defaults to a config, for (config, default) pairs."""
    pairs = configs.values() if isinstance(configs, Mapping) else configs
    words: list[str] = []
    for config, default in pairs:
        for entry in settable(type(config)):
            value = getattr(config, entry.name)
            if value == getattr(default, entry.name) or value is None:
                continue
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{entry.name}", *(str(v) for v in values)]
    return words

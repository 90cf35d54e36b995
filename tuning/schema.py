"""YAML files as typed values: the one reader of collections.yaml, cluster.yaml, presets.yaml and
the files that describe experiments.

A scalar is read as text, and the field that it is for gives it its type. YAML's own
guesses are not asked: `12:00:00` is no number, `0016` is "0016" in a field of text and 16 in one of
whole numbers, and `no` is a word unless the field is true or false. Only null, `~`, "" and no value
at all are empty; an empty value counts as a line that was left out.

A file's schema is a dataclass (`from_mapping`). Every mistake is one line with the file, the keys
that lead to the value, the value, and what is allowed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuning.flags import convert, hints, settable
from tuning.runs.errors import UserError, choose, cut

T = TypeVar("T")

KEY: dict[str, Any] = {"key": True}
"""Metadata of a field that takes the key under which its mapping is listed."""
_NULL = ("", "~", "null", "Null", "NULL")
_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
"""Of nodes without a tag of their own."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file: mappings, lists, text, and None for what is empty.

    `<<: *name` merges a mapping, as in YAML 1.1. Raises UserError for a file that cannot be read,
    is not UTF-8 or not YAML, has a tag, or gives a key twice.
    """
    import yaml

    try:
        loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=loader)
        return None if node is None else _content(node, path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"'{path}' cannot be read ({reason}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"'{path}' is not valid YAML: it contains itself.") from None


def _content(node: Any, path: Path) -> Any:
    """A node as text, None, a list or a dict."""
    if node.tag not in _TAGS:
        raise UserError(f"'{path}' has the tag '{node.tag}' {_line(node)}; tags are not read.")
    if isinstance(node.value, str):
        _require_text(node, path)
        return None if not node.style and node.value in _NULL else node.value
    if node.tag == _TAGS[1]:
        return [_content(entry, path) for entry in node.value]
    return _pairs(node, path)


def _require_text(node: Any, path: Path) -> None:
    """Raise UserError for what a scalar may escape and no file, flag or script can hold."""
    if "\0" in node.value or any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise UserError(f"'{path}' has a character {_line(node)} that is no text.")


def _pairs(node: Any, path: Path) -> dict[str, Any]:
    """A mapping, what `<<` adds to it included; UserError for a key that is given twice."""
    found: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key.value, str):
            raise UserError(f"'{path}': a key {_line(key)} is a list or a mapping, not a word.")
        _require_text(key, path)
        if key.value in keys:
            raise UserError(
                f"'{path}' gives the key '{key.value}' twice, {_line(keys[key.value])} and "
                f"{_line(key)}; keep one."
            )
        keys[key.value] = key
        if key.value == "<<" and not key.style:
            merged = _merged(value, path)
        else:
            found[key.value] = _content(value, path)
    return merged | found


def _merged(node: Any, path: Path) -> dict[str, Any]:
    """What `<<` adds: one mapping, or several of which the first wins."""
    content = _content(node, path)
    found: dict[str, Any] = {}
    for entry in reversed(content if isinstance(content, list) else [content]):
        if not isinstance(entry, dict):
            raise UserError(f"'{path}': '<<' {_line(node)} must name a mapping.")
        found |= entry
    return found


def _line(node: Any) -> str:
    return f"in line {node.start_mark.line + 1}"


def from_mapping(config: type[T], value: Any, where: str, **fixed: Any) -> T:
    """A dataclass from a mapping of its fields, typed, with the dataclasses inside.

    Args:
        config: The dataclass; fields without a default must be given.
        value: What the file has.
        where: The file and the keys that lead to `value`, for messages.
        fixed: Fields that do not come from the mapping.
    """
    owner = typing.cast(type, config)
    own = [entry for entry in fields(owner) if entry.name not in fixed]
    given = typed({entry.name: hints(owner)[entry.name] for entry in own}, value, where)
    given = {name: entry for name, entry in given.items() if entry is not None}
    missing = sorted(
        entry.name
        for entry in own
        if entry.name not in given and entry.default is entry.default_factory is MISSING
    )
    if missing:
        raise UserError(f"{where} lacks: {', '.join(missing)}.")
    return config(**given, **fixed)


def override(configs: Sequence[type], value: Any, where: str) -> dict[str, Any]:
    """The settings of several configs in one mapping with flat names, typed: those that also have
    flags.
    """
    own = {
        entry.name: hints(config)[entry.name] for config in configs for entry in settable(config)
    }
    found = typed(own, value, where, "setting")
    for name, entry in found.items():
        if entry is None:
            raise UserError(f"{where}: {name} is empty; give it a value or leave the line out.")
    return found


def typed(types_of: Mapping[str, Any], value: Any, where: str, what: str = "key") -> dict[str, Any]:
    """The values of a mapping by the types of its keys; None for what is empty.

    Raises UserError for a key that is not in `types_of`, with the nearest that is.
    """
    names = sorted(types_of)
    found = mapping(value, where, names)
    for name in found:
        choose(f"{what} in {where}:", name, names)
    return {
        name: None if entry in (None, "") else _typed(types_of[name], entry, f"{where}: {name}")
        for name, entry in found.items()
    }


def mapping(value: Any, where: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """`value`, which must be a mapping; `names` says of what."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    of = f" of: {', '.join(names)}" if names else ""
    raise wrong(value, where, f"a mapping{of}")


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of a field, a tuple's element or a mapping's entry."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where)
    if origin is dict:
        entries = mapping(value, where).items()
        return {name: _entry(inner[1], name, entry, f"{where}: {name}") for name, entry in entries}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise wrong(value, where, f"a list, for example [{cut(value)}]")
        return tuple(_typed(inner[0], entry, where) for entry in value)
    if value is None or (hint is str and isinstance(value, Mapping | list)):
        raise wrong(value, where, "one word")
    if origin is typing.Literal:
        return choose(f"value of {where}:", str(value), [str(option) for option in inner])
    return convert(hint, value, where)


def _entry(hint: Any, name: str, value: Any, where: str) -> Any:
    """An entry of a mapping of entries of one type; one of settings may be empty."""
    if is_dataclass(hint):
        named = {f.name: name for f in fields(hint) if f.metadata.get("key")}
        return from_mapping(typing.cast(type, hint), value, where, **named)
    if value is None and typing.get_origin(hint) is dict:
        return {}
    return _typed(hint, value, where)


def wrong(value: Any, where: str, what: str) -> UserError:
    """The error of a value that is not `what` it must be."""
    shown = "empty" if value is None else repr(value)
    shown = shown if len(shown) < 80 else f"{shown[:77]}..."
    return UserError(f"{where} is {shown}; it must be {what}.")

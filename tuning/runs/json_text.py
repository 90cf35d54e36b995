"""The one reader of JSON, of files on disk and of rows that users bring: whatever a text holds, it
is a value that can be written and encoded again, or `NotJSON` in one line.

JSON lines are a JSON value a line, in UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from tuning.runs.errors import UserError

DEEPEST = 100
"""Levels of nesting; what is written or compared recursively later must not run out of stack."""


class NotJSON(UserError, ValueError):
    """Text that is not JSON, or holds what no JSON of ours may; the message names the place."""


def parse(text: str, where: str, *, nan: bool = False) -> Any:
    """The value of a JSON text; `where` names it in messages.

    `nan`: whether NaN and Infinity are allowed, as Python writes them into metrics. Raises NotJSON.
    """
    try:
        if nan:
            value = json.loads(text)
        else:
            value = json.loads(
                text,
                parse_constant=_no_number,
                parse_float=_finite,
                object_pairs_hook=_each_once,
            )
    except json.JSONDecodeError as error:
        raise NotJSON(f"{where} is not valid JSON: {error.msg}.") from None
    except ValueError as error:
        # Python refuses to read integers of thousands of digits.
        reason = error if isinstance(error, _NoNumber) else "a number is too long"
        raise NotJSON(f"{where} is not valid JSON: {reason}.") from None
    except RecursionError:
        raise _too_deep(where) from None
    if text.count("[") + text.count("{") > DEEPEST and _depth_above(value, DEEPEST):
        raise _too_deep(where)
    if "\\u" in text and not _encodable(value):
        raise NotJSON(f"{where} is not valid JSON: \\u escapes half of a surrogate pair.")
    return value


def parse_object(text: str, where: str, *, nan: bool = False) -> dict[str, Any]:
    """The JSON object of a text; NotJSON for any other value."""
    value = parse(text, where, nan=nan)
    if not isinstance(value, dict):
        raise NotJSON(f"{where} is {shown(value)}, not a JSON object.")
    return value


def text_lines(
    raw: Iterable[bytes], where: str, *, blank: bool = False
) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of each line; blank ones only if `blank`.

    Raises UserError for a line that is not UTF-8; a byte order mark at the start is skipped.
    """
    for number, line in enumerate(raw, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}:{number} is not UTF-8 text ({error.reason}).") from None
        if blank or text.strip():
            yield number, text.rstrip("\r\n")


def shown(value: Any, most: int = 40) -> str:
    """A value as JSON for messages, its beginning where it is long."""
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


class _NoNumber(ValueError):
    """What JSON does not have as a number, or has twice."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that is given twice would count once, in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NoNumber(f"it gives the key {shown(twice)} twice")
    return found


def _no_number(word: str) -> NoReturn:
    raise _NoNumber(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NoNumber("a number is too large")
    return value


def _too_deep(where: str) -> NotJSON:
    return NotJSON(f"{where} is not valid JSON: nested too deeply.")


def _depth_above(value: Any, most: int) -> bool:
    """Whether lists and objects are nested in more than `most` levels."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_depth_above(entry, most - 1) for entry in inner)


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True

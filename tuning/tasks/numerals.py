"""Numbers as people and models write them, read exactly; None for what is not one number.

Groups of three digits may be separated by commas; a decimal comma, a list, a range, a sum or a
number that goes on after a blank is not guessed at.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}})?"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
_CURRENCY = r"(?:US\$|[$\u20ac\u00a3\u00a5\u20b9]|(?:USD|EUR|GBP)(?=[^\S\n]))"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)[^\S\n]*(?:{_CURRENCY}[^\S\n]?)?(?P<inner>[-+]?)(?:"
    rf"(?P<whole>{_INTEGER})?[^\S\n]*(?P<vulgar>{_VULGAR})"
    rf"|(?P<mixed>{_INTEGER})[^\S\n]+(?:and[^\S\n]+)?(?P<above>[0-9]+)/(?P<below>[0-9]+)"
    rf"|(?P<number>{_DECIMAL})(?:[^\S\n]*/[^\S\n]*(?P<divisor>{_DECIMAL}))?"
    rf")(?:[^\S\n]*(?P<scale>{'|'.join(_SCALES)})\b)?"
)
_GOES_ON = re.compile(
    r"[A-Za-z_]"  # 12abc
    r"|[.,:;'_]?[0-9]"  # 1,00 1.2.3 10:30
    r"|(?:[^\S\n]*%)?[^\S\n]*[-+*/=^:\u00d7\u00f7][^\S\n]*[-.$(\\0-9]"  # 5 - 6
    r"|[,;]?[^\S\n]+[0-9.]*[0-9]"  # 1 234; 3, 4
    r"|[^\S\n]+(?:and|or|to)[^\S\n]+[-$]?[0-9]"  # 5 or 6
)
_ENDS = re.compile(r"[%$\u20ac\u00a3\u00a5]?\.?")
_MOST_DIGITS = 1000


def leading(text: str) -> Fraction | None:
    """The number that a text begins with: words may follow it, but nothing that could be part of
    it.
    """
    text = _plain(text)
    found = _NUMBER.match(text)
    if found is None or _GOES_ON.match(text, found.end()):
        return None
    return _value(found)


def whole(text: str) -> Fraction | None:
    """The number that is all of a text, but for blanks, a full stop, a per cent sign and the sign
    of a currency.
    """
    text = _plain(text)
    found = _NUMBER.match(text)
    if found is None or not _ENDS.fullmatch(text[found.end() :].lstrip()):
        return None
    return _value(found)


def _plain(text: str) -> str:
    return text.strip().translate(_DASHES)


def _value(found: re.Match[str]) -> Fraction | None:
    """Sign, number and scale; None for two signs, a division by zero, or too many digits."""
    if (found["sign"] and found["inner"]) or sum(c.isdigit() for c in found[0]) > _MOST_DIGITS:
        return None
    try:
        size = _size(found)
    except ZeroDivisionError:
        return None
    negative = "-" in (found["sign"], found["inner"])
    return (-size if negative else size) * _SCALES.get(found["scale"] or "", 1)


def _size(found: re.Match[str]) -> Fraction:
    if found["vulgar"]:
        part = Fraction(unicodedata.numeric(found["vulgar"])).limit_denominator(10)
        return _decimal(found["whole"] or "0") + part
    if found["mixed"]:
        return _decimal(found["mixed"]) + Fraction(int(found["above"]), int(found["below"]))
    return _decimal(found["number"]) / _decimal(found["divisor"] or "1")


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))

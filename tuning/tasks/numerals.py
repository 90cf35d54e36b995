"""Numbers as people and models write them, read exactly; None for what is not one number.

Groups of three digits may be separated by commas. Whatever else could be part of a number, or make
another one of it, is not guessed at: a decimal comma, a list, a range, a sum, a second unit.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")
_UNSEEN = "\u200b\u200c\u200d\u2060\ufeff"
_B = r"[^\S\n]"
"""A blank within a line."""
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}})?"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
_CURRENCY = rf"(?:US\$|[$\u20ac\u00a3\u00a5\u20b9]|(?:USD|EUR|GBP)(?={_B}))"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?){_B}*+(?:{_CURRENCY}{_B}?)?(?P<inner>[-+]?)(?:"
    rf"(?P<whole>{_INTEGER})?{_B}*+(?P<vulgar>{_VULGAR})"
    rf"|(?P<mixed>{_INTEGER}){_B}++(?:and{_B}++)?(?P<above>[0-9]+)/(?P<below>[0-9]+)"
    rf"|(?P<number>{_DECIMAL})(?:{_B}*+/{_B}*+(?P<divisor>{_DECIMAL}))?"
    rf")(?:{_B}*+(?P<scale>(?i:{'|'.join(_SCALES)}))s?(?![A-Za-z]))?"
)
_CLOSED = re.compile(
    r"[%\u00b0$\u20ac\u00a3\u00a5\u20b9]?[)\]}\"'\u201d\u2019*_`.,;:!?\u2026]*+(?=\s|$)"
)
"""What may touch a number: its sign, then punctuation."""
_UNITS = (
    r"(?:feet|foot|ft|inch(?:es)?|yards?|miles?|km|cm|m|lbs?|pounds?|ounces?|oz|kg|dollars?|cents?"
    r"|degrees?|years?|months?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|seconds?"
    r"|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)"
)
_PART = r"(?:hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?)\b"
_GOES_ON = re.compile(
    rf"%?[)\].,;:]?{_B}++(?:and|or|to)?{_B}*+,?[-$.]?(?:[0-9]|{_VULGAR})"  # 1 234; 3, 4; 5 or 6
    rf"|[,;]{_B}++(?:and|or){_B}++[-$.]?[0-9]|[,;]{_B}++[A-Za-z]{_B}*+="
    r"|\.\.|\u2026\S"
    rf"|%?!?{_B}*+(?:[+*/=^<>\u00d7\u00f7\u00b7\u22c5\u2219\u2217\u00b1~&|\u221a\u03c0\u2044\u2215\uff0b\uff0d]|[xX](?={_B}*+[-+*/=0-9.(]))"
    rf"|{_B}++-+{_B}*+[-.$(\\0-9]|-[-.$(\\0-9]"  # 5 - 6; 5-6
    rf"|{_B}++(?:pi|e[0-9+-]|hundred|lakh|crore|quadrillion|mn|bn|mil|[kKMB])\b"
    rf"|{_B}++(?:{'|'.join(_SCALES)})"
    rf"|{_B}++and{_B}++(?:an?|one|two|three|[1-9]){_B}++{_PART}"  # 2 and a half
    rf"|{_B}++[:,]{_B}*+[-$.]?[0-9]"  # 3 : 4
    rf"|%{_B}++of{_B}++[-$.]?[0-9]"
    rf"|['\"]?{_B}*+(?i:{_UNITS}){_B}++(?:and{_B}++)?[0-9]"  # 5 ft 6 in
    rf"|['\"]{_B}*+[0-9]"
)
_ENDS = re.compile(r"[%$\u20ac\u00a3\u00a5\u00b0]?\.?")
_MOST_DIGITS = 1000


def leading(text: str) -> Fraction | None:
    """The number that a text begins with: words may follow it, but nothing that could be part of
    it.
    """
    text = _plain(text)
    found = _NUMBER.match(text)
    return _value(found) if found and stands_alone(text[found.end() :]) else None


def stands_alone(rest: str) -> bool:
    """Whether a number before this text is complete."""
    return _CLOSED.match(rest) is not None and _GOES_ON.match(rest) is None


def whole(text: str) -> Fraction | None:
    """The number that is all of a text, but for blanks, a full stop, and the sign of per cent,
    degrees or a currency.
    """
    text = _plain(text)
    found = _NUMBER.match(text)
    if found is None or not _ENDS.fullmatch(text[found.end() :].strip()):
        return None
    return _value(found)


def _plain(text: str) -> str:
    return text.strip().strip(_UNSEEN).strip().translate(_DASHES)


def _value(found: re.Match[str]) -> Fraction | None:
    """Sign, number and scale; None for two signs, a division by zero, or too many digits."""
    if (found["sign"] and found["inner"]) or sum(c.isdigit() for c in found[0]) > _MOST_DIGITS:
        return None
    try:
        size = _size(found)
    except ZeroDivisionError:
        return None
    negative = "-" in (found["sign"], found["inner"])
    return (-size if negative else size) * _SCALES.get((found["scale"] or "").lower(), 1)


def _size(found: re.Match[str]) -> Fraction:
    if found["vulgar"]:
        part = Fraction(unicodedata.numeric(found["vulgar"])).limit_denominator(10)
        return decimal(found["whole"] or "0") + part
    if found["mixed"]:
        return decimal(found["mixed"]) + Fraction(int(found["above"]), int(found["below"]))
    return decimal(found["number"]) / decimal(found["divisor"] or "1")


def decimal(text: str) -> Fraction:
    """Digits, with groups of three and a decimal point, exactly."""
    return Fraction(text.replace(",", ""))

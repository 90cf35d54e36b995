"""LaTeX that stands for a number, read exactly.

A grammar of arithmetic is evaluated here, over fractions: + - * / ( ), \\frac, \\sqrt of squares,
whole powers. What has roots that are no fractions goes to math-verify, which may find that they
cancel; bounded so that no answer of a model can keep it busy. What can be read in two ways is not
read: numbers side by side, words in between, a range, a date.
"""

from __future__ import annotations

import logging
import math
import re
from fractions import Fraction

from tuning.tasks import numerals

_LONGEST, _MOST_DIGITS, _DEEPEST, _LARGEST_POWER, _MOST_BITS = 200, 60, 20, 99, 20_000
_FONTS = r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|mathit|mbox|bf|rm)"
_SPACE = r"(?:\\[,;:! ]|~|\s)*"
_UNIT = re.compile(
    rf"{_SPACE}{_FONTS}\s*\{{\s*(?P<words>[A-Za-z][A-Za-z .\u00b2\u00b3/]*)(?:\^?[0-9])?\s*\}}"
    r"(?:\s*\^\s*(?:[0-9]|\{\s*[0-9]\s*\}))?\s*$"
)
"""A unit behind a number, with an exponent of its own."""
_SCALE = re.compile(r"(?i:thousand|million|billion|trillion)s?")
_NO_UNIT = re.compile(r"\b(?:(?i:or|and|to|not|minus|plus|than|hundred|lakh|crore|bn|mn)|[kKM])\b")
_WHOLE = re.compile(rf"\s*{_FONTS}\s*\{{([^{{}}]*)\}}\s*\.?\s*")
_GROUP = re.compile(r"(?<=[0-9])(?:\\[,;:!]|\{,\})(?=[0-9]{3}(?![0-9]))")
"""Between groups of three digits; spaces elsewhere are blanks."""
_REPLACED = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)\s*(?=[()\[\]])"), ""),
    (re.compile(r"\\displaystyle(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|[\u00d7\u00b7\u22c5]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|\u00f7"), "/"),
    (re.compile(r"\\([$%])"), r"\1"),
    (
        re.compile(
            r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|\u00b0)\s*$"
        ),
        "",
    ),
    (re.compile(r"\\[,;:! ]|~"), " "),
    (re.compile(r"\u2212"), "-"),
    (re.compile(r"^\s*[A-Za-z]\s*=\s*"), ""),
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<command>\\frac|\\sqrt)(?![A-Za-z])|(?P<sign>[-+*/^(){}\[\]]))"
)
_DATE = re.compile(r"\s*[0-9]+(?:\s*[-/]\s*[0-9]+)+\s*")


def value(latex: str) -> Fraction | None:
    """The number that a piece of LaTeX is; None where it is none, or more than one."""
    if len(latex) > _LONGEST:
        return None
    if found := _WHOLE.fullmatch(latex):
        return numerals.whole(found[1])
    latex = _GROUP.sub(lambda found: "," if found[0] == "{,}" else "", latex)
    if found := _UNIT.search(latex):
        words = found["words"].strip()
        if _NO_UNIT.search(words):
            return None
        latex = latex[: found.start()] + (f" {words}" if _SCALE.fullmatch(words) else "")
    for pattern, replacement in _REPLACED:
        latex = pattern.sub(replacement, latex)
    plain = numerals.whole(latex)
    if plain is not None:
        return plain
    return _evaluated(latex.strip().rstrip("%$").strip())


class _Unreadable(Exception):
    """No expression of the grammar, or one with two readings, or too large."""


class _Irrational(Exception):
    """A root that is no fraction."""


def _evaluated(text: str) -> Fraction | None:
    if _DATE.fullmatch(text) or sum(c.isdigit() for c in text) > _MOST_DIGITS:
        return None
    try:
        return _Parser(text).whole()
    except (_Unreadable, ZeroDivisionError, OverflowError):
        return None
    except _Irrational:
        return _by_math_verify(text)


class _Parser:
    """A recursive-descent parser that evaluates as it reads."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise _Unreadable
            kind = found.lastgroup or ""
            self.tokens.append((kind, found[kind]))
            place = found.end()
        self.at = self.depth = 0

    def whole(self) -> Fraction:
        """The value of all tokens."""
        found = self._sum()
        if self.at < len(self.tokens):
            raise _Unreadable
        return found

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("", "")

    def _take(self, *signs: str) -> str:
        """The next token if it is one of these signs, else ""."""
        kind, text = self._peek()
        if kind == "sign" and text in signs:
            self.at += 1
            return text
        return ""

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise _Unreadable

    def _sum(self) -> Fraction:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Unreadable
        negative = self._take("-", "+") == "-"
        total = -self._product() if negative else self._product()
        while sign := self._take("+", "-"):
            total += self._product() if sign == "+" else -self._product()
        self.depth -= 1
        return total

    def _product(self) -> Fraction:
        found, divided = self._power(), False
        while True:
            if sign := self._take("*", "/"):
                divided = sign == "/"
                factor = self._power()
                found = _bounded(found / factor if divided else found * factor)
            elif self._multiplies():
                if divided:
                    raise _Unreadable  # 6/2(1+2)
                found = _bounded(found * self._power())
            else:
                return found

    def _multiplies(self) -> bool:
        """Whether what follows without a sign multiplies: a bracket or a root."""
        return self._peek() in (("sign", "("), ("command", "\\sqrt"))

    def _power(self) -> Fraction:
        base = self._primary()
        if not self._take("^"):
            return base
        exponent = self._exponent()
        if base == 0 and exponent < 0:
            raise _Unreadable
        if abs(exponent) * max(_bits(base), 1) > _MOST_BITS:
            raise _Unreadable
        return base**exponent

    def _exponent(self) -> int:
        braced = bool(self._take("{"))
        negative = bool(braced and self._take("-"))
        kind, text = self._peek()
        if kind != "number" or not text.isdigit() or int(text) > _LARGEST_POWER:
            raise _Unreadable
        self.at += 1
        if braced:
            self._need("}")
        elif len(text) > 1:
            raise _Unreadable  # x^12 is x^1 2
        return -int(text) if negative else int(text)

    def _primary(self) -> Fraction:
        kind, text = self._peek()
        self.at += 1
        if kind == "number":
            return self._mixed(text)
        if text == "\\frac":
            return self._part() / self._part()
        if text == "\\sqrt":
            return self._root()
        if text == "(":
            found = self._sum()
            self._need(")")
            return found
        raise _Unreadable

    def _mixed(self, text: str) -> Fraction:
        """A number; an integer before a fraction of integers is a mixed number."""
        number = numerals.decimal(text)
        if self._peek() != ("command", "\\frac"):
            return number
        if not text.isdigit():
            raise _Unreadable
        start = self.at
        part = self._primary()
        inner = [token for token in self.tokens[start + 1 : self.at] if token[1] not in "{}"]
        plain = all(kind == "number" and digits.isdigit() for kind, digits in inner)
        if not plain or self._peek()[0] in ("number", "command"):
            raise _Unreadable
        return number + part

    def _part(self) -> Fraction:
        """What \\frac takes: in braces, or one digit."""
        if self._take("{"):
            found = self._sum()
            self._need("}")
            return found
        kind, text = self._peek()
        if kind != "number" or not text.isdigit():
            raise _Unreadable
        if len(text) > 1:
            self.tokens[self.at] = (kind, text[1:])
        else:
            self.at += 1
        return Fraction(int(text[0]))

    def _root(self) -> Fraction:
        degree = 2
        if self._take("["):
            kind, text = self._peek()
            if kind != "number" or text not in "23456789":
                raise _Unreadable
            degree = int(text)
            self.at += 1
            self._need("]")
        inside = self._part()
        if inside < 0:
            raise _Unreadable
        return Fraction(
            _whole_root(inside.numerator, degree), _whole_root(inside.denominator, degree)
        )


def _whole_root(number: int, degree: int) -> int:
    """The root of an integer; _Irrational where it is none."""
    if number.bit_length() > 256:
        raise _Unreadable
    root = math.isqrt(number) if degree == 2 else round(number ** (1 / degree))
    for near in (root - 1, root, root + 1):
        if near >= 0 and near**degree == number:
            return near
    raise _Irrational


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _bounded(number: Fraction) -> Fraction:
    if _bits(number) > _MOST_BITS:
        raise _Unreadable
    return number


_SMALL = re.compile(
    r"(?:\\sqrt\s*\{\s*[0-9]{1,6}\s*\}|\\frac(?=\s*\{)|[0-9]{1,6}(?![0-9.])|[-+*/(){}]|\s)+"
)


def _by_math_verify(text: str) -> Fraction | None:
    """Square roots of integers that cancel: `\\frac{\\sqrt{12}}{\\sqrt{3}}` is 2."""
    if not _SMALL.fullmatch(text) or text.count("\\sqrt") > 4 or len(text) > 80:
        return None
    import sympy
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    explicit = re.sub(r"(?<=[0-9})])\s*(?=\\sqrt|\()", r"\\cdot ", text.replace("*", r"\cdot "))
    found = parse(f"${explicit}$", [LatexExtractionConfig()], parsing_timeout=None)
    if not found or not isinstance(found[0], sympy.Expr):
        return None
    number = sympy.radsimp(sympy.expand(found[0].doit()))
    return Fraction(int(number.p), int(number.q)) if number.is_Rational else None

"""LaTeX that stands for a number: as plain text where that is enough, else by math-verify.

What math-verify gets is bounded in length, depth, digits and powers, and has only the commands of
arithmetic, so that no answer of a model can keep it busy.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction

_LONGEST, _DEEPEST, _MOST_DIGITS = 100, 6, 40
_ARITHMETIC = re.compile(
    r"(?:\\(?:frac|sqrt|times|cdot|div|left|right)(?![A-Za-z])|[-0-9.+*/(){}\[\]\s]"
    r"|\^(?:[0-9]|\{-?[0-9]{1,2}\}))+"
)
_SEVERAL = re.compile(r"[0-9.]\s+[0-9.]|\.[0-9]*\.")
"""What would be read as a product of numbers side by side."""
_SIMPLER = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;:! ]|~"), ""),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|mbox)\s*\{([^{}0-9]*)\}"), " "),
    (re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"^\s*[A-Za-z]\s*=\s*"), ""),
)
_FRACTION = re.compile(
    r"\\frac\s*(?:\{\s*(-?[0-9,.]+)\s*\}\s*\{\s*([0-9,.]+)\s*\}|([0-9])\s*([0-9]))"
)


def as_text(latex: str) -> str:
    """Without spacing, units and fonts, and with simple fractions as `a/b`."""
    for pattern, replacement in _SIMPLER:
        latex = pattern.sub(replacement, latex)
    latex = _FRACTION.sub(lambda found: " {}/{}".format(*filter(None, found.groups())), latex)
    return re.sub(r"-\s+(?=[0-9.])", "-", latex.strip())


def value(latex: str) -> Fraction | None:
    """The value of an arithmetic expression; None where it is none, not rational, or too large to
    be looked at.
    """
    latex = latex.strip()
    for pattern, replacement in _SIMPLER:
        latex = pattern.sub(replacement, latex)
    return _evaluated(latex) if _is_small(latex) else None


def _is_small(latex: str) -> bool:
    return (
        0 < len(latex) <= _LONGEST
        and _ARITHMETIC.fullmatch(latex) is not None
        and not _SEVERAL.search(latex)
        and latex.count("^") <= 1
        and sum(c.isdigit() for c in latex) <= _MOST_DIGITS
        and _depth(latex) <= _DEEPEST
    )


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _evaluated(latex: str) -> Fraction | None:
    import sympy
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found = parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None)
    if not found or not isinstance(found[0], sympy.Expr):
        return None
    number = sympy.nsimplify(found[0].doit(), rational=True)
    if not number.is_Rational:
        return None
    return Fraction(int(number.p), int(number.q))

"""How numbers are printed."""

from __future__ import annotations

UNKNOWN = "–"


def perplexity(value: float | None) -> str:
    """1.3847 -> 1.38, 1234.5 -> 1234"""
    if value is None:
        return UNKNOWN
    return f"{value:.2f}" if value < 100 else f"{value:.4g}"


def count(value: int | None) -> str:
    """1234 -> 1,234"""
    return f"{value:,}" if value is not None else UNKNOWN


def tokens(value: float) -> str:
    """1234567 -> 1.23M"""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """1234.5 -> 1,234"""
    return f"{value:,.0f}"


def share(value: float | None) -> str:
    """0.123 -> 12%"""
    return f"{value:.0%}" if value is not None else UNKNOWN


def signed(value: float) -> str:
    """0.05 -> +0.050, with a real minus"""
    return f"{value:+.3f}".replace("-", "−")


def interval(estimate: float, low: float, high: float) -> str:
    """`0.550 [0.500, 0.600]`"""
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def listed(words: list[str], most: int = 4) -> str:
    """`a, b and c`; of more than `most`, the first three; "" of none."""
    if not words:
        return ""
    if len(words) > most:
        words = [*words[:3], f"{len(words) - 3} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


def shorten(text: str, width: int) -> str:
    """Text of at most `width` characters; a longer one loses its middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"

"""Exact amounts: canonical decimal text outside, integers inside, never a float, never a rounding context.

An amount at rest (Redis, webhook body, log) is canonical decimal text: no exponent, no sign but a
leading minus, no leading zeros, no trailing zeros after the point. To do sums, text becomes **atoms**:
an integer count of 10^-78, one scale for every asset, so that nothing has to carry a scale around.

Refuses every other spelling that Python's own parsers would let through: `+1`, ` 1`, `1_000`, `1e3`,
full-width digits, NaN.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

MAX_FRACTION_DIGITS = 78
MAX_INTEGER = 2**256 - 1
"""The largest integer part: a uint256, the widest thing a balance API has to say."""

_INTEGER = re.compile(r"(?:0|[1-9][0-9]{0,77})\Z", re.ASCII)
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,77})(?:\.([0-9]{1,78}))?\Z", re.ASCII)
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,3}))?\Z", re.ASCII)
_CANONICAL = re.compile(r"(?!-0\Z)-?(0|[1-9][0-9]{0,77})(?:\.[0-9]{0,77}[1-9])?\Z", re.ASCII)


_LATEST = 64
"""Conversions that are remembered: what one change says, it says several times."""


class NotAnAmount(ValueError):
    """A text that is not an exact, bounded amount. The message never holds the text."""


def from_integer(text: object, decimals: int = 0, *, signed: bool = False) -> str:
    """Read `text`, an integer count of an asset's smallest unit, as canonical text in whole units.

    `decimals` (0 to 78) says how many digits stand behind the point; `signed` allows a leading minus.
    Raises NotAnAmount.
    """
    if text == "0":  # most amounts are
        return "0"
    if signed and isinstance(text, str) and text.startswith("-"):
        return negated(from_integer(text[1:], decimals))
    if not isinstance(text, str) or not _INTEGER.match(text):
        raise NotAnAmount("not a decimal integer in a string")
    if len(text) == 78 and int(text) > MAX_INTEGER:
        raise NotAnAmount("larger than 2^256 - 1")
    if not decimals:
        return text
    padded = text.rjust(decimals + 1, "0")
    return _canonical(padded[:-decimals], padded[-decimals:])


def from_decimal(text: object, *, signed: bool = False) -> str:
    """Read `text`, decimal text in whole units, as canonical text; `signed` allows a leading minus. Raises
    NotAnAmount.
    """
    if signed and isinstance(text, str) and text.startswith("-"):
        return negated(from_decimal(text[1:]))
    match = _DECIMAL.match(text) if isinstance(text, str) else None
    if not match:
        raise NotAnAmount("not a decimal number in a string")
    whole, fraction = match[1], match[2] or ""
    if len(whole) == 78 and int(whole) > MAX_INTEGER:
        raise NotAnAmount("larger than 2^256 - 1")
    return _canonical(whole, fraction)


def from_number(text: object, *, signed: bool = False) -> str:
    """Read `text`, a number of JSON in whole units, as canonical text: an exponent moves the point, and no
    digit is lost. `signed` allows a leading minus. Raises NotAnAmount.
    """
    match = _NUMBER.match(text) if isinstance(text, str) else None
    if not match:
        raise NotAnAmount("not a number as JSON writes it, or one with too large an exponent")
    minus, whole, fraction = match[1], match[2], match[3] or ""
    digits, places = whole + fraction, len(fraction) - int(match[4] or 0)
    if places > 0:
        padded = digits.rjust(places + 1, "0")
        whole, fraction = padded[:-places], padded[-places:]
    else:
        whole, fraction = digits.ljust(len(digits) - places, "0"), ""
    amount = _canonical(whole.lstrip("0") or "0", fraction)
    return amount if amount == "0" else from_decimal(minus + amount, signed=signed)


def check_canonical(text: object) -> str:
    """Return `text` if it is canonical, below zero or not, as this program writes it. Raises NotAnAmount."""
    if text == "0":  # most amounts at rest are
        return "0"
    match = _CANONICAL.match(text) if isinstance(text, str) else None
    if not match or (len(match[1]) == 78 and int(match[1]) > MAX_INTEGER):
        raise NotAnAmount("not a bounded amount in canonical form")
    return match[0]


@lru_cache(maxsize=_LATEST)
def to_atoms(text: str) -> int:
    """Turn canonical text into atoms (10^-78 of a whole unit)."""
    if text == "0":  # most are
        return 0
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(MAX_FRACTION_DIGITS, "0"))


@lru_cache(maxsize=_LATEST)
def to_text(atoms: int) -> str:
    """Turn atoms into canonical text, with a leading minus where the amount is negative."""
    if not atoms:  # most are
        return "0"
    padded = str(abs(atoms)).rjust(MAX_FRACTION_DIGITS + 1, "0")
    digits = _canonical(padded[:-MAX_FRACTION_DIGITS], padded[-MAX_FRACTION_DIGITS:])
    return f"-{digits}" if atoms < 0 else digits


def sum_of(texts: Sequence[str]) -> str:
    """Add amounts, canonical texts of which some may be below zero. Raises NotAnAmount where it is too large.

    Without atoms, whose 78 digits most sums do not need.
    """
    amounts = [text for text in texts if text != "0"]  # most are
    if len(amounts) < 2:
        return amounts[0] if amounts else "0"
    parts = [text.partition(".") for text in amounts]
    places = max([len(fraction) for _, _, fraction in parts])
    total = sum([int(whole + fraction.ljust(places, "0")) for whole, _, fraction in parts])
    digits = str(abs(total))
    if places:
        digits = digits.rjust(places + 1, "0")
        digits = _canonical(digits[:-places], digits[-places:])
    return check_canonical(f"-{digits}" if total < 0 else digits)


def negated(text: str) -> str:
    """Take an amount away from nothing."""
    if text.startswith("-"):
        return text[1:]
    return text if text == "0" else f"-{text}"


def _canonical(whole: str, fraction: str) -> str:
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole

"""Checks of what users give to decoders and augmentations: each raises a UsageError of one line."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from resnet_ffcv.errors import UsageError

Colour = tuple[int, int, int]


def is_real(given: Any) -> bool:
    return isinstance(given, Real)


def is_whole(given: Any) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


def probability(name: str, given: Any) -> float:
    if not (is_real(given) and 0 <= given <= 1):
        raise UsageError(f"{name}={given!r}: wanted is a probability, from 0 to 1")
    return float(given)


def number(name: str, given: Any, least: float = 0) -> float:
    """A number from `least`."""
    if not (is_real(given) and least <= given < float("inf")):
        raise UsageError(f"{name}={given!r}: wanted is a number, {least:g} or more")
    return float(given)


def whole(name: str, given: Any, least: int, unit: str = "") -> int:
    """A whole number from `least`."""
    if not is_whole(given) or given < least:
        words = f"whole {unit}" if unit else "a whole number"
        raise UsageError(f"{name}={given!r}: wanted is {words}, {least} or more")
    return int(given)


def numbers(name: str, given: Any, count: int) -> list[float]:
    """So many numbers."""
    found = list(given) if isinstance(given, Sequence | np.ndarray) else []
    if len(found) != count or not all(map(is_real, found)):
        raise UsageError(f"{name}={given!r}: wanted are {count} numbers")
    return [float(number) for number in found]


def bounds(name: str, given: Any, most: float = float("inf")) -> tuple[float, float]:
    """(low, high), above 0."""
    low, high = numbers(name, given, 2)
    if not (0 < low <= high <= most and high < float("inf")):
        limits = f", at most {most:g}" if most < float("inf") else ""
        raise UsageError(f"{name}={given!r}: wanted is (low, high), above 0{limits}")
    return low, high


def colour(name: str, given: Any) -> Colour:
    """(red, green, blue), or one number for all three; from 0 to 255."""
    found = numbers(name, (given,) * 3 if is_whole(given) else given, 3)
    if not all(0 <= channel <= 255 for channel in found):
        raise UsageError(f"{name}={given!r}: wanted are numbers from 0 to 255")
    return int(found[0]), int(found[1]), int(found[2])

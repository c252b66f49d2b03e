"""Checks of settings that may come from a file: a number of the wrong type fails far from where it was set."""

from __future__ import annotations

import math


def check_whole(value: object, name: str, low: int, high: int) -> None:
    """Raise TypeError or ValueError unless `value` is an int from `low` to `high`."""
    if type(value) is not int:
        raise TypeError(f"`{name}` must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be {low} to {high}, got {value}")


def check_number(value: object, name: str, *, above: float = -math.inf) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number above `above`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    if not above < value < math.inf:
        raise ValueError(f"`{name}` must be a finite number above {above:g}, got {value}")

"""What a filter writes as numbers, dates, times and durations, read exactly: each becomes a fraction.

Dates and times count seconds: since 1970 in UTC, since midnight, or of a duration.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from decimal import Decimal
from fractions import Fraction

_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_DAY_S = 86_400

# No type holds numbers of more digits than this, before the point or behind it: beyond it, any number stands for all.
_MOST_DIGITS = 1000

_NUMBER = re.compile(r"(?P<digits>[^eE]+)(?:[eE]\+?(?P<minus>-?)0*(?P<exponent>\d*))?", re.ASCII)
_ZONE = r"(?P<zone>Z|[+-][01]\d:?[0-5]\d)?"
_CLOCK = r"(?P<clock>\d\d(?::\d\d(?::\d\d(?P<fraction>\.\d+)?)?)?)"
_INSTANT = re.compile(rf"(?P<date>\d{{4}}-\d\d-\d\d)(?:[T ]{_CLOCK}{_ZONE})?", re.ASCII)
_TIME = re.compile(_CLOCK, re.ASCII)
_OFFSET = re.compile(r"(?P<sign>[+-])(?P<hours>[01]\d):?(?P<minutes>[0-5]\d)", re.ASCII)
_DURATION = re.compile(
    r"(?P<sign>-?)P(?=\d|T\d)(?:(?P<days>\d+)D)?"
    r"(?:T(?=\d)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)


def number_of(text: str) -> Fraction:
    """Return a number; one that is beyond every type becomes another that is beyond every type.

    Raises
    ------
    ValueError
        If it is not a number.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError
    digits = Decimal(match["digits"])
    if not digits:
        return Fraction(0)
    # Cut, because an exponent may have thousands of digits itself.
    exponent = int(match["minus"] + match["exponent"][:18]) if match["exponent"] else 0
    magnitude = digits.adjusted() + exponent
    if abs(magnitude) > _MOST_DIGITS:
        exponent += (_MOST_DIGITS if magnitude > 0 else -_MOST_DIGITS) - magnitude
    return Fraction(digits) * Fraction(10) ** exponent


def instant_of(text: str, zone: datetime.tzinfo | None) -> Fraction:
    """Return the seconds since 1970 of an ISO 8601 date, or date and time.

    Parameters
    ----------
    text : str
        Without an offset it is the local time of `zone`.
    zone : tzinfo or None
        None: local times of no place, for which an offset has no meaning.

    Raises
    ------
    ValueError
        If it is not valid, has an offset without `zone`, or is no or two instants in `zone`, where clocks change.
    """
    match = _matched(_INSTANT, text)
    day = datetime.date.fromisoformat(match["date"])
    midnight = Fraction((day.toordinal() - _EPOCH_DAY) * _DAY_S)
    seconds = midnight + _clock_of(match) if match["clock"] else midnight
    if zone is None:
        if match["zone"]:
            raise ValueError(f"the attribute has no time zone: leave out `{match['zone']}`")
        return seconds
    if match["zone"]:
        return seconds - _offset_s(match["zone"])
    return seconds - _local_offset_s(datetime.datetime.fromisoformat(text[:19]), zone)


def time_of(text: str) -> Fraction:
    """Return the seconds since midnight of an ISO 8601 time; ValueError if it is not valid."""
    return _clock_of(_matched(_TIME, text))


def duration_of(text: str) -> Fraction:
    """Return the seconds of an ISO 8601 duration of days, hours, minutes and seconds; ValueError if it is not one."""
    match = _matched(_DURATION, text)
    units = {"days": _DAY_S, "hours": 3600, "minutes": 60, "seconds": 1}
    total = sum((Fraction(match[name] or 0) * seconds for name, seconds in units.items()), Fraction(0))
    return -total if match["sign"] else total


def zone_of(name: str) -> datetime.tzinfo:
    """Return a time zone by its name in Arrow: UTC, `+02:00`, or a region such as `Europe/Berlin`.

    Raises
    ------
    ValueError
        If it is not known on this machine.
    """
    if name == "UTC":  # known without a database of time zones
        return datetime.UTC
    if _OFFSET.fullmatch(name):
        return datetime.timezone(datetime.timedelta(seconds=_offset_s(name)))
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"the time zone `{name}` is not known on this machine") from error


def _offset_s(text: str) -> int:
    if text == "Z":
        return 0
    match = _matched(_OFFSET, text)
    seconds = 3600 * int(match["hours"]) + 60 * int(match["minutes"])
    return -seconds if match["sign"] == "-" else seconds


def _clock_of(match: re.Match[str]) -> Fraction:
    clock = datetime.time.fromisoformat(match["clock"][:8])
    return 3600 * clock.hour + 60 * clock.minute + clock.second + Fraction(match["fraction"] or 0)


def _local_offset_s(local: datetime.datetime, zone: datetime.tzinfo) -> int:
    earlier, later = (local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    if earlier != later or earlier is None:
        raise ValueError(f"clocks change in {zone} then: give the offset from UTC, such as `{local.isoformat()}+01:00`")
    return int(earlier.total_seconds())


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise ValueError
    return match

"""Numbers as a person reads them: sizes, durations, ages, ranges."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: int) -> str:
    """Bytes in decimal units: 98.4 MB."""
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


_BYTES: dict[str, int] = {unit.lower(): 1000**power for power, unit in enumerate(_UNITS)} | {
    f"{unit[0].lower()}ib": 1024**power for power, unit in enumerate(_UNITS) if power
}


def parse_size(text: str) -> int:
    """`2GB`, `512MiB`, or bytes, as bytes. Raises ValueError with a reason."""
    number = text.rstrip("BKMGTPbkmgtpi ")
    unit = text[len(number) :].strip().lower() or "b"
    try:
        count = round(float(number) * _BYTES[unit])
    except (ValueError, OverflowError, KeyError):
        count = -1
    if count < 0:
        raise ValueError(f"{text!r} is not a size such as 500MB, 2GB or 2GiB")
    return count


def duration(ms: int) -> str:
    """Two units at most: 840ms, 4.2s, 3m05s, 2h10m, 5d3h."""
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f}s"
    minutes, seconds = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def age(at_ms: int | None, now_ms: int) -> str:
    """How long ago, in whole seconds; a dash for never."""
    if not at_ms:
        return "-"
    passed = max(now_ms - at_ms, 0) // 1000 * 1000
    return duration(passed).replace(".0s", "s") if passed else "0s"


def counted(count: int, noun: str) -> str:
    """1 file, 2 files: of what takes an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def span(low: int, high: int) -> str:
    """A range as commands take it: 2, or 0..3."""
    return str(low) if low == high else f"{low}..{high}"


def parse_span(text: str) -> tuple[int, int]:
    """`N` or `MIN..MAX` as (min, max). Raises ValueError with a reason."""
    low_text, dots, high_text = text.partition("..")
    if not low_text.isdigit() or (dots and not high_text.isdigit()):
        raise ValueError(f"{text!r} is neither N nor MIN..MAX")
    low, high = int(low_text), int(high_text) if dots else int(low_text)
    if low > high:
        raise ValueError(f"{low} is above {high}")
    return low, high


def percent(part: int, whole: int) -> str:
    """part / whole as 83 %; a dash where there is no whole."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_duration(text: str) -> int:
    """`90s`, `40m`, `2h`, `1.5d`, or seconds, as milliseconds. Raises ValueError with a reason."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _SECONDS else (text, "s")
    try:
        ms = round(float(number) * _SECONDS[unit] * 1_000)
    except (ValueError, OverflowError):
        ms = -1
    if ms < 0:
        raise ValueError(f"{text!r} is not a length of time such as 90s, 40m, 2h or 3d")
    return ms

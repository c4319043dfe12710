"""Readers of traces meet anything: they read it, or name the line."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trace_files import FORMATS

from onefleet.sim.traces.lines import BadTrace, Line, Row

NOISE = st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=12
) | st.sampled_from([",", "-1", "1e9", "0x1", '"', "9" * 40, "NaN", "٣", "{", "[]", "null", "\0"])


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@given(data=st.data())
def test_a_line_that_was_tampered_with_is_read_or_named(form, data):
    """Whatever is put into one line: no other error, and no other line, than that one's.

    A line that still reads may make its successor wrong (a time that went back), never an earlier.
    """
    lines = form.lines(form.values(8))
    number = data.draw(st.integers(0, len(lines) - 1))
    text = lines[number]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 12, len(text))))
    lines[number] = text[:start] + data.draw(NOISE) + text[end:]
    with tempfile.TemporaryDirectory() as folder:
        path = form.write(Path(folder) / f"t{form.suffix}", lines)
        try:
            values = form.read(path)
        except BadTrace as error:
            at = re.fullmatch(rf"t{re.escape(form.suffix)}:(\d+)", error.place)
            assert at is not None
            assert int(at[1]) in (number + 1, number + 2)
        else:
            assert len(values) in (7, 8)


@given(st.integers(0, 10**11), st.integers(0, 6))
def test_decimal_seconds_are_exact(value_ms, more):
    text = f"{value_ms // 1000}.{value_ms % 1000:03d}" + "9" * more
    row = Row(Line("t", 1, text), {"s": text})
    assert row.seconds_ms("s") == value_ms


@given(st.text(max_size=20))
def test_numbers_are_numbers_or_refused(text):
    row = Row(Line("t", 4, text), {"n": text})
    for read in (row.whole, row.seconds_ms):
        try:
            value = read("n")
        except BadTrace as error:
            assert error.place == "t:4"
        else:
            assert value >= 0
            assert re.fullmatch(r"[0-9]+(\.[0-9]*)?|-0+", text)

"""Tables, YAML, quantities and the changes of a watch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefleet.cli.output import Column, Terminal, table
from onefleet.cli.plain_yaml import dump
from onefleet.cli.watch import changes, watch_many
from onefleet.domain.quantities import age, duration, parse_size, parse_span, percent, size, span

COLUMNS = (
    Column("A", lambda v: v[0]),
    Column("N", lambda v: v[1], right=True),
    Column("W", lambda v: v[2], wide=True),
)


def test_columns_are_aligned_and_wide_ones_left_out():
    rows = [("x", "1", "w"), ("longer", "22", "w")]
    assert (
        table(COLUMNS, rows, wide=False, screen=Terminal())
        == "A        N\nx        1\nlonger  22\n"
    )
    assert "W" in table(COLUMNS, rows, wide=True, screen=Terminal())
    assert table(COLUMNS, [], wide=True, screen=Terminal()) == ""


def test_a_terminal_cuts_lines_to_its_width():
    out = table(COLUMNS, [("x" * 50, "1", "w")], wide=False, screen=Terminal(width=20))
    assert max(len(line) for line in out.splitlines()) <= 20
    assert "…" in out


YAML = [
    ({"a": 1, "b": None, "c": True, "d": 1.5}, "a: 1\nb: null\nc: true\nd: 1.5\n"),
    (
        {"a": "text with words", "b": "yes", "c": "1", "d": ""},
        'a: text with words\nb: "yes"\nc: "1"\nd: ""\n',
    ),
    (
        {"a": [], "b": {}, "c": ["x", {"u": 1, "z": ["q"]}]},
        "a: []\nb: {}\nc:\n  - x\n  - u: 1\n    z:\n      - q\n",
    ),
    ([{"a": 1, "b": 2}], "- a: 1\n  b: 2\n"),
    (
        {"a": "x: y", "b": "- z", "c": "a\nb", "d": "\x85"},
        'a: "x: y"\nb: "- z"\nc: "a\\nb"\nd: "\\u0085"\n',
    ),
    ("on", '"on"\n'),
]


@pytest.mark.parametrize(("value", "text"), YAML)
def test_yaml(value, text):
    assert dump(value) == text


@given(st.integers(0, 10**18))
def test_sizes_and_durations_stay_short(number):
    assert len(size(number)) <= 9
    assert len(duration(min(number, 10**13))) <= 10


def test_sizes_are_read_as_they_are_shown():
    typed = ("0", "7000000", "1.5kB", "500 MB", "2GB", "2gib", "98.4 MB")
    read = [0, 7_000_000, 1_500, 500_000_000, 2_000_000_000, 2 << 30, 98_400_000]
    assert [parse_size(text) for text in typed] == read
    for text in ("", "GB", "-1", "nan", "inf", "1e400", "2XB", "2 G B", "BB"):
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(text)


def test_quantities():
    assert [size(n) for n in (0, 999, 1500, 98_362_432)] == ["0 B", "999 B", "1.5 kB", "98.4 MB"]
    assert [duration(n) for n in (5, 4_200, 185_000, 7_800_000)] == [
        "5ms",
        "4.2s",
        "3m05s",
        "2h10m",
    ]
    assert (age(None, 1), age(1_000, 500), age(1_000, 64_500)) == ("-", "0s", "1m03s")
    assert (percent(1, 3), percent(1, 0)) == ("33 %", "-")


@given(st.integers(0, 99), st.integers(0, 99))
def test_spans_come_back(low, high):
    if low <= high:
        assert parse_span(span(low, high)) == (low, high)
    else:
        with pytest.raises(ValueError, match="above"):
            parse_span(f"{low}..{high}")


@pytest.mark.parametrize("text", ["", "..", "1..", "..2", "a", "1...2", "-1", "1..2..3"])
def test_what_is_no_span(text):
    with pytest.raises(ValueError, match=r"neither|above"):
        parse_span(text)


def test_a_watch_tells_changes_alone():
    assert changes({}, {"a": 1}) == [("added", 1)]
    assert changes({"a": 1}, {"a": 1}) == []
    assert changes({"a": 1, "b": 2}, {"a": 3}) == [("changed", 3), ("removed", 2)]


def test_watching_in_a_pipe_prints_json_lines(fake, tmp_path, capsys):
    import json

    import msgspec

    from onefleet.cli.kinds import JOB

    view = fake.views["/api/v1/jobs/job-1"]
    looks = iter([[view], [view], [msgspec.structs.replace(view, phase="saving")], []])

    class Over(Exception):
        pass

    def fetch():
        try:
            return next(looks)
        except StopIteration:
            raise Over from None

    with pytest.raises(Over):
        watch_many(JOB, fetch, "table", Terminal(), sleep=lambda s: None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["type"], line["object"]["phase"]) for line in lines] == [
        ("added", "running"),
        ("changed", "saving"),
        ("removed", "saving"),
    ]

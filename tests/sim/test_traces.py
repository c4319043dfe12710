"""Trace readers: what is written is read, and what is wrong is named with its line."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest
from tests.trace_files import FORMATS, gavel_line, write_gavel, write_tar

from onefleet.domain.errors import InvalidRequest, NotFound
from onefleet.sim.traces import imitate
from onefleet.sim.traces.lines import BadTrace
from onefleet.sim.traces.philly import read_gavel, read_philly

IDS = [f.name for f in FORMATS]


@pytest.fixture(params=FORMATS, ids=IDS)
def form(request):
    return request.param


def bad(form, tmp_path, lines):
    with pytest.raises(BadTrace) as raised:
        form.read(form.write(tmp_path / f"t{form.suffix}", lines))
    return raised.value


def test_what_is_written_is_read(form, tmp_path):
    values = form.values(60)
    path = form.write(tmp_path / f"t{form.suffix}", form.lines(values))
    first = values[0].arrived if form.name == "azure" else 0  # its times count from the first
    if first:
        values = tuple(replace(v, arrived=v.arrived - first) for v in values)
    assert form.read(path) == values


def test_empty_lines_and_windows_line_ends_are_read(form, tmp_path):
    values = form.values(5)
    lines = [f"{line}\r" for line in form.lines(values)]
    path = form.write(tmp_path / f"t{form.suffix}", [*lines[:2], "", *lines[2:], ""])
    assert len(form.read(path)) == 5


def test_a_byte_order_mark_is_left_out(form, tmp_path):
    lines = form.lines(form.values(5))
    without = form.read(form.write(tmp_path / f"t{form.suffix}", lines))
    lines[0] = "\ufeff" + lines[0]
    assert form.read(form.write(tmp_path / f"t{form.suffix}", lines)) == without


def test_a_line_that_is_cut_off_is_named(form, tmp_path):
    lines = form.lines(form.values(20))
    lines[9] = lines[9][: len(lines[9]) // 2].rsplit(",", 1)[0]
    error = bad(form, tmp_path, lines)
    assert error.place == f"t{form.suffix}:10"
    assert f"t{form.suffix}:10" in error.lines()
    assert "expected" in error.why


def test_bytes_that_are_no_text_are_named(form, tmp_path):
    lines = form.lines(form.values(20))
    lines[4] = "\udcff\udcfe" + lines[4]
    assert bad(form, tmp_path, lines).place.endswith(":5")


def test_a_file_without_values_is_refused(form, tmp_path):
    header = form.lines(form.values(1))[:-1]
    assert bad(form, tmp_path, header).place == f"t{form.suffix}:{len(header) + 1}"
    assert bad(form, tmp_path, []).place == f"t{form.suffix}:1"


@pytest.mark.parametrize("name", [name for name in IDS if name != "mooncake"])
def test_a_header_without_a_column_says_which(name, tmp_path):
    form = FORMATS[IDS.index(name)]
    lines = form.lines(form.values(3))
    column = lines[0].split(",")[-1]
    lines[0] = lines[0].rsplit(",", 1)[0]
    error = bad(form, tmp_path, lines)
    assert error.place.endswith(":1")
    assert column in error.why


@pytest.mark.parametrize("name", [name for name in IDS if name != "mooncake"])
def test_a_header_that_names_a_column_twice_says_which(name, tmp_path):
    form = FORMATS[IDS.index(name)]
    lines = [f"{line},{line.split(',')[1]}" for line in form.lines(form.values(3))]
    error = bad(form, tmp_path, lines)
    assert error.place.endswith(":1")
    assert f"one column {lines[0].split(',')[1]}" in error.why


def test_a_node_that_is_named_twice_is_refused(tmp_path):
    form = FORMATS[IDS.index("openb nodes")]
    lines = form.lines(form.values(4))
    error = bad(form, tmp_path, [*lines, lines[2]])
    assert error.place == "t.csv.gz:6"
    assert lines[2].split(",")[0] in error.why


def test_columns_may_come_in_any_order(tmp_path):
    form = FORMATS[IDS.index("lmsys")]
    values = form.values(4)
    lines = [",".join(reversed(line.split(","))) for line in form.lines(values)]
    assert form.read(form.write(tmp_path / "t.csv", lines)) == values


def test_a_missing_file_says_so(form, tmp_path):
    with pytest.raises(NotFound) as raised:
        form.read(tmp_path / f"none{form.suffix}")
    assert "none" in raised.value.what


def test_a_folder_in_place_of_a_file_is_refused(form, tmp_path):
    with pytest.raises(InvalidRequest):
        form.read(tmp_path)


def test_compressed_data_that_is_cut_off_is_named(tmp_path):
    form = FORMATS[0]
    whole = form.write(tmp_path / "t.csv.gz", form.lines(form.values(500))).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.csv.gz").write_bytes(b"not compressed at all\n")
    for name in ("cut.csv.gz", "no.csv.gz"):
        with pytest.raises(BadTrace) as raised:
            form.read(tmp_path / name)
        assert raised.value.place.startswith(f"{name}:")


def test_compressed_data_by_another_name_says_so(form, tmp_path):
    lines = form.lines(form.values(3))
    path = form.write(tmp_path / "t.gz", lines).rename(tmp_path / "t.csv")
    with pytest.raises(BadTrace, match=r"t\.csv:1") as raised:
        form.read(path)
    assert "gzip's data in a file not named .gz" in raised.value.why


def test_a_line_without_end_is_refused(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"timestamp," * 200_000))
    with pytest.raises(BadTrace) as raised:
        read_philly(tmp_path / "t.csv.gz")
    assert "bytes in a line" in raised.value.why


@pytest.mark.parametrize(
    ("cell", "value", "why"),
    [
        (0, "2017-13-01 00:00:00", "timestamp"),
        (1, "-5.0", "duration"),
        (1, "nan", "duration"),
        (1, "0.0", "duration"),
        (2, "0", "num_gpus"),
        (2, "2.5", "num_gpus"),
        (2, "٣", "num_gpus"),
        (3, "1.0", "gpu_time"),
        (4, "", "cluster"),
    ],
)
def test_philly_says_which_cell_is_wrong(tmp_path, cell, value, why):
    form = FORMATS[0]
    lines = form.lines(form.values(9))
    cells = lines[6].split(",")
    cells[cell] = value
    lines[6] = ",".join(cells)
    error = bad(form, tmp_path, lines)
    assert error.place == "t.csv.gz:7"
    assert why in error.why


def test_philly_is_sorted_by_arrival(tmp_path):
    form = FORMATS[0]
    values = form.values(50)
    header, *rows = form.lines(values)
    found = form.read(form.write(tmp_path / "t.csv.gz", [header, *reversed(rows)]))
    assert [job.arrived for job in found] == [job.arrived for job in values]


@pytest.mark.parametrize("name", ["azure", "lmsys", "aibrix", "mooncake"])
def test_requests_that_go_back_in_time_are_named(tmp_path, name):
    form = FORMATS[IDS.index(name)]
    lines = form.lines(form.values(40))
    lines[10], lines[-1] = lines[-1], lines[10]
    assert bad(form, tmp_path, lines).place.endswith(":12")


def test_blocks_and_tokens_of_a_prompt_agree(tmp_path):
    form = FORMATS[IDS.index("mooncake")]
    lines = form.lines(form.values(3))
    lines[1] = lines[1].replace('"hash_ids": [0', '"hash_ids": [0, 0')
    assert "hash_ids" in bad(form, tmp_path, lines).why


def test_gavels_archive_is_read_team_by_team(tmp_path):
    jobs = imitate.gavel(3, 20, 4)
    found = read_gavel(write_gavel(tmp_path / "g.tar.gz", jobs))
    assert sorted(found, key=lambda j: (j.arrived, j.vc)) == sorted(
        jobs, key=lambda j: (j.arrived, j.vc)
    )
    assert [j.arrived for j in found] == sorted(j.arrived for j in jobs)


@pytest.mark.parametrize(
    ("cell", "value"), [(3, "2"), (4, "0"), (4, "many"), (5, "-1.0"), (6, "0"), (0, "")]
)
def test_gavels_archive_names_member_and_line(tmp_path, cell, value):
    lines = [gavel_line(job) for job in imitate.gavel(3, 5, 1)]
    cells = lines[2].split("\t")
    cells[cell] = value
    lines[2] = "\t".join(cells)
    with pytest.raises(BadTrace) as raised:
        read_gavel(write_tar(tmp_path / "g.tar.gz", {"ok": lines[:2], "team": lines}))
    assert raised.value.place == "g.tar.gz!seed=0/team.trace:3"


def test_an_archive_with_one_byte_changed_is_refused_wherever_it_is(tmp_path):
    """By a line, by the compressed data's checksum, or by an end that is none."""
    whole = write_gavel(tmp_path / "whole.tar.gz", imitate.gavel(3, 40, 3)).read_bytes()
    header = whole.index(b"whole.tar\0") + 10  # of gzip: time and name, which change nothing
    for at in range(header, len(whole), 61):
        data = bytearray(whole)
        data[at] ^= 0x10
        (tmp_path / "g.tar.gz").write_bytes(data)
        with pytest.raises(BadTrace) as raised:
            read_gavel(tmp_path / "g.tar.gz")
        assert raised.value.place.startswith("g.tar.gz")


def test_an_archive_of_which_a_team_is_gone_is_refused(tmp_path):
    jobs = imitate.gavel(3, 20, 3)
    packed = write_gavel(tmp_path / "whole.tar.gz", jobs).read_bytes()
    whole, plain = gzip.decompress(packed), tmp_path / "g.tar"
    plain.write_bytes(whole)
    assert len(read_gavel(plain)) == len(jobs)
    second = whole.index(b"seed=0/", 1)
    plain.write_bytes(whole[:second] + b"X" + whole[second + 1 :])  # its head is not itself
    with pytest.raises(BadTrace, match=r"g\.tar:1") as raised:
        read_gavel(plain)
    assert f"first {second} bytes" in raised.value.why
    plain.write_bytes(whole[:second])
    with pytest.raises(BadTrace, match=r"g\.tar:1"):
        read_gavel(plain)


def test_an_archive_that_is_none_is_refused(tmp_path):
    (tmp_path / "g.tar.gz").write_bytes(b"nothing of the kind")
    (tmp_path / "cut.tar.gz").write_bytes(
        write_gavel(tmp_path / "x.tar.gz", imitate.gavel(3, 200, 3)).read_bytes()[:900]
    )
    for name in ("g.tar.gz", "cut.tar.gz"):
        with pytest.raises(BadTrace):
            read_gavel(tmp_path / name)
    with pytest.raises(BadTrace):
        read_gavel(write_tar(tmp_path / "empty.tar.gz", {}))
    with pytest.raises(NotFound):
        read_gavel(tmp_path / "none.tar.gz")

"""Lines of a trace file, plain or compressed, and the error that names one of them.

Traces come from elsewhere: everything that can be wrong with one (missing, cut off, not text, a
column gone, a number that is none) comes out as `BadTrace` with the place, and nothing else does.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from onefleet.domain.errors import InvalidRequest, NotFound

#: The longest line, and the largest number, that any reader takes.
LINE_CHARS_MAX = 1 << 20
NUMBER_MAX = 10**15
#: What compressed data begins with.
GZIP_MAGIC = b"\x1f\x8b"
#: What decompressing raises on data that was damaged or cut off.
TORN = (EOFError, zlib.error, gzip.BadGzipFile)


class BadTrace(InvalidRequest):
    """A trace is not what its format promises. place: FILE:LINE."""

    code = "bad_trace"

    def __init__(self, place: str, expected: str, found: str) -> None:
        shown = found if len(found) <= 80 else found[:77] + "..."
        super().__init__(
            f"bad trace: {place}",
            why=f"expected {expected}, found {shown}",
            hint="check that the file is whole and of the format that was asked for",
        )
        self.place = place
        self._said = (place, expected, found)

    def __reduce__(self) -> tuple[type[BadTrace], tuple[str, str, str]]:
        """How it comes back from a process that read the trace."""
        return type(self), self._said


@dataclass(frozen=True, slots=True)
class Line:
    """text: without its line end. number: counted from 1."""

    file: str
    number: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.number}"

    def bad(self, expected: str, found: str | None = None) -> NoReturn:
        """Raise the error that names this line; found: the whole line unless said."""
        raise BadTrace(self.place, expected, repr(self.text if found is None else found))


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file; gunzipped when its name ends in .gz. Empty lines are left out."""
    try:
        with path.open("rb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield from numbered(unpacked, path.name)
            else:
                yield from numbered(raw, path.name)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> InvalidRequest | NotFound:
    """Why a file of a trace could not be opened, as a person reads it."""
    if isinstance(error, FileNotFoundError):
        return NotFound(
            f"no trace at {path}", why="there is no such file", hint="give the path of the file"
        )
    why = error.strerror or str(error) or repr(error)
    return InvalidRequest(f"the trace {path} cannot be read", why=why)


def numbered(source: IO[bytes] | gzip.GzipFile, file: str) -> Iterator[Line]:
    """Decode and number the lines of an open file, whose byte order mark is left out.

    Raises BadTrace where it stops being text.
    """
    number = 0
    while True:
        number += 1
        place = f"{file}:{number}"
        try:
            raw = source.readline(LINE_CHARS_MAX + 1)
        except TORN as error:
            raise BadTrace(place, "compressed data that is whole", str(error)) from error
        if not raw:
            return
        if len(raw) > LINE_CHARS_MAX:
            raise BadTrace(place, f"at most {LINE_CHARS_MAX} bytes in a line", "more")
        if number == 1:
            if raw.startswith(GZIP_MAGIC):
                raise BadTrace(place, "UTF-8 text", "gzip's data in a file not named .gz")
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            found = f"byte 0x{raw[error.start]:02x} after {error.start} bytes of the line"
            raise BadTrace(place, "UTF-8 text", found) from error
        if text:
            yield Line(file, number, text)


class Row:
    """The cells of one line by column, with the checks that every reader needs."""

    __slots__ = ("_cells", "line")

    def __init__(self, line: Line, cells: Mapping[str, str]) -> None:
        self.line = line
        self._cells = cells

    def text(self, column: str, *, empty: bool = False) -> str:
        """A cell as it is; it must not be empty unless that is said."""
        cell = self._cells[column]
        if not cell and not empty:
            self.line.bad(f"something in column {column}", cell)
        return cell

    def whole(self, column: str, least: int = 0, most: int = NUMBER_MAX) -> int:
        """A whole number between least and most."""
        cell = self._cells[column]
        digits = cell.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
            self.line.bad(f"a whole number in column {column}", cell)
        value = int(cell)
        if not least <= value <= most:
            self.line.bad(f"a number from {least} to {most} in column {column}", cell)
        return value

    def seconds_ms(self, column: str, least_ms: int = 0) -> int:
        """Decimal seconds (`12`, `12.500000`) as whole milliseconds, rounded down."""
        cell = self._cells[column]
        whole, _, part = cell.partition(".")
        digits = whole + (part or "0")
        if not (whole and digits.isascii() and digits.isdigit()) or len(digits) > 30:
            self.line.bad(f"decimal seconds in column {column}", cell)
        value = int(whole) * 1000 + int(part[:3].ljust(3, "0"))
        if not least_ms <= value <= NUMBER_MAX:
            expected = f"{least_ms / 1000:g} to {NUMBER_MAX // 1000} seconds in column {column}"
            self.line.bad(expected, cell)
        return value


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file with a header that names at least these columns, in any order."""
    return csv_rows(read_lines(path), columns, path.name)


def csv_rows(lines: Iterable[Line], columns: Sequence[str], file: str) -> Iterator[Row]:
    """Like `read_csv`, from lines. A cell never spans lines."""
    header: list[str] | None = None
    for line in lines:
        cells = _cells(line)
        if header is None:
            missing = [column for column in columns if column not in cells]
            if missing:
                line.bad(f"a header with the columns {', '.join(missing)}")
            twice = [column for column in columns if cells.count(column) > 1]
            if twice:
                line.bad(f"a header with one column {', '.join(twice)}")
            header = cells
            continue
        if len(cells) != len(header):
            line.bad(f"{len(header)} cells", f"{len(cells)} cells")
        yield Row(line, dict(zip(header, cells, strict=True)))
    if header is None:
        raise BadTrace(f"{file}:1", "a header", "nothing")


def _cells(line: Line) -> list[str]:
    if '"' not in line.text and "\0" not in line.text:
        return line.text.split(",")
    try:
        return next(csv.reader(io.StringIO(line.text), strict=True))
    except (csv.Error, StopIteration) as error:
        return line.bad(f"comma-separated cells ({error})")

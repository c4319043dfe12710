"""The tables, and how a record becomes a row and comes back.

One table a record type, one column a field: scalars as typed columns, composite values (devices,
placements, demands) as JSON text. There are no foreign keys between records: what may refer to
what is the control plane's rule, the same for every store.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

from onefleet.store.base import Record
from onefleet.store.changes import TABLES

metadata = MetaData()

#: One row (id 1): the state's generation and the sequence of the newest event.
meta = Table(
    "meta",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False),
    Column("event_sequence", BigInteger, nullable=False),
)

marks = Table(
    "marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("text", Text, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("deployment_id", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)

held = Table(
    "held",
    metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False),
    Column("label", Text, primary_key=True),
    Column("amount", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class FieldCodec:
    """One field of a record as one column."""

    name: str
    column: Column[Any]
    dump: Callable[[Any], Any]
    load: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class RecordMapper:
    """Records of one type as rows of one table."""

    type: type[Record]
    table: Table
    codecs: tuple[FieldCodec, ...]

    def row(self, record: Record) -> dict[str, Any]:
        return {codec.name: codec.dump(getattr(record, codec.name)) for codec in self.codecs}

    def record(self, row: Mapping[Any, Any]) -> Record:
        """The record of a row. Raises msgspec.ValidationError or ValueError on a damaged one."""
        values = {codec.name: codec.load(row[codec.name]) for codec in self.codecs}
        return self.type(**values)


def _codec(name: str, hint: Any) -> FieldCodec:
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    kind, dump, load = _scalar(hint) or _composite(hint)
    return FieldCodec(
        name=name,
        column=Column(name, kind, primary_key=name == "id", nullable=optional),
        dump=_or_none(dump) if optional else dump,
        load=_or_none(load) if optional else load,
    )


Codec = tuple[type[TypeEngine[Any]], Callable[[Any], Any], Callable[[Any], Any]]


def _scalar(hint: Any) -> Codec | None:
    """The codec of text, integers, booleans, enums and the id types over them."""
    plain = getattr(hint, "__supertype__", hint)
    if plain is bool:
        return Boolean, bool, bool
    if plain is int:
        return BigInteger, int, int
    if plain is str:
        return Text, str, str
    if isinstance(plain, type) and issubclass(plain, Enum):
        return Text, _enum_text, plain
    return None


def _composite(hint: Any) -> Codec:
    decoder = msgspec.json.Decoder(hint)
    return Text, _json_text, decoder.decode


def _enum_text(value: Enum) -> str:
    return str(value.value)


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _or_none(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def _mapper(record_type: type[Record], name: str) -> RecordMapper:
    hints = get_type_hints(record_type)
    codecs = tuple(_codec(field.name, hints[field.name]) for field in fields(record_type))
    table = Table(name, metadata, *(codec.column for codec in codecs))
    return RecordMapper(record_type, table, codecs)


#: By table name; every record type of the store has one.
MAPPERS: Mapping[str, RecordMapper] = {
    name: _mapper(record_type, name) for record_type, name in TABLES.items()
}

"""Copies of frozen records of which little changes, at a third of what `dataclasses.replace` takes.

That sets each field by name through `__init__`. Here the fields are copied slot by slot, and then
what changes is set: records with dozens of fields are copied several times for each decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

RecordT = TypeVar("RecordT")


class _Layout(NamedTuple):
    """How to read all fields of a record, and how to set each, in the same order and by name."""

    read: Callable[[object], tuple[object, ...]]
    setters: tuple[Callable[[object, object], None], ...]
    by_name: Mapping[str, Callable[[object, object], None]]


def changed(record: RecordT, **changes: Any) -> RecordT:
    """As `dataclasses.replace`, for records with slots of which `__init__` does nothing else.

    Raises TypeError for a field that there is not.
    """
    kind: type = type(record)
    layout = _layout_of(kind)
    copy: RecordT = object.__new__(kind)
    for put, value in zip(layout.setters, layout.read(record), strict=True):
        put(copy, value)
    for name, value in changes.items():
        if name not in layout.by_name:
            raise TypeError(f"{kind.__name__} has no field {name!r}")
        layout.by_name[name](copy, value)
    return copy


@cache
def _layout_of(kind: type) -> _Layout:
    assert not hasattr(kind, "__post_init__"), f"{kind.__name__} is more than its fields"
    names = [field.name for field in fields(kind)]
    assert len(names) > 1, f"{kind.__name__} is too small: attrgetter makes no tuple of one"
    setters = {name: getattr(kind, name).__set__ for name in names}
    return _Layout(attrgetter(*names), tuple(setters.values()), setters)

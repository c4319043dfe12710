"""YAML for plain data, so that ``-o yaml`` needs no library.

Writes block style; every string that YAML could read as something else is quoted as JSON, which
YAML 1.2 contains.
"""

from __future__ import annotations

import json
import re

#: Strings that need no quotes: they start with a letter or a slash and hold nothing special.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*(?: [A-Za-z0-9_./+()-]+)*\Z")
#: Characters that JSON leaves as they are and YAML does not allow inside quotes.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
#: Words that some YAML reader takes for a boolean, null or number.
_RESERVED = frozenset(
    ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "inf", "nan", "e")
)

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def dump(value: object) -> str:
    """Plain data (dict, list, str, numbers, None) as YAML text that ends with a newline."""
    return "\n".join(_block(value, 0)) + "\n"


def _block(value: object, depth: int) -> list[str]:
    pad = "  " * depth
    if isinstance(value, dict) and value:
        lines = []
        for key, inner in value.items():
            lines += _entry(f"{pad}{_scalar(str(key))}:", inner, depth)
        return lines
    if isinstance(value, list | tuple) and value:
        lines = []
        for inner in value:
            if _is_block(inner):
                body = _block(inner, depth + 1)
                lines.append(f"{pad}- {body[0].lstrip(' ')}")
                lines += body[1:]
            else:
                lines.append(f"{pad}- {_scalar(inner)}")
        return lines
    return [pad + _scalar(value)]


def _entry(head: str, inner: object, depth: int) -> list[str]:
    if _is_block(inner):
        return [head, *_block(inner, depth + 1)]
    return [f"{head} {_scalar(inner)}"]


def _is_block(value: object) -> bool:
    return isinstance(value, dict | list | tuple) and bool(value)


def _scalar(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            text = json.dumps(value)  # 1e-05 is a string to YAML 1.1: it wants the point
            return text if "." in text else text.replace("e", ".0e")
        case int():
            return str(value)
        case dict():
            return "{}"
        case list() | tuple():
            return "[]"
        case str() if _PLAIN.match(value) and value.lower() not in _RESERVED:
            return value
        case _:
            quoted = json.dumps(str(value), ensure_ascii=False)
            return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", quoted)

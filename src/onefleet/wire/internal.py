"""How the pool's own processes reach the control plane: the contents of `Layout.internal_file`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from onefleet.domain.errors import Unreachable


class Internal(msgspec.Struct, frozen=True, kw_only=True):
    """The control plane's loopback address, and the token that internal calls carry."""

    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def read(path: Path) -> Internal:
    """Read the file. Raises Unreachable when it is not there or torn."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Internal)
    except (OSError, msgspec.DecodeError) as error:
        raise Unreachable(
            "the control plane's address is not known", why=str(error), hint="onefleet up"
        ) from error

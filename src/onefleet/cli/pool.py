"""How a command finds the running pool: the data folder says where it is and holds the key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from onefleet.config import settings
from onefleet.domain.errors import Forbidden, Unauthenticated, Unreachable

if TYPE_CHECKING:
    from onefleet.domain.layout import Layout
    from onefleet.wire.client import Client

#: How long a plain call may take; calls that wait say so themselves.
TIMEOUT_S = 60.0


def pool_url(layout: Layout) -> str:
    """The address of the pool that runs on this data folder. Raises Unreachable."""
    try:
        found = json.loads(layout.pool_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreachable(
            f"no pool runs on {layout.root}",
            why=f"{layout.pool_file} is not there",
            hint="onefleet up, or name another folder with --data-dir",
        ) from None
    except (ValueError, OSError) as error:
        raise Unreachable(
            f"{layout.pool_file} cannot be read", why=str(error), hint="onefleet down; onefleet up"
        ) from error
    return str(found["url"])


def stored_key(layout: Layout) -> str:
    """The administrator's key in the data folder. Raises Unauthenticated, Forbidden."""
    try:
        return layout.credentials.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise Unauthenticated(
            "no API key",
            why=f"neither ONEFLEET_KEY nor {layout.credentials} is there",
            hint="export ONEFLEET_KEY=...",
        ) from None
    except PermissionError:
        raise Forbidden(
            f"{layout.credentials} may not be read by this user",
            why="the file belongs to whoever started the pool",
            hint="export ONEFLEET_KEY=... with a key of your own (onefleet key create)",
        ) from None


def connect(data_dir: str | None, timeout_s: float = TIMEOUT_S) -> Client:
    """A client of the pool of this data folder, with ONEFLEET_KEY or the stored key."""
    from onefleet.wire.client import Client

    chosen = settings(data_dir)
    url = pool_url(chosen.layout)
    return Client(url, chosen.key or stored_key(chosen.layout), timeout_s=timeout_s)

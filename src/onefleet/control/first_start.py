"""What a pool is never without: the default tenant, and a key that administers it."""

from __future__ import annotations

import os
from pathlib import Path

from onefleet.control.api.tenants import new_key, new_key_text
from onefleet.control.auth import digest_of
from onefleet.control.pool import Pool
from onefleet.domain.ids import Instant, KeyId
from onefleet.domain.tenancy import DEFAULT_TENANT, Role, Tenant
from onefleet.store.base import Commit, Note, Put, State


async def ensure_administrator(pool: Pool) -> None:
    """Make the default tenant and the administrator's key where they are missing.

    The key's text is only in the credentials file. It is written before the key is stored: a
    crash in between leaves a file whose key the next start stores. A key that was revoked stays
    revoked, unless nobody could administer the pool any more.
    """
    path = pool.layout.credentials
    state = await pool.store.read()
    text = _read(path)
    if text is None or (_revoked(state, text) and not _has_admin(state)):
        text = new_key_text()
        write_private(path, text + "\n")
    digest = digest_of(text)

    def decide(state: State, now: Instant) -> tuple[Commit, None]:
        puts = []
        if DEFAULT_TENANT not in state.tenants:
            puts.append(Put(Tenant(DEFAULT_TENANT, None, None, None, now)))
        if all(key.digest != digest for key in state.keys.values()):
            key_id = KeyId(pool.ids.new("key"))
            key = new_key(key_id, DEFAULT_TENANT, "administrator", Role.ADMIN, text, now)
            puts.append(Put(key))
        notes = [Note(now, "pool.prepared", "pool", "")] if puts else []
        return Commit(puts, notes), None

    await pool.change(decide)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _revoked(state: State, text: str) -> bool:
    digest = digest_of(text)
    return any(k.digest == digest and k.revoked_at is not None for k in state.keys.values())


def _has_admin(state: State) -> bool:
    return any(k.role is Role.ADMIN and k.revoked_at is None for k in state.keys.values())

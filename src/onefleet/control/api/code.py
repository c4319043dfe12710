"""Packaged code folders: checked, and kept by their digest."""

from __future__ import annotations

import asyncio

from onefleet.control.call import Call
from onefleet.domain.layout import Layout
from onefleet.registry import code
from onefleet.wire.api import CodeView


async def upload_code(call: Call) -> CodeView:
    """Keep the tar of a code folder. The same folder twice is kept once.

    Raises TooLarge naming the limit, InvalidRequest for what must not be unpacked, StorageFull.
    """
    async with call.pool.uploads:
        data = await call.raw(code.PACKAGE_BYTES_MAX)
        return await asyncio.to_thread(_keep, data, call.pool.layout)


def _keep(data: bytes, layout: Layout) -> CodeView:
    package = code.check(data)
    return CodeView(digest=code.store(package, layout), size_bytes=len(data), files=package.files)

"""`python -m onefleet.gateway`: a gateway by itself, beside a control plane that runs already."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from onefleet import config
from onefleet.gateway.process import run


class Internal(msgspec.Struct):
    """The control plane's address, as the launcher writes it."""

    host: str
    port: int
    token: str


def main(arguments: list[str] | None = None) -> int:
    """Read the flags and the pool's internal address; serve. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m onefleet.gateway")
    parser.add_argument("--data-dir")
    parser.add_argument("--host", default=config.DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=config.DEFAULT_PORT)
    parser.add_argument("--listen-fd", type=int, help="a listening socket to take over")
    parser.add_argument("--port-file", type=Path, help="where to write the address")
    options = parser.parse_args(arguments)
    layout = config.settings(options.data_dir).layout
    try:
        internal = msgspec.json.decode(layout.internal_file.read_bytes(), type=Internal)
    except (OSError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"error: {layout.internal_file} cannot be read\nwhy: {error}\n")
        sys.stderr.write("try: onefleet up\n")
        return 1
    return run(
        layout,
        internal.host,
        internal.port,
        internal.token,
        listen_fd=options.listen_fd,
        host=options.host,
        port=options.port,
        port_file=options.port_file,
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m onefleet.gateway`: a gateway by itself, beside a control plane that runs already."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onefleet import config
from onefleet.domain.errors import Unreachable
from onefleet.gateway.process import run
from onefleet.wire import internal


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
        control = internal.read(layout.internal_file)
    except Unreachable as error:
        sys.stderr.write(f"{error.lines()}\n")
        return error.exit_code
    return run(
        layout,
        control.host,
        control.port,
        control.token,
        listen_fd=options.listen_fd,
        host=options.host,
        port=options.port,
        port_file=options.port_file,
    )


if __name__ == "__main__":
    sys.exit(main())

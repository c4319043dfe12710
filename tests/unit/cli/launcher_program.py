"""A launcher with tiny children, as a program of its own: launchers own their process's signals.

usage: python launcher_program.py DATA_DIR PORT [MODE]   prints "ready URL" when ready
       python launcher_program.py --child NAME MODE --fd=N
"""

from __future__ import annotations

import http.server
import os
import signal
import socket
import sys
import time
from pathlib import Path

from onefleet.cli.launcher import ChildSpec, Launcher
from onefleet.domain.errors import OnefleetError
from onefleet.domain.layout import Layout


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def child(name: str, mode: str, fd: str) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if mode == f"{name}-dies":
        sys.exit("I cannot")
    if name == "agent":
        signal.signal(signal.SIGUSR1, lambda *_: drained(mode))
        Path("agent-up").touch()
        while True:
            time.sleep(0.05)
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=int(fd.removeprefix("--fd=")))
    server.serve_forever()


def drained(mode: str) -> None:
    if mode == "agent-hangs":
        return
    sys.stderr.write("drained\n")
    os._exit(0)


def main(data_dir: str, port: str, mode: str = "") -> int:
    layout = Layout(Path(data_dir))
    os.chdir(data_dir)

    def command(name: str) -> tuple[str, ...]:
        return (sys.executable, __file__, "--child", name, mode)

    children = (
        ChildSpec("control", command("control"), listener="control"),
        ChildSpec("gateway", command("gateway"), listener="public"),
        ChildSpec("agent", command("agent"), drains=True),
    )
    sweep = (sys.executable, "-c", f"open({str(layout.root / 'swept')!r}, 'w').close()")

    def ready(layout: Layout, url: str) -> str:
        if mode == "never" or mode.endswith("-dies"):
            return "ages"
        return "" if Path("agent-up").exists() else "the agent"

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        Launcher(layout, int(port), children, sweep, ready, say).run(lambda u: say(f"ready {u}"))
    except OnefleetError as error:
        print(error.lines(), flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(*sys.argv[2:4], fd=sys.argv[4] if len(sys.argv) > 4 else "")
    else:
        sys.exit(main(*sys.argv[1:]))

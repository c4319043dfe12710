"""Memory pages are checked while criu reads them: two readers of the same pages cost little more.

They are nearly all of an image, and criu only carries them. So a process of its own compares their
checksums meanwhile, and what criu has restored is let go only when that has found nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from typing import NoReturn

from onefleet.drivers import linux

#: How the files begin that hold pages and nothing else.
PAGES = "pages-"


class PageCheck:
    """One check under way. It ends with this process, and with `close`."""

    def __init__(self, names: Iterable[str], is_whole: Callable[[str], bool]) -> None:
        """is_whole: called in the other process with each name; raises OSError."""
        self.pid = 0
        chosen = tuple(names)
        if not chosen:
            return
        self._verdict, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become_check(chosen, is_whole, told)
        os.close(told)

    def wait(self) -> str:
        """What is wrong, when the check is through; empty when nothing is."""
        if not self.pid:
            return ""
        with os.fdopen(self._verdict, encoding="utf-8") as lines:
            said = lines.read()
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        return said if said or status == 0 else "its pages could not be checked"

    def close(self) -> None:
        """Break it off, if it is not through."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            os.close(self._verdict)
            self.pid = 0


def _become_check(names: Iterable[str], is_whole: Callable[[str], bool], told: int) -> NoReturn:
    code = 1
    try:
        linux.die_with_parent(signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for name in names:
            try:
                wrong = "" if is_whole(name) else f"{name} has been changed: its checksum differs"
            except OSError as error:
                wrong = f"{name} cannot be read: {error.strerror}"
            if wrong:
                os.write(told, wrong.encode())
                break
        code = 0
    finally:
        os._exit(code)

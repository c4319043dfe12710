"""Transparent saves without root: the same cells, by an ordinary user in a user namespace.

Where the tests run as root, those that matter run once more in a process of an ordinary user, with
the agent's side, the supervisor, criu and the job all without privileges.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onefleet.domain.errors import UpstreamFailed
from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers.base import WorkerSpec, WorkerState
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.criu_setup import CriuTool
from onefleet.drivers.rights import rights

from .conftest import Bench, wait_for
from .ordinary import NoUser, OrdinaryUser
from .test_criu_saves import state

pytestmark = pytest.mark.criu

_HERE = "tests/integration/drivers"
_AS_A_USER = (
    "test_contract.py::test_stop_ends_it_and_may_be_called_again[criu]",
    "test_contract_holds.py::test_a_frozen_worker_is_saved_like_any_other[criu]",
    "test_contract_holds.py::test_a_frozen_worker_stands_and_goes_on[criu]",
    "test_contract_holds.py::test_a_held_restore_moves_nothing_until_it_is_let_go[criu]",
    "test_contract_holds.py::test_a_held_save_is_given_up_or_goes_on[criu]",
    "test_contract_holds.py::test_a_checkpoint_leaves_it_running[criu]",
    "test_criu_failures.py::test_a_supervisor_killed_in_a_save_leaves_neither_process_nor_image",
    "test_criu_failures.py::test_criu_killed_in_the_middle_ends_the_worker_honestly",
    "test_criu_failures.py::test_torn_and_corrupt_images_are_told_and_stay_saved",
    "test_criu_saves.py::test_a_growing_file_has_no_lines_of_the_future",
    "test_criu_saves.py::test_a_tree_with_pipes_and_threads_goes_on",
    "test_criu_saves.py::test_a_worker_moves_to_another_folder",
    "test_criu_saves.py::test_its_clocks_stand_still_while_it_is_saved",
    "test_criu_saves.py::test_its_terminals_come_back_whoever_has_others_meanwhile",
    "test_criu_saves.py::test_memory_is_free_after_a_save",
    "test_criu_saves.py::test_orphans_stay_in_the_tree",
    "test_criu_saves.py::test_output_and_exit_code_are_those_of_an_undisturbed_run",
    "test_criu_saves.py::test_processes_outside_the_tree_refuse_a_save",
    "test_criu_saves.py::test_sockets_locks_and_shared_memory_survive",
    "test_criu_saves.py::test_the_worker_sees_its_cell",
    "test_criu_saves.py::test_with_the_machines_network_it_is_saved_as_well",
    "test_gang.py::test_a_checkpoint_leaves_the_gang_running_and_takes_it_back",
    "test_gang.py::test_a_gang_goes_on_bit_by_bit",
    "test_gang.py::test_one_rank_moves_while_the_other_waits",
    "test_supervisor.py::test_a_signal_is_told_by_its_exit_code[criu-11]",
    "test_supervisor.py::test_it_outlives_the_process_that_started_it[criu]",
    "test_supervisor.py::test_nothing_outlives_its_supervisor[criu]",
    "test_criu_ordinary_user.py::test_the_probe_names_the_user_and_its_limits",
    "test_criu_ordinary_user.py::test_a_limit_is_named_and_the_worker_runs_on",
)
_REACHES = pytest.mark.skipif(
    not rights().user_namespace, reason="this is root; the test runs in an ordinary user's process"
)

#: A program that holds what an ordinary user cannot save, by what the refusal has to name.
_LIMITS = {
    "deleted files": "import multiprocessing; held = multiprocessing.Lock()",
    "seccomp": "from onefleet.drivers import linux; linux.gain_no_privileges(); "
    "linux.deny_io_uring()",
    "io_uring": "import ctypes; room = ctypes.create_string_buffer(256); "
    "held = ctypes.CDLL(None).syscall(425, 8, room); assert held > 0",
    "inotify": "import ctypes; libc = ctypes.CDLL(None); held = libc.inotify_init1(0); "
    "assert libc.inotify_add_watch(held, b'/job', 2) > 0",
    "machine's network": "import socket; server = socket.create_server(('127.0.0.1', 0)); "
    "near = socket.create_connection(server.getsockname()); far = server.accept()",
}


@pytest.fixture(scope="module")
def user(can_criu: CriuTool) -> Iterator[OrdinaryUser]:
    """The user, with a criu that works for it; skips with the exact reason."""
    if rights().user_namespace:
        pytest.skip("not root: all tests of these drivers already run as an ordinary user")
    home = Path(tempfile.mkdtemp(prefix="onefleet-user-"))
    home.chmod(0o755)
    try:
        user = OrdinaryUser(home)
    except NoUser as error:
        shutil.rmtree(home)
        pytest.skip(str(error))
    try:
        code = (
            "import asyncio; from onefleet.drivers.criu import *\n"
            f"find = make_finder(Path({str(home / 'criu')!r}), None)\n"
            "print(asyncio.run(CriuDriver(find).probe()))"
        )
        done = user.run(user.python, "-c", code)
        if "user.max_user_namespaces" in done.stdout or "unprivileged_userns" in done.stdout:
            pytest.skip(f"this machine allows no user namespaces: {done.stdout.strip()}")
        assert "CheckpointMode.CRIU" in done.stdout, done.stdout + done.stderr
        yield user
    finally:
        user.close()


@pytest.fixture(scope="module")
def as_a_user(user: OrdinaryUser) -> Callable[[str], tuple[dict[str, str], str]]:
    """How all tests of a file came out in one process of the user, and what was said."""

    @functools.cache
    def run(file: str) -> tuple[dict[str, str], str]:
        return user.test(*(f"{_HERE}/{node}" for node in _AS_A_USER if node.startswith(file)))

    return run


@pytest.mark.parametrize("node", _AS_A_USER)
def test_as_an_ordinary_user(
    as_a_user: Callable[[str], tuple[dict[str, str], str]], node: str
) -> None:
    outcomes, said = as_a_user(node.partition("::")[0])
    mine = [how for name, how in outcomes.items() if f"{name}[".startswith(f"{_HERE}/{node}[")]
    assert mine and set(mine) == {"PASSED"}, said


@_REACHES
def test_the_probe_names_the_user_and_its_limits(can_criu: CriuTool) -> None:
    capability = asyncio.run(CriuDriver(lambda: can_criu).probe())
    assert capability.mode is CheckpointMode.CRIU
    assert f"as user {os.getuid()}, in a user namespace" in capability.evidence
    assert all(limit.what in capability.evidence for limit in rights().limits)


@_REACHES
@pytest.mark.parametrize("name", list(_LIMITS))
def test_a_limit_is_named_and_the_worker_runs_on(criu: Bench, name: str) -> None:
    source = f"import sys; sys.path[:0] = {sys.path!r}\n{_LIMITS[name]}\n"
    source += "import time\nfor n in range(100000): print(n, flush=True); time.sleep(0.002)"

    async def scenario() -> None:
        network = "host" if name == "machine's network" else "cell"
        await criu.driver.start(criu.spec(source, network=network))
        criu.wait_lines(5)
        with pytest.raises(UpstreamFailed, match="could not save") as caught:
            await criu.driver.save(criu.folder, criu.image())
        assert f"{name}" in caught.value.why
        assert "without root" in caught.value.why
        assert not criu.image().exists()
        assert await state(criu) is WorkerState.RUNNING
        criu.wait_lines(len(criu.out().splitlines()) + 20)
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


#: Saves a program that says who it is; it stays in the folder that is given.
_SAVES = """
import asyncio, sys
from pathlib import Path
from onefleet.drivers.base import WorkerSpec
from onefleet.drivers.criu import CriuDriver, make_finder
source = "import os, time\\nwhile True: print(os.getuid(), flush=True); time.sleep(0.01)"
base, managed = Path(sys.argv[1]), Path(sys.argv[2])
async def main():
    driver = CriuDriver(make_finder(managed, None))
    command = (sys.executable, "-I", "-c", source)
    await driver.start(WorkerSpec(folder=base / "w", command=command, work=base))
    while not (base / "w" / "stdout").read_text(): await asyncio.sleep(0.01)
    await driver.save(base / "w", base / "image")
asyncio.run(main())
"""


def test_root_brings_an_ordinary_users_image_back_as_that_user(
    user: OrdinaryUser, can_criu: CriuTool
) -> None:
    base = user.home / "moved"
    base.mkdir()
    user.own(base)
    done = user.run(user.python, "-c", _SAVES, str(base), str(user.home / "criu"))
    assert done.returncode == 0, done.stderr
    stdout = base / "w" / "stdout"
    seen = stdout.read_text().count("\n")

    async def scenario() -> None:
        driver = CriuDriver(lambda: can_criu)
        spec = WorkerSpec(folder=base / "w", command=("unused",), work=base)
        await driver.restore(spec, base / "image")
        wait_for(stdout.read_text, lambda text: text.count("\n") > seen + 5)
        pid = (await driver.status(base / "w")).pid
        assert os.stat(f"/proc/{pid}").st_uid == user.id
        await driver.stop(base / "w", 0)

    asyncio.run(scenario())
    assert set(stdout.read_text().splitlines()) == {str(user.id)}


def test_where_user_namespaces_are_forbidden_it_says_so(can_criu: CriuTool) -> None:
    """In a user namespace that forbids further ones, which is a setting of its own."""
    code = (
        "import asyncio; from onefleet.drivers.criu import *\n"
        f"tool = {can_criu!r}\nprint(asyncio.run(CriuDriver(lambda: tool).probe()))"
    )
    code = f"from onefleet.drivers.criu_setup import CriuTool\n{code}"
    setting = "/proc/sys/user/max_user_namespaces"
    script = f'echo 0 >{setting} && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-U", "-r", "sh", "-c", script, sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"the setting could not be made: {done.stderr.strip()}")
    assert "CheckpointMode.NONE" in done.stdout
    assert "user.max_user_namespaces is 0" in done.stdout
    assert "sysctl user.max_user_namespaces=10000" in done.stdout

"""The check that runs after every test notices what a test leaves behind, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests import leaks
from tests.support import alive, eventually, eventually_async, find_process


def test_a_child_that_was_left_running_is_named_and_killed(tmp_path: Path) -> None:
    before = leaks.look()
    child = subprocess.Popen(["sleep", "60"])
    found = leaks.check(before, tmp_path, tmp_path / "tmp", grace_s=0)
    assert f"process {child.pid}" in str(found) and "sleep 60" in str(found)
    assert child.wait(5) == -signal.SIGKILL


def test_a_daemon_is_found_by_the_directory_it_works_for(tmp_path: Path) -> None:
    before = leaks.look()
    subprocess.run(
        ["sh", "-c", f"sleep 61 & echo $! > {tmp_path}/pid"], cwd=tmp_path, start_new_session=True, check=True
    )
    pid = int((tmp_path / "pid").read_text())
    found = leaks.check(before, tmp_path, tmp_path / "tmp", grace_s=0)
    assert [p.pid for p in found.processes] == [pid]
    eventually(lambda: not alive(pid), 5, "the daemon to die")


def test_a_socket_a_thread_and_a_temporary_file_are_found(tmp_path: Path) -> None:
    before = leaks.look()
    listener = socket.create_server(("127.0.0.1", 0))
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, name="forgotten")
    thread.start()
    handle, name = tempfile.mkstemp()
    os.close(handle)
    text = str(leaks.check(before, tmp_path, tmp_path / "tmp", grace_s=0))
    assert "socket:[" in text and "thread forgotten" in text and name in text
    go_on.set()
    thread.join()
    listener.close()
    os.unlink(name)
    assert not leaks.check(before, tmp_path, tmp_path / "tmp", grace_s=0)


def test_a_helpers_socket_is_a_leak_where_it_can_only_be_this_tests(tmp_path: Path) -> None:
    before = leaks.look()
    for where in (tmp_path, tmp_path / "sshd"):
        left = where / leaks.RUNTIME / "xenoshell-0-1-0123456789ab"
        left.mkdir(parents=True)
        assert str(left) in str(leaks.check(before, tmp_path, tmp_path / "tmp", grace_s=0))
        left.rmdir()


def test_what_other_runs_leave_on_this_machine_is_not_taken_for_this_tests(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    before = leaks.look(shared)
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    other = ["sh", "-c", "sleep 63 >/dev/null 2>&1 & echo $!"]  # as in another run: no child of this one
    stranger = int(subprocess.run(other, check=True, capture_output=True, env={}, cwd="/").stdout)
    try:
        for pid in (child.pid, gone.pid, stranger):
            (shared / f"xenoshell-{os.geteuid()}-{pid}-0123456789ab").mkdir()
        (shared / "xenoshell-of-nobody").mkdir()
        found = leaks.find(before, tmp_path, tmp_path / "tmp", shared)
        assert [p.pid for p in found.processes] == [child.pid]
        assert found.others == (f"temporary file {shared}/xenoshell-of-nobody",)
    finally:
        child.kill()
        child.wait()
        os.kill(stranger, signal.SIGKILL)


def test_what_is_only_slow_to_end_is_no_leak(tmp_path: Path) -> None:
    before = leaks.look()
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(0.2)"])
    waiter = threading.Thread(target=child.wait)
    waiter.start()
    assert not leaks.check(before, tmp_path, tmp_path / "tmp")
    waiter.join()


def test_eventually_tells_what_it_waited_for_and_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"the answer: not within 0.05 s; last seen: 0"):
        eventually(lambda: 0, 0.05, "the answer")
    seen = iter([0, 0, 7])
    assert eventually(lambda: next(seen), 5) == 7


async def test_eventually_waits_for_coroutines_too() -> None:
    seen = iter([0, 7])

    async def check() -> int:
        return next(seen)

    assert await eventually_async(check, 5) == 7


def test_processes_are_found_by_words_of_their_command_line(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "62"])
    try:
        assert [p.pid for p in find_process("sleep", "62")] == [child.pid]
    finally:
        child.kill()
        child.wait()
    assert not find_process("sleep", "62")

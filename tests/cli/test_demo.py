"""The demonstration leaves nothing behind, however it ends."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support import PACKAGES, eventually
from xenoshell import demo, lab
from xenoshell.cli.root import build
from xenoshell.paths import Paths
from xenoshell.session.load import load_session
from xenoshell.wire.causes import Failure

pytestmark = pytest.mark.integration


def test_its_session_file_is_right_and_names_its_hosts(paths: Paths) -> None:
    own = demo.demo_paths(paths)
    session = load_session(demo.session_file(own, ("ams-1", "nyc-1"))).session
    assert session.vm_names() == ("web-1", "web-2")
    assert session.vm[0].hosts == ("ams-1", "nyc-1")
    assert {f.guest for f in session.vm[0].network.forward} == {22, 80}


def test_it_touches_neither_hosts_nor_sessions_of_the_user(paths: Paths) -> None:
    own = demo.demo_paths(paths)
    assert own.hosts_file != paths.hosts_file
    assert own.sessions != paths.sessions
    assert own.lab != paths.lab
    assert paths.state in own.state.parents


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"Hello\x1b[2J from a guest\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_pages_are_fetched_and_what_fails_is_told(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # no proxy stands between this machine and itself
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()[1]
    good, bad = demo.fetch({"web-1": page, "web-2": f"127.0.0.1:{nobody}"})
    assert good.text == "Hello\x1b[2J from a guest\n"
    assert good.error == ""
    assert bad.text == ""
    assert "refused" in bad.error
    assert demo.fetch({}) == ()


def test_what_it_says_to_try_are_commands(paths: Paths) -> None:
    own = demo.demo_paths(paths)
    first, *lines = demo.next_commands(own, ("ams-1",))
    assert first == f"export XENOSHELL_STATE_DIR={own.state}"  # where all that follow find it
    assert max(map(len, lines)) < 76
    for line in lines:
        words = line.split()
        assert words[0] == "xenoshell"
        name = words[1:3] if words[1] == "lab" else words[1:2]
        assert CliRunner().invoke(build(), [*name, "--help"]).exit_code == 0


PROGRAM = """
import sys, time
from xenoshell import demo, lab
from xenoshell.paths import paths
own = demo.demo_paths(paths())
try:
    with demo.cleared(own, print) as kept:
        lab.up(own, 2)
        print("up", flush=True)
        if "keep" in sys.argv:
            kept()
        elif "fail" in sys.argv:
            raise ValueError
        else:
            time.sleep(60)
except (KeyboardInterrupt, ValueError):
    sys.exit(130)
"""


@pytest.fixture
def started(own_world: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_everything_down(
    started: Callable[..., subprocess.Popen[str]], paths: Paths, number: signal.Signals
) -> None:
    child = started()
    own = demo.demo_paths(paths)
    assert len(lab.status(own)) == 2
    child.send_signal(number)
    assert child.wait(30) == 130
    assert lab.status(own) == ()
    assert not own.lab.exists()


def test_impatience_does_not_stop_the_cleaning(started: Callable[..., subprocess.Popen[str]], paths: Paths) -> None:
    child = started()
    child.send_signal(signal.SIGINT)
    assert child.stdout is not None
    assert "removing" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    child.wait(30)
    eventually(lambda: not demo.demo_paths(paths).lab.exists(), 10)


def test_a_second_demonstration_leaves_the_first_alone(
    started: Callable[..., subprocess.Popen[str]], paths: Paths
) -> None:
    child = started()
    own = demo.demo_paths(paths)
    with pytest.raises(Failure) as caught, demo.cleared(own, print):
        raise AssertionError("it began")
    assert caught.value.cause == "busy"
    assert len(lab.status(own)) == 2
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130


def test_a_failure_takes_everything_down(started: Callable[..., subprocess.Popen[str]], paths: Paths) -> None:
    assert started("fail").wait(30) == 130
    assert not demo.demo_paths(paths).lab.exists()


def test_kept_is_kept(started: Callable[..., subprocess.Popen[str]], paths: Paths) -> None:
    assert started("keep").wait(30) == 0
    own = demo.demo_paths(paths)
    try:
        assert [host.server for host in lab.status(own)] == [True, True]
    finally:
        demo.clear(own)
    assert not own.lab.exists()


@pytest.mark.e2e
def test_the_whole_demonstration(paths: Paths, tmp_path: Path) -> None:
    """As a newcomer runs it, the template's packages included."""
    environment = {**os.environ, "XENOSHELL_CACHE_DIR": str(PACKAGES.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "xenoshell", "demo", "--hosts", "2", "--plain"],
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Hello from web-1 on ams-1." in done.stdout
    assert "Hello from web-2 on" in done.stdout
    assert "EUR" in done.stdout
    assert not demo.demo_paths(paths).lab.exists()
    assert not demo.demo_paths(paths).sessions.exists()

"""Every test has directories of its own, sees nothing of the user's, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests import leaks
from tests.support import descendants, running_lab

if TYPE_CHECKING:
    from xenoshell.lab import Lab
    from xenoshell.paths import Paths


# How long an example takes says something about the machine, not about the product.
settings.register_profile("usual", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("usual"), max_examples=5000)
settings.load_profile("usual")  # pytest --hypothesis-profile=thorough takes the other one


def pytest_configure() -> None:
    """Signals are as on a terminal, even where `nohup` or a shell's ``&`` had them ignored: children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short name (UNIX socket paths have 107 bytes), removed after the test whatever its outcome."""
    path = Path(tempfile.mkdtemp(prefix="xt-", dir="/tmp"))
    try:
        yield path
    finally:
        _remove(path)


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Home, configuration, state, cache and TMPDIR of the test's own; afterwards the check for what leaked."""
    temporary = tmp_path / "tmp"
    for name in ("home", "config", "state", "cache", "tmp", leaks.RUNTIME):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / leaks.RUNTIME))
    for name in ("config", "state", "cache"):
        monkeypatch.setenv(f"XENOSHELL_{name.upper()}_DIR", str(tmp_path / name))
        monkeypatch.delenv(f"XDG_{name.upper()}_HOME", raising=False)
    for name in ("SSH_AUTH_SOCK", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    before = leaks.look()
    yield
    found = leaks.check(before, tmp_path, temporary)
    if found:
        pytest.fail(str(found), pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def nothing_outlives_the_run() -> Iterator[None]:
    """What fixtures of a longer life started must be gone at the end too."""
    before = {p.pid for p in descendants()}
    yield
    left = [p for p in descendants() if p.pid not in before]
    if left:
        pytest.fail("left behind by the run:\n" + "\n".join(map(str, left)), pytrace=False)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """The test's own configuration, state and cache directories."""
    from xenoshell.paths import Paths

    return Paths(config=tmp_path / "config", state=tmp_path / "state", cache=tmp_path / "cache")


@pytest.fixture
def make_lab(paths: Paths) -> Iterator[Callable[..., Lab]]:
    """``make_lab(hosts=2, wan="rtt=150ms")``: XenoServers with a real sshd each, taken down after the test."""
    with contextlib.ExitStack() as stack:

        def make(hosts: int = 1, wan: str | None = None) -> Lab:
            return stack.enter_context(running_lab(paths, hosts, wan))

        yield make


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A lab of one host."""
    return make_lab(1)


def _remove(path: Path) -> None:
    """Remove a tree, read-only directories of an ordinary user included."""
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(PermissionError):
            os.chmod(directory, 0o700)
    shutil.rmtree(path, ignore_errors=True)

"""End to end: the command line as a user types it, real sshd, real QEMU, guests that boot.

The template `tiny` is built once for the whole run, and appears in each test's image store by hard links.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import PACKAGES, eventually
from xenoshell.paths import Paths

REPOSITORY = Path(__file__).parents[2]


def xenoshell(*words: str | Path) -> list[str]:
    """The command line of xenoshell in this very Python."""
    return [sys.executable, "-m", "xenoshell", *map(str, words)]


def run(*words: str | Path, timeout_s: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; nothing on its standard input."""
    return subprocess.run(
        xenoshell(*words),
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        **options,
    )


def facts(*words: str | Path, **options: Any) -> Any:
    """The JSON document of a command that has to succeed."""
    done = run(*words, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass
class Deploying:
    """A `deploy --json` (or the like) under way, its events as they come."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        """Read both streams until they end."""
        for target in (self._read, self._complain):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.events.append(json.loads(line))

    def _complain(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def named(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of that name (and with those values) so far."""
        return [e for e in self.events if e["event"] == name and all(e.get(k) == v for k, v in fields.items())]

    def wait_for(self, name: str, count: int = 1, timeout_s: float = 60, **fields: Any) -> dict[str, Any]:
        """The ``count``-th event of that name; fails with what there was if it does not come."""

        def there() -> list[dict[str, Any]]:
            found = self.named(name, **fields)
            if len(found) >= count:
                return found
            assert self.process.poll() is None, f"ended without {name}: {self.events[-8:]} {self.errors[-8:]}"
            return []

        return eventually(there, timeout_s, f"{name} {fields}")[count - 1]

    def end(self, timeout_s: float = 120) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(10)
        return code

    def kill(self, signal_: int = signal.SIGKILL) -> int:
        """Kill it."""
        self.process.send_signal(signal_)
        return self.end()


@pytest.fixture
def start(own_world: None) -> Iterator[Callable[..., Deploying]]:
    """``start("deploy", file)``: a command with `--json`, its events read while the test goes on."""
    begun: list[Deploying] = []

    def begin(*words: str | Path) -> Deploying:
        process = subprocess.Popen(
            xenoshell(*words, "--json"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deploying = Deploying(process)
        begun.append(deploying)
        deploying.begin()
        return deploying

    yield begin
    for deploying in begun:
        if deploying.process.poll() is None:
            deploying.kill()
        for stream in (deploying.process.stdout, deploying.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(scope="session")
def tiny_images() -> Iterator[Path]:
    """An image store with `tiny` in it, built by the command that users type."""
    root = Path(tempfile.mkdtemp(prefix="xt-tiny-", dir="/tmp"))
    words = xenoshell("images", "build", "tiny", "--state-dir", root, "--config-dir", root)
    environment = {**os.environ, "XENOSHELL_CACHE_DIR": str(PACKAGES.parent)}
    try:
        done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        yield root / "images"
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def tiny(paths: Paths, tiny_images: Path) -> str:
    """The name of the template, in this test's image store."""
    shutil.copytree(tiny_images, paths.state / "images", copy_function=os.link)
    return "tiny"


def session_file(
    directory: Path,
    hosts: Sequence[str],
    *,
    name: str = "web",
    ready: str = 'when = "http"\nport = 80\ntimeout = "90s"',
    resources: str = 'vcpus = 1\nmemory = "128MiB"',
    extra: str = "",
    budget: str = "",
) -> Path:
    """A session of one VM for each of ``hosts`` that serves a page with its name."""
    path = directory / f"{name}.toml"
    path.write_text(f"""schema = 1
name = "{name}"
{budget}
[[vm]]
name = "vm"
image = "tiny"
hosts = {json.dumps(list(hosts))}
[vm.resources]
{resources}
[vm.network]
forward = [{{ guest = 80 }}]
[[vm.customise.file]]
path = "/srv/www/index.html"
content = "{{vm}} on {{host}}\\n"
[vm.ready]
{ready}
{extra}
""")
    return path

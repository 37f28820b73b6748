"""The ways into a guest that boots: its log, its console, and ssh that knows its keys."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import on_terminal
from tests.e2e.conftest import facts, run, xenoshell
from xenoshell.lab import Lab
from xenoshell.paths import Paths

pytestmark = pytest.mark.e2e

FILE = """schema = 1
name = "web"
[[vm]]
name = "vm"
image = "tiny"
hosts = ["{host}"]
[vm.resources]
vcpus = 1
memory = "128MiB"
[vm.network]
forward = [{{ guest = 22 }}]
[vm.customise]
authorized_keys = ["{key}.pub"]
run = ["printf '\\\\033]0;owned\\\\007\\\\033[31mred\\\\033[0m end of run\\\\n' > /dev/console"]
[vm.ready]
when = "tcp"
port = 22
timeout = "120s"
"""


def test_log_console_and_ssh(make_lab: Callable[..., Lab], tiny: str, tmp_path: Path, paths: Paths) -> None:
    (host,) = make_lab(1).hosts
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    file = tmp_path / "web.toml"
    file.write_text(FILE.format(host=host.name, key=key))
    done = run("deploy", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"ready after [0-9.]+ s at 127\.0\.0\.1:\d+ under (TCG|KVM)", done.stdout)

    # The log: from the first byte on, as text in a pipe, as objects with --json.
    log = run("logs", "web/vm").stdout
    assert "Linux version" in log and "red end of run" in log
    assert "\x1b" not in log and "owned" not in log
    lines = [json.loads(line) for line in run("logs", "web/vm", "--json").stdout.splitlines()]
    assert any(line["line"].endswith("red end of run") for line in lines)
    coloured = on_terminal(*xenoshell("logs", "web/vm"), timeout_s=60).out
    assert "\x1b[31mred" in coloured and "owned" not in coloured

    # The console: Ctrl-] leaves, and what was typed arrived there.
    script = [("# ", "echo $((6*7)) of them\r"), ("42 of them", "\x1d")]
    left = on_terminal(*xenoshell("console", "web/vm"), script=script, timeout_s=60)
    assert left.code == 0
    assert "it goes on" in left.out

    # ssh: the keys that the guest printed on its console, and no others.
    words = ("ssh", "web/vm", "--", "-i", key, "-o", "BatchMode=yes", "hostname")
    inside = run(*words)
    assert inside.returncode == 0, inside.stderr
    assert inside.stdout == "vm\n"
    pinned = paths.sessions / "web" / "known_hosts"
    status = facts("ps", "web")[0]["status"]
    assert pinned.read_text() == "".join(f"{status['id']} {k}\n" for k in status["host_keys"])
    assert run("ssh", "web/vm", "--", "-i", key, "-o", "BatchMode=yes", "exit 7").returncode == 7

    assert run("destroy", "web").returncode == 4
    assert run("destroy", "web", "--yes").returncode == 0
    assert facts("ps") == []

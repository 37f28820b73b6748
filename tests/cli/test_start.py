"""The command line starts fast, because it imports late."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, process

HEAVY = {"textual", "asyncssh", "zstandard", "cryptography"}

LOOK = """
import sys
from xenoshell.cli.root import build
try:
    build()(sys.argv[1:], prog_name="xenoshell")
except SystemExit as end:
    code = end.code
print("\\nMODULES", code, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def modules_of(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", LOOK, *words], capture_output=True, text=True, timeout=60, check=False)
    last = done.stdout.splitlines()[-1].split()
    assert last[:2] == ["MODULES", "0"], done.stderr
    return set(last[2:])


@pytest.mark.parametrize("words", [("--help",), ("deploy", "--help"), ("hosts", "--help"), ("--version",), ()])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    assert not modules_of(*words) & (HEAVY | {"rich", "tomlkit", "humanize"})


def test_the_overview_of_commands_does_not_even_import_pydantic() -> None:
    assert "pydantic" not in modules_of("--help")


def test_new_check_and_quote_import_no_ssh_and_no_compression(tmp_path: Path) -> None:
    file = str(tmp_path / "site.toml")
    (tmp_path / "kernel").write_bytes(b"a kernel of the user's own")
    assert not modules_of("new", file) & HEAVY
    assert not modules_of("check", file) & HEAVY
    (tmp_path / "kernel.toml").write_text(
        'schema = 1\nname = "k"\n[[vm]]\nname = "k"\nkernel = "kernel"\nhosts = ["a"]\n'
    )
    modules_of("hosts", "add", "a", "root@a.example")
    assert not modules_of("quote", str(tmp_path / "kernel.toml")) & HEAVY


def test_help_takes_little_time() -> None:
    """At most 0.35 s, of processor time: what the clock says depends on who else is at work."""
    best = 9.9
    for _ in range(5):
        before = os.times()
        assert process("--help").code == 0
        after = os.times()
        best = min(best, after.children_user + after.children_system - before.children_user - before.children_system)
    assert best <= 0.35


def test_alone_it_says_what_to_do_first(run: Run) -> None:
    done = run()
    assert done.code == 0
    assert "xenoshell demo" in done.out and "xenoshell hosts add" in done.out
    assert done.err == ""


def test_every_command_explains_itself(run: Run) -> None:
    top = run("--help")
    for heading in ("First steps:", "Hosts and images:", "Session files:", "Running VMs:", "Exit codes:"):
        assert heading in top.out
    flat = "demo doctor new check quote plan deploy resume replay ps logs console ssh stop start restart destroy renew"
    nested = [("lab", w) for w in ("up", "status", "down")]
    nested += [("hosts", w) for w in ("list", "add", "trust", "check", "remove")]
    nested += [("images", w) for w in ("list", "build", "inspect")]
    for words in [*((w,) for w in flat.split()), *nested]:
        done = run(*words, "--help")
        assert done.code == 0
        for option in ("--json", "--plain", "--yes", "--quiet", "--verbose", "--config-dir", "--state-dir"):
            assert option in done.out, (words, option)


def test_a_wrong_command_names_the_nearest(run: Run) -> None:
    done = run("destory")
    assert done.code == 2
    assert done.out == ""
    assert "destroy" in done.err

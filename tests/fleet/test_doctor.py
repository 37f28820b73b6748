"""`doctor` judges the user's machine; whatever is not fine says what to do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from xenoshell import doctor
from xenoshell.doctor import GIB, Seen, Terminal
from xenoshell.paths import Paths
from xenoshell.wire.values import CheckLine

GOOD = Seen(
    python=(3, 11, 7),
    system="Linux",
    config="",
    config_files=("/home/me/.ssh/config",),
    agent_keys=2,
    agent_error="",
    keys=("/home/me/.ssh/id_ed25519",),
    known_hosts=("/home/me/.ssh/known_hosts",),
    sshd="/usr/sbin/sshd",
    emulator="/usr/bin/qemu-system-x86_64",
    emulator_version="7.2.22",
    kvm="opens",
    programs={program: f"/usr/bin/{program}" for program, _, _ in doctor.PROGRAMS},
    zstd=True,
    state_dir="/home/me/.local/state/xenoshell",
    state_free=80 * GIB,
    files_limit=20000,
    terminal=Terminal(True, 120, 40, "xterm-256color", True, False, True, ""),
)


def line(seen: Seen, name: str) -> CheckLine:
    (found,) = [line for line in doctor.judge(seen) if line.name == name]
    return found


def test_a_machine_with_everything_is_fine_throughout() -> None:
    assert {line.level for line in doctor.judge(GOOD)} == {"fine"}


@pytest.mark.parametrize(
    ("change", "name", "level", "remedy"),
    [
        ({"python": (3, 10, 2)}, "python", "failed", "3.11"),
        ({"config": "~/.ssh/config line 2: x"}, "ssh configuration", "failed", "correct"),
        ({"agent_keys": 0}, "ssh agent", "limited", "ssh-add"),
        ({"agent_keys": None, "keys": ()}, "ssh keys", "limited", "ssh-keygen"),
        ({"sshd": ""}, "sshd for the lab", "limited", "openssh-server"),
        ({"emulator": ""}, "qemu", "limited", "qemu-system-x86"),
        ({"kvm": "denied"}, "kvm", "limited", "group kvm"),
        ({"programs": {}}, "mke2fs", "limited", "e2fsprogs"),
        ({"programs": {}}, "mmdebstrap", "limited", "mmdebstrap"),
        ({"zstd": False}, "zstd", "failed", "install"),
        ({"state_free": 3 * GIB}, "disk", "limited", "free some"),
        ({"state_free": GIB // 4}, "disk", "failed", "free some"),
        ({"state_free": None}, "disk", "failed", "XENOSHELL_STATE_DIR"),
        ({"files_limit": 256}, "open files", "limited", "ulimit"),
        ({"terminal": replace(GOOD.terminal, columns=79)}, "terminal", "limited", "80x24"),
        ({"terminal": replace(GOOD.terminal, utf8=False)}, "characters", "limited", "UTF-8"),
        ({"terminal": replace(GOOD.terminal, truecolor=False, term="dumb")}, "colour", "limited", "TERM"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    change: dict[str, object], name: str, level: str, remedy: str
) -> None:
    found = line(replace(GOOD, **change), name)  # type: ignore[arg-type]
    assert found.level == level and remedy in found.remedy, found


def test_no_terminal_and_no_colour_are_no_faults() -> None:
    assert line(replace(GOOD, terminal=replace(GOOD.terminal, present=False)), "terminal").level == "fine"
    assert line(replace(GOOD, terminal=replace(GOOD.terminal, no_color=True)), "colour").found == "off (NO_COLOR)"


def test_this_machine_can_be_looked_at(paths: Paths) -> None:
    names = [line.name for line in doctor.examine(paths)]
    assert {"python", "ssh configuration", "qemu", "kvm", "disk", "terminal"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_broken_ssh_configuration_is_found(paths: Paths) -> None:
    (Path.home() / ".ssh").mkdir()
    (Path.home() / ".ssh" / "config").write_text("Host *\n  Port ssh\n")
    found = line(doctor.look(paths), "ssh configuration")
    assert found.level == "failed" and "line 2" in found.found


def test_an_agent_that_is_gone_is_not_a_crash(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nonexistent")
    seen = doctor.look(paths)
    assert seen.agent_keys is None and seen.agent_error


def test_programs_that_are_not_there_are_not_asked(paths: Paths) -> None:
    seen = doctor.look(paths, which=lambda program: None)
    assert seen.emulator == "" and seen.emulator_version == "" and not any(seen.programs.values())

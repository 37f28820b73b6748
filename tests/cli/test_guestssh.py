"""The way into a guest with the system's ssh: keys of the guest's own, and nothing it can smuggle in."""

from __future__ import annotations

import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.cli.guestssh import Way, arguments, forward_of, known_hosts_lines, note_keys, split_rest
from xenoshell.errors import BadInput
from xenoshell.wire.values import Forward

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIBmCxG6F0AZsGDXnYpHH/kaMhKtuHK5JD7PbzpWQFHWx"


def argv(**changes: object) -> list[str]:
    values: dict[str, object] = {
        "alias": "web.web-1.12345678",
        "user": "root",
        "address": "192.0.2.7",
        "port": 22022,
        "known_hosts": Path("/state/sessions/web/known_hosts"),
        "strict": True,
        "way": None,
        "rest": (),
    }
    return arguments(**{**values, **changes})  # type: ignore[arg-type]


def seen_by_ssh(argv: list[str]) -> dict[str, str]:
    """What OpenSSH makes of the arguments (``ssh -G``)."""
    shown = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=True)
    return dict(line.partition(" ")[::2] for line in shown.stdout.splitlines())


def test_openssh_understands_it() -> None:
    options = seen_by_ssh(argv())
    assert options["hostname"] == "192.0.2.7"
    assert options["port"] == "22022"
    assert options["user"] == "root"
    assert options["hostkeyalias"] == "web.web-1.12345678"
    assert options["stricthostkeychecking"] in ("yes", "true")
    assert options["userknownhostsfile"] == "/state/sessions/web/known_hosts"


def test_without_keys_ssh_asks() -> None:
    assert seen_by_ssh(argv(strict=False))["stricthostkeychecking"] == "ask"


def test_through_the_host_with_the_hosts_own_files() -> None:
    way = Way("root@ams.example", 2222, None, (Path("/home/a b/known_hosts"), Path("/c")), Path("/keys/id%d"))
    options = seen_by_ssh(argv(way=way, address="127.0.0.1"))
    proxy = shlex.split(options["proxycommand"].replace("%%", "%"))
    inner = seen_by_ssh([*proxy])
    assert proxy[proxy.index("-W") + 1] == "127.0.0.1:22022"
    assert inner["hostname"] == "ams.example"
    assert inner["user"] == "root"
    assert inner["port"] == "2222"
    assert inner["stricthostkeychecking"] in ("yes", "true")
    assert proxy[-1] == "root@ams.example"
    assert 'UserKnownHostsFile="/home/a b/known_hosts" /c' in proxy


@pytest.mark.parametrize(
    ("rest", "options", "command"),
    [
        ([], [], []),
        (["uname", "-a"], [], ["uname", "-a"]),
        (["-v", "-L", "8080:localhost:80"], ["-v", "-L", "8080:localhost:80"], []),
        (["-N", "--", "-odd"], ["-N"], ["-odd"]),
        (["-i", "key", "ls", "-l"], ["-i", "key"], ["ls", "-l"]),
        (["-p22", "ls"], ["-p22"], ["ls"]),
    ],
)
def test_options_go_before_the_destination_and_the_command_behind(
    rest: list[str], options: list[str], command: list[str]
) -> None:
    assert split_rest(rest) == (options, command)
    made = argv(rest=rest)
    cut = made.index("--")
    assert made[cut + 1 :] == ["192.0.2.7", *command]
    assert made[:cut][-len(options) :] == options if options else True


def test_the_guests_keys_become_lines_for_its_alias() -> None:
    assert known_hosts_lines("a", [f"ssh-ed25519 {KEY} root@guest"]) == f"a ssh-ed25519 {KEY}\n"


@given(st.lists(st.text() | st.just(f"ssh-ed25519 {KEY}\n* ssh-ed25519 {KEY}"), max_size=4))
def test_a_guest_cannot_write_lines_of_its_own(keys: list[str]) -> None:
    for line in known_hosts_lines("alias", keys).splitlines():
        name, kind, key = line.split(" ")
        assert name == "alias"
        assert kind and key.isascii()


def test_each_guest_has_its_lines_beside_those_of_others(tmp_path: Path) -> None:
    """Two terminals may be on their way into two guests of a session, and a key that a person accepted stays."""
    file = tmp_path / "known_hosts"
    aliases = [f"web.vm-{n}.0123abcd" for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            list(pool.map(lambda alias: note_keys(file, alias, f"{alias} ssh-ed25519 {KEY}\n"), aliases))
    assert sorted(file.read_text().splitlines()) == sorted(f"{alias} ssh-ed25519 {KEY}" for alias in aliases)
    note_keys(file, aliases[1], f"{aliases[1]} ssh-rsa {KEY}\n")
    changed = [line.split()[1] for line in file.read_text().splitlines() if line.startswith(f"{aliases[1]} ")]
    assert changed == ["ssh-rsa"] and len(file.read_text().splitlines()) == 12


def test_without_a_forward_it_says_what_to_add() -> None:
    assert forward_of([Forward(80, 8080), Forward(22, 22022)], "web/vm").host == 22022
    for forwards in ([], [Forward(80, 8080)], [Forward(22, 2222, "udp")], [Forward(22, 0)]):
        with pytest.raises(BadInput, match="guest = 22"):
            forward_of(forwards, "web/vm")

"""`hosts check` tries each step by itself, stops where going on makes no sense, and says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fleet.sshd import Sshd, make_key, public
from tests.support import free_port
from xenoshell.fleet import facts
from xenoshell.fleet.check import check, clock_line, rtt_line, start_line
from xenoshell.fleet.inventory import Host
from xenoshell.fleet.trust import pin, scan
from xenoshell.paths import Paths
from xenoshell.wire.values import CheckLine

pytestmark = pytest.mark.integration

StartSshd = Callable[..., Sshd]
HostOf = Callable[..., Host]


def by_name(lines: tuple[CheckLine, ...]) -> dict[str, CheckLine]:
    names = [line.name for line in lines]
    assert len(set(names)) == len(names), f"two lines of one name: {names}"
    for line in lines:
        assert line.level in ("fine", "limited", "failed")
        assert line.level == "fine" or line.remedy, f"{line.name} is {line.level} and says no remedy"
    return {line.name: line for line in lines}


async def test_a_good_host_is_fine_on_the_way_there_and_its_facts_are_kept(
    server: Sshd, host_of: HostOf, paths: Paths
) -> None:
    seen: list[CheckLine] = []
    host = host_of(server)
    lines = await check(host, paths, on_line=seen.append)
    found = by_name(lines)
    assert tuple(seen) == lines
    for name in ("ssh configuration", "name", "connection", "host key", "login", "round trip", "clock", "channels"):
        assert found[name].level == "fine", found[name]
    assert found["sessions"].found == "10 or more at once"
    assert server.fingerprint in found["host key"].found
    known = facts.recall("ams-1", paths)
    assert known is not None and known.fingerprint == server.fingerprint
    view = facts.view(host, known)
    assert view.arch == known.facts.arch and view.rtt_ms == known.rtt_ms


async def test_what_sshd_limits_is_found_by_trying(start_sshd: StartSshd, host_of: HostOf, paths: Paths) -> None:
    server = start_sshd(config="MaxSessions 3\nAllowStreamLocalForwarding no")
    found = by_name(await check(host_of(server), paths))
    assert found["sessions"].found.startswith("3 at once")
    assert found["channels"].level == "limited" and "AllowStreamLocalForwarding" in found["channels"].remedy


async def test_an_unknown_key_ends_the_check_with_the_command_that_pins_it(
    server: Sshd, host_of: HostOf, paths: Paths
) -> None:
    host = host_of(server, known="")
    lines = await check(host, paths)
    assert lines[-1].name == "host key" and lines[-1].level == "failed"
    assert server.fingerprint in lines[-1].found and "hosts trust ams-1" in lines[-1].remedy
    pin(host, await scan(host, paths), paths)
    assert by_name(await check(host, paths))["login"].level == "fine"


async def test_a_changed_key_shows_where_the_old_one_stands(server: Sshd, host_of: HostOf, paths: Paths) -> None:
    old = make_key(server.directory / "old")
    lines = await check(host_of(server, known=f"[127.0.0.1]:{server.port} {public(old)}"), paths)
    assert lines[-1].name == "host key" and "ams-1.known_hosts:1" in lines[-1].found
    assert "--replace" in lines[-1].remedy


async def test_a_refused_login_and_a_closed_port_are_the_last_lines(
    server: Sshd, host_of: HostOf, paths: Paths
) -> None:
    stranger = host_of(server, identity=make_key(server.directory / "stranger"))
    last = (await check(stranger, paths))[-1]
    assert (last.name, last.level) == ("login", "failed")
    closed = stranger.model_copy(update={"ssh": f"root@127.0.0.1:{free_port()}"})
    last = (await check(closed, paths))[-1]
    assert (last.name, last.level) == ("connection", "failed")
    nowhere = stranger.model_copy(update={"ssh": "root@nowhere.invalid"})
    last = (await check(nowhere, paths))[-1]
    assert (last.name, last.level) == ("name", "failed")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (rtt_line(0.3), "fine"),
        (rtt_line(399), "fine"),
        (rtt_line(600), "limited"),
        (clock_line(0.01), "fine"),
        (clock_line(-1.9), "fine"),
        (clock_line(-2.1), "limited"),
        (clock_line(3600), "limited"),
        (start_line(0.4, 150), "fine"),
        (start_line(3.1, 50), "limited"),
        (start_line(3.1, 500), "fine"),
    ],
)
def test_where_measures_stop_being_fine(line: CheckLine, level: str) -> None:
    assert line.level == level
    assert level == "fine" or line.remedy


async def test_facts_that_cannot_be_read_are_no_facts(paths: Paths) -> None:
    assert facts.recall("ams-1", paths) is None
    directory = paths.state / "facts"
    directory.mkdir()
    for text in ("", "{", "{}", '{"facts": {}, "rtt_ms": 1, "fingerprint": "", "time": 0}'):
        (directory / "ams-1.json").write_text(text)
        assert facts.recall("ams-1", paths) is None
    facts.forget("ams-1", paths)
    facts.forget("ams-1", paths)
    assert list(directory.iterdir()) == []

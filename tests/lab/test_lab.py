"""A lab is XenoServers on this machine: reachable by SSH, each with its own state, and gone without a trace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.conftest import run, ssh_command
from tests.support import alive, eventually, find_process, kill, listening, process, processes_of, running
from xenoshell.errors import BadInput
from xenoshell.lab import Lab, down, read, status, up
from xenoshell.lab.places import PLACES, name_of, place_of
from xenoshell.lab.processes import TAG
from xenoshell.lab.sshd import PRIVSEP, user
from xenoshell.paths import Paths

pytestmark = pytest.mark.integration

MakeLab = Callable[..., Lab]


def listeners(lab: Lab) -> dict[str, int]:
    """The pid of each host's listening server."""
    found = find_process(str(lab.directory))
    servers = [p for p in found if "/relay.py" not in p.command]
    return {host.name: p.pid for host in lab.hosts for p in servers if f"{host.directory}" in p.command}


# ---------------------------------------------------------------- up


def test_every_host_runs_commands_over_ssh_as_this_user(server: str, make_lab: MakeLab) -> None:
    lab = make_lab(3)
    for host in lab.hosts:
        done = run(lab, host, f"id -un; echo ${TAG}; head -c 300000 /dev/zero | tr '\\0' x; exit 7")
        assert done.stderr == ""
        assert done.stdout == f"{user()}\n{host.directory}\n" + 300_000 * "x"
        assert done.returncode == 7
        assert host.state_dir.is_dir()


def test_standard_input_reaches_the_command_and_ends_there(server: str, make_lab: MakeLab) -> None:
    lab = make_lab(1)
    sent = os.urandom(1 << 20)
    command = ssh_command(lab, lab.hosts[0], "cat; echo done >&2")
    done = subprocess.run(command, input=sent, capture_output=True, timeout=60, check=False)
    assert (done.stdout == sent, done.stderr, done.returncode) == (True, b"done\n", 0)


def test_unix_sockets_are_forwarded(server: str, make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    with socket.socket(socket.AF_UNIX) as there, socket.socket(socket.AF_UNIX) as here:
        there.bind(str(tmp_path / "there"))
        there.listen()
        command = ssh_command(lab, lab.hosts[0], "-N", "-L", f"{tmp_path}/here:{tmp_path}/there")
        with running(*command[:-3], *command[-2:], command[-3]):
            eventually((tmp_path / "here").exists, 10, "ssh to listen")
            here.connect(str(tmp_path / "here"))
            here.sendall(b"hello")
            there.settimeout(10)
            connection, _ = there.accept()
            with connection:
                assert connection.recv(5) == b"hello"
                connection.sendall(b"world")
                assert here.recv(5) == b"world"


def test_nobody_else_gets_in(server: str, make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    assert "Permission denied" in run(lab, lab.hosts[0], "id", key=tmp_path / "other").stderr
    assert "Permission denied" in run(lab, lab.hosts[0], "id", user="nobody").stderr


def test_the_inventory_describes_the_hosts(make_lab: MakeLab) -> None:
    from xenoshell.fleet.inventory import load_inventory

    lab = make_lab(3)
    hosts = load_inventory(lab.inventory).hosts
    assert [host.name for host in hosts] == ["ams-1", "nyc-1", "sin-1"]
    assert [host.place.city for host in hosts] == ["Amsterdam", "New York", "Singapore"]
    assert len({host.price.vcpu_hour for host in hosts}) == 3 and {host.price.currency for host in hosts} == {"EUR"}
    assert [host.ssh for host in hosts] == [f"{user()}@127.0.0.1:{host.port}" for host in lab.hosts]
    assert [host.state_dir for host in hosts] == [str(host.state_dir) for host in lab.hosts]
    assert {host.bind for host in hosts} == {"127.0.0.1"}


def test_up_again_changes_nothing_and_up_with_more_only_adds(make_lab: MakeLab) -> None:
    before = make_lab(2)
    running_before = listeners(before)
    assert make_lab(1) == before == make_lab(2)
    grown = make_lab(4)
    assert grown.hosts[:2] == before.hosts and len(grown.hosts) == 4
    assert {name: pid for name, pid in listeners(grown).items() if name in before.names} == running_before


def test_a_dead_server_is_seen_and_started_again_on_its_port(server: str, make_lab: MakeLab, paths: Paths) -> None:
    lab = make_lab(2)
    kill(listeners(lab)["ams-1"])
    eventually(lambda: [row.server for row in status(paths)] == [False, True], 5, "status to see it")
    again = make_lab(2)
    assert again == lab
    assert [row.server for row in status(paths)] == [True, True]
    assert run(again, again.hosts[0], "echo back").stdout == "back\n"


def test_a_port_that_someone_else_took_is_given_up(make_lab: MakeLab, paths: Paths) -> None:
    lab = make_lab(1)
    port = lab.hosts[0].port
    kill(listeners(lab)["ams-1"])
    eventually(lambda: not listening(port), 5, "sshd to end")
    with socket.create_server(("127.0.0.1", port)):
        again = make_lab(1)
        assert again.hosts[0].port != port
        assert run(again, again.hosts[0], "echo moved").stdout == "moved\n"
        assert read(paths) == again


def test_two_ups_at_once_make_one_lab(paths: Paths, make_lab: MakeLab) -> None:
    program = "from xenoshell import lab, paths; lab.up(paths.paths(), 3)"
    children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [child.wait(30) for child in children] == [0, 0, 0]
    assert len(listeners(make_lab(3))) == 3
    assert len(find_process(str(paths.lab), "sshd_config")) == 3


def test_bad_numbers_and_profiles_are_refused_before_anything_is_made(paths: Paths) -> None:
    for hosts, wan in ((0, None), (501, None), (1, "moon"), (1, "rtt=5")):
        with pytest.raises(BadInput, match="allowed"):
            up(paths, hosts, wan)
    assert not paths.lab.exists()


def test_names_go_on_when_the_places_are_used_up() -> None:
    names = [name_of(i) for i in range(500)]
    assert len(set(names)) == 500 and names[len(PLACES)] == "ams-2"
    assert len({place.code for place in PLACES}) == len(PLACES)
    assert place_of("nyc-17").city == "New York"


# ---------------------------------------------------------------- down


def test_down_ends_everything_that_ran_on_the_hosts(server: str, make_lab: MakeLab, paths: Paths) -> None:
    had_privsep = PRIVSEP.exists()
    lab = make_lab(2, "lan")
    daemon = "setsid sh -c 'exec sleep 3333' </dev/null >/dev/null 2>&1 & echo $!"
    pid = int(run(lab, lab.hosts[0], daemon).stdout)
    session = subprocess.Popen(ssh_command(lab, lab.hosts[1], "trap '' TERM HUP; while :; do sleep 0.1; done"))
    direct = replace(lab.hosts[1], relay_port=None)
    idle = subprocess.Popen([*ssh_command(lab, direct)[:-1], "-N", f"{user()}@127.0.0.1"])
    log = lab.hosts[1].directory / "sshd.log"
    eventually(lambda: server != "sshd" or log.read_text().count("Accepted publickey") == 2, 20, "both sessions")
    ports = [port for host in lab.hosts for port in (host.sshd_port, host.relay_port or 0)]
    assert all(map(listening, ports))
    assert down(paths) == 2
    assert not any(map(listening, ports)) and not alive(pid)
    assert not paths.lab.exists() and not processes_of(paths.lab)
    assert session.wait(10) and idle.wait(10)
    assert PRIVSEP.exists() == had_privsep
    assert down(paths) == 0


def test_down_finds_what_a_killed_up_had_started(paths: Paths) -> None:
    program = "from xenoshell import lab, paths; lab.up(paths.paths(), 4, 'lan')"
    for look_for in ("lab.json", "journal", "ams-1/sshd.log", "nyc-1/relay.log", "hosts.toml"):
        with running(sys.executable, "-c", program) as client:
            eventually((paths.lab / look_for).exists, 20, look_for)
            client.send_signal(signal.SIGKILL)
            client.wait()
        down(paths)
        assert not processes_of(paths.lab) and not paths.lab.exists()


def test_up_completes_what_a_killed_up_had_begun(paths: Paths, make_lab: MakeLab) -> None:
    program = "from xenoshell import lab, paths; lab.up(paths.paths(), 3)"
    with running(sys.executable, "-c", program) as client:
        eventually((paths.lab / "journal").exists, 20, "the first start")
        client.send_signal(signal.SIGKILL)
        client.wait()
    lab = make_lab(3)
    assert all(run(lab, host, "true").returncode == 0 for host in lab.hosts)
    assert len(find_process(str(paths.lab), "sshd_config")) == 3


def test_down_finds_sessions_whose_listener_was_killed(server: str, make_lab: MakeLab, paths: Paths) -> None:
    lab = make_lab(1)
    session = subprocess.Popen(ssh_command(lab, lab.hosts[0], "echo; exec sleep 4444"), stdout=subprocess.PIPE)
    assert session.stdout is not None and session.stdout.readline() == b"\n"
    kill(listeners(lab)["ams-1"])
    down(paths)
    assert session.wait(10)
    session.stdout.close()
    assert not find_process("sleep", "4444")


def test_down_needs_none_of_its_own_files(make_lab: MakeLab, paths: Paths) -> None:
    lab = make_lab(2, "lan")
    for name in ("lab.json", "journal", "hosts.toml"):
        (lab.directory / name).unlink()
    assert down(paths) == 2
    assert not processes_of(paths.lab) and not paths.lab.exists()


def test_down_never_touches_a_stranger(make_lab: MakeLab, paths: Paths) -> None:
    lab = make_lab(1)
    entry = '{"boot": "%s", "event": "started", "pid": %d, "started": %d}\n'
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with (
        running("tail", "-f", lab.directory / "ams-1" / "sshd.log", stdout=subprocess.DEVNULL) as reader,
        running(
            sys.executable, "-S", "-c", "input()", lab.directory, cwd=lab.directory, stdin=subprocess.PIPE
        ) as other,
    ):
        found = process(other.pid)
        assert found is not None
        lines = entry % (boot, other.pid, found.start - 1) + entry % ("another-boot", other.pid, found.start)
        (lab.directory / "journal").write_text(lines)
        down(paths)
        assert reader.poll() is None and other.poll() is None


def test_the_privilege_separation_directory_stays_while_another_lab_uses_it(tmp_path: Path) -> None:
    first, second = (Paths(tmp_path / n / "c", tmp_path / n / "s", tmp_path / n / "k") for n in ("one", "two"))
    had = PRIVSEP.exists()
    up(first, 1)
    try:
        lab = up(second, 1)
        down(first)
        assert run(lab, lab.hosts[0], "echo fine").stdout == "fine\n"
    finally:
        down(first)
        down(second)
    assert PRIVSEP.exists() == had

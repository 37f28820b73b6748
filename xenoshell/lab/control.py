"""Bring a lab up, look at it, take it down.

All of it lies in one directory, ``<state>/lab``::

    lab.json                the hosts and their ports: written before anything is started
    journal                 one line before each start and one after it, with pid and start time
    hosts.toml              the lab's inventory
    known_hosts, id_ed25519, authorized_keys
    lock                    held by whoever changes the lab
    ams-1/                  sshd_config, host_key, sshd.log, relay.log
    ams-1/state/            the host's own state directory
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from xenoshell.errors import BadInput
from xenoshell.host.proc import Process, alive, boot_id
from xenoshell.lab import sshd
from xenoshell.lab.inventory import LabHost, write_inventory, write_known_hosts
from xenoshell.lab.places import CURRENCY, LabPlace, name_of, place_of
from xenoshell.lab.processes import end, listens, port_is_free, processes_of, wait_until
from xenoshell.lab.wan import NONE, profile_of
from xenoshell.paths import Paths, private_directory
from xenoshell.wire.causes import Failure

#: Below the kernel's ephemeral ports and the guests' (20000 to 29999).
PORTS = range(10000, 20000)
#: More XenoServers than that on one machine help nobody.
MAX_HOSTS = 500
_READY_S = 10.0
_LOCK_S = 60.0
_NOBODY = Process(0, 0)


@dataclass(frozen=True)
class Lab:
    """A lab: where it is and its hosts."""

    directory: Path
    hosts: tuple[LabHost, ...]

    @property
    def inventory(self) -> Path:
        """The lab's hosts.toml."""
        return self.directory / "hosts.toml"

    def host(self, name: str) -> LabHost:
        """The host of that name. Raises `KeyError`."""
        return {host.name: host for host in self.hosts}[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the hosts."""
        return tuple(host.name for host in self.hosts)


@dataclass(frozen=True)
class HostStatus:
    """One lab host as it is now. ``relay`` is `None` where no relay is wanted, ``vms`` counts VMs whose QEMU runs."""

    name: str
    port: int
    server: bool
    relay: bool | None
    wan: str | None
    vms: int
    place: LabPlace
    currency: str = CURRENCY


def up(paths: Paths, hosts: int = 3, wan: str | None = None) -> Lab:
    """See to it that ``hosts`` XenoServers run on this machine (more, if the lab has more), and return the lab.

    What runs is left alone, what died is started again on its old port. ``wan`` is a profile for `profile_of` and
    holds for all hosts, "none" takes the relays away, `None` leaves each host as it is.
    Raises `BadInput` or `Failure`.
    """
    if not 1 <= hosts <= MAX_HOSTS:
        raise BadInput(f"--hosts: found {hosts}; allowed: 1 to {MAX_HOSTS}")
    if wan not in (None, NONE):
        profile_of(wan, place_of(name_of(0)))
    directory = paths.lab
    with _locked(directory):
        lab = _with_hosts(_read(directory), hosts, wan)
        _write(lab)
        sshd.make_key(directory / "id_ed25519", "xenoshell lab")
        shutil.copyfile(directory / "id_ed25519.pub", directory / "authorized_keys")
        sshd.hold_privsep(directory)
        lab = _start(lab)
        _write(lab)
        write_known_hosts(directory / "known_hosts", lab.hosts)
        write_inventory(lab.inventory, sshd.user(), lab.hosts)
    return lab


def read(paths: Paths) -> Lab | None:
    """The lab as it was brought up, or `None`."""
    return _read(paths.lab) if (paths.lab / "lab.json").exists() else None


def status(paths: Paths) -> tuple[HostStatus, ...]:
    """What of the lab is alive right now; empty if there is no lab."""
    lab = read(paths)
    if lab is None:
        return ()
    rows = []
    processes = processes_of(lab.directory)
    for host in lab.hosts:
        found = processes.get(host.name, {})
        rows.append(
            HostStatus(
                name=host.name,
                port=host.port,
                server=any(listens(process, host.sshd_port) for process in found),
                relay=None if host.relay_port is None else any(listens(p, host.relay_port) for p in found),
                wan=host.wan,
                vms=sum(_is_qemu(process) for process in found),
                place=host.place,
            )
        )
    return tuple(rows)


def down(paths: Paths) -> int:
    """End every process of the lab and remove its files, whatever state it is in. Returns how many hosts it had.

    Raises `Failure` naming what would not end; the files are kept then, so that it can be done again.
    """
    directory = paths.lab
    if not directory.exists():
        return 0
    with _locked(directory):
        names = sorted({host.name for host in _read(directory).hosts} | _host_directories(directory))
        journaled = _journaled(directory)
        # No new connection and no new order first, then what earlier ones left behind.
        end([p for p, kind in _all(directory) if kind in ("sshd", "relay")], 0)
        end([p for p, _ in _all(directory) if _command(p).startswith("sshd")], 0)
        sessions = [p for p, kind in _all(directory) if kind == "session"]
        wait_until(lambda: not any(map(alive, sessions)), 1.0)  # helpers end with their input
        for name in names:
            _sweep(directory / name / "state")
        left = list(journaled)
        for _ in range(5):  # something may have been started while we looked
            left += [p for p, _ in _all(directory)]
            if not any(map(alive, left)):
                break
            left = end(left, 1.0)
        if left := [p for p in left if alive(p)]:
            words = ", ".join(f"{p.pid} ({_command(p)[:60]})" for p in left)
            raise Failure("busy", f"these processes of the lab do not end: {words}", "look at them, then run it again")
        sshd.release_privsep(directory)
        _remove(directory)
    return len(names)


# ---------------------------------------------------------------- the hosts and their daemons


def _with_hosts(lab: Lab, count: int, wan: str | None) -> Lab:
    taken = {port for host in lab.hosts for port in (host.sshd_port, host.relay_port) if port}
    hosts = list(lab.hosts)
    for index in range(len(hosts), count):
        name = name_of(index)
        hosts.append(LabHost(name, lab.directory / name, _free_port(taken)))
    for index, host in enumerate(hosts):
        if wan == NONE:
            hosts[index] = replace(host, wan=None, relay_port=None)
        elif wan is not None:
            link = str(profile_of(wan, host.place))
            hosts[index] = replace(host, wan=link, relay_port=host.relay_port or _free_port(taken))
    return replace(lab, hosts=tuple(hosts))


def _free_port(taken: set[int]) -> int:
    for port in random.sample(PORTS, 200):
        if port not in taken and port_is_free(port):
            taken.add(port)
            return port
    raise Failure("port-in-use", f"no free port found in {PORTS.start} to {PORTS.stop - 1}", "end what uses them all")


def _start(lab: Lab) -> Lab:
    """Start what does not run and wait until all listen; a host whose port was taken meanwhile gets another.
    Returns the lab as it came to be."""
    program = sshd.find_sshd()
    deadline = time.monotonic() + _READY_S
    taken = {port for host in lab.hosts for port in _ports(host)}
    waiting = list(lab.hosts)
    ready: dict[str, LabHost] = {}
    daemons: dict[str, list[Process]] = {}
    while True:
        missing = [host for host in waiting if not all(map(alive, daemons.get(host.name, [_NOBODY])))]
        moved = {host.name: _moved(host, taken) if host.name in daemons else host for host in missing}
        waiting = [moved.get(host.name, host) for host in waiting]
        daemons |= _start_daemons(lab.directory, list(moved.values()), program)
        for host in list(waiting):
            if all(any(listens(process, port) for process in daemons[host.name]) for port in _ports(host)):
                ready[host.name] = host
                waiting.remove(host)
        if not waiting:
            return replace(lab, hosts=tuple(ready[host.name] for host in lab.hosts))
        if time.monotonic() > deadline:
            names = ", ".join(host.name for host in waiting)
            logs = ", ".join(str(host.directory / "sshd.log") for host in waiting)
            raise Failure("timeout", f"{names}: no SSH server within {_READY_S:g} s", f"the reason is in {logs}")
        time.sleep(0.005)


def _ports(host: LabHost) -> list[int]:
    return [port for port in (host.sshd_port, host.relay_port) if port]


def _moved(host: LabHost, taken: set[int]) -> LabHost:
    """``host`` with other ports in place of those that something else listens on by now."""
    ports = {key: getattr(host, key) for key in ("sshd_port", "relay_port")}
    ports = {key: port if port is None or port_is_free(port) else _free_port(taken) for key, port in ports.items()}
    return replace(host, **ports)


def _start_daemons(directory: Path, hosts: list[LabHost], program: Path | None) -> dict[str, list[Process]]:
    """For each host its server and, if it is to have one, its relay: those that run, the others started anew."""
    result: dict[str, list[Process]] = {host.name: [] for host in hosts}
    orders: list[tuple[LabHost, str, list[str]]] = []
    processes = processes_of(directory) if hosts else {}
    for host in hosts:
        found = processes.get(host.name, {})
        for kind, port, command in _wanted(host, directory, program):
            fits = [p for p, its in found.items() if its == kind and _fits(p, kind, port, command)]
            if fits:
                result[host.name].append(fits[0])
            else:
                orders.append((host, kind, command))
        end([p for p, kind in found.items() if kind in ("sshd", "relay") and p not in result[host.name]], 1.0)
    if not orders:
        return result
    journal = directory / "journal"
    _append(journal, *[{"event": "start", "host": host.name, "kind": kind} for host, kind, _ in orders])
    started = sshd.start([(command, host.directory / f"{kind}.log") for host, kind, command in orders])
    rows = zip(orders, started, strict=True)
    _append(journal, *[{"event": "started", "host": h.name, "kind": k, **p._asdict()} for (h, k, _), p in rows])
    for (host, _, _), process in zip(orders, started, strict=True):
        result[host.name].append(process)
    return result


def _wanted(host: LabHost, directory: Path, program: Path | None) -> list[tuple[str, int, list[str]]]:
    """The daemons that ``host`` is to have: kind, port, command. Writes what they read at their start."""
    authorized = directory / "authorized_keys"
    private_directory(host.directory)
    private_directory(host.state_dir)
    sshd.make_key(host.directory / "host_key", host.name)
    if program is None:
        server = sshd.asyncssh_command(host.directory, host.sshd_port, authorized)
    else:
        server = sshd.sshd_command(program, host.directory)
        (host.directory / "sshd_config").write_text(sshd.configuration(host.directory, host.sshd_port, authorized))
    result = [("sshd", host.sshd_port, server)]
    if host.relay_port is not None and host.wan is not None:
        link = profile_of(host.wan, host.place)
        numbers = (link.rtt_ms, link.up_bps, link.down_bps)
        relay = sshd.relay_command(host.directory, host.relay_port, host.sshd_port, numbers)
        result.append(("relay", host.relay_port, relay))
    return result


def _fits(process: Process, kind: str, port: int, command: list[str]) -> bool:
    """Whether a daemon found running is the one that is wanted. (sshd changes its own words.)"""
    return listens(process, port) and (kind == "sshd" or _command(process) == " ".join(command))


def _sweep(state: Path) -> None:
    """Have the host's own code end and remove every VM in that state directory."""
    if not (state / "vms").is_dir():
        return
    command = [sys.executable, "-m", "xenoshell.host", "sweep", str(state)]
    with contextlib.suppress(subprocess.TimeoutExpired):  # what is left is found among the processes
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


def _all(directory: Path) -> list[tuple[Process, str]]:
    return [item for found in processes_of(directory).values() for item in found.items()]


def _command(process: Process) -> str:
    try:
        return (
            Path(f"/proc/{process.pid}/cmdline")
            .read_bytes()
            .rstrip(b"\0")
            .replace(b"\0", b" ")
            .decode(errors="replace")
        )
    except OSError:
        return ""


def _is_qemu(process: Process) -> bool:
    return "qemu-system" in _command(process).partition(" ")[0]


# ---------------------------------------------------------------- the lab's files


def _read(directory: Path) -> Lab:
    try:
        rows = json.loads((directory / "lab.json").read_text())["hosts"]
    except FileNotFoundError:
        return Lab(directory, ())
    hosts = (
        LabHost(row["name"], directory / row["name"], row["sshd_port"], row["relay_port"], row["wan"]) for row in rows
    )
    return Lab(directory, tuple(hosts))


def _write(lab: Lab) -> None:
    rows = [{key: value for key, value in asdict(host).items() if key != "directory"} for host in lab.hosts]
    new = lab.directory / "lab.json.new"
    new.write_text(json.dumps({"hosts": rows}, indent=1) + "\n")
    new.replace(lab.directory / "lab.json")


def _append(journal: Path, *entries: Mapping[str, object]) -> None:
    boot = boot_id()
    lines = "".join(json.dumps({"boot": boot, **entry}) + "\n" for entry in entries)
    with journal.open("a") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _journaled(directory: Path) -> list[Process]:
    """Daemons that the journal names and that are still the same processes."""
    try:
        lines = (directory / "journal").read_text().splitlines()
    except FileNotFoundError:
        return []
    result = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a writer that was killed
            entry = json.loads(line)
            if entry["event"] == "started" and entry["boot"] == boot_id():
                process = Process(entry["pid"], entry["started"])
                if alive(process):
                    result.append(process)
    return result


def _host_directories(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_dir()}


def _remove(directory: Path) -> None:
    for path, _, _ in os.walk(directory):
        Path(path).chmod(0o700)  # a host may have made directories read-only
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
    shutil.rmtree(directory)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lab's lock. Raises `Failure` busy when another one holds it for too long."""
    deadline = time.monotonic() + _LOCK_S
    while (lock := _lock(directory)) is None:
        if time.monotonic() > deadline:
            raise Failure("busy", f"another xenoshell works on the lab in {directory}", "wait for it to end")
        time.sleep(0.02)
    try:
        yield
    finally:
        os.close(lock)


def _lock(directory: Path) -> int | None:
    """The lock's descriptor; `None` if another one has it, or removed it together with the lab this moment."""
    path = private_directory(directory) / "lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        return None
    os.close(lock)
    return None

"""The lab's hosts, and the inventory through which everything else knows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xenoshell.lab.places import CURRENCY, LabPlace, place_of

_TOP = "# XenoServers on this machine. Written by `xenoshell lab up`, removed by `xenoshell lab down`.\n\n"


@dataclass(frozen=True)
class LabHost:
    """A XenoServer of the lab. ``directory`` holds all its files; ``wan`` is its link, as `Profile` writes it."""

    name: str
    directory: Path
    sshd_port: int
    relay_port: int | None = None
    wan: str | None = None

    @property
    def port(self) -> int:
        """Where clients connect: the relay's port if there is one."""
        return self.relay_port or self.sshd_port

    @property
    def place(self) -> LabPlace:
        """Where it says it stands, and what it charges."""
        return place_of(self.name)

    @property
    def state_dir(self) -> Path:
        """Its directory for VMs and images."""
        return self.directory / "state"


def write_inventory(path: Path, user: str, hosts: tuple[LabHost, ...]) -> None:
    """Write the lab's hosts.toml, whole or not at all."""
    import tomli_w

    from xenoshell.fleet import inventory

    def entry(host: LabHost) -> inventory.Host:
        place = host.place
        return inventory.Host(
            name=host.name,
            ssh=f"{user}@127.0.0.1:{host.port}",
            place=inventory.Place(
                region=place.region, country=place.country, city=place.city, lat=place.lat, lon=place.lon
            ),
            price=inventory.PriceList(
                currency=CURRENCY,
                vcpu_hour=place.vcpu,
                memory_gib_hour=place.memory,
                disk_gib_hour=place.disk,
                transfer_gib=place.transfer,
            ),
            labels={"lab": "yes"},
            bind="127.0.0.1",
            state_dir=str(host.state_dir),
            ssh_options=inventory.SshOptions(
                config="/dev/null",
                known_hosts=str(path.parent / "known_hosts"),
                identity=str(path.parent / "id_ed25519"),
            ),
        )

    sections = [entry(host).model_dump(exclude_unset=True) for host in hosts]
    _write(path, _TOP + tomli_w.dumps({"host": sections}))


def write_known_hosts(path: Path, hosts: tuple[LabHost, ...]) -> None:
    """Pin every host's key, for the port of its sshd and of its relay."""
    lines = []
    for host in hosts:
        kind, key = (host.directory / "host_key.pub").read_text().split()[:2]
        ports = [port for port in (host.relay_port, host.sshd_port) if port]
        lines.append(f"{','.join(f'[127.0.0.1]:{port}' for port in ports)} {kind} {key}\n")
    _write(path, "".join(lines))


def _write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)

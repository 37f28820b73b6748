"""The inventory: which hosts there are, where they stand, what they offer and what they charge (`hosts.toml`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from xenoshell import tomlfile
from xenoshell.errors import BadInput
from xenoshell.fields import BindAddress, Currency, HostName, Latitude, Line, Longitude, Model, Money, Size, Whole
from xenoshell.fleet.where import MEASURES, PLACES, SYNONYMS, HostView
from xenoshell.problems import Problems, nearest, refuse

if TYPE_CHECKING:
    from xenoshell.wire.values import HostFacts

MIB = 1 << 20

# ---------------------------------------------------------------- ssh targets


@dataclass(frozen=True)
class SshTarget:
    """``[user@]host[:port]``: ``host`` is a name, an address or an alias of ssh_config; None is what was not given."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


SSH_ALLOWED = "[user@]host[:port] (an IPv6 address in brackets), or an alias of your ssh_config"

_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+$\\-]{0,63})@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}))"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)


def parse_target(text: str) -> SshTarget:
    """The parts of an ssh target. Raises `ValueError` with what is wrong; nothing that begins with ``-`` passes."""
    found = _TARGET.fullmatch(text)
    if found is None:
        hint = "; an IPv6 address goes into brackets" if text.count(":") > 1 and "[" not in text else ""
        raise ValueError(f"not an ssh target{hint}")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise ValueError("a port is 1 to 65535")
    return SshTarget(found["v6"] or found["host"], found["user"], port)


def _target(value: str) -> str:
    try:
        parse_target(value)
    except ValueError as error:
        raise refuse(str(error), allowed=SSH_ALLOWED) from error
    return value


# ---------------------------------------------------------------- what hosts.toml says


class Place(Model):
    """Where a host stands."""

    region: Line | None = Field(None, description='A region of your own choosing, such as "eu" or "us-east".')
    country: Line | None = Field(None, description='Country, best as an ISO 3166 code such as "NL".')
    city: Line | None = Field(None, description="City.")
    lat: Latitude | None = Field(None, description="Latitude in degrees, north positive.")
    lon: Longitude | None = Field(None, description="Longitude in degrees, east positive.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems("Place")
        for here, there in (("lat", "lon"), ("lon", "lat")):
            if getattr(self, here) is not None and getattr(self, there) is None:
                problems.add((there,), None, f"{here} without {there}", allowed="lat and lon, or neither", missing=True)
        problems.check()
        return self


class Declared(Model):
    """What a host's owner offers in all; what it has is probed."""

    cpus: Annotated[Whole, Field(ge=1, le=65536)] | None = Field(None, description="CPUs.")
    memory: Size | None = Field(None, description='Memory, such as "8GiB".')
    disk: Size | None = Field(None, description='Disk space, such as "100GiB".')


class PriceList(Model):
    """What a host charges: a price for each resource, in one currency. What is left out is free."""

    currency: Currency = Field("EUR", description='Currency of these prices (ISO 4217), such as "EUR".')
    vcpu_hour: Money = Field(Decimal(0), description="For a virtual CPU, an hour.")
    memory_gib_hour: Money = Field(Decimal(0), description="For a GiB of memory, an hour.")
    disk_gib_hour: Money = Field(Decimal(0), description="For a GiB of disk, an hour.")
    transfer_gib: Money = Field(Decimal(0), description="For a GiB sent to the host.")

    @property
    def free(self) -> bool:
        """Whether nothing costs anything; then the currency means nothing either."""
        return not (self.vcpu_hour or self.memory_gib_hour or self.disk_gib_hour or self.transfer_gib)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "currency" not in self.model_fields_set and not self.free:
            problems = Problems("PriceList")
            problems.add(("currency",), None, "prices need their currency", allowed='such as "EUR"', missing=True)
            problems.check()
        return self


class SshOptions(Model):
    """Files of this host's own, instead of those that ssh_config names. ``~`` works; relative to hosts.toml."""

    config: Line | None = Field(None, description="ssh_config to use for this host.")
    known_hosts: Line | None = Field(None, description="known_hosts to check its key against.")
    identity: Line | None = Field(None, description="Private key to log in with.")


LABEL_ALLOWED = "lower-case letters, digits, _ and -, beginning with a letter"
_RESERVED = frozenset({*PLACES, *MEASURES, *SYNONYMS})


def _labels(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise refuse("not a table", allowed='keys with text, such as tier = "edge"')
    problems = Problems("labels")
    for key, text in value.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", key):
            problems.add((key,), text, "not usable as a label", allowed=LABEL_ALLOWED)
        elif key in _RESERVED:
            problems.add(
                (key,), text, f"{key} has a meaning of its own in `where`", allowed="another word for the label"
            )
        elif not isinstance(text, str) or not re.fullmatch(r"[^\x00-\x1f\x7f\"']{1,200}", text):
            problems.add(
                (key,), text, "not a label's value", allowed='text in quotes without quotes in it, such as "edge"'
            )
    problems.check()
    return dict(value)


class Host(Model):
    """A XenoServer: a machine reached over SSH that runs VMs."""

    name: HostName = Field(description="What you call it.")
    ssh: Annotated[Line, AfterValidator(_target)] = Field(description=f"How to reach it: {SSH_ALLOWED}.")
    place: Place = Field(Place(), description="Where it stands.")
    resources: Declared = Field(Declared(), description="What it offers; left out: what it has.")
    price: PriceList = Field(PriceList(), description="What it charges; left out: nothing.")
    labels: Annotated[dict[str, str], BeforeValidator(_labels)] = Field(
        {}, description="Labels for `where`, of your own choosing."
    )
    address: Line | None = Field(
        None, description="Where its forwarded ports are reached, for people. Left out: the host name of ssh."
    )
    bind: BindAddress = Field("0.0.0.0", description="Address on which it listens for forwarded ports that name none.")  # noqa: S104
    state_dir: Line | None = Field(
        None, description="Its directory for VMs and images. Left out: ~/.local/state/xenoshell-host."
    )
    ssh_options: SshOptions = Field(SshOptions(), description="SSH files of its own.")

    @property
    def target(self) -> SshTarget:
        """``ssh``, taken apart."""
        return parse_target(self.ssh)

    def view(
        self, *, facts: HostFacts | None = None, rtt_ms: float | None = None, price_per_hour: Decimal | None = None
    ) -> HostView:
        """What `where` looks at: declarations, and what was probed where there is some.

        Memory and CPUs are what the host has in all, and never more than it declares; disk is what is free.
        """
        probed_disk = None if facts is None else facts.disk_free_mib * MIB
        return HostView(
            name=self.name,
            labels=self.labels,
            region=self.place.region,
            country=self.place.country,
            city=self.place.city,
            rtt_ms=rtt_ms,
            vcpus=_least(self.resources.cpus, None if facts is None else facts.cpus),
            memory=_least(self.resources.memory, None if facts is None else facts.memory_mib * MIB),
            disk=_least(self.resources.disk, probed_disk),
            price_per_hour=price_per_hour,
            accel=None if facts is None or facts.kvm == "unproven" else "kvm" if facts.kvm == "usable" else "tcg",
            arch=None if facts is None else facts.arch,
        )


def _least(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


class HostsFile(Model):
    """The file `hosts.toml`."""

    host: tuple[Host, ...] = Field((), description="The hosts.")

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Names are compared even when something else is wrong, so that all errors are seen at once."""
        problems = Problems("HostsFile")
        result = None
        try:
            result = handler(data)
        except ValidationError as error:
            problems.add_all(error)
        hosts = data.get("host") if isinstance(data, Mapping) else None
        seen: set[str] = set()
        for i, host in enumerate(hosts if isinstance(hosts, list | tuple) else ()):
            name = host.get("name") if isinstance(host, Mapping) else getattr(host, "name", None)
            if isinstance(name, str) and name in seen:
                problems.add(("host", i, "name"), name, "another host has this name", allowed="each name once")
            seen |= {name} if isinstance(name, str) else set()
        problems.check()
        if result is None:  # pragma: no cover - then there were problems
            raise AssertionError("unreachable")
        return result


# ---------------------------------------------------------------- the inventory


@dataclass(frozen=True)
class Inventory:
    """All hosts: the user's, then the lab's while it is up."""

    hosts: tuple[Host, ...] = ()

    def names(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.hosts)

    def label_keys(self) -> frozenset[str]:
        """Every label that some host has."""
        return frozenset(key for host in self.hosts for key in host.labels)

    def get(self, name: str) -> Host:
        """The host of that name. Raises `BadInput` that names the nearest ones."""
        for host in self.hosts:
            if host.name == name:
                return host
        near = nearest(name, self.names())
        raise BadInput(
            f"no host is called {name[:80]!r}",
            f"did you mean {near}?" if near
            else "the hosts are: " + ", ".join(self.names()[:20]) if self.hosts
            else "there are no hosts yet: `xenoshell hosts add NAME SSH-TARGET`, or `xenoshell lab up`",
        )  # fmt: skip


def load_inventory(*paths: Path) -> Inventory:
    """The hosts of all ``paths`` in order; a file that does not exist has none.

    Raises `xenoshell.tomlfile.InputErrors` for what is wrong in a file, `BadInput` for a name that two files use.
    Paths in ``ssh_options`` come back absolute.
    """
    hosts: list[Host] = []
    origin: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            continue
        for host in tomlfile.load(path, HostsFile).host:
            if host.name in origin:
                raise BadInput(
                    f"{path}: the host {host.name} is in {origin[host.name]} too",
                    f"rename one of them: `name` in {path}",
                )
            origin[host.name] = path
            hosts.append(_with_absolute_paths(host, path.parent))
    return Inventory(tuple(hosts))


def _with_absolute_paths(host: Host, base: Path) -> Host:
    options = {
        key: str(tomlfile.resolve(value, base)) for key, value in host.ssh_options.model_dump(exclude_none=True).items()
    }
    return host.model_copy(update={"ssh_options": SshOptions(**options)}) if options else host


def add_host(path: Path, host: Host) -> None:
    """Appends a host to ``path`` (made if need be), keeping what is there. Raises `BadInput` if the name is taken."""
    from xenoshell import toml_write

    with toml_write.locked(path):
        text = tomlfile.read_text(path) if path.exists() else ""
        present = tomlfile.loads(text, HostsFile, str(path))
        if any(other.name == host.name for other in present.host):
            raise BadInput(
                f"{path}: a host is called {host.name} already", "choose another name, or remove that one first"
            )
        gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
        added = text + gap + host_text(host)
        # A file that ends inside something unusual (`host = []`) cannot be appended to: the error says where.
        tomlfile.loads(added, HostsFile, str(path))
        toml_write.write_atomically(path, added)


def host_text(host: Host) -> str:
    """A host as a ``[[host]]`` section of `hosts.toml`."""
    from xenoshell import toml_write

    return toml_write.dumps(HostsFile(host=(host,)))


def hosts_text(hosts: tuple[Host, ...], comment: str = "") -> str:
    """A whole `hosts.toml`; each line of ``comment`` goes on top."""
    from xenoshell import toml_write

    top = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return (top + "\n" if top and hosts else top) + (toml_write.dumps(HostsFile(host=hosts)) if hosts else "")


def remove_host(path: Path, name: str) -> None:
    """Takes a host out of ``path``, keeping everything else. Raises `BadInput` if it is not there."""
    import tomlkit

    from xenoshell import toml_write

    with toml_write.locked(path):
        text = tomlfile.read_text(path) if path.exists() else ""
        present = tomlfile.loads(text, HostsFile, str(path))
        Inventory(present.host).get(name)
        index = [host.name for host in present.host].index(name)
        document = tomlkit.parse(text)
        del document["host"][index]
        if not document["host"]:
            del document["host"]
        left = tomlkit.dumps(document)
        expected = tuple(host for host in present.host if host.name != name)
        if tomlfile.loads(left, HostsFile, str(path)).host != expected:
            raise BadInput(f"{path}: {name} cannot be taken out without disturbing the rest", "edit the file by hand")
        toml_write.write_atomically(path, left)

"""The session file as typed, frozen values: the whole schema, and everything that must hold within it.

Sizes are bytes, durations seconds, money `Decimal`. What a file may leave out has its default here. Models can be made
from Python too (``Session(schema_=1, name=..., vm=(...,))``) and are checked just the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from xenoshell.fields import (
    BindAddress,
    Currency,
    HostName,
    Line,
    Model,
    Money,
    Name,
    Port,
    WhereField,
)
from xenoshell.fleet.where import Where
from xenoshell.problems import Problems, refuse
from xenoshell.session.values import (
    MAX_VMS,
    MIB,
    Cmdline,
    Count,
    Disk,
    Filled,
    GuestName,
    GuestPath,
    ImageRef,
    Lease,
    Memory,
    Mode,
    Owner,
    Timeout,
    UrlPath,
    Vcpus,
)

# ---------------------------------------------------------------- the models, from the inside out


class Budget(Model):
    """What the session may cost, and how long hosts may keep its VMs unattended."""

    max_per_hour: Money | None = Field(
        None, description="Refuse to deploy when the session would cost more than this an hour."
    )
    max_total: Money | None = Field(
        None, description="What the session may cost in all: the hosts stop the VMs before it is passed."
    )
    currency: Currency | None = Field(
        None, description="Currency of the two limits (ISO 4217), such as EUR. Left out: that of the hosts' prices."
    )
    lease: Lease | None = Field(
        None,
        description='How long a host may keep the VMs without hearing a renewal: "24h". Left out: without limit.',
    )


class Resources(Model):
    """What each VM gets."""

    vcpus: Vcpus = Field(1, description="Virtual CPUs.")
    memory: Memory = Field(512 * MIB, description='Memory, such as "1GiB"; whole MiB.')
    disk: Disk | None = Field(
        None,
        description="Virtual size of the disk, at least the image's. Left out: the image's. Without an image: empty.",
    )


class ForwardRule(Model):
    """A port of the guest that is reachable on its host."""

    guest: Port = Field(description="The port in the guest.")
    host: Port | None = Field(None, description="The port on the host. Left out: a free one is chosen and reported.")
    proto: Literal["tcp", "udp"] = Field("tcp", description="tcp or udp.")
    bind: BindAddress | None = Field(
        None, description="The address of the host to listen on, such as 127.0.0.1. Left out: as the host's entry says."
    )


class Network(Model):
    """How a VM is connected."""

    mode: Literal["user", "bridge"] = Field(
        "user",
        description="user: behind the host, with forwarded ports; needs no rights. bridge: in the host's network.",
    )
    forward: tuple[ForwardRule, ...] = Field(
        (), description="Ports of the guest that are reachable on the host (mode user)."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems("Network")
        if self.mode == "bridge" and self.forward:
            problems.add(
                ("forward",), self.forward, "a bridged VM has an address of its own: nothing is forwarded",
                allowed='forward with mode = "user"', remedy="remove `forward`, or `mode`",
            )  # fmt: skip
        guests: set[tuple[int, str]] = set()
        hosts: set[tuple[int, str, str | None]] = set()
        for i, rule in enumerate(self.forward):
            if (rule.guest, rule.proto) in guests:
                problems.add(
                    ("forward", i, "guest"), rule.guest, "this port is forwarded already", allowed="each port once"
                )
            guests.add((rule.guest, rule.proto))
            if rule.host is None:
                continue
            if (rule.host, rule.proto, rule.bind) in hosts:
                problems.add(
                    ("forward", i, "host"), rule.host, "another forward uses this port of the host",
                    allowed="each port once", remedy="leave `host` out, and a free port is chosen",
                )  # fmt: skip
            hosts.add((rule.host, rule.proto, rule.bind))
        problems.check()
        return self


class File(Model):
    """A file that is put into the guest at its first boot."""

    path: GuestPath = Field(description="Where it goes in the guest: an absolute path.")
    content: Filled | None = Field(None, description="Its text. Placeholders: {vm} {host} {session} {index}.")
    source: Line | None = Field(
        None, description="A file of yours that is copied as it is; relative to the session file. Instead of content."
    )
    mode: Mode = Field("0644", description='Permissions, octal, as text: "0755".', pattern="^0?[0-7]{3,4}$")
    owner: Owner = Field("root:root", description="user or user:group in the guest.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems("File")
        if self.content is None and self.source is None:
            problems.add((), self.path, "a file needs its text", allowed="content or source", missing=True)
        if self.content is not None and self.source is not None:
            problems.add(("source",), self.source, "content is given too", allowed="content or source, not both")
        problems.check()
        return self


class Customise(Model):
    """What is done to each VM at its first boot."""

    hostname: GuestName | None = Field(
        None,
        description="Host name in the guest. Placeholders: {vm} {host} {session} {index}. Left out: the VM's name.",
    )
    authorized_keys: tuple[Line, ...] = Field(
        (),
        description="SSH keys that may log in: files (~ works; relative to the session file), or keys as text.",
    )
    run: tuple[Filled, ...] = Field(
        (), description="Shell commands, run in order as root. Placeholders: {vm} {host} {session} {index}."
    )
    file: tuple[File, ...] = Field((), description="Files to put into the guest.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems("Customise")
        seen: set[str] = set()
        for i, file in enumerate(self.file):
            if file.path in seen:
                problems.add(("file", i, "path"), file.path, "this file is there already", allowed="each path once")
            seen.add(file.path)
        problems.check()
        return self


class ReadyRule(Model):
    """When a VM counts as ready, rather than only running."""

    when: Literal["console", "tcp", "http", "none"] = Field(
        "none",
        description="http: an answer below 400; tcp: a connection that the guest accepts; "
        "console: a text on its console; none: as soon as it runs.",
    )
    port: Port | None = Field(None, description="The guest's port, for http and tcp. It need not be forwarded.")
    path: UrlPath = Field("/", description="What to ask for, for http.")
    match: Line = Field("login:", description="The literal text to wait for, for console.")
    timeout: Timeout = Field(120.0, description="After this long without it the VM is reported; it goes on running.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems("ReadyRule")
        if self.when in ("http", "tcp") and self.port is None:
            problems.add(
                ("port",), None, f'when = "{self.when}" needs the port to ask', allowed="1 to 65535", missing=True
            )
        if self.when not in ("http", "tcp") and self.port is not None:
            problems.add(
                ("port",), self.port, f'when = "{self.when}" asks no port', allowed='port with when = "http" or "tcp"'
            )
        if self.when != "http" and self.path != "/":
            problems.add(
                ("path",), self.path, f'when = "{self.when}" asks for no path', allowed='path with when = "http"'
            )
        if self.when != "console" and self.match != "login:":
            problems.add(
                ("match",), self.match, f'when = "{self.when}" reads no console', allowed='match with when = "console"'
            )
        problems.check()
        return self


class VmGroup(Model):
    """One or more VMs of the same make."""

    name: Name = Field(description="VMs are called NAME-1, NAME-2, ...; NAME alone when count is 1.")
    image: ImageRef | None = Field(
        None, description="Name or digest of the image. May be left out when a kernel is given."
    )
    kernel: Line | None = Field(
        None, description="A kernel file of yours instead of the image's: any that QEMU boots, not only Linux."
    )
    initrd: Line | None = Field(None, description="An initial RAM disk file of yours.")
    cmdline: Cmdline | None = Field(None, description="The kernel's command line.")
    count: Count = Field(1, description="How many VMs. With hosts: as many as hosts are named.")
    hosts: tuple[HostName, ...] = Field(
        (), description="The hosts, by name, one for each VM; one named twice gets two. Left out: they are chosen."
    )
    where: WhereField = Field(Where(), description='Which hosts will do, such as "region:eu rtt<80ms memory>=2GiB".')
    spread: Literal["region", "country", "city", "host"] | None = Field(
        None, description="Never two VMs in one of these while others are free."
    )
    resources: Resources = Field(Resources(), description="CPUs, memory and disk of each VM.")
    network: Network = Field(Network(), description="The network of each VM.")
    customise: Customise = Field(Customise(), description="Changes to each VM at its first boot.")
    ready: ReadyRule = Field(ReadyRule(), description="When a VM counts as ready. Left out: as soon as it runs.")

    @model_validator(mode="before")
    @classmethod
    def _count_hosts(cls, data: Any) -> Any:
        """``count`` follows from ``hosts`` when it is left out."""
        if isinstance(data, Mapping) and "count" not in data:
            hosts = data.get("hosts")
            if isinstance(hosts, list | tuple) and hosts:
                return {**data, "count": len(hosts)}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems("VmGroup")
        if self.image is None and self.kernel is None:
            problems.add(
                ("image",), None, "a VM needs something to boot", allowed="image, or kernel, or both", missing=True
            )
        if self.hosts and self.count != len(self.hosts):
            problems.add(
                ("count",), self.count, f"hosts names {len(self.hosts)}",
                allowed=f"{len(self.hosts)}, or leave count out", remedy="name a host once for each VM it is to run",
            )  # fmt: skip
        if self.hosts and self.spread is not None:
            problems.add(
                ("spread",), self.spread, "hosts says already where the VMs go", allowed="spread without hosts"
            )
        if self.network.mode == "bridge" and self.ready.when in ("http", "tcp"):
            problems.add(
                ("ready", "when"), self.ready.when, "the host cannot reach the port of a bridged VM",
                allowed='console or none with mode = "bridge"',
            )  # fmt: skip
        problems.check()
        return self

    def vm_names(self) -> tuple[str, ...]:
        """The names of its VMs: ``web-1``, ``web-2``, ...; ``web`` alone when there is one."""
        if self.count == 1:
            return (self.name,)
        return tuple(f"{self.name}-{i}" for i in range(1, self.count + 1))


def _schema(value: Any) -> Any:
    if isinstance(value, bool) or value != 1:
        raise refuse("this version reads schema 1 only", allowed="1", remedy="a newer xenoshell may read this file")
    return value


def _some_groups(groups: tuple[VmGroup, ...]) -> tuple[VmGroup, ...]:
    # Not `min_length`: that would complain about a list whose only group is wrong in itself.
    if not groups:
        raise refuse(
            "no VM group", allowed="at least one [[vm]]", remedy="add a [[vm]] section with a name and an image"
        )
    return groups


class Session(Model):
    """One deployment, as its file describes it."""

    schema_: Annotated[Literal[1], BeforeValidator(_schema)] = Field(
        alias="schema", description="Version of this format: 1."
    )
    name: Name = Field(description="The session's name: that of its record, and of its VMs' ids on the hosts.")
    budget: Budget | None = Field(None, description="What it may cost, and how long it may run unattended.")
    vm: Annotated[tuple[VmGroup, ...], AfterValidator(_some_groups)] = Field(
        description="The VM groups.", json_schema_extra={"minItems": 1}
    )

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Names are compared even when something else is wrong, so that all errors are seen at once."""
        problems = Problems("Session")
        session = None
        try:
            session = handler(data)
        except ValidationError as error:
            problems.add_all(error)
        groups = data.get("vm") if isinstance(data, Mapping) else None
        _check_names(groups if session is None else session.vm, problems)
        problems.check()
        if session is None:  # pragma: no cover - then there were problems
            raise AssertionError("unreachable")
        return session

    def vm_names(self) -> tuple[str, ...]:
        """The names of all VMs, group by group."""
        return tuple(name for group in self.vm for name in group.vm_names())


def _check_names(groups: Any, problems: Problems) -> None:
    """No two groups, and no two VMs, have the same name. ``groups``: models, or what a file says, right or wrong."""
    if not isinstance(groups, list | tuple):
        return
    owners: dict[str, str] = {}
    names: Counter[str] = Counter()
    for i, group in enumerate(groups):
        read = group.get if isinstance(group, Mapping) else lambda key, group=group: getattr(group, key, None)
        name, count, hosts = read("name"), read("count"), read("hosts")
        if not isinstance(name, str):
            continue
        names[name] += 1
        if names[name] > 1:
            problems.add(("vm", i, "name"), name, "another VM group has this name", allowed="each name once")
            continue
        if not isinstance(count, int):
            count = len(hosts) if isinstance(hosts, list | tuple) and hosts else 1
        if count > MAX_VMS:
            return  # its own error, and there may be no end of names
        if len(owners) + count > MAX_VMS:
            problems.add(
                ("vm", i, "count"), read("count"), f"more than {MAX_VMS} VMs in all",
                allowed=f"{MAX_VMS} in one session", remedy="make it several sessions",
            )  # fmt: skip
            return
        expanded = [name] if count == 1 else [f"{name}-{n}" for n in range(1, count + 1)]
        clash = next((vm for vm in expanded if vm in owners), None)
        if clash is not None:
            problems.add(
                ("vm", i, "name"), name, f"a VM would be called {clash}, like one of group {owners[clash]}",
                allowed="names that differ", remedy="rename one of the two groups",
            )  # fmt: skip
        owners.update((vm, name) for vm in expanded)

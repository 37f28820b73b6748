"""The inventory: hosts, their keys, their health."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console.clean import clean
from ..errors import BadInput
from .command import Cli, command, group
from .common import count, inventory
from .exits import Refused
from .lines import finish_check, show_line
from .output import Cell

if TYPE_CHECKING:
    from ..fleet.inventory import Host

Name = Annotated[str, typer.Argument(metavar="NAME", help="A host of the inventory.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this family to ``app``."""
    hosts = group("The machines that run VMs for you, reached over SSH.")
    app.add_typer(hosts, name="hosts", rich_help_panel="Hosts and images")
    command(hosts, "list")(hosts_list)
    command(hosts, "add")(hosts_add)
    command(hosts, "trust")(hosts_trust)
    command(hosts, "check")(hosts_check)
    command(hosts, "remove")(hosts_remove)


def hosts_list(cli: Cli) -> None:
    """All hosts: place, what they offer, what they charge. Asks no host."""
    from ..deploy.money import plain
    from ..units import human_size

    hosts = inventory(cli.paths).hosts
    lab = _lab_names(cli)
    if cli.out.json:
        cli.out.document(
            [h.model_dump(mode="json", exclude_none=True) | {"lab": h.name in lab} for h in hosts],
        )
        return
    if not hosts:
        cli.out.note(
            "no hosts yet: `xenoshell hosts add NAME USER@HOST`, or `xenoshell lab up` for some on this machine"
        )
        return
    cli.out.table(
        ("HOST", "SSH", "PLACE", "CPUS", "MEMORY", "DISK", "VCPU/H", "GIB/H", "DISK GIB/H", "LABELS"),
        without_empty=True,
        spare=("LABELS", "DISK", "MEMORY", "CPUS", "DISK GIB/H"),
        rows=[
            (
                h.name,
                h.ssh,
                place_of(h),
                Cell(str(h.resources.cpus or ""), right=True),
                Cell(human_size(h.resources.memory) if h.resources.memory else "", right=True),
                Cell(human_size(h.resources.disk) if h.resources.disk else "", right=True),
                Cell("free" if h.price.free else f"{plain(h.price.vcpu_hour)} {h.price.currency}", right=True),
                Cell("" if h.price.free else plain(h.price.memory_gib_hour), right=True),
                Cell("" if h.price.free else plain(h.price.disk_gib_hour), right=True),
                " ".join(f"{k}={v}" for k, v in h.labels.items()),
            )
            for h in hosts
        ],
    )


def place_of(host: Host) -> str:
    """City, country and region, as far as they are known."""
    return ", ".join(part for part in (host.place.city, host.place.country, host.place.region) if part)


def hosts_add(
    cli: Cli,
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call it.")],
    ssh: Annotated[str, typer.Argument(metavar="SSH-TARGET", help="[user@]host[:port], or an alias of ssh_config.")],
    region: Annotated[
        str | None, typer.Option(metavar="REGION", help="A region of your own choosing, such as eu.")
    ] = None,
    country: Annotated[str | None, typer.Option(metavar="COUNTRY", help="Country, such as NL.")] = None,
    city: Annotated[str | None, typer.Option(metavar="CITY", help="City, such as Amsterdam.")] = None,
    identity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The private key to log in with, if ssh_config names none.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label for `where`; repeatable.")
    ] = None,
) -> None:
    """Enter a host. Prices and the rest can be edited in hosts.toml afterwards."""
    from pydantic import ValidationError

    from ..fleet.inventory import Host, add_host

    labels = {}
    for text in label or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--label: found {text!r}; write KEY=VALUE, such as tier=edge")
        labels[key] = value
    place = {k: v for k, v in (("region", region), ("country", country), ("city", city)) if v is not None}
    if any(host.name == name for host in inventory(cli.paths).hosts):
        raise BadInput(f"a host is called {name} already", "choose another name, or remove that one first")
    try:
        keys = {"ssh_options": {"identity": str(identity.expanduser().absolute())}} if identity else {}
        host = Host.model_validate({"name": name, "ssh": ssh, "place": place, "labels": labels, **keys})
    except ValidationError as error:
        raise _as_bad_input(error) from None
    add_host(cli.paths.hosts_file, host)
    if cli.out.json:
        cli.out.document(host)
    cli.out.note(
        f"{name} is in {cli.paths.hosts_file}; next: `xenoshell hosts trust {name}`, `xenoshell hosts check {name}`"
    )


def hosts_trust(
    cli: Cli,
    name: Name,
    *,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="SHA256:...", help="Pin only if the key has this fingerprint; asks nothing.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Pin in place of another key, which is then forgotten.")
    ] = False,
) -> None:
    """Look at a host's key and pin it. Compare the fingerprint with the owner's first."""
    from ..fleet import trust

    host = inventory(cli.paths).get(name)
    key = cli.run(trust.scan(host, cli.paths))
    known = [f"{e.key_type} {e.fingerprint} ({e.place})" for e in key.entries if not e.marker]
    cli.out.note(f"{name} ({clean(key.name)}, port {key.port}) shows the {clean(key.type)} key {key.fingerprint}")
    pinned = False
    if fingerprint is not None and _bare(fingerprint) != _bare(key.fingerprint):
        raise Refused(f"{name}: its key is {key.fingerprint}, not {clean(fingerprint)}: nothing was pinned")
    if key.known == "certificate":
        cli.out.note("it is certified by an authority that you trust: nothing needs to be pinned")
    elif key.known == "same":
        cli.out.note(f"it is known already: {clean(', '.join(known))}")
    else:
        if key.known == "changed":
            cli.out.note(f"it is NOT the one known until now: {clean(', '.join(known))}")
        if fingerprint is None and (key.known == "unknown" or (key.known == "changed" and replace)):
            cli.confirm(f"pins that key for {name}" + (", and forgets the one known until now" if known else ""))
        pinned = trust.pin(host, key, cli.paths, replace=replace)
        cli.out.note(f"pinned in {cli.paths.known_hosts}" if pinned else "nothing had to be written")
    if cli.out.json:
        cli.out.document(
            {"host": name, "type": key.type, "fingerprint": key.fingerprint, "known": key.known, "pinned": pinned}
        )


def _bare(fingerprint: str) -> str:
    return fingerprint.strip().removeprefix("SHA256:").rstrip("=")


def hosts_check(
    cli: Cli,
    name: Name,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Prove KVM with this image's kernel (the host must hold it).")
    ] = None,
) -> None:
    """Whether a host is fit to run VMs: each step of reaching it, and what it has, line by line."""
    from ..fleet.check import check

    host = inventory(cli.paths).get(name)
    kernel = None
    if image is not None:
        from ..images.store import ImageStore

        manifest = ImageStore(cli.paths.images).get(image).manifest
        kernel = manifest.kernel.digest if manifest.kernel else None
    show = None if cli.out.json else lambda line: show_line(cli.out, line)
    lines = cli.run(check(host, cli.paths, kernel=kernel, on_line=show))
    finish_check(cli.out, name, lines)


def hosts_remove(cli: Cli, name: Name) -> None:
    """Take a host out of the inventory. Its VMs are not touched."""
    from ..deploy.record import SessionStore
    from ..fleet import facts
    from ..fleet.inventory import remove_host

    if name in _lab_names(cli):
        raise BadInput(f"{name} is a host of the lab", "`xenoshell lab down` removes the lab")
    inventory(cli.paths).get(name)
    store = SessionStore(cli.paths.sessions)
    used = {s: sum(vm.host == name for vm in store.load(s).vms.values()) for s in store.names()}
    used = {session: number for session, number in used.items() if number}
    if used:
        vms, sessions = count(sum(used.values()), "VM"), ", ".join(used)
        cli.confirm(f"leaves {vms} on {name} to themselves ({sessions}): they go on, out of xenoshell's reach")
    remove_host(cli.paths.hosts_file, name)
    facts.forget(name, cli.paths)
    if cli.out.json:
        cli.out.document({"removed": name, "vms_left": used})
    cli.out.note(f"{name} is no longer in {cli.paths.hosts_file}")


def _lab_names(cli: Cli) -> frozenset[str]:
    from ..fleet.inventory import load_inventory

    return frozenset(load_inventory(cli.paths.lab / "hosts.toml").names())


def _as_bad_input(error: Exception) -> BadInput:
    """What pydantic says about arguments, without its own words about models."""
    from pydantic import ValidationError

    parts = []
    for each in error.errors(include_url=False) if isinstance(error, ValidationError) else ():
        allowed = each.get("ctx", {}).get("allowed")
        where = ".".join(str(part) for part in each["loc"])
        parts.append(f"{where}: {each['msg']}; found {each['input']!r}" + (f"; allowed: {allowed}" if allowed else ""))
    return BadInput("; ".join(parts) or str(error))

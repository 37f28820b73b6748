"""What several families of commands need."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from ..console.clean import clean
from ..errors import BadInput
from ..paths import Paths
from .output import Output

if TYPE_CHECKING:
    from ..deploy.reach import SshConnector
    from ..fleet.inventory import Inventory

T = TypeVar("T")

ACCELS: Final = ("auto", "kvm", "tcg")

Accel = Annotated[str, typer.Option(metavar="auto|kvm|tcg", help="Run guests under KVM, TCG, or what is proven.")]
SessionFile = Annotated[str, typer.Argument(metavar="FILE", help="A session file.")]
SessionName = Annotated[str, typer.Argument(metavar="SESSION", help="A session that was deployed.")]
Where = Annotated[str, typer.Argument(metavar="SESSION[/VM]", help="A session, or one VM of it.")]
OneVm = Annotated[str, typer.Argument(metavar="SESSION/VM", help="One VM of a session.")]


def accel_of(text: str) -> str:
    """The value of ``--accel``. Raises `BadInput` with what is allowed."""
    if text not in ACCELS:
        raise BadInput(f"--accel: found {text!r}; allowed: {', '.join(ACCELS)}")
    return text


def inventory(paths: Paths) -> Inventory:
    """All hosts: the user's, then those of the lab while it is up."""
    from ..fleet.inventory import load_inventory

    return load_inventory(paths.hosts_file, paths.lab / "hosts.toml")


def connector(paths: Paths) -> SshConnector:
    """The way to the hosts."""
    from ..deploy.reach import SshConnector
    from ..images.store import ImageStore

    return SshConnector(paths, ImageStore(paths.images))


async def reaching(paths: Paths, work: Callable[[SshConnector], Awaitable[T]]) -> T:
    """What ``work`` returns, given the way to the hosts, which is closed in order afterwards."""
    async with connector(paths) as reach:
        return await work(reach)


def count(number: int, what: str) -> str:
    """``1 VM``, ``3 VMs``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def show_reasons(out: Output, reasons: Sequence[Reason]) -> None:
    """Below a table: what went wrong and what to do about it, things with the same reason together."""
    groups: dict[tuple[str, str], list[Reason]] = {}
    for reason in reasons:
        groups.setdefault((clean(reason.message), clean(reason.remedy)), []).append(reason)
    for (message, remedy), alike in groups.items():
        names = ", ".join(dict.fromkeys(reason.who for reason in alike))
        out.warn(message if message.startswith((f"{names}:", f"{names} ")) else f"{names}: {message}")
        if remedy:
            out.warn(f"  to do: {filled(remedy, alike)}")


@dataclass(frozen=True)
class Reason:
    """Why something is not as it should be with one VM. ``who``: what the message is about, for people."""

    who: str
    session: str
    vm: str
    host: str
    message: str
    remedy: str


def filled(remedy: str, alike: Sequence[Reason]) -> str:
    """``remedy`` with the names that its commands leave open, where there is only one that can be meant."""
    for placeholder, names in (
        ("SESSION/VM", {f"{r.session}/{r.vm}" for r in alike}),
        ("SESSION", {r.session for r in alike}),
        ("NAME", {r.host for r in alike}),
    ):
        if len(names) == 1:
            remedy = re.sub(rf"(`xenoshell [a-z ]+){placeholder}(?![\w/])", rf"\g<1>{names.pop()}", remedy)
    return remedy

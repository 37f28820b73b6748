"""What several families of commands need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..errors import BadInput
from ..paths import Paths

if TYPE_CHECKING:
    from ..fleet.inventory import Inventory

ACCELS: Final = ("auto", "kvm", "tcg")

Accel = Annotated[str, typer.Option(metavar="auto|kvm|tcg", help="Run guests under KVM, TCG, or what is proven.")]
SessionFile = Annotated[str, typer.Argument(metavar="FILE", help="A session file.")]
SessionName = Annotated[str, typer.Argument(metavar="SESSION", help="A session that was deployed.")]
Where = Annotated[str, typer.Argument(metavar="SESSION[/VM]", help="A session, or one VM of it.")]
OneVm = Annotated[str, typer.Argument(metavar="SESSION/VM", help="One VM of a session.")]


@dataclass(frozen=True)
class Target:
    """A session, or one VM of it (``vm`` is "" for all)."""

    session: str
    vm: str

    def __str__(self) -> str:
        return f"{self.session}/{self.vm}" if self.vm else self.session


def target(text: str, *, one: bool = False) -> Target:
    """``SESSION`` or ``SESSION/VM``; with ``one`` the latter only. Raises `BadInput`."""
    session, slash, vm = text.partition("/")
    if not session or (slash and not vm) or "/" in vm:
        raise BadInput(f"{text!r} names nothing; write SESSION or SESSION/VM, such as edge-web/web-1")
    if one and not vm:
        raise BadInput(f"{text!r} is a whole session; write SESSION/VM, such as {session}/web-1")
    return Target(session, vm)


def accel_of(text: str) -> str:
    """The value of ``--accel``. Raises `BadInput` with what is allowed."""
    if text not in ACCELS:
        raise BadInput(f"--accel: found {text!r}; allowed: {', '.join(ACCELS)}")
    return text


def inventory(paths: Paths) -> Inventory:
    """All hosts: the user's, then those of the lab while it is up."""
    from ..fleet.inventory import load_inventory

    return load_inventory(paths.hosts_file, paths.lab / "hosts.toml")


def count(number: int, what: str) -> str:
    """``1 VM``, ``3 VMs``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

"""What the VMs of a session need, and what is known of the hosts: placement and quote bring the two together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from ..errors import BadInput
from ..fleet.inventory import Host
from ..fleet.where import HostView
from ..session.model import Session, VmGroup
from ..wire.values import HostFacts
from .money import gib

MIB = 1 << 20


@dataclass(frozen=True)
class Blob:
    """One file of an image: its length; its packed length in bytes if the pack has been made (else None); and what it
    occupies here, holes left out (None: not known)."""

    digest: str
    size: int
    packed: int | None
    what: str  # disk | kernel | initrd
    used: int | None = None

    @property
    def to_send(self) -> int:
        """Bytes to send at most; exact when ``packed`` is known. Holes are not sent, and packing does not add."""
        if self.packed is not None:
            return self.packed
        return self.size if self.used is None else min(self.size, self.used)


@dataclass(frozen=True)
class ImageFacts:
    """An image as far as planning needs it: the effective manifest of a VM group, overrides included."""

    name: str
    arch: str
    boot: str  # kernel | disk
    disk: Blob | None = None
    kernel: Blob | None = None
    initrd: Blob | None = None
    cmdline: str = ""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The blobs that a host needs, the kernel first, since a proof of KVM waits for it."""
        return tuple(b for b in (self.kernel, self.initrd, self.disk) if b is not None)


@dataclass(frozen=True)
class Need:
    """What each VM of one group needs. Sizes in bytes. These are reserved on the host, and that is what is charged."""

    group: VmGroup
    image: ImageFacts
    names: tuple[str, ...]
    vcpus: int
    memory: int
    disk: int


@dataclass(frozen=True)
class Known:
    """What is known of a host beyond its inventory entry; all of it may be missing.

    ``facts`` may be old in a quote; ``refused`` says why the host cannot be used now (unreachable, too slow, ...).
    """

    facts: HostFacts | None = None
    rtt_ms: float | None = None
    refused: str = ""


def needs(session: Session, images: Mapping[str, ImageFacts]) -> tuple[Need, ...]:
    """The need of every VM group. ``images``: group name -> image. Raises `BadInput` if a disk is too small for its
    image."""
    out = []
    for group in session.vm:
        image = images[group.name]
        least = image.disk.size if image.disk else 0
        asked = group.resources.disk
        if asked is not None and asked < least:
            raise BadInput(
                f"vm {group.name!r}: resources.disk is {asked} bytes, but the image {image.name} needs {least}",
                "give a disk at least as large as the image's, or leave it out",
            )
        out.append(
            Need(
                group=group,
                image=image,
                names=group.vm_names(),
                vcpus=group.resources.vcpus,
                memory=group.resources.memory,
                disk=asked if asked is not None else least,
            )
        )
    return tuple(out)


def price_per_hour(host: Host, need: Need) -> Decimal:
    """What one VM of ``need`` costs an hour on ``host``, in the host's currency, for what it reserves."""
    price = host.price
    return (
        price.vcpu_hour * need.vcpus + price.memory_gib_hour * gib(need.memory) + price.disk_gib_hour * gib(need.disk)
    )


def view(host: Host, known: Known, need: Need) -> HostView:
    """The host as `where` looks at it, for one VM of ``need``."""
    return host.view(facts=known.facts, rtt_ms=known.rtt_ms, price_per_hour=price_per_hour(host, need))

"""What an image is: a disk, optionally with its own kernel and initrd; the digest of its manifest is its id."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, Optional

from xenoshell.wire.codec import CodecError, decode, dumps, loads
from xenoshell.wire.values import DIGEST

SCHEMA = 1
ARCHES = ("x86_64", "aarch64")
BOOTS = ("kernel", "disk")
CUSTOMISES = ("nocloud", "agent", "none")
#: What an image may be called. Names become neither paths nor options, but people type them into shells.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


@dataclass(frozen=True)
class BlobRef:
    """A blob by the root of its digest tree, and its length in bytes."""

    digest: str
    size: int

    def __post_init__(self) -> None:
        if not DIGEST.match(self.digest):
            raise ValueError(f"digest: expected 64 hexadecimal digits, found {self.digest[:80]!r}")
        if self.size < 0:
            raise ValueError("size: must not be negative")


@dataclass(frozen=True)
class Manifest:
    """An image. ``boot`` says how it boots by default; ``customise`` who applies the seed at first boot: cloud-init
    (``nocloud``), the first-boot agent (``agent``) or nobody (``none``)."""

    arch: str
    disk: BlobRef | None = None
    kernel: BlobRef | None = None
    initrd: BlobRef | None = None
    cmdline: str = ""
    boot: str = "kernel"
    customise: str = "none"
    labels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.arch not in ARCHES:
            raise ValueError(f"arch: {self.arch!r} is not one of {', '.join(ARCHES)}")
        if self.boot not in BOOTS:
            raise ValueError(f"boot: {self.boot!r} is not one of {', '.join(BOOTS)}")
        if self.customise not in CUSTOMISES:
            raise ValueError(f"customise: {self.customise!r} is not one of {', '.join(CUSTOMISES)}")
        if self.boot == "kernel" and self.kernel is None:
            raise ValueError("boot: kernel needs a kernel")
        if self.boot == "disk" and self.disk is None:
            raise ValueError("boot: disk needs a disk")
        if self.initrd is not None and self.kernel is None:
            raise ValueError("initrd: without a kernel it does nothing")
        if "\n" in self.cmdline or "\0" in self.cmdline:
            raise ValueError("cmdline: must be one line")
        if tuple(sorted(dict(self.labels).items())) != self.labels:
            raise ValueError("labels: must be sorted by key, each key once")

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """The blobs the image is made of, each once: disk, kernel, initrd."""
        return tuple(dict.fromkeys(b for b in (self.disk, self.kernel, self.initrd) if b is not None))

    @property
    def id(self) -> str:
        """SHA-256 of the canonical manifest: 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The manifest as canonical JSON: equal manifests give equal bytes."""
        fields: dict[str, Any] = {
            name: getattr(self, name) for name in ("arch", "disk", "kernel", "initrd", "cmdline", "boot", "customise")
        }
        return dumps({"schema": SCHEMA, **fields, "labels": dict(self.labels)})

    def labelled(self, **labels: str) -> Manifest:
        """The same image with more labels (a later value replaces an earlier one)."""
        return replace(self, labels=tuple(sorted({**dict(self.labels), **labels}.items())))


def parse(data: bytes) -> Manifest:
    """Read a manifest. Raises `CodecError` for one that is malformed or of a schema this program does not know."""
    value = loads(data)
    if value.get("schema") != SCHEMA:
        raise CodecError(f"Manifest.schema: {value.get('schema')!r} is not {SCHEMA}; did a newer xenoshell make it?")
    labels = value.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise CodecError("Manifest.labels: expected an object of strings")
    return decode(_Fields, value).manifest(tuple(sorted(labels.items())))


@dataclass(frozen=True)
class _Fields:
    """The manifest's fields as JSON has them; labels are an object there and apart from these.

    ``Optional`` since that is the spelling `decode` knows."""

    arch: str
    boot: str
    customise: str
    cmdline: str
    disk: Optional[BlobRef] = None  # noqa: UP045
    kernel: Optional[BlobRef] = None  # noqa: UP045
    initrd: Optional[BlobRef] = None  # noqa: UP045

    def manifest(self, labels: tuple[tuple[str, str], ...]) -> Manifest:
        try:
            return Manifest(
                self.arch, self.disk, self.kernel, self.initrd, self.cmdline, self.boot, self.customise, labels
            )
        except ValueError as error:
            raise CodecError(f"Manifest.{error}") from None

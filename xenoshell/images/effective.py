"""The image that a VM group really boots: the one it names, with the kernel, initrd and command line it overrides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xenoshell.errors import BadInput
from xenoshell.images import kernels
from xenoshell.images.manifest import BlobRef, Manifest
from xenoshell.images.store import ImageStore
from xenoshell.session.model import VmGroup


def effective(group: VmGroup, store: ImageStore, base_dir: Path) -> Manifest:
    """The manifest of what ``group`` boots. All its blobs are in ``store``: files that the group names are put there.

    Each key overrides what the image carries. An image's initrd and command line stay with another Linux kernel, and go
    when the kernel is of another kind. Paths are relative to ``base_dir``. Raises `BadInput` for files that cannot be
    used and keys that do nothing, `Failure` (image-missing) for an unknown image.
    """
    where = f"VM group {group.name!r}"
    image = store.get(group.image).manifest if group.image is not None else None
    if group.kernel is not None:
        path = _file(group.kernel, "kernel", where, base_dir)
        kind = kernels.kind_of(path)
        manifest = _with_kernel(image, store.add_blob(path), kind)
    elif image is None:
        raise BadInput(f"{where}: there is nothing to boot", "give an image, or a kernel")
    else:
        manifest = image
    overrides = [key for key in ("initrd", "cmdline") if getattr(group, key) is not None]
    if overrides and manifest.kernel is None:
        raise BadInput(
            f"{where}: {' and '.join(overrides)} need a kernel, and image {group.image!r} boots from its disk",
            f"remove {' and '.join(overrides)}, or give a kernel too",
        )
    if group.initrd is not None:
        initrd = store.add_blob(_file(group.initrd, "initrd", where, base_dir))
        manifest = replace(manifest, initrd=initrd, boot="kernel")
    if group.cmdline is not None:
        manifest = replace(manifest, cmdline=group.cmdline, boot="kernel")
    return manifest


def _with_kernel(image: Manifest | None, kernel: BlobRef, kind: str) -> Manifest:
    if image is None:
        return Manifest(arch="x86_64", kernel=kernel, boot="kernel", labels=(("kernel", kind),))
    manifest = replace(image, kernel=kernel, boot="kernel").labelled(kernel=kind)
    return manifest if kernels.is_linux(kind) else replace(manifest, initrd=None, cmdline="")


def _file(written: str, key: str, where: str, base_dir: Path) -> Path:
    path = base_dir / Path(written).expanduser()
    try:
        if not path.is_file() and path.exists():
            raise BadInput(f"{where}: {key} {written} ({path}) is not a file", f"name the {key}'s file in `{key}`")
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise BadInput(f"{where}: {key} {written} ({path}): {error.strerror or error}", f"correct `{key}`") from None
    if empty:
        raise BadInput(f"{where}: {key} {written} ({path}) is empty", f"name the {key}'s file in `{key}`")
    return path

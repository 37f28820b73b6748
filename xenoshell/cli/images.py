"""The image store: what there is, and templates made here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput
from .command import Cli, command, group
from .output import Cell

if TYPE_CHECKING:
    from ..images.manifest import BlobRef, Manifest
    from ..images.store import Image, ImageStore

TEMPLATES = ("tiny", "debian")


def register(app: typer.Typer) -> None:
    """Add the commands of this family to ``app``."""
    images = group("Disk images, kept on this machine and sent to hosts as needed.")
    app.add_typer(images, name="images", rich_help_panel="Hosts and images")
    command(images, "list")(images_list)
    command(images, "build")(images_build)
    command(images, "inspect")(images_inspect)


def images_list(cli: Cli) -> None:
    """All images."""
    from ..units import human_size

    images = _store(cli).images()
    if cli.out.json:
        cli.out.document([_facts(cli, image) for image in images])
    elif not images:
        cli.out.note("no images yet: `xenoshell images build tiny` makes one in seconds")
    else:
        cli.out.table(
            ("IMAGE", "ID", "DISK", "STORED", "BOOT", "ARCH", "MADE OF"),
            [
                (
                    ", ".join(image.names) or "-",
                    image.id[:12],
                    Cell(human_size(image.manifest.disk.size) if image.manifest.disk else "none", right=True),
                    Cell(human_size(sum(_used(cli, blob) for blob in image.manifest.blobs)), right=True),
                    image.manifest.boot,
                    image.manifest.arch,
                    " ".join(f"{key}={value}" for key, value in image.manifest.labels),
                )
                for image in images
            ],
        )


def images_build(
    cli: Cli,
    *,
    template: Annotated[str, typer.Argument(metavar="tiny|debian", help="Which template.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The image's name; left out: the template's.")
    ] = None,
    boot: Annotated[
        str, typer.Option(metavar="kernel|disk", help="How it starts: its kernel, or a boot loader.")
    ] = "kernel",
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the distribution for newer packages.")] = False,
) -> None:
    """Build a template from the distribution's packages."""
    if template not in TEMPLATES:
        raise BadInput(f"there is no template {template!r}; allowed: {', '.join(TEMPLATES)}")
    if boot not in ("kernel", "disk"):
        raise BadInput(f"--boot: found {boot!r}; allowed: kernel, disk")
    store = _store(cli)
    cache = cli.paths.cache / "packages"
    builder(template)(store, name or template, cli.out.note, boot=boot, cache=cache, refresh=refresh)
    image = store.get(name or template)
    if cli.out.json:
        cli.out.document(_facts(cli, image))
    else:
        cli.out.data(f"{image.title} {image.id}")


def builder(template: str) -> Callable[..., Manifest]:
    """The function that builds ``template``, one of `TEMPLATES`."""
    import importlib

    build: Callable[..., Manifest] = importlib.import_module(f"xenoshell.images.{template}").build
    return build


def images_inspect(
    cli: Cli, image: Annotated[str, typer.Argument(metavar="IMAGE", help="A name, or the first digits of an id.")]
) -> None:
    """Everything about one image."""
    from ..units import human_size

    found = _store(cli).get(image)
    if cli.out.json:
        cli.out.document(_facts(cli, found))
        return
    manifest = found.manifest
    rows = [("name", ", ".join(found.names) or "-"), ("id", found.id), ("arch", manifest.arch)]
    for what, blob in (("disk", manifest.disk), ("kernel", manifest.kernel), ("initrd", manifest.initrd)):
        if blob is not None:
            rows.append((what, f"{human_size(blob.size)}, {human_size(_used(cli, blob))} stored"))
            rows.append(("", blob.digest))
    rows += [("boot", manifest.boot), ("command line", manifest.cmdline or "-"), ("customised by", manifest.customise)]
    rows += [(f"label {key}", value) for key, value in manifest.labels]
    cli.out.table(("WHAT", "VALUE"), rows)


def _store(cli: Cli) -> ImageStore:
    from ..images.store import ImageStore

    return ImageStore(cli.paths.images)


def _used(cli: Cli, blob: BlobRef) -> int:
    """Bytes that a blob really takes here (it is sparse)."""
    return (cli.paths.images / "blobs" / blob.digest).stat().st_blocks * 512


def _facts(cli: Cli, image: Image) -> dict[str, Any]:
    manifest = image.manifest
    blobs = (("disk", manifest.disk), ("kernel", manifest.kernel), ("initrd", manifest.initrd))
    return {
        "id": image.id,
        "names": list(image.names),
        "arch": manifest.arch,
        "boot": manifest.boot,
        "cmdline": manifest.cmdline,
        "customise": manifest.customise,
        "labels": dict(manifest.labels),
        **{w: {"digest": b.digest, "size": b.size, "stored": _used(cli, b)} if b else None for w, b in blobs},
    }

"""Session files: a new one, whether one is right, what it would cost and do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..console.clean import clean
from ..errors import BadInput
from .command import Cli, command
from .common import SessionFile, count, inventory

SECTION = "Session files"


def register(app: typer.Typer) -> None:
    """Add the commands of this family to ``app``."""
    command(app, "new", section=SECTION)(new)
    command(app, "check", section=SECTION)(check)


def new(
    cli: Cli,
    *,
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="Where to write it; - for stdout.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The session's name; left out: the file's.")] = None,
    image: Annotated[str, typer.Option(metavar="IMAGE", help="The image of its VMs.")] = "tiny",
    host: Annotated[list[str] | None, typer.Option(metavar="NAME", help="One VM on this host; repeatable.")] = None,
    count: Annotated[
        int | None, typer.Option(metavar="N", help="How many VMs, on hosts that fit, spread over regions.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of session files.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a session file to start from."""
    from ..session.new import schema as schema_of
    from ..session.new import template

    if schema:
        cli.out.document(schema_of())
        return
    if file is None:
        raise BadInput("which FILE? `xenoshell new site.toml`, or - for stdout")
    text = template(
        name or ("session" if file == "-" else Path(file).stem), image=image, hosts=tuple(host or ()), count=count
    )
    if file == "-":
        cli.out.data(text.rstrip("\n"))
        return
    path = Path(file)
    try:
        with path.open("w" if force else "x") as out:
            out.write(text)
    except FileExistsError:
        raise BadInput(f"{file} is there already", "choose another name, or say --force to write over it") from None
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}") from None
    if cli.out.json:
        cli.out.document({"file": str(path.absolute())})
    cli.out.note(f"{file} is written; edit it, then `xenoshell check {file}`, `quote`, `deploy`")


def check(cli: Cli, file: SessionFile) -> None:
    """Whether a session file is right: everything that is wrong with it, line by line. Asks no host.

    Hosts and images that are not there yet are told, and are no errors: the file may come first.
    """
    from ..session.load import load_session, mentioned
    from ..tomlfile import InputErrors

    path = Path(file)
    session, problems = None, None
    try:
        session = load_session(path).session
    except InputErrors as errors:
        problems = errors
    hosts, images = mentioned(path)
    no_hosts, no_images = _unknown_hosts(cli, hosts), _unknown_images(cli, images)
    if cli.out.json:
        cli.out.document(
            {
                "file": file,
                "right": problems is None,
                "session": session.name if session else None,
                "vms": list(session.vm_names()) if session else [],
                "errors": [vars(error) for error in problems.errors] if problems else [],
                "unknown_hosts": list(no_hosts),
                "unknown_images": list(no_images),
            }
        )
    elif session is not None:
        vms = session.vm_names()
        cli.out.data(f"{file}: right; session {session.name}, {count(len(vms), 'VM')}: {', '.join(vms)}")
    for what, unknown in (("host", no_hosts), ("image", no_images)):
        for name, near in unknown.items():
            meant = f"; did you mean {clean(near)}?" if near else ""
            cli.out.note(f"{file}: no {what} is called {clean(name)} (yet){meant}")
    if problems is not None:
        raise problems


def _unknown_hosts(cli: Cli, names: Sequence[str]) -> dict[str, str]:
    """Those of ``names`` that the inventory does not have, each with the nearest that it has, or ""."""
    from ..problems import nearest

    known = inventory(cli.paths).names() if names else ()
    return {name: nearest(name, known) for name in dict.fromkeys(names) if name not in known}


def _unknown_images(cli: Cli, names: Sequence[str]) -> dict[str, str]:
    """The same for images, which may also be named by the first digits of their id."""
    from ..images.store import ImageStore
    from ..problems import nearest
    from ..wire.causes import Failure

    store, unknown = ImageStore(cli.paths.images), {}
    for name in dict.fromkeys(names):
        try:
            store.get(name)
        except Failure as failure:
            if failure.cause != "image-missing":
                raise
            unknown[name] = nearest(name, store.names())
    return unknown

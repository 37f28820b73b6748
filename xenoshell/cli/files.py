"""Session files: a new one, whether one is right, what it would cost and do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    """Whether a session file is right: everything that is wrong with it, line by line. Asks no host."""
    from ..session.load import load_session

    loaded = load_session(Path(file))
    session = loaded.session
    vms = session.vm_names()
    missing = _unknown_hosts(cli, [name for group in session.vm for name in group.hosts])
    if cli.out.json:
        cli.out.document({"file": file, "session": session.name, "vms": list(vms), "unknown_hosts": missing})
    else:
        cli.out.data(f"{file}: right; session {session.name}, {count(len(vms), 'VM')}: {', '.join(vms)}")
    for name in missing:
        cli.out.note(f"{file}: no host is called {name} (yet)")


def _unknown_hosts(cli: Cli, names: list[str]) -> list[str]:
    """Those of ``names`` that the inventory does not have: a session file may come before its hosts."""
    known = set(inventory(cli.paths).names()) if names else set()
    return [name for name in dict.fromkeys(names) if name not in known]

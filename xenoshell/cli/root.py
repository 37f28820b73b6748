"""The program: all commands, their sections, and what `xenoshell` alone prints."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from . import control, files, first, hosts, images, rollout, watch
from .command import Given, Sections, declare, invoke, own_parameters
from .output import Output

_EPILOG = (
    "Exit codes: 0 done, 1 some VMs failed, 2 bad input, 3 nothing could be done, "
    "4 refused (budget, lease, trust, or not confirmed), 130 interrupted."
)

_OVERVIEW = """\
xenoshell puts your own operating system and service on many SSH hosts,
and tells the price first.

Try it on this machine (real sshd, real QEMU, nothing left behind):
  xenoshell demo                 three XenoServers here, a web server on each
  xenoshell doctor               what this machine has and lacks

With hosts of your own:
  xenoshell hosts add NAME USER@HOST
                                 enter a host; then `hosts trust`, `hosts check`
  xenoshell images build tiny    a small template (or `debian`)
  xenoshell new site.toml        a session file to edit
  xenoshell quote site.toml      what it costs; also `check`, `plan`
  xenoshell deploy site.toml     do it
  xenoshell ps                   what runs; then `logs`, `console`, `ssh`
  xenoshell destroy site         the end of it

All commands: xenoshell --help"""


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        cls=Sections,
        help="Your own operating system and service on many SSH hosts, from one terminal, with the price known first.",
        epilog=_EPILOG,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=True,
    )
    app.callback()(_root)
    for family in (first, hosts, images, files, rollout, watch, control):
        family.register(app)
    return app


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    **values: Any,
) -> None:
    ctx.obj = given = Given(**values)
    if version:
        invoke(given, lambda cli: _version(cli.out))
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        invoke(given, lambda cli: cli.out.data(_OVERVIEW))


def _version(out: Output) -> None:
    from .. import __version__

    if out.json:
        out.document({"version": __version__, "python": sys.version.split()[0]})
    else:
        out.data(f"xenoshell {__version__}")


declare(_root, own_parameters(_root))


def run() -> None:
    """Parse ``sys.argv`` and end the process."""
    build()(prog_name="xenoshell")

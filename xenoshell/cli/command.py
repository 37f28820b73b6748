"""Commands: what every one of them gets (`Cli`), and the options that mean the same everywhere."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ..paths import Paths, paths
from .exits import INTERRUPTED, Refused, Stop, mapped
from .output import Output
from .styles import palette

T = TypeVar("T")

_OPTIONS: Final = {
    "json": Annotated[bool, typer.Option("--json", help="Print facts as JSON.")],
    "plain": Annotated[bool, typer.Option("--plain", help="Plain lines: no moving display, no colour.")],
    "yes": Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No narration, only data and errors.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="More narration, and tracebacks.")],
    "config_dir": Annotated[Path | None, typer.Option(metavar="DIR", help="Where hosts.toml and known_hosts are.")],
    "state_dir": Annotated[Path | None, typer.Option(metavar="DIR", help="Where sessions, images and the lab are.")],
}


@dataclass(frozen=True)
class Given:
    """The options that mean the same everywhere, as given before or after the command's name."""

    json: bool = False
    plain: bool = False
    yes: bool = False
    quiet: bool = False
    verbose: bool = False
    config_dir: Path | None = None
    state_dir: Path | None = None

    def over(self, earlier: Given) -> Given:
        """These options where given, else those of ``earlier``."""
        mine = vars(self)
        return Given(**{name: mine[name] or value for name, value in vars(earlier).items()})


@dataclass(frozen=True)
class Cli:
    """What a command works with."""

    out: Output
    paths: Paths
    yes: bool
    given: Given

    def confirm(self, blast_radius: str) -> None:
        """Ask before something that cannot be undone: ``blast_radius`` says what it does to how much.

        Raises `Refused` when the answer is no, and when there is neither --yes nor a terminal to ask on.
        """
        if self.yes:
            return
        if not sys.stdin.isatty() or not sys.stderr.isatty():
            raise Refused(f"this {blast_radius}: there is no terminal to ask on; say --yes if that is meant")
        sys.stdout.flush()
        sys.stderr.write(f"This {blast_radius}. Go on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Refused("not confirmed: nothing was done")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run asynchronous work to its end. Ctrl-C, SIGTERM and SIGHUP cancel it, and it cleans up."""
        import asyncio

        return asyncio.run(_stoppable(work))


async def _stoppable(work: Coroutine[Any, Any, T]) -> T:
    import asyncio
    import signal

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        if task is not None:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        return await work
    except asyncio.CancelledError:
        if stopped:
            raise Stop(INTERRUPTED) from None
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)


def command(
    app: typer.Typer, name: str, *, section: str = "", extra: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of (cli, its own parameters) as the command ``name`` of ``app``.

    The options of `Given` are added to its own. ``section`` is its heading in the overview of all commands;
    with ``extra``, options that are not known stay among its arguments.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        def entry(ctx: typer.Context, **values: Any) -> None:
            given = Given(**{n: values.pop(n) for n in _OPTIONS}).over(ctx.obj or Given())
            invoke(given, lambda cli: function(cli, **values))

        entry.__name__, entry.__doc__, entry.__module__ = function.__name__, function.__doc__, function.__module__
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        declare(entry, [context, *own_parameters(function)[1:]])
        settings = {"ignore_unknown_options": True} if extra else None
        app.command(name, cls=Described, rich_help_panel=section or None, context_settings=settings)(entry)
        return function

    return register


def own_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of ``function`` without ``**values``, their annotations resolved."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [p.replace(annotation=hints[p.name]) for p in parameters if p.kind is not p.VAR_KEYWORD]


def declare(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
    """Let ``function`` be seen (by typer) as taking ``parameters`` and the options of `Given`, as keywords."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [inspect.Parameter(n, keyword, default=getattr(Given, n), annotation=a) for n, a in _OPTIONS.items()]
    seen = [parameters[0], *(p.replace(kind=keyword) for p in parameters[1:]), *common]
    function.__annotations__ = {p.name: p.annotation for p in seen}
    function.__signature__ = inspect.Signature(seen)  # type: ignore[attr-defined]


def invoke(given: Given, function: Callable[[Cli], None]) -> None:
    """Call ``function`` with what ``given`` asks for; failures become messages and exit codes (`typer.Exit`)."""
    where = paths(given.config_dir, given.state_dir)
    try:
        with mapped(where.logs, given.verbose):
            out = Output(given.json, given.plain, given.quiet, given.verbose, palette(where.config))
            function(Cli(out, where, given.yes, given))
            sys.stdout.flush()
    except Stop as stop:
        raise typer.Exit(stop.code) from None


class Described(TyperCommand):
    """A command whose help names its arguments as the README does, and what every command has last."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [self.options_metavar or "", *(_argument(p) for p in self._parameters("argument"))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        own = [p for p in self._parameters("option") if p.name not in _OPTIONS and p.name != "help"]
        common = [p for p in self._parameters("option") if p not in own]
        helped = self.get_help_option(ctx)
        sections = {
            "Arguments": [(_argument(p), p.help or "") for p in self._parameters("argument")],
            "Options": [p.get_help_record(ctx) for p in own],
            "Everywhere": [p.get_help_record(ctx) for p in [*common, *([helped] if helped else [])]],
        }
        for heading, rows in sections.items():
            if shown := [row for row in rows if row is not None]:
                with formatter.section(heading):
                    formatter.write_dl(shown)

    def _parameters(self, kind: str) -> list[Any]:
        return [p for p in self.params if p.param_type_name == kind]


def _argument(parameter: Any) -> str:
    """An argument as the usage line shows it: in brackets when it may be left out."""
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


#: The headings of the overview of all commands, in their order.
SECTIONS: Final = ("First steps", "Hosts and images", "Session files", "Running VMs")


class Sections(TyperGroup):
    """A group whose help lists its commands under headings, without Rich (which would cost a third of the start)."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            found = self.get_command(ctx, name)
            if found is not None and not found.hidden:
                heading = getattr(found, "rich_help_panel", None) or "Commands"
                sections.setdefault(heading, []).append((name, found.get_short_help_str(90)))
        for heading in sorted(sections, key=lambda h: SECTIONS.index(h) if h in SECTIONS else len(SECTIONS)):
            rows = sections[heading]
            with formatter.section(heading):
                formatter.write_dl(rows)


def group(help_text: str) -> typer.Typer:
    """A family of commands."""
    return typer.Typer(
        help=help_text,
        cls=Sections,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )

"""From a session file to running VMs: quote, plan, deploy, resume, replay."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BadInput
from ..units import human_duration
from ..wire.causes import Failure
from .command import Cli, command
from .common import Accel, SessionFile, SessionName, accel_of, count, inventory, reaching
from .exits import INTERRUPTED, Stop
from .output import Output

if TYPE_CHECKING:
    from ..deploy.engine import Outcome
    from ..deploy.events import Event, Reader
    from ..deploy.need import Known
    from ..deploy.service import Options, Prepared
    from ..fleet.inventory import Host
    from ..session.load import LoadedSession

SECTION = "Session files"

#: Seconds between two lines about one transfer in --plain.
_PROGRESS_EVERY_S = 2.0

Replace = Annotated[
    bool, typer.Option("--replace", help="Make VMs anew that are not as the file says; their disks are lost.")
]
Prune = Annotated[bool, typer.Option("--prune", help="Destroy VMs that the file no longer has.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this family to ``app``."""
    command(app, "quote", section=SECTION)(quote)
    command(app, "plan", section=SECTION)(plan)
    command(app, "deploy", section=SECTION)(deploy)
    command(app, "resume", section=SECTION)(resume)
    command(app, "replay", section=SECTION)(replay)


def quote(cli: Cli, file: SessionFile) -> None:
    """What a session would cost, host by host, from what is known here. Asks no host."""
    from ..deploy.service import quote_session
    from .quoting import show_quote

    quoted = quote_session(_prepared(cli, _load(file)))
    if cli.out.json:
        cli.out.document(quoted)
    else:
        show_quote(cli.out, quoted)
    quoted.check()


def plan(
    cli: Cli,
    file: SessionFile,
    *,
    accel: Accel = "auto",
    replace: Replace = False,
    prune: Prune = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no host; use what was last known.")] = False,
) -> None:
    """What a deployment would do: which bytes go where, which VMs are made, started, kept."""
    from ..deploy.service import Options, plan_session
    from .quoting import show_plan

    options = Options(accel_of(accel), replace, prune)
    prepared = _prepared(cli, _load(file))
    known = None
    if not offline:
        known = cli.run(_survey(cli, prepared))
    planned = plan_session(prepared, options, known)
    if cli.out.json:
        cli.out.document(planned)
    else:
        show_plan(cli.out, planned)


def deploy(
    cli: Cli, file: SessionFile, *, accel: Accel = "auto", replace: Replace = False, prune: Prune = False
) -> None:
    """Do it: send images, make and boot VMs, wait until they are ready. Run again, it does what is missing."""
    from ..deploy.service import Options

    _deploy(cli, _prepared(cli, _load(file)), Options(accel_of(accel), replace, prune))


def resume(cli: Cli, session: SessionName, *, accel: Accel = "auto") -> None:
    """Go on with an interrupted deployment.

    The session file is the copy that the record keeps; what is done already is not done again.
    """
    from ..deploy.service import Options, recorded_session

    _deploy(cli, _prepared(cli, recorded_session(session, cli.paths)), Options(accel_of(accel)))


def replay(
    cli: Cli,
    session: SessionName,
    speed: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="2 is twice as fast, 0 all at once; 1 on a terminal, else 0.")
    ] = None,
) -> None:
    """Show a recorded deployment again."""
    from ..deploy.record import SessionStore, nearest
    from ..deploy.replay import read_events
    from ..deploy.replay import replay as replayed

    store = SessionStore(cli.paths.sessions)
    events = read_events(store.events_file(session))
    if not events:
        raise BadInput(f"nothing is recorded of a session {session!r}{nearest(session, store.names())}")
    if speed is None:
        speed = 1.0 if cli.out.live else 0.0
    if speed < 0:
        raise BadInput(f"--speed: found {speed:g}; allowed: 0 (all at once) or a positive factor")
    factor = speed
    with followed(cli.out, recorded=True) as view:

        async def show() -> None:
            async for event in replayed(events, factor):
                view(event)

        cli.run(show())
    view.finish()


@dataclass
class View:
    """The reader of a deployment that its options ask for. ``finish`` prints the table at the end."""

    out: Output
    readers: Sequence[Reader]
    finish: Callable[[], None]

    def __call__(self, event: Event) -> None:
        for reader in self.readers:
            reader(event)


@contextlib.contextmanager
def followed(out: Output, *, recorded: bool = False) -> Iterator[View]:
    """Events as JSON lines, plain lines or a live view on the terminal, by ``out``. ``recorded``: they are not of now,
    so that the time shown is theirs."""
    from ..deploy.plain import Lines
    from ..deploy.summary import Summary

    summary = Summary()

    told: dict[tuple[str, str], float] = {}
    line = Lines()

    def plain(event: Event) -> None:
        # A slow transfer to many hosts would drown everything else: a word now and then will do.
        if event.event == "transfer.progress":
            key = event.host, event.text("blob")
            if event.t < told.setdefault(key, event.t) + _PROGRESS_EVERY_S:
                return
            told[key] = event.t
        out.data(line(event))
        out.flush()

    def finish() -> None:
        from .quoting import show_rows

        if not out.json and summary.rows:
            if not out.live and not out.quiet:
                out.data()
            show_rows(out, summary.rows, summary.session)

    if not out.live:
        told_by: tuple[Reader, ...] = ((lambda e: out.line(e.to_json())) if out.json else plain,)
        if out.quiet and not out.json and not out.plain:
            told_by = ()  # the table alone
        yield View(out, (summary, *told_by), finish)
        return
    from .live import live_view
    from .progress import Progress
    from .styles import styles

    progress, began = Progress(), time.monotonic()
    with live_view(progress, styles(out.palette), lambda: progress.t if recorded else time.monotonic() - began):
        yield View(out, (summary, progress), finish)


def run_deployment(cli: Cli, prepared: Prepared, options: Options) -> Outcome:
    """Deploy with the view that the options ask for; the table at the end included."""
    from ..deploy.service import deploy_session
    from ..deploy.summary import Summary

    async def work(view: View) -> Outcome:
        return await reaching(
            cli.paths, lambda reach: deploy_session(prepared, reach, cli.paths, view.readers, options=options)
        )

    try:
        with followed(cli.out) as view:
            outcome = cli.run(work(view))
            for reader in view.readers:
                if isinstance(reader, Summary):
                    reader.price(outcome.quote)
    except (KeyboardInterrupt, Stop):
        view.finish()  # how far it came
        raise
    view.finish()
    cli.out.note(
        f"{prepared.session.name}: {outcome.ready} of {count(len(outcome.vms), 'VM')} ready"
        f" in {human_duration(outcome.seconds)}; {outcome.quote.per_hour} an hour"
    )
    for error in outcome.reader_errors:
        if not isinstance(error, BrokenPipeError):
            cli.out.warn(f"the display broke on the way: {type(error).__name__}: {error}")
    return outcome


def _deploy(cli: Cli, prepared: Prepared, options: Options) -> None:
    from ..deploy.service import plan_session, quote_session
    from .quoting import quote_line

    name = prepared.session.name
    if options.replace or options.prune:
        planned = plan_session(prepared, options, cli.run(_survey(cli, prepared)))
        if planned.destructive:
            cli.confirm(f"{planned.blast_radius}, disks included")
    with contextlib.suppress(Failure):  # what was known of the hosts may be old: the deployment itself decides
        cli.out.note(f"{name}: {quote_line(quote_session(prepared))}")
    try:
        outcome = run_deployment(cli, prepared, options)
    except (KeyboardInterrupt, Stop):
        cli.out.warn(
            f"{name}: interrupted; `xenoshell resume {name}` goes on, `xenoshell ps {name}` shows what is there"
        )
        raise Stop(INTERRUPTED) from None
    if outcome.exit_code:
        raise Stop(outcome.exit_code)


async def _survey(cli: Cli, prepared: Prepared) -> Mapping[str, Known]:
    """What the hosts that matter say of themselves now."""
    from ..deploy.service import survey

    return await reaching(cli.paths, lambda reach: survey(_asked(prepared), reach))


def _load(file: str) -> LoadedSession:
    from ..session.load import load_session

    return load_session(Path(file))


def _prepared(cli: Cli, loaded: LoadedSession) -> Prepared:
    from ..deploy.service import prepare
    from ..images.store import ImageStore

    return prepare(loaded, inventory(cli.paths), ImageStore(cli.paths.images), cli.paths)


def _asked(prepared: Prepared) -> list[Host]:
    """The hosts that a plan has to ask: those that the file names, or all when it leaves the choice; and those that
    have VMs of the session already."""
    groups = prepared.session.vm
    if any(not group.hosts for group in groups):
        return list(prepared.inventory.hosts)
    wanted = {name for group in groups for name in group.hosts}
    if prepared.record is not None:
        wanted |= set(prepared.record.existing.values())
    return [host for host in prepared.inventory.hosts if host.name in wanted]

"""One stream of events, seen as JSON, as plain lines, and as a picture that moves."""

from __future__ import annotations

import io
import json
import re
import sys
from decimal import Decimal

import pytest
from rich.console import Console

from tests.cli.conftest import on_terminal
from xenoshell import tomlfile
from xenoshell.cli.live import _View
from xenoshell.cli.output import Output
from xenoshell.cli.progress import Progress
from xenoshell.cli.quoting import show_rows
from xenoshell.cli.rollout import followed
from xenoshell.cli.styles import OWN, styles
from xenoshell.deploy import events
from xenoshell.deploy.events import Event
from xenoshell.deploy.money import Amounts
from xenoshell.deploy.need import ImageFacts, Known
from xenoshell.deploy.placement import Placement
from xenoshell.deploy.quote import HostQuote, Quote, quote, vm_cost
from xenoshell.deploy.summary import Summary
from xenoshell.fleet.inventory import Host
from xenoshell.session.model import Session
from xenoshell.wire.causes import Failure

LOST = Failure("connection-lost", "nyc: the SSH connection ended \x1b]0;x\x07")


def run_of_two_hosts() -> list[Event]:
    return [
        events.session_started(0.0, "web", "a" * 32, 2, 2),
        events.host_connecting(0.0, "ams"),
        events.host_connecting(0.0, "nyc"),
        events.host_connected(0.4, "ams", 12.0, "SHA256:abc"),
        events.transfer_planned(
            0.5, "ams", bytes_image=1 << 30, bytes_needed=8 << 20, base=None, blob="b", what="disk"
        ),
        *(
            events.transfer_progress(
                0.5 + n / 8, "ams", bytes_done=n << 20, bytes_needed=8 << 20, source="client", blob="b"
            )
            for n in range(9)
        ),
        events.transfer_done(1.6, "ams", bytes_sent=8 << 20, seconds=1.1, blob="b"),
        events.vm_created(1.7, "ams", "web-1", "web.web-1.aaaaaaaa"),
        events.vm_booting(1.8, "ams", "web-1", "tcg"),
        events.vm_running(1.9, "ams", "web-1", "tcg"),
        events.host_refused(2.0, "nyc", LOST),
        events.vm_ready(9.0, "ams", "web-1", seconds=7.2, address="192.0.2.7:20080", accel="tcg"),
        events.session_done(9.0, 1, 1, 9.0),
    ]


def picture(progress: Progress, now: float, room: int = 20, columns: int = 110) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=columns, height=24, force_terminal=False, color_system=None)
    console.print(_View(progress, styles(OWN), now).render(room, columns))
    return screen.getvalue()


def test_the_picture_follows_the_events() -> None:
    progress = Progress()
    shown = []
    for event in run_of_two_hosts():
        progress(event)
        shown.append(picture(progress, event.t))
    sending = next(s for s in shown if "4.0 MiB of 8.0 MiB" in s)
    assert "sending" in sending and "8.0 MiB/s" in sending
    booting = next(s for s in shown if "booting" in s)
    assert "web-1" in booting
    last = shown[-1]
    assert re.search(r"web-1 +ams +ready +8\.0 MiB in 1\.1 s +7\.2 s TCG +192\.0\.2\.7:20080", last)
    assert "refused" in last and "the SSH connection ended" in last
    assert "1 of 2 ready  1 host refused" in last


@pytest.mark.parametrize("columns", [60, 80, 110, 200])
def test_it_fits_windows_of_any_width(columns: int) -> None:
    progress = Progress()
    for event in run_of_two_hosts():
        progress(event)
        lines = picture(progress, event.t, columns=columns).splitlines()
        assert len(lines) == 2 + max(len(progress.hosts), 0)
        assert all(len(line) <= columns for line in lines)
    if columns >= 80:
        assert "192.0.2.7:20080" in lines[2]


def test_a_boot_shows_how_long_it_takes_so_far() -> None:
    progress = Progress()
    for event in run_of_two_hosts()[:-3]:
        progress(event)
    assert "28 s" in picture(progress, 30.0)


def test_lost_contact_is_unknown_not_dead() -> None:
    progress = Progress()
    for event in run_of_two_hosts()[:-3]:
        progress(event)
    progress(events.host_lost(5.0, "ams", LOST, 1.0))
    shown = picture(progress, 5.0)
    assert re.search(r"web-1 +ams +unknown +8.0 MiB in 1.1 s +again in 1 s: nyc: the SSH", shown)
    assert "1 host lost" in shown
    progress(events.host_connecting(5.5, "ams", 2))  # trying is not yet hearing
    assert re.search(r"web-1 +ams +unknown", picture(progress, 5.5))
    progress(events.host_back(6.0, "ams", 1.0))
    assert re.search(r"web-1 +ams +running", picture(progress, 6.0))


def test_hundreds_of_hosts_in_a_small_window_show_what_matters() -> None:
    progress = Progress()
    progress(events.session_started(0.0, "web", "a" * 32, 300, 300))
    for n in range(300):
        progress(events.vm_created(1.0, f"h{n}", f"vm-{n}", "x"))
        if n == 250:
            progress(events.vm_failed(2.0, f"h{n}", f"vm-{n}", Failure("no-memory", "none left")))
        elif n > 5:
            progress(events.host_connecting(0.5, f"h{n}"))
            progress(events.vm_ready(2.0, f"h{n}", f"vm-{n}", seconds=1, address="", accel="kvm"))
    shown = picture(progress, 3.0, room=10).splitlines()
    assert len(shown) == 13
    assert "vm-250" in shown[2]
    assert "and" in shown[-1] and "more" in shown[-1]


def test_a_host_cannot_draw_on_the_screen() -> None:
    progress = Progress()
    progress(events.vm_failed(1.0, "h\x1b[2J", "vm\x9b1m", LOST))
    assert not set(picture(progress, 1.0)) & set("\x1b\x9b\x07")


def test_a_second_deployment_in_a_record_starts_anew() -> None:
    progress = Progress()
    for event in run_of_two_hosts():
        progress(event)
    progress(events.session_started(0.0, "web", "a" * 32, 1, 1))
    assert not progress.vms and not progress.hosts


def out(**options: bool) -> Output:
    return Output(**{"json": False, "plain": False, "quiet": False, "verbose": False, **options})  # type: ignore[arg-type]


def test_json_is_one_object_a_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with followed(out(json=True)) as view:
        for event in run_of_two_hosts():
            view(event)
    view.finish()
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [e.to_json() for e in run_of_two_hosts()]


def test_plain_lines_have_times_and_do_not_drown_in_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with followed(out(plain=True)) as view:
        for event in run_of_two_hosts():
            view(event)
        for n in range(100):
            view(events.transfer_progress(n / 10, "h", bytes_done=n, bytes_needed=99, source="client", blob="c"))
    view.finish()
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert all(re.match(r" *\d+\.\d\d  ", line) for line in lines[: lines.index("")])
    assert sum("from client" in line for line in lines) <= 6
    assert not re.search(r"[\x1b\u2500-\u257f]", shown.out)
    table = lines[lines.index("") + 1 :]
    assert table[0].split()[:2] == ["VM", "HOST"]
    assert "192.0.2.7:20080" in table[1]


def test_plain_lines_say_which_part_of_the_image_was_sent(capsys: pytest.CaptureFixture[str]) -> None:
    with followed(out(plain=True)) as view:
        for event in run_of_two_hosts():
            view(event)
    shown = capsys.readouterr().out
    assert "disk complete: 8.0 MiB sent in 1.1 s" in shown
    assert "image complete" not in shown


def test_columns_of_the_picture_never_jump_back() -> None:
    progress, widest = Progress(), [0] * 6
    ends = []
    for event in run_of_two_hosts():
        progress(event)
        screen = io.StringIO()
        console = Console(file=screen, width=110, height=24, force_terminal=False, color_system=None)
        console.print(_View(progress, styles(OWN), event.t, widest).render(20, 110))
        ends.append(screen.getvalue().splitlines()[1].find("ADDRESS"))
    assert ends == sorted(ends)


def test_a_vm_whose_host_refuses_is_unknown_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    changed = Failure("host-key-changed", "ams now shows another key", "ask the owner, `xenoshell resume SESSION`")
    fold = Summary()
    for event in (
        events.session_started(0.0, "web", "a" * 32, 1, 1),
        events.host_refused(0.2, "ams", changed),
        events.session_done(0.3, 0, 1, 0.3),
    ):
        fold(event)
    fold.price(quote_of_one_vm())
    (row,) = fold.rows
    assert (row.state, row.cause) == ("unknown", "host-key-changed")
    show_rows(out(), fold.rows, fold.session)
    shown = capsys.readouterr()
    assert "held there" not in shown.out  # nobody knows
    assert "web: " not in shown.err and "ams now shows another key" in shown.err
    assert "xenoshell resume web`" in shown.err


def quote_of_one_vm() -> Quote:
    host = Host.model_validate({"name": "ams", "ssh": "ams.example"})
    hosts = (HostQuote("ams", "", "EUR", (vm_cost(host, "web-1", 1, 1 << 28, 1 << 30),), 0, True, Decimal(0)),)
    none = Amounts()
    return Quote("web", hosts, Placement(()), none, none, None, None, None, None, None, ())


def test_what_a_host_refused_is_told_once_and_with_what_helps() -> None:
    hosts = [Host.model_validate({"name": name, "ssh": f"{name}.example"}) for name in ("ams", "nyc")]
    text = 'schema = 1\nname = "web"\n[[vm]]\nname = "web"\nimage = "x"\ncount = 2\n'
    session = tomlfile.loads(text, Session, "a file")
    image = ImageFacts("x", "x86_64", "disk")
    known = {host.name: Known(refused=f"{host.name}: the helper did not start") for host in hosts}
    with pytest.raises(Failure) as caught:
        quote(session, hosts, {"web": image}, known)
    assert "ams: the helper did not start" in caught.value.message
    assert "ams: ams:" not in caught.value.message
    assert "hosts check" in caught.value.remedy


WATCH = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # as a shell starts it: Ctrl-C reaches it
from xenoshell.cli.live import live_view
from xenoshell.cli.progress import Progress
def echo(): return bool(termios.tcgetattr(0)[3] & termios.ECHO)
before = echo()
try:
    with live_view(Progress(), {}, time.monotonic):
        print("ECHO", before, echo())
        time.sleep(20)
except KeyboardInterrupt:
    print("AFTER", echo())
"""


def test_keys_do_not_disturb_the_picture_and_the_terminal_is_restored() -> None:
    done = on_terminal(sys.executable, "-c", WATCH, script=[("ECHO True False", "\r\x03")])
    assert "AFTER True" in done.out
    assert "^C" not in done.out

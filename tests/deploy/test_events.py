"""Events: a closed list, immutable, and the same after a round through a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.deploy import events, plain
from xenoshell.deploy.events import FAILURES, NAMES, Event, from_json, from_line
from xenoshell.deploy.replay import replay
from xenoshell.deploy.summary import summary
from xenoshell.wire.causes import Failure
from xenoshell.wire.remedies import REMEDIES

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text()


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    name = draw(st.sampled_from(sorted(NAMES)))
    fields: dict[str, Any] = {f: draw(scalars) for f in NAMES[name]}
    if name in FAILURES:
        fields["cause"] = draw(st.sampled_from(sorted(REMEDIES)))
    keys = st.text(min_size=1).filter(lambda k: k not in ("t", "event", "host", "vm"))
    fields |= draw(st.dictionaries(keys.filter(lambda k: k not in fields), scalars | st.lists(scalars), max_size=3))
    return Event(draw(st.floats(0, 1e9)), name, draw(st.text()), draw(st.text()), fields)


@given(any_event())
def test_an_event_is_the_same_after_being_written_and_read(event: Event) -> None:
    line = event.line()
    assert "\n" not in line
    assert from_line(line) == event
    assert list(json.loads(line))[:2] == ["t", "event"]


@given(any_event())
def test_the_plain_line_is_one_line_that_cannot_drive_a_terminal(event: Event) -> None:
    text = plain.line(event)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029\u202e" for c in text)


@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")))
def test_nothing_read_as_a_line_does_more_than_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        from_line(text)


@given(st.recursive(scalars, lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["t", "event", "cause", "x"]), s)))
def test_no_json_value_read_as_an_event_does_more_than_a_value_error(value: Any) -> None:
    with contextlib.suppress(ValueError):
        from_json(value)


def test_an_event_does_not_change_after_it_was_emitted() -> None:
    fields: dict[str, Any] = {"rtt_ms": 1.0, "fingerprint": "x", "list": [1, 2]}
    event = Event(0.0, "host.connected", "a", fields=fields)
    fields["rtt_ms"] = 2.0
    fields["list"].append(3)
    assert event.fields["rtt_ms"] == 1.0 and event.fields["list"] == (1, 2)
    with pytest.raises(TypeError):
        event.fields["rtt_ms"] = 3.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.t = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("vm.exploded", {}),
        ("host.connected", {"rtt_ms": 1}),
        ("vm.failed", {"cause": "bad luck", "message": "", "remedy": ""}),
        ("vm.failed", {"cause": "timeout", "message": "no remedy"}),
        ("vm.booting", {"host": "a"}),
        ("vm.booting", {"x": float("nan")}),
        ("vm.booting", {"x": {}}),
    ],
)
def test_what_the_contract_does_not_have_is_no_event(event: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Event(0.0, event, fields=fields)


def test_every_failure_says_cause_message_and_remedy() -> None:
    why = Failure("disk-full", "a: no space")
    for make in (events.vm_failed, events.vm_exited):
        assert make(0, "a", "v", why).fields["remedy"] == REMEDIES["disk-full"]
    assert "To do:" in plain.line(events.host_refused(0, "a", why))


RUN = (
    events.session_started(0.0, "web", "f" * 32, 1, 1),
    events.transfer_planned(1.0, "a", bytes_image=10, bytes_needed=5, base=None, blob="b", what="disk"),
    events.transfer_done(3.0, "a", bytes_sent=5, seconds=2.0, blob="b"),
    events.vm_created(3.1, "a", "web", "web.web.1"),
    events.vm_booting(3.2, "a", "web", "tcg"),
    events.vm_running(3.5, "a", "web", "tcg"),
    events.vm_ready(9.5, "a", "web", seconds=6.0, address="1.2.3.4:80", accel="tcg"),
    events.session_done(9.6, 1, 0, 9.6),
)


async def test_a_replay_keeps_the_pauses_divided_by_the_speed() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))

    assert tuple([e async for e in replay(RUN, 2.0, sleep=sleep)]) == RUN
    assert slept == [0.5, 1.0, 0.05, 0.05, 0.15, 2.5, 0.05]
    slept.clear()
    assert len([e async for e in replay((*RUN, *RUN), 0, sleep=sleep)]) == 16 and not slept


def test_the_summary_of_a_run_has_transfer_boot_ready_and_address() -> None:
    (row,) = summary(RUN)
    assert (row.vm, row.host, row.state, row.address) == ("web", "a", "ready", "1.2.3.4:80")
    assert (row.transfer_bytes, row.transfer_s, row.boot_s, row.ready_s) == (5, 2.0, 0.4, 6.0)


def test_lost_contact_is_not_death() -> None:
    lost = events.host_lost(9.7, "a", Failure("connection-lost", "a: cut"), None)
    (row,) = summary((*RUN, lost))
    assert (row.state, row.cause) == ("unknown", "connection-lost")


HOSTILE = "a\x1b[2J\x9b31m\u202e\u200f\ufeff\U000e0041\r\n z"


def test_neither_a_line_nor_its_json_draws_on_a_terminal() -> None:
    event = events.host_refused(0, "a", Failure("internal", HOSTILE))
    for text in (plain.line(event), event.line()):
        assert all(c.isprintable() for c in text), text
    assert from_line(event.line()) == event

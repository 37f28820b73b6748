"""The record of a session: whole or not there, one at a time, and readable after any end."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.deploy.test_events import RUN
from tests.deploy.test_planning import SPEC
from xenoshell.deploy.record import Record, SessionStore, new_record
from xenoshell.deploy.replay import read_events
from xenoshell.deploy.specs import Entry
from xenoshell.errors import BadInput
from xenoshell.wire.causes import Failure


def record() -> Record:
    return new_record("web", owner="me@here", created=5.0, base_dir=Path("/x")).with_vm("vm", Entry("a", SPEC))


def test_what_was_saved_is_what_is_loaded_and_the_file_is_kept_byte_for_byte(tmp_path: Path) -> None:
    store, saved, text = SessionStore(tmp_path / "s"), record(), "name = 'web' # \u00fc\r\n".encode()
    store.save(saved, text)
    assert store.load("web") == saved and store.names() == ("web",)
    assert store.session_file("web").read_bytes() == text
    store.save(saved.without("vm"))
    assert store.load("web").vms == {} and store.session_file("web").read_bytes() == text
    assert stat.S_IMODE((tmp_path / "s/web/record.json").stat().st_mode) == 0o600
    assert len(saved.session_id) == 32


def test_a_save_that_dies_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, saved = SessionStore(tmp_path / "s"), record()
    store.save(saved)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        store.save(replace(saved, owner="other"))
    assert store.load("web") == saved
    assert sorted(p.name for p in (tmp_path / "s/web").iterdir()) == ["record.json"]


def test_a_second_deployment_of_the_same_session_is_refused_and_a_dead_ones_lock_is_free(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s")
    code = (
        "import sys; from pathlib import Path; from xenoshell.deploy.record import SessionStore\n"
        "with SessionStore(Path(sys.argv[1])).locked('web'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(Failure) as caught, store.locked("web"):
            pass
        assert caught.value.cause == "busy"
        with store.locked("another"):
            pass
        other.kill()
        other.wait(5)
        with store.locked("web"):
            pass


def test_events_survive_a_torn_last_line(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s")
    with store.events("web") as log:
        for event in RUN[:3]:
            log(event)
    path = store.events_file("web")
    path.write_bytes(path.read_bytes()[:-9])
    assert read_events(path) == RUN[:2]
    with store.events("web") as log:
        log(RUN[3])
    assert read_events(path) == (*RUN[:2], RUN[3])
    assert read_events(tmp_path / "none") == ()


def test_a_session_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s")
    store.save(record())
    with pytest.raises(BadInput, match="did you mean web"):
        store.load("wed")


@pytest.mark.parametrize("name", ["../etc", "a/b", "", ".", "A", "-x"])
def test_no_name_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput):
        SessionStore(tmp_path / "s").load(name)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema": 9}', b'{"schema": 1}'])
def test_a_damaged_record_says_so_and_what_is_not_lost(tmp_path: Path, text: bytes) -> None:
    store = SessionStore(tmp_path / "s")
    store.save(record())
    (tmp_path / "s/web/record.json").write_bytes(text)
    with pytest.raises(BadInput, match="record"):
        store.load("web")

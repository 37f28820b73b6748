"""The console's log: from the first byte, bounded, and nothing that a full disk could stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.host.console_log import ConsoleLog

LIMIT = 1000


def log_of(path: Path, *pieces: bytes) -> ConsoleLog:
    log = ConsoleLog(str(path), LIMIT)
    log.begin()
    for piece in pieces:
        log.write(piece)
    return log


def test_everything_is_kept_while_it_fits(tmp_path: Path) -> None:
    log = log_of(tmp_path, b"a" * 900, b"b" * 900, b"c" * 900)
    assert b"".join(log.read()) == b"a" * 900 + b"b" * 900 + b"c" * 900
    assert b"".join(log.read(tail=950)) == b"b" * 50 + b"c" * 900
    log.close()


def test_a_flood_keeps_the_head_and_the_end_and_says_what_is_missing(tmp_path: Path) -> None:
    log = log_of(tmp_path, b"first" + b"." * 995, *(b"%07d." % n for n in range(10_000)))
    text = b"".join(log.read())
    assert text.startswith(b"first") and text.endswith(b"0009999.")
    kept = sum(path.stat().st_size for path in tmp_path.glob("console.*"))
    assert kept <= 3 * LIMIT
    assert b"[xenoshell: %d bytes are not kept]" % (log.total - kept) in text
    assert log.total == 1000 + 80_000
    log.close()


@given(st.lists(st.binary(min_size=1, max_size=1500), max_size=8), st.integers(0, 3000))
def test_the_end_of_the_log_is_always_the_end_of_what_was_written(pieces: list[bytes], tail: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        log = log_of(Path(name), *pieces)
        whole = b"".join(pieces)
        assert log.total == len(whole)
        last = b"".join(log.read(tail=max(1, min(tail, LIMIT))))
        assert whole.endswith(last) and len(last) == min(len(whole), max(1, min(tail, LIMIT)))
        log.close()


def test_another_supervisor_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    for amount in (300, 1000, 1700, 2500, 3300, 4100):
        log_of(tmp_path, b"x" * amount).close()
        log = ConsoleLog(str(tmp_path), LIMIT)
        log.resume(amount)
        log.write(b"more")
        assert log.total == amount + 4
        assert b"".join(log.read(tail=6)) == b"xxmore"
        assert bytes(log.recent).endswith(b"xmore")
        log.close()


def test_a_new_run_begins_an_empty_log(tmp_path: Path) -> None:
    log = log_of(tmp_path, b"x" * 5000)
    log.begin()
    assert b"".join(log.read()) == b"" and log.total == 0
    log.close()


def test_a_full_disk_loses_the_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        log.write(b"y" * 2500)
    assert log.total == 2500
    log.write(b"there is room again")
    assert bytes(log.recent).endswith(b"yythere is room again")
    assert b"".join(log.read()).endswith(b"there is room again")
    log.close()


def test_memory_is_bounded(tmp_path: Path) -> None:
    log = ConsoleLog(str(tmp_path))
    log.begin()
    for _ in range(100):
        log.write(bytes(1 << 20))
    assert len(log.recent) <= 128 << 10 and log.total == 100 << 20
    assert sum(path.stat().st_size for path in tmp_path.glob("console.*")) <= 3 << 20
    log.close()

"""A console that is saved stays a console, and the file holds what a person could read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.console.test_attach import Guest
from xenoshell.console.saved import saved
from xenoshell.errors import BadInput


async def test_what_the_guest_prints_is_in_the_file_as_text_and_reaches_the_terminal_untouched(tmp_path: Path) -> None:
    guest = Guest(log=b"Linux version 6\r\n")
    parts = [b"\x1b]0;ow", b"ned\x07\x1b[31mred\x1b[", b"0m caf\xc3", b"\xa9\r\n", b""]
    for part in parts:
        guest.say(part)
    async with saved(guest, tmp_path / "log") as stream:
        assert stream.replay == 17
        read = [await stream.read() for _ in range(6)]
        await stream.write(b"ls\n")
    assert b"".join(read) == b"Linux version 6\r\n" + b"".join(parts) and guest.told == b"ls\n"
    assert (tmp_path / "log").read_text() == "Linux version 6\nred café\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    assert stream.written == (tmp_path / "log").stat().st_size and stream.failure is None


async def test_a_second_session_is_appended(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        guest = Guest()
        guest.say(text)
        async with saved(guest, tmp_path / "log") as stream:
            await stream.read()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


async def test_a_full_disk_costs_nobody_the_console() -> None:
    guest = Guest()
    for text in (b"one\n", b"two\n"):
        guest.say(text)
    async with asyncio.timeout(10), saved(guest, Path("/dev/full")) as stream:
        assert [await stream.read(), await stream.read()] == [b"one\n", b"two\n"]
    assert stream.failure is not None and stream.written == 0


async def test_a_file_that_cannot_be_written_is_refused_before_anything_is_shown(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        async with saved(Guest(), tmp_path / "no" / "log"):
            pass
    assert "--save" in str(caught.value) and caught.value.remedy

"""A console session kept in a file while one sits at it, as text: what `screen -L` does for a serial line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput
from .attach import Stream
from .filter import Filter, Mode

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncFileIO


class Saved:
    """A console stream; everything that is read from it is also appended to a file. A file that can take no more costs
    nobody the console: ``failure`` says what went wrong, ``written`` how many bytes came before that."""

    def __init__(self, stream: Stream, file: AsyncFileIO) -> None:
        self._stream = stream
        self._file = file
        self._text = Filter(Mode.TEXT)
        self.replay = stream.replay
        self.failure: OSError | None = None
        self.written = 0

    async def read(self) -> bytes:
        """The next bytes of the console, b"" at its end."""
        data = await self._stream.read()
        await self._keep(self._text.feed(data) if data else self._text.finish())
        return data

    async def write(self, data: bytes) -> None:
        """Type ``data``."""
        await self._stream.write(data)

    async def _keep(self, text: bytes) -> None:
        while text and self.failure is None:
            try:
                count = await self._file.write(text)
            except OSError as error:
                self.failure = error
                return
            self.written += count
            text = text[count:]


@asynccontextmanager
async def saved(stream: Stream, path: Path) -> AsyncIterator[Saved]:
    """``stream`` with its output appended to ``path`` (made with mode 0600 if need be), the recent log first.

    Raises `BadInput` for a file that cannot be opened for writing."""
    import os

    import aiofiles

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    try:
        file = await aiofiles.open(path, "ab", buffering=0, opener=private)
    except OSError as error:
        raise BadInput(f"--save {path}: {error.strerror}", "name a file in a directory that you may write to") from None
    try:
        yield Saved(stream, file)
    finally:
        await file.close()

"""A link that is far away: a TCP relay that delivers everything some milliseconds later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def far_away(port: int, one_way_s: float, turns: list[str] | None = None) -> AsyncIterator[int]:
    """A port of 127.0.0.1 that leads to ``port`` with ``one_way_s`` seconds of latency in each direction.

    ``turns`` gets ">" when the client begins to speak after the server did, and "<" the other way round.
    """
    loop = asyncio.get_running_loop()
    writers: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                at, data = await due.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        delivering = asyncio.create_task(deliver())
        try:
            while True:
                data = await reader.read(256 << 10)
                if turns is not None and data and turns[-1:] != [way]:
                    turns.append(way)
                due.put_nowait((loop.time() + one_way_s, data))
                if not data:
                    break
            await delivering
        except ConnectionError:
            writer.close()
        finally:
            delivering.cancel()

    async def serve(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection("127.0.0.1", port, limit=8 << 20)
        writers.update((back, forth))
        for task in (asyncio.create_task(pump(near, forth, ">")), asyncio.create_task(pump(far, back, "<"))):
            tasks.add(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=8 << 20)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
        await server.wait_closed()

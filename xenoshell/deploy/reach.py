"""The real way to reach hosts: SSH links, and blobs from the image store, packed once and sent to everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..fleet.inventory import Host
from ..images.store import ImageStore
from ..paths import Paths
from ..wire.causes import Failure
from ..wire.values import CODECS, Recipe

if TYPE_CHECKING:
    from ..fleet.link import HostLink


class SshConnector:
    """A `ports.Connector` over SSH. What is learned of a host is remembered for the next quote.

    Use it as an asynchronous context manager: the end waits for what is still being written down.
    """

    def __init__(self, paths: Paths, store: ImageStore) -> None:
        self._paths = paths
        self._store = store
        self._recipes: dict[tuple[str, str], asyncio.Task[Recipe]] = {}
        self._writing: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> SshConnector:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._recipes.values():
            task.cancel()
        await asyncio.gather(*self._recipes.values(), *self._writing, return_exceptions=True)

    async def connect(self, host: Host, deadline_s: float) -> HostLink:
        """Raises `Failure`."""
        from ..fleet.link import connect

        link = await connect(host, self._paths, deadline_s=deadline_s)
        self._remember(link)
        return link

    def prepare(self, digests: Iterable[str]) -> None:
        """Begin to pack these blobs for hosts that have zstd, as practically all do."""
        for digest in digests:
            self._recipe(digest, CODECS[0])

    async def send(
        self,
        link: HostLink,
        digest: str,
        on_recipe: Callable[[Recipe], None],
        on_progress: Callable[[int, int], None],
    ) -> int:
        """Bring a blob to the host; returns the bytes sent. Raises `Failure`."""
        from ..fleet.transfer import send_blob

        codec = next((c for c in CODECS if c in link.facts.codecs), CODECS[-1])
        # Shielded: other hosts wait for the same pack, whatever becomes of this one.
        recipe = await asyncio.shield(self._recipe(digest, codec))
        on_recipe(recipe)
        sent = await send_blob(link, _Segments(self._store, digest, codec), recipe, on_progress)
        link.facts = replace(link.facts, blobs=(*(b for b in link.facts.blobs if b != digest), digest))
        self._remember(link)
        return sent

    def _recipe(self, digest: str, codec: str) -> asyncio.Task[Recipe]:
        key = digest, codec
        task = self._recipes.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._recipes[key] = asyncio.create_task(self._pack(digest, codec))
            task.add_done_callback(_seen)
        return task

    async def _pack(self, digest: str, codec: str) -> Recipe:
        try:
            return await asyncio.to_thread(self._store.recipe, digest, codec)
        except OSError as error:
            raise Failure(
                "disk-full" if error.errno == 28 else "corrupt-image",
                f"packing blob {digest[:12]} on this machine: {error.strerror or error}",
                "free space on this machine, then `xenoshell resume SESSION`",
            ) from error

    def _remember(self, link: HostLink) -> None:
        """Note what is known of the host, without making the deployment wait for the disk."""

        def write() -> None:
            from ..fleet.facts import remember

            with suppress(OSError):  # a cache: the next quote knows less
                remember(link, self._paths)

        task: asyncio.Task[object] = asyncio.create_task(asyncio.to_thread(write))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)


class _Segments:
    """A blob's packed segments, read in a thread."""

    def __init__(self, store: ImageStore, digest: str, codec: str) -> None:
        self._store, self._digest, self._codec = store, digest, codec

    async def segment(self, index: int) -> bytes:
        return await asyncio.to_thread(self._store.segment, self._digest, self._codec, index)


def _seen(task: asyncio.Task[Recipe]) -> None:
    """A pack that nobody came to need may have failed without anybody to tell."""
    if not task.cancelled():
        task.exception()

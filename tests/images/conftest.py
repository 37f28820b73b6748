"""Image stores for tests; the template tiny is built once for all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PACKAGES
from xenoshell.images.store import ImageStore, remove_tree


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store."""
    return ImageStore(tmp_path / "images")


@pytest.fixture(scope="session")
def package_cache() -> Path:
    """The package cache that lasts."""
    return PACKAGES


@pytest.fixture(scope="session")
def built(package_cache: Path) -> Iterator[ImageStore]:
    """A store with the templates ``tiny`` (direct kernel boot) and ``tiny-disk`` (BIOS)."""
    from xenoshell.images import tiny

    root = Path(tempfile.mkdtemp(prefix="xt-images-", dir="/tmp"))
    try:
        store = ImageStore(root)
        tiny.build(store, "tiny", lambda _: None, cache=package_cache)
        tiny.build(store, "tiny-disk", lambda _: None, cache=package_cache, boot="disk")
        yield store
    finally:
        remove_tree(root)

"""The image store by commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from xenoshell.images.manifest import Manifest
from xenoshell.images.store import ImageStore
from xenoshell.paths import Paths


@pytest.fixture
def image_id(paths: Paths, tmp_path: Path) -> str:
    store = ImageStore(paths.images)
    (tmp_path / "kernel").write_bytes(b"k" * 5000)
    kernel = store.add_blob(tmp_path / "kernel")
    return store.put(Manifest(arch="x86_64", kernel=kernel, cmdline="console=ttyS0"), "small").id


def test_an_empty_store_says_what_to_do(run: Run) -> None:
    done = run("images", "list")
    assert (done.code, done.out) == (0, "")
    assert "images build tiny" in done.err
    assert json.loads(run("images", "list", "--json").out) == []


def test_list_and_inspect(run: Run, image_id: str) -> None:
    assert image_id[:12] in run("images", "list").out
    shown = run("images", "inspect", "small").out
    assert image_id in shown and "console=ttyS0" in shown
    facts = json.loads(run("images", "inspect", image_id[:8], "--json").out)
    assert facts["names"] == ["small"]
    assert facts["kernel"]["size"] == 5000
    assert facts["disk"] is None


def test_an_image_that_is_not_there(run: Run, image_id: str) -> None:
    done = run("images", "inspect", "smal")
    assert done.code == 3
    assert "small" in done.err


def test_only_known_templates_are_built(run: Run) -> None:
    done = run("images", "build", "windows")
    assert done.code == 2
    assert "tiny, debian" in done.err
    assert run("images", "build", "tiny", "--boot", "floppy").code == 2

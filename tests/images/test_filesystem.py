"""File systems and boot sectors are made without mounting and without root, the same each time."""

from __future__ import annotations

import os
import re
import struct
import tarfile
from pathlib import Path

import pytest

from xenoshell.images.bootdisk import OFFSET, SECTOR, write_boot
from xenoshell.images.debian import extract
from xenoshell.images.filesystem import EPOCH, Ext4, Owner, make_ext4, run_tool
from xenoshell.images.store import ImageStore
from xenoshell.wire.causes import Failure

SPEC = Ext4(64 << 20, "test", "7b1d6a52-0c3e-5b6e-9d0a-3a5f2d9c4e11")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory as an ordinary user would have it."""
    tree = tmp_path / "tree"
    (tree / "etc/with space").mkdir(parents=True)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tree / "etc/with space/a").write_text("a")
    (tree / "link").symlink_to("etc/passwd")
    (tree / "etc/passwd").chmod(0o640)
    if os.geteuid() == 0:
        for path in [tree, *tree.rglob("*")]:
            os.chown(path, 1234, 1234, follow_symlinks=False)
    return tree


def look(image: Path, request: str, offset: int = 0) -> str:
    return run_tool(["debugfs", "-R", request, str(image) if not offset else f"{image}?offset={offset}"])


@pytest.mark.parametrize("offset", [0, OFFSET])
def test_everything_in_it_belongs_to_root_and_bears_one_time(tree: Path, tmp_path: Path, offset: int) -> None:
    image = tmp_path / "image"
    make_ext4(tree, image, Ext4(SPEC.size, SPEC.label, SPEC.uuid, offset))
    for path in ("/", "/etc", "/etc/passwd", '"/etc/with space/a"', "/link"):
        told = look(image, f"stat {path}", offset)
        assert re.search(r"User: +0 +Group: +0 ", told), told
        assert {int(t, 16) for t in re.findall(r"[acm]time: 0x([0-9a-f]+)", told)} == {EPOCH}
    assert "Mode:  0640" in look(image, "stat /etc/passwd", offset)
    assert look(image, "cat /etc/passwd", offset).startswith("root:x:0:0")


def test_it_is_sound_and_a_large_one_is_hardly_larger(tree: Path, tmp_path: Path, store: ImageStore) -> None:
    image = tmp_path / "image"
    make_ext4(tree, image, Ext4(4 << 30, "test", SPEC.uuid))
    run_tool(["e2fsck", "-f", "-n", str(image)])
    blob = store.add_blob(image)
    assert blob.size == 4 << 30 and store.blob_path(blob.digest).stat().st_blocks * 512 < 1 << 20
    assert sum(segment.packed for segment in store.recipe(blob.digest, "zstd").segments) < 64 << 10


def test_the_same_directory_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    images = [tmp_path / "one", tmp_path / "two"]
    for image in images:
        for path in tree.rglob("*"):
            os.utime(path, follow_symlinks=False)
        make_ext4(tree, image, SPEC)
    assert images[0].read_bytes() == images[1].read_bytes()


@pytest.mark.parametrize("offset", [0, OFFSET])
def test_owners_modes_and_capabilities_are_as_asked(tree: Path, tmp_path: Path, offset: int) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    owners = {"etc/passwd": Owner(33, 44, 0o4755, capability), "etc/with space": Owner(0, 8, 0o2775)}
    image = tmp_path / "image"
    make_ext4(tree, image, Ext4(SPEC.size, SPEC.label, SPEC.uuid, offset), owners)
    assert re.search(r"User: +33 +Group: +44 ", look(image, "stat /etc/passwd", offset))
    assert "Type: regular    Mode:  04755" in look(image, "stat /etc/passwd", offset)
    assert "Type: directory    Mode:  02775" in look(image, 'stat "/etc/with space"', offset)
    assert re.search(r"User: +0 +Group: +0 ", look(image, 'stat "/etc/with space/a"', offset))
    assert "security.capability (20)" in look(image, "ea_list /etc/passwd", offset)


@pytest.mark.parametrize("python", ["this one", "3.11.2"])
def test_an_archive_is_unpacked_as_an_ordinary_user_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    if python == "3.11.2":  # what Debian 12 has: tarfile without filters
        whole = tarfile.TarFile.extractall
        monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path, members=None: whole(self, path, members))
        monkeypatch.delattr(tarfile.TarInfo, "replace", raising=False)
    with tarfile.open(tmp_path / "archive", "w") as archive:
        for name, kind, mode in (
            ("./", tarfile.DIRTYPE, 0o755), ("./etc", tarfile.DIRTYPE, 0o555),
            ("./etc/shadow", tarfile.REGTYPE, 0o4040),
            ("./null", tarfile.CHRTYPE, 0o666), ("./pipe", tarfile.FIFOTYPE, 0o666), ("./link", tarfile.SYMTYPE, 0o777),
            ("./same", tarfile.LNKTYPE, 0o640),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid, member.uname = kind, mode, 5, 42, "games"
            member.linkname = {"./link": "/etc/shadow", "./same": "./etc/shadow"}.get(name, "")
            archive.addfile(member)
    owners = extract(tmp_path / "archive", tmp_path / "tree")
    assert owners["etc/shadow"] == Owner(5, 42, 0o4040) and owners["etc"] == Owner(5, 42, 0o555)
    assert sorted(path.name for path in (tmp_path / "tree").rglob("*")) == ["etc", "link", "same", "shadow"]
    assert (tmp_path / "tree/link").readlink() == Path("/etc/shadow")
    made = (tmp_path / "tree/etc/shadow").stat()
    assert (made.st_uid, made.st_mode & 0o7777, made.st_nlink) == (os.getuid(), 0o640, 2)
    assert not (tmp_path / "archive").exists()


def test_a_file_name_is_no_order_to_debugfs(tree: Path, tmp_path: Path) -> None:
    (tree / 'etc/x"\nrm "').mkdir()
    (tree / 'etc/x"\nrm "/etc').mkdir()
    (tree / 'etc/x"\nrm "/etc/passwd').write_text("")
    with pytest.raises(Failure, match="several lines"):
        make_ext4(tree, tmp_path / "image", SPEC)
    assert not (tmp_path / "image").exists()


def test_a_tool_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="mke2fs failed"):
        make_ext4(tmp_path / "gone", tmp_path / "image", SPEC)


def test_the_boot_sector_has_one_partition_and_grub_s_core_behind_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(OFFSET + SPEC.size)
    boot = bytes(range(256)) * 2
    write_boot(disk, boot, b"core" * 500, SPEC.size)
    data = disk.read_bytes()[: SECTOR + 2000]
    assert data[:0x5C] == boot[:0x5C] and data[0x1FE:0x200] == b"\x55\xaa" and data[SECTOR:] == b"core" * 500
    flag, kind, start, sectors = struct.unpack_from("<B3xB3xII", data, 0x1BE)
    assert (flag, kind, start * SECTOR, sectors * SECTOR) == (0x80, 0x83, OFFSET, SPEC.size)
    assert data[0x1CE:0x1FE] == bytes(48)


def test_a_core_that_does_not_fit_before_the_partition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="does not fit"):
        write_boot(tmp_path / "disk", bytes(SECTOR), bytes(OFFSET), SPEC.size)

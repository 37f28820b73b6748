"""ext4 file systems made of a directory, without mounting anything and without root, the same bytes each time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xenoshell.images.packages import last_lines
from xenoshell.wire.causes import Failure

#: The time that everything in a template bears (Unix seconds: 2025-01-01), so that equal builds are equal images.
EPOCH = 1735689600
MAKE_S = 600.0


@dataclass(frozen=True)
class Ext4:
    """How to make a file system: ``size`` and ``offset`` in bytes (where it begins in the image), label, and UUID."""

    size: int
    label: str
    uuid: str
    offset: int = 0
    bytes_per_inode: int = 32768


def make_ext4(tree: Path, image: Path, spec: Ext4, *, owners: bool) -> None:
    """Make the file system of directory ``tree`` in the file ``image``, which is created sparse or keeps what it has.

    With ``owners`` files keep the owners they have in ``tree``; else everything belongs to root and bears `EPOCH`, so
    that the bytes depend on nothing but names, modes and contents. Raises `Failure` (internal) with what mke2fs said.
    """
    with image.open("ab") as file:
        file.truncate(max(file.tell(), spec.offset + spec.size))
    options = f"offset={spec.offset},lazy_itable_init=0,lazy_journal_init=0,hash_seed={spec.uuid},nodiscard"
    command = [
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-i", str(spec.bytes_per_inode), "-J", "size=4",
        "-O", "^resize_inode,^orphan_file" if _knows_orphan_file() else "^resize_inode", "-L", spec.label,
        "-U", spec.uuid, "-E", options + ("" if owners else ",root_owner=0:0"), "-d", str(tree), str(image),
        f"{spec.size // 1024}k",
    ]  # fmt: skip
    run_tool(command)
    if not owners:
        _normalise(tree, image, spec.offset)


def _normalise(tree: Path, image: Path, offset: int) -> None:
    """Give every inode to root and one time. mke2fs copies the owner and the change time from the files."""
    lines = []
    for path in ["/", "/lost+found", *sorted(_paths(tree))]:
        quoted = '"' + path.replace('"', '""') + '"'
        lines += [f"sif {quoted} {field} 0" for field in ("uid", "gid")]
        lines += [f"sif {quoted} {field} @{EPOCH:#x}" for field in ("atime", "ctime", "mtime", "crtime")]
        lines += [f"sif {quoted} {field}_extra 0" for field in ("atime", "ctime", "mtime", "crtime")]
    script = image.with_name(image.name + ".debugfs")
    script.write_text("\n".join(lines) + "\n")
    try:
        target = str(image) if offset == 0 else f"{image}?offset={offset}"
        run_tool(["debugfs", "-w", "-f", str(script), target])
    finally:
        script.unlink()


def run_tool(command: list[str]) -> str:
    """Run a program of e2fsprogs; its output. Raises `Failure` (internal) with what it said if it fails."""
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin",
        "E2FSPROGS_FAKE_TIME": str(EPOCH),
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "MKE2FS_SYNC": "0",
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, timeout=MAKE_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise Failure(
            "not-found",
            f"this machine has no {command[0]}",
            "install e2fsprogs (Debian, Ubuntu: apt install e2fsprogs)",
        ) from None
    except subprocess.TimeoutExpired:
        raise Failure("timeout", f"{command[0]} did not finish within {MAKE_S:.0f} s", "") from None
    if done.returncode != 0:
        raise Failure("internal", f"{command[0]} failed: {last_lines(done.stderr)}")
    return done.stdout


def _knows_orphan_file() -> bool:
    """Whether mke2fs is of a version (1.47) that makes orphan files by default, which older kernels do not mount."""
    try:
        return "orphan_file" in Path("/etc/mke2fs.conf").read_text()
    except OSError:
        return False


def _paths(tree: Path) -> Iterator[str]:
    for directory, below, files in os.walk(tree):
        for name in below + files:
            yield "/" + str(Path(directory, name).relative_to(tree))

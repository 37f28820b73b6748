"""ext4 file systems made of a directory, without mounting anything and without root, the same bytes each time."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class Owner:
    """Whose a file is, its permissions (12 bits), and its capabilities (the extended attribute's bytes)."""

    uid: int
    gid: int
    mode: int
    capability: bytes = b""


def make_ext4(tree: Path, image: Path, spec: Ext4, owners: Mapping[str, Owner] | None = None) -> None:
    """Make the file system of directory ``tree`` in the file ``image``, which is created sparse or keeps what it has.

    Whoever owns the files in ``tree``, in the file system they are root's, and those that ``owners`` names (by their
    paths, such as ``etc/shadow``) as it says. Without ``owners`` everything bears `EPOCH` besides, so that the bytes
    depend on nothing but names, modes and contents. Raises `Failure`: bad-request for a name of several lines, else
    internal with what a tool said.
    """
    if odd := next((path for path in _paths(tree) if "\n" in path), None):
        # debugfs takes its orders by lines: the rest of the name would be one
        raise Failure("bad-request", f"the file name {odd!r} has several lines", "rename the file")
    with image.open("ab") as file:
        file.truncate(max(file.tell(), spec.offset + spec.size))
    options = f"offset={spec.offset},lazy_itable_init=0,lazy_journal_init=0,hash_seed={spec.uuid},nodiscard"
    command = [
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-i", str(spec.bytes_per_inode), "-J", "size=4",
        "-O", "^resize_inode,^orphan_file" if _knows_orphan_file() else "^resize_inode", "-L", spec.label,
        "-U", spec.uuid, "-E", options + ",root_owner=0:0", "-d", str(tree), str(image),
        f"{spec.size // 1024}k",
    ]  # fmt: skip
    run_tool(command)
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        lines = _own(tree, owners, Path(scratch)) if owners is not None else _normalise(tree)
        script = Path(scratch) / "script"
        script.write_text("\n".join(lines) + "\n", errors="surrogateescape")
        target = str(image) if spec.offset == 0 else f"{image}?offset={spec.offset}"
        run_tool(["debugfs", "-w", "-f", str(script), target])


def _normalise(tree: Path) -> Iterator[str]:
    """What debugfs is told, to give every inode to root and one time: mke2fs copies both from the files."""
    for path in ["/", "/lost+found", *sorted(_paths(tree))]:
        yield from (f"sif {_quoted(path)} {field} 0" for field in ("uid", "gid"))
        for field in ("atime", "ctime", "mtime", "crtime"):
            yield f"sif {_quoted(path)} {field} @{EPOCH:#x}"
            yield f"sif {_quoted(path)} {field}_extra 0"


def _own(tree: Path, owners: Mapping[str, Owner], scratch: Path) -> Iterator[str]:
    """What debugfs is told, to give each file the owner, permissions and capabilities it is to have."""
    for path in ["/", *sorted(_paths(tree))]:
        owner = owners.get(path[1:])
        yield f"sif {_quoted(path)} uid {owner.uid if owner else 0}"
        yield f"sif {_quoted(path)} gid {owner.gid if owner else 0}"
        if owner is None:
            continue
        kind = stat.S_IFMT(os.lstat(tree / path[1:]).st_mode)
        yield f"sif {_quoted(path)} mode 0{kind | owner.mode:o}"
        if owner.capability:
            value = scratch / f"capability-{len(list(scratch.iterdir()))}"
            value.write_bytes(owner.capability)
            yield f"ea_set -f {_quoted(str(value))} {_quoted(path)} security.capability"


def _quoted(path: str) -> str:
    return '"' + path.replace('"', '""') + '"'


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
    complaints = done.stderr
    if command[0] == "debugfs":  # it always ends with 0, and begins with its version
        complaints = "\n".join(line for line in complaints.splitlines() if not line.startswith("debugfs 1."))
    if done.returncode != 0 or (command[0] == "debugfs" and complaints):
        raise Failure("internal", f"{command[0]} failed: {last_lines(complaints)}")
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

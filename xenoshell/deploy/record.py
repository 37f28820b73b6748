"""The record of a session on the user's machine: what was asked for, where it went, and what happened.

```
<sessions>/<name>/session.toml   the session file as it was given, byte for byte
<sessions>/<name>/record.json    id, owner, placements with the spec of each VM; written before a host is told anything
<sessions>/<name>/events.jsonl   the events of every deployment, one a line
<sessions>/<name>/seen.json      the last known state of each VM, when that was, and when the VM was created
<sessions>/<name>/lock           held while something is done with the session
```
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from ..errors import BadInput
from ..wire.causes import Failure
from ..wire.codec import CodecError, decode, dumps, encode, loads
from .events import Event
from .specs import Entry

SCHEMA = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")


@dataclass(frozen=True)
class Record:
    """A session as recorded. ``created``: Unix seconds. ``vms``: every VM that a host may have, by name."""

    session: str
    session_id: str
    owner: str
    created: float
    base_dir: str
    vms: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def existing(self) -> dict[str, str]:
        """VM -> host, for placement."""
        return {vm: entry.host for vm, entry in self.vms.items()}

    def with_vm(self, vm: str, entry: Entry) -> Record:
        return replace(self, vms={**self.vms, vm: entry})

    def without(self, *vms: str) -> Record:
        return replace(self, vms={k: v for k, v in self.vms.items() if k not in vms})


@dataclass(frozen=True)
class Seen:
    """What a host last said about a VM: its state, when that was, and when the VM was created (Unix seconds, 0: not
    known)."""

    state: str
    at: float = 0.0
    created: float = 0.0


@dataclass(frozen=True)
class _File:
    schema: int
    session: str
    session_id: str
    owner: str
    created: float
    base_dir: str
    vms: dict[str, Entry]


def new_record(session: str, *, owner: str, created: float, base_dir: Path) -> Record:
    """A record of nothing yet, with an id of its own."""
    return Record(session, uuid.uuid4().hex, owner, created, str(base_dir))


class SessionStore:
    """The records under ``root`` (``Paths.sessions``)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        """The directory of one session. Raises `BadInput` for a name that is none."""
        if not _NAME.match(name):
            raise BadInput(f"{name!r} is not the name of a session (lower-case letters, digits and hyphens)")
        return self.root / name

    def names(self) -> tuple[str, ...]:
        """All recorded sessions, sorted."""
        if not self.root.is_dir():
            return ()
        return tuple(
            sorted(p.name for p in self.root.iterdir() if _NAME.match(p.name) and (p / "record.json").exists())
        )

    def find(self, name: str) -> Record | None:
        """The record, or None if there is none. Raises `BadInput` for one that cannot be read."""
        path = self.directory(name) / "record.json"
        try:
            value = loads(path.read_bytes())
            if value.get("schema") != SCHEMA:
                raise CodecError(
                    f"schema {value.get('schema')!r} is not {SCHEMA}; a newer xenoshell may have written it"
                )
            file = decode(_File, value)
        except FileNotFoundError:
            return None
        except CodecError as error:
            raise BadInput(
                f"{path}: {error}", "the VMs are not lost: `xenoshell hosts check NAME` lists those of each host"
            ) from None
        return Record(file.session, file.session_id, file.owner, file.created, file.base_dir, file.vms)

    def load(self, name: str) -> Record:
        """The record. Raises `BadInput`, with the nearest names, if there is none."""
        record = self.find(name)
        if record is None:
            raise BadInput(f"there is no session {name!r}{nearest(name, self.names())}")
        return record

    def session_file(self, name: str) -> Path:
        """The record's own copy of the session file; `resume` deploys from it."""
        return self.directory(name) / "session.toml"

    def events_file(self, name: str) -> Path:
        return self.directory(name) / "events.jsonl"

    def save(self, record: Record, text: bytes | None = None) -> None:
        """Write the record, and the session file if ``text`` is given, each in one step and on the disk on return."""
        directory = self._made(record.session)
        if text is not None:
            _write(directory / "session.toml", text)
        _write(directory / "record.json", dumps(_File(SCHEMA, **{k: getattr(record, k) for k in _FIELDS})) + b"\n")

    def seen(self, name: str) -> dict[str, Seen]:
        """VM -> what its host last said of it; empty where nothing (readable) was noted."""
        try:
            value = loads((self.directory(name) / "seen.json").read_bytes())
        except (FileNotFoundError, CodecError):
            return {}
        out = {}
        for vm, entry in value.items():
            with suppress(CodecError):
                out[vm] = decode(Seen, entry)
        return out

    def note_seen(self, name: str, seen: Mapping[str, Seen]) -> None:
        """Note what hosts just reported. (Apart from the record, which only a holder of the lock writes.)"""
        if seen:
            merged = {vm: encode(each) for vm, each in {**self.seen(name), **seen}.items()}
            _write(self._made(name) / "seen.json", dumps(merged))

    def forget(self, name: str) -> None:
        """Take the record out of the list: its history stays as ``record.json.destroyed`` beside the events."""
        directory = self.directory(name)
        (directory / "record.json").replace(directory / "record.json.destroyed")
        _sync(directory)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the session against other processes. Raises `Failure` (busy) if another has it.

        The system frees the lock if this process dies, however it dies."""
        fd = os.open(self._made(name) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failure(
                    "busy",
                    f"another xenoshell is at work on the session {name!r}",
                    "wait until it is done or stop it, then run this again",
                ) from None
            yield
        finally:
            os.close(fd)

    @contextmanager
    def events(self, name: str) -> Iterator[EventLog]:
        """The session's event log, open for appending."""
        with EventLog(self._made(name) / "events.jsonl") as log:
            yield log

    def _made(self, name: str) -> Path:
        directory = self.directory(name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory


_FIELDS = tuple(name for name in _File.__dataclass_fields__ if name != "schema")


class EventLog:
    """A reader of events that appends each to a file at once: a killed client loses none, or tears the last line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> EventLog:
        self._file = self._path.open("ab+", buffering=0)
        self._path.chmod(0o600)
        end = self._file.seek(0, os.SEEK_END)
        if end:
            self._file.seek(end - 1)
            if self._file.read(1) != b"\n":  # a torn last line: the next one starts on its own
                self._file.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __call__(self, event: Event) -> None:
        if self._file is None:
            raise ValueError("the event log is closed")
        self._file.write(event.line().encode() + b"\n")


def nearest(word: str, known: tuple[str, ...]) -> str:
    """`` (did you mean ...?)`` or `` (there are: ...)``, for the end of a message."""
    import difflib

    if close := difflib.get_close_matches(word, known, n=3, cutoff=0.5):
        return f"; did you mean {' or '.join(close)}?"
    return f" (there are: {', '.join(known[:20])})" if known else " (there are none)"


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

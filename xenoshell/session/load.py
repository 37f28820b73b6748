"""Reading a session file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xenoshell import tomlfile
from xenoshell.session.model import Session
from xenoshell.toml_syntax import parse


@dataclass(frozen=True)
class LoadedSession:
    """A session and the file it came from: its relative paths start at ``base_dir``; ``text`` is the file as it was."""

    session: Session
    path: Path
    base_dir: Path
    text: str


def load_session(path: Path) -> LoadedSession:
    """The session that a file describes. Raises `xenoshell.tomlfile.InputErrors` with everything that is wrong."""
    text = tomlfile.read_text(path, missing="`xenoshell new FILE` writes a session file to start from")
    return LoadedSession(tomlfile.loads(text, Session, str(path)), path, path.absolute().parent, text)


def mentioned(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hosts and the images that a file names, as far as it can be read: it may have errors. Never raises for what
    the file holds; a file that cannot be read mentions nothing."""
    hosts: list[str] = []
    images: list[str] = []
    try:
        document, _ = parse(tomlfile.read_text(path), str(path))
    except tomlfile.InputErrors:
        return (), ()
    groups = document.values.get("vm") if document else None
    for group in groups if isinstance(groups, list) else ():
        if isinstance(group, dict):
            named = group.get("hosts")
            hosts += [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
            images += [group["image"]] if isinstance(group.get("image"), str) else []
    return tuple(hosts), tuple(images)


def resolve(path: str, base_dir: Path) -> Path:
    """A path that a session file names: ``~`` is the user's home, relative paths start at ``base_dir``.

    Raises `BadInput` for the home of a user who does not exist.
    """
    return tomlfile.resolve(path, base_dir)

"""The files that come along: themes and sample session files."""

from __future__ import annotations

from pathlib import Path

from xenoshell.errors import BadInput

_HERE = Path(__file__).resolve().parent


def _directory(name: str) -> Path:
    """In a wheel they are inside the package; in a checkout (an editable install) beside it."""
    for directory in (_HERE / "_data" / name, _HERE.parent / name):
        if directory.is_dir():
            return directory
    raise BadInput(f"this installation has no {name}", "install xenoshell again")


def themes() -> Path:
    """The directory of the themes."""
    return _directory("themes")


def sample_configs() -> Path:
    """The directory of the sample session files and the sample inventory."""
    return _directory("sample_configs")


def sample(name: str) -> Path:
    """One sample file by its name, such as ``web-three-hosts.toml``. Raises `BadInput` that lists what there is."""
    directory = sample_configs()
    names = sorted(path.name for path in directory.glob("*.toml"))
    if name not in names:
        raise BadInput(f"there is no sample {name!r}", "there are: " + ", ".join(names))
    return directory / name

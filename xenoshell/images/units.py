"""Turning systemd units on in a tree that is not running: what ``systemctl --root=TREE enable`` does, on machines that
have no systemctl (containers, other init systems).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xenoshell.wire.causes import Failure

#: Where unit files are, the administrator's first (systemd.unit(5), "Unit File Load Path").
PLACES = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
#: The directory suffix of each way to want a unit.
_WANTS = {"WantedBy": "wants", "RequiredBy": "requires", "UpheldBy": "upholds"}


def enable(tree: Path, units: Iterable[str]) -> None:
    """Link ``units``, and those that they name in Also=, as their [Install] sections say (systemd.unit(5)).

    Raises `Failure` (internal) for a unit that the tree does not have or that cannot be enabled.
    """
    queue = list(units)
    asked = set(queue)
    done: set[str] = set()
    while queue:
        unit = queue.pop(0)
        if unit in done:
            continue
        done.add(unit)
        place, file = _find(tree, unit)
        install = _install(tree / place / file)
        if not install and unit in asked:
            raise Failure("internal", f"unit {unit} has no [Install] section and cannot be enabled")
        links = tree / PLACES[0]
        for key, values in install.items():
            for value in values:
                if key == "Also":
                    queue.append(value)
                elif key == "Alias":
                    _link(links / value, f"/{place}/{file}")
                elif key in _WANTS:
                    _link(links / f"{value}.{_WANTS[key]}" / unit, f"/{place}/{file}")


def _find(tree: Path, unit: str) -> tuple[str, str]:
    """The place and the file of a unit; an instance such as a@b.service has its template's."""
    name, dot, kind = unit.rpartition(".")
    stem, at, _ = name.partition("@")
    for place in PLACES:
        for file in dict.fromkeys((unit, f"{stem}@{dot}{kind}" if at else unit)):
            path = tree / place / file
            if path.is_file() and not path.is_symlink():
                return place.removeprefix("usr/"), file
    raise Failure("internal", f"there is no unit {unit} in the image")


def _install(path: Path) -> dict[str, list[str]]:
    """The [Install] section: key -> values, which are separated by blanks and may be given on several lines."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        text = line.strip()
        if text.startswith("["):
            section = text
        elif section == "[Install]" and "=" in text and not text.startswith(("#", ";")):
            key, _, value = text.partition("=")
            found.setdefault(key.strip(), []).extend(value.split())
    return found


def _link(link: Path, target: str) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)

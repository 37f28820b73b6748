"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _locked() -> dict[str, list[str]]:
    """Package and version -> hashes, of requirements.lock."""
    result: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if found := re.match(r"([a-z0-9-]+==[0-9a-z.]+) \\$", line):
            hashes = result[found[1]] = []
        else:
            found = re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})( \\)?", line)
            assert found, f"neither a pin nor a hash: {line}"
            hashes.append(found[1])
    return result


def test_the_lock_has_every_pin_and_a_hash_for_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = {*project["project"]["dependencies"], *project["dependency-groups"]["dev"]}
    locked = _locked()
    assert pins <= set(locked)
    assert all(locked.values())


def test_what_builds_the_package_is_locked_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["build-system"]["requires"]) <= set(_locked())


def test_the_version_is_said_once() -> None:
    import xenoshell

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == xenoshell.__version__


def test_themes_and_samples_go_into_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["force-include"]) == {"themes", "sample_configs"}
    assert list((ROOT / "themes").glob("*.toml")) and list((ROOT / "sample_configs").glob("*.toml"))

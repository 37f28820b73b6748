"""Where xenoshell keeps its files on the user's machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The three directories of a user (absolute; created by whoever writes into them first, see `private_directory`).

    ``config`` holds what people edit, ``state`` what must not be lost, ``cache`` what can be made again.
    """

    config: Path
    state: Path
    cache: Path

    @property
    def hosts_file(self) -> Path:
        """The user's inventory."""
        return self.config / "hosts.toml"

    @property
    def known_hosts(self) -> Path:
        """The host keys that `xenoshell hosts trust` pinned."""
        return self.config / "known_hosts"

    @property
    def sessions(self) -> Path:
        """One directory for the record of each session."""
        return self.state / "sessions"

    @property
    def lab(self) -> Path:
        """All that belongs to the XenoServers on this machine."""
        return self.state / "lab"

    @property
    def images(self) -> Path:
        """The image store."""
        return self.state / "images"

    @property
    def logs(self) -> Path:
        """Tracebacks of defects, for a report."""
        return self.state / "logs"

    @property
    def demo(self) -> Path:
        """The state directory that `xenoshell demo` uses, so that it never touches the user's sessions."""
        return self.state / "demo"


def paths(config_dir: Path | None = None, state_dir: Path | None = None) -> Paths:
    """The directories in force: an option, else ``XENOSHELL_*_DIR``, else the platform's (XDG) ones."""
    return Paths(
        config=_choose(config_dir, "XENOSHELL_CONFIG_DIR", "user_config_path"),
        state=_choose(state_dir, "XENOSHELL_STATE_DIR", "user_state_path"),
        cache=_choose(None, "XENOSHELL_CACHE_DIR", "user_cache_path"),
    )


def private_directory(path: Path) -> Path:
    """Create ``path`` (and what is above it) for this user only, mode 0700, unless it is there. Returns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _choose(option: Path | None, variable: str, platform: str) -> Path:
    if option is not None:
        return option.expanduser().absolute()
    if value := os.environ.get(variable):
        return Path(value).expanduser().absolute()
    import platformdirs

    found: Path = getattr(platformdirs, platform)("xenoshell", appauthor=False)
    return found

"""xenoshell: your own operating system and service on many SSH hosts, from one terminal."""

__version__ = "0.1.0"

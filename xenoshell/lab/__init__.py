"""The lab: XenoServers on this very machine, each a real SSH server with its own state, place and price list."""

from xenoshell.lab.control import HostStatus, Lab, down, read, status, up
from xenoshell.lab.inventory import LabHost

__all__ = ["HostStatus", "Lab", "LabHost", "down", "read", "status", "up"]

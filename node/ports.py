"""Ports of 127.0.0.1 for processes that must be told theirs: the children of a daemon, the nodes of a demonstration.

They lie below the system's ephemeral range: from that range every outgoing connection takes its own port, so one that
was free a moment ago may not be when a child gets round to binding it.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

HOST = "127.0.0.1"
LOWEST = 15_000
FEWEST = 1_000
"""With fewer ports than this below the ephemeral range, the system chooses."""
MAX_TRIES = 1_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on now. Whoever binds one may still lose a race: try again."""
    probes: list[socket.socket] = []
    try:
        while len(probes) < count:
            probes.append(_bound())
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _bound() -> socket.socket:
    span = _ephemeral_from() - LOWEST
    for _ in range(MAX_TRIES if span >= FEWEST else 0):
        probe = socket.socket()
        try:
            probe.bind((HOST, LOWEST + secrets.randbelow(span)))
        except OSError:
            probe.close()
            continue
        return probe
    probe = socket.socket()
    probe.bind((HOST, 0))
    return probe


def _ephemeral_from() -> int:
    try:
        return int(_EPHEMERAL.read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):  # not Linux
        return 0

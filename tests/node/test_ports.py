"""Free ports for children and demonstrations."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from node import ports
from node.ports import free_ports


def test_ports_are_free_different_and_below_those_of_outgoing_connections() -> None:
    """Each can be bound, and no connection of this machine takes it meanwhile."""
    found = free_ports(50)
    assert len(set(found)) == 50
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    assert all(ports.LOWEST <= port < lowest_outgoing for port in found)
    for port in found:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_a_port_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when it is the only one to choose from: then the system gives others."""
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        taken = used.getsockname()[1]
        monkeypatch.setattr(ports, "LOWEST", taken)
        monkeypatch.setattr(ports, "_ephemeral_from", lambda: taken + 1)
        monkeypatch.setattr(ports, "FEWEST", 1)
        assert taken not in free_ports(5)

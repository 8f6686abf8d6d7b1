"""Devices that this node calls: where images of a C-MOVE and commitment reports go, and over what.

Only a registered device in use, with an address of its own and a port, is called: over mutual TLS when its certificate is
registered, which it must then show (or the former one while the two overlap), and in plain only when it was registered for that
with a reason.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from consent.errors import NotFound
from consent.principals import Principal
from consent.vocabulary import EventKind, Outcome
from node.access.devices import Device, DeviceState, Former, shown
from node.audit.event import Event
from node.clock import Clock

from .pdu import Roles
from .requestor import Call, Peer
from .services import EventLog


class Devices(Protocol):
    """The device registry (`node.access.registry.Registry`)."""

    async def device(self, ae_title: str) -> Device:
        """Raises NotFound."""
        ...


@dataclass(frozen=True)
class CallableDevice:
    """A device that may be called."""

    principal: Principal
    peer: Peer

    def call(
        self, pairs: Sequence[tuple[str, str | tuple[str, ...]]], *, roles: Sequence[Roles] = ()
    ) -> Call:
        """An association with it, to be entered, proposing `pairs`."""
        return Call(self.peer, pairs, roles=roles)


class CallableDevices:
    """Finds them. `calling` is this node's AE title, `node` its id; `tls` makes a context that trusts a device."""

    def __init__(
        self,
        devices: Devices,
        log: EventLog,
        clock: Clock,
        *,
        calling: str,
        node: str,
        tls: Callable[[Device], ssl.SSLContext],
    ) -> None:
        self._devices = devices
        self._log = log
        self._clock = clock
        self._calling = calling
        self._node = node
        self._tls = tls

    async def find(self, ae_title: str, asker: Principal, address: str) -> CallableDevice:
        """The device that `asker` wants something sent to.

        Raises NotFound with code `unknown-destination`, once that is on record, when it is none that may be called.
        """
        try:
            return await self.callable(ae_title)
        except NotFound as error:
            await self._log.record(
                Event(
                    EventKind.ACCESS_REFUSED,
                    asker.actor,
                    Outcome.REFUSED,
                    purpose=asker.purpose,
                    address=address or None,
                    reason=error.message,
                    detail={"destination": shown(ae_title), "code": error.code},
                )
            )
            raise

    async def callable(self, ae_title: str) -> CallableDevice:
        """The device with this AE title. Raises NotFound with code `unknown-destination`."""
        try:
            device = await self._devices.device(ae_title)
        except NotFound as error:
            raise _unknown("No device of this AE title is registered here.") from error
        if device.state is not DeviceState.ACTIVE:
            raise _unknown(f"The destination is in state {device.state.value}.")
        if device.host is None or device.port is None:
            raise _unknown("The destination is registered without address and port.")
        secure = device.certificate is not None
        former = {device.former.fingerprint} if device.former and self._overlaps(device.former) else set()
        peer = Peer(
            device.host,
            device.port,
            device.ae_title,
            self._calling,
            self._tls(device) if secure else None,
            frozenset({device.fingerprint or "", *former}) if secure else frozenset(),
        )
        return CallableDevice(device.principal(self._node), peer)

    def _overlaps(self, former: Former) -> bool:
        return self._clock.now() < former.until


def _unknown(words: str) -> NotFound:
    return NotFound(
        words,
        mend="Register it with its own address and --port.",
        code="unknown-destination",
    )

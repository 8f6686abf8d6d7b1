"""Who and how much may come in by DICOM: caps, memory, counters, and the record of refusals.

One `Gate` is shared by a node's plain and TLS listeners, so the bounds hold over both. Leaves the decision about a
device to the `DeviceGate` (`node.access.registry`), sockets to `listener`, PDUs to `connection`.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from consent.principals import Principal
from consent.vocabulary import EventKind, Outcome
from node.access.admission import Knock
from node.access.live import whole
from node.audit.event import Detail, Event
from node.clock import Clock

from .services import Services

REFUSAL_LOG_SECONDS = 60
MAX_REMEMBERED_REFUSALS = 1024

logger = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """Bounds of the DICOM door. Seconds are deadlines; `memory_bytes` is over all associations together."""

    associations: int = 64
    associations_per_peer: int = 16
    connections: int = 128
    connections_per_peer: int = 32
    handshake_seconds: float = 10.0
    artim_seconds: float = 10.0
    idle_seconds: float = 60.0
    stop_seconds: float = 10.0
    instance_bytes: int = 512 * 1024 * 1024
    memory_bytes: int = 1024 * 1024 * 1024
    queued_messages: int = 8
    operations: int = 4
    stall_seconds: float = 60.0


class DeviceGate(Protocol):
    """Who may associate (`node.access.registry.Registry`)."""

    async def admit_device(
        self, calling_ae: str, called_ae: str, address: str, certificate_der: bytes | None, tls: bool
    ) -> Principal:
        """Return the device. Raises Denied, saying which of AE title, certificate and address was wrong."""
        ...


class DicomMetrics:
    """The DICOM families for Prometheus; no label names a person or a study."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.registry = registry
        self.associations = Gauge("accord_dicom_associations", "Associations open now.", registry=registry)
        self.accepted = Counter(
            "accord_dicom_associations_accepted", "Associations accepted.", registry=registry
        )
        self.refused = Counter(
            "accord_dicom_refused", "Connections and associations refused.", ("reason",), registry=registry
        )
        self.answers = Counter(
            "accord_dicom_answers", "DIMSE answers by status.", ("status",), registry=registry
        )
        self.received_bytes = Counter(
            "accord_dicom_received_bytes", "Data set bytes acknowledged.", registry=registry
        )


@dataclass
class AssociationView:
    """An association as a page shows it."""

    device: str
    address: str
    tls: bool
    since: datetime
    last_seen: datetime
    admitted: bool = False
    stored: int = 0
    refused: int = 0
    cut: Callable[[], None] | None = field(default=None, repr=False)
    """Ends the association at once."""
    knock: Knock | None = field(default=None, repr=False)
    principal: Principal | None = field(default=None, repr=False)
    """What it showed, and as whom it was let in: both may be out of date before it ends."""


class Memory:
    """Bytes of data sets held over all associations. Who must wait is called when some come free."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._holding: Tally[object] = Tally()
        self._waiting: dict[object, tuple[Callable[[], None], bool]] = {}

    def reserve(self, holder: object, size: int) -> bool:
        """Take `size` bytes for `holder`; False when they are not free."""
        if self.held + size > self.limit:
            return False
        self.held += size
        self._holding[holder] += size
        return True

    def release(self, holder: object, size: int) -> None:
        """Give `size` bytes back and wake everybody who waits."""
        self.held -= size
        self._holding[holder] -= size
        if not self._holding[holder]:
            del self._holding[holder]
        waiting, self._waiting = self._waiting, {}
        for wake, _ in waiting.values():
            wake()

    def wait(self, holder: object, wake: Callable[[], None], *, busy: bool) -> bool:
        """Call `wake` when bytes come free. False when nobody else will free any: waiting would be for ever.

        `busy`: `holder` itself has messages being handled, whose bytes will come free.
        """
        others = (other for other in self._holding if other is not holder)
        if not busy and not any(self._will_free(other) for other in others):
            return False
        self._waiting[holder] = (wake, busy)
        return True

    def leave(self, holder: object) -> None:
        """`holder` waits no longer."""
        self._waiting.pop(holder, None)

    def _will_free(self, holder: object) -> bool:
        waiting = self._waiting.get(holder)
        return waiting is None or waiting[1]


@dataclass
class _Refusals:
    """A kind of refusal: what the log was told last and when, and how many were not written since."""

    logged: datetime
    event: Event
    unlogged: int = 0


@dataclass
class Gate:
    """What all DICOM connections of a node share. `ae_title` is the node's own, for the reason of a rejection."""

    devices: DeviceGate
    services: Services
    clock: Clock
    ae_title: str
    limits: Limits = field(default_factory=Limits)
    metrics: DicomMetrics = field(default_factory=DicomMetrics)
    private_sop_classes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.memory = Memory(self.limits.memory_bytes)
        self._connections: Tally[str] = Tally()
        self._associations: Tally[str] = Tally()
        self._views: dict[object, AssociationView] = {}
        self._refusals: OrderedDict[tuple[str, str, str], _Refusals] = OrderedDict()
        # Of more, the oldest are in the metrics alone: a flood from many addresses must not fill the memory.
        self._late: deque[Event] = deque(maxlen=MAX_REMEMBERED_REFUSALS)
        self.heard: dict[str, tuple[datetime, str]] = {}
        """When and from where each admitted device was last heard, by AE title: as many as are registered."""

    def connection_refusal(self, address: str) -> str:
        """Why one more connection from `address` may not come in; "" when it may."""
        if self._connections.total() >= self.limits.connections:
            return "too-many-connections"
        if self._connections[address] >= self.limits.connections_per_peer:
            return "too-many-connections-of-peer"
        return ""

    def association_refusal(self, address: str) -> str:
        """Why one more association with `address` may not begin; "" when it may."""
        if self._associations.total() >= self.limits.associations:
            return "too-many-associations"
        if self._associations[address] >= self.limits.associations_per_peer:
            return "too-many-associations-of-peer"
        return ""

    @contextmanager
    def connected(self, address: str) -> Iterator[None]:
        """Count a connection while it lasts."""
        with _counted(self._connections, address):
            yield

    @contextmanager
    def associated(self, address: str, device: str, tls: bool) -> Iterator[AssociationView]:
        """Count an association while it lasts, from its request on; show it once it is admitted."""
        now = self.clock.now()
        key = object()
        view = self._views[key] = AssociationView(device, address, tls, now, now)
        self.metrics.associations.inc()
        try:
            with _counted(self._associations, address):
                yield view
        finally:
            self.metrics.associations.dec()
            del self._views[key]
            if view.admitted:
                self.heard[view.device] = (view.last_seen, view.address)

    @property
    def associations(self) -> tuple[AssociationView, ...]:
        """The admitted associations that are open now."""
        return tuple(view for view in self._views.values() if view.admitted)

    def refusal(
        self,
        reason: str,
        words: str,
        address: str,
        *,
        kind: EventKind,
        actor: str = "system",
        more: Mapping[str, Detail] | None = None,
        **detail: Detail,
    ) -> Event | None:
        """Count a refusal; return the event to write, or None when the like was written within the last minute.

        Alike are refusals of one address, for one reason, of one registered device (`device` in the detail).
        """
        self.metrics.refused.labels(reason).inc()
        now = self.clock.now()
        told = {"code": reason, **detail, **(more or {})}
        key = (address, reason, str(told.get("device", "")))
        known = self._refusals.get(key)
        if known is not None and (now - known.logged).total_seconds() < REFUSAL_LOG_SECONDS:
            known.unlogged += 1
            return None
        unlogged = known.unlogged if known else 0
        event = Event(kind, actor, Outcome.REFUSED, address=address, reason=words, detail=told)
        self._refusals[key] = _Refusals(now, event)
        self._refusals.move_to_end(key)
        while len(self._refusals) > MAX_REMEMBERED_REFUSALS:
            _, gone = self._refusals.popitem(last=False)
            if gone.unlogged:
                self._late.append(_repeats(gone))
        logger.warning("dicom_refused", reason=reason, address=address, unlogged=unlogged)
        return replace(event, detail=told | {"unlogged": unlogged}) if unlogged else event

    def late(self, *, everything: bool = False) -> list[Event]:
        """The events that make the log whole: refusals that were counted and not followed by one that said so.

        They are forgotten here; what cannot be put on record is to be given back by `put_off`.
        """
        now = self.clock.now()
        late = list(self._late)
        self._late.clear()
        for known in self._refusals.values():
            due = everything or (now - known.logged).total_seconds() >= REFUSAL_LOG_SECONDS
            if known.unlogged and due:
                late.append(_repeats(known))
                known.logged, known.unlogged = now, 0
        return late

    def put_off(self, events: Iterable[Event]) -> None:
        """Events of `late` that are not on record yet, for the next time."""
        self._late.extend(events)

    @property
    def untold(self) -> list[tuple[Event, int]]:
        """Refusals that are counted and not yet in the log: what was told of their like, and how many."""
        late = [(event, whole(event, "repeats")) for event in self._late]
        return late + [(known.event, known.unlogged) for known in self._refusals.values() if known.unlogged]


def _repeats(known: _Refusals) -> Event:
    return replace(known.event, detail={**known.event.detail, "repeats": known.unlogged})


@contextmanager
def _counted(tally: Tally[str], address: str) -> Iterator[None]:
    tally[address] += 1
    try:
        yield
    finally:
        tally[address] -= 1
        if not tally[address]:
            del tally[address]

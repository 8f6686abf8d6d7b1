"""The devices of one node: registering, renewing, putting in and out of use, and the gate for associations.

The part of `Registry` that is about devices; it shares its sealed rows, log and clock. Every change and its log entry are
one transaction. Leaves the rules to `devices` (states), `admission` (who may associate), `certificates` (overlap) and
`wiping` (what an agent must have done before its device leaves service).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, select

from consent.errors import Conflict, Invalid, NotFound
from consent.principals import Principal
from consent.vocabulary import EventKind, Purpose
from node.access.activity import Activity, activity_of, activity_table
from node.access.admission import Knock, examine
from node.access.certificates import (
    OVERLAP,
    check_overlap,
    overlap_end,
    read_living_certificate,
    require_other,
    require_serving,
)
from node.access.devices import (
    MAX_STATE_REASON_CHARACTERS,
    SENDING,
    Device,
    DeviceState,
    check_address,
    check_ae_title,
    check_change,
    check_plain_reason,
    check_port,
    check_purpose,
    check_services,
    device_of,
    device_table,
)
from node.access.rows import RowAltered, Rows
from node.access.wiping import check_wipe, read_agent_key, wipe_needed
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Tx

OUT_OF_SERVICE = frozenset({DeviceState.MAINTENANCE, DeviceState.RETIRED})


@dataclass(frozen=True)
class Survey:
    """Every device that is as this node wrote it, by AE title, and the titles of those that are not."""

    devices: tuple[Device, ...]
    altered: tuple[str, ...] = ()


class DeviceRegistry:
    """The devices. `node` is this node's id, `ae_title` its AE title."""

    def __init__(self, rows: Rows, log: Log, clock: Clock, *, node: str, ae_title: str) -> None:
        self.node = node
        self.ae_title = ae_title.strip()
        self._rows = rows
        self._log = log
        self._clock = clock

    async def add_device(
        self,
        ae_title: str,
        address: str,
        certificate_pem: str | None = None,
        plain_reason: str | None = None,
        *,
        department: str | None = None,
        services: Iterable[str] = SENDING,
        purpose: str = Purpose.TREATMENT,
        port: int | None = None,
        by: str = "system",
    ) -> Device:
        """Register a device, or register it anew when the AE title is known: the former certificate is out at once.

        A known device keeps its state and its agent; a retired one begins again, with another certificate.
        `services` and `purpose` are what it may ask for and why; `port` is where this node calls it. Raises Invalid
        for one that is not allowed, for a bad AE title, address or certificate (also one that a device cannot be called
        with), or when neither a certificate nor a reason for plain DICOM is given; Conflict when a retired device brings its
        old certificate.
        """
        title, now = check_ae_title(ae_title), self._clock.now()
        if certificate_pem is None and plain_reason is None:
            raise Invalid(
                "A device needs a certificate, or a reason why it sends in plain.",
                mend='Give --certificate FILE, or --plain "reason".',
                code="device-channel",
            )
        pem, fingerprint = read_living_certificate(certificate_pem, now) if certificate_pem else (None, None)
        values = {
            "ae_title": title,
            "address": check_address(address),
            "certificate": pem,
            "fingerprint": fingerprint,
            "plain_reason": check_plain_reason(plain_reason) if plain_reason is not None else None,
            "department": department,
            "services": " ".join(sorted(check_services(services))),
            "purpose": check_purpose(purpose).value,
            "port": check_port(port, check_address(address)),
            "registered": now,
        }
        if pem is not None and port is not None:
            require_serving(pem)
        async with self._rows.writing() as tx:
            known = (await self._rows.select(tx, _device_query(title).with_for_update())).one_or_none()
            intact = known is not None and await self._rows.holds(tx, device_table, known)
            values |= self._kept(known if intact else None, fingerprint)
            if known is None:
                await self._rows.insert(tx, device_table, values)
            else:
                await self._rows.replace(tx, device_table, known, values)
            detail = {
                "ae_title": title,
                "address": values["address"],
                "fingerprint": fingerprint or "",
                "services": values["services"],
            }
            await self._tell(tx, EventKind.DEVICE_REGISTERED, by, detail, reason=plain_reason or "")
        return await self.device(title)

    async def device(self, ae_title: str) -> Device:
        """One device. Raises NotFound."""
        found = await self._found(ae_title)
        if found is None:
            raise _no_device()
        return found

    async def survey(self) -> Survey:
        """Every device; one that was changed outside this node is named, put on record, and hides no other."""
        query = select(device_table).order_by(device_table.c.ae_title)
        rows = await self._rows.read(
            lambda on: [(row, on.intact(device_table, row)) for row in on.rows(query)]
        )
        altered = tuple(str(row.ae_title) for row, intact in rows if not intact)
        for title in altered:
            await self._rows.tell(RowAltered(device_table.name, title))
        return Survey(tuple(device_of(row) for row, intact in rows if intact), altered)

    async def activity(self) -> dict[str, Activity]:
        """What each device did lately, by AE title, as last written (`node.dicom.watch`)."""
        return await self._rows.read(
            lambda on: {row.ae_title: activity_of(row) for row in on.execute(select(activity_table)).all()}
        )

    async def set_device_state(
        self,
        ae_title: str,
        state: DeviceState,
        *,
        by: str = "system",
        reason: str = "",
        wipe: str | None = None,
    ) -> None:
        """Put a device in or out of use. `wipe` is the wipe certificate of a device with an agent.

        Raises NotFound, Conflict for a change that its state does not allow, and Denied, Invalid or Corrupt when the
        wipe certificate is missing or does not hold.
        """
        now, reason = self._clock.now(), reason.strip()[:MAX_STATE_REASON_CHARACTERS]
        async with self._rows.writing() as tx:
            row = await self._device_row(tx, ae_title)
            device = device_of(row)
            check_change(device.state, state)
            detail: dict[str, Any] = {
                "ae_title": ae_title,
                "state": state.value,
                "before": device.state.value,
            }
            if device.agent is not None and state in OUT_OF_SERVICE and device.state is DeviceState.ACTIVE:
                detail |= await self._wiped(tx, device, wipe)
            changes: dict[str, Any] = {"state": state.value, "since": now, "state_reason": reason}
            if state is DeviceState.RETIRED:
                changes |= NO_FORMER
            await self._write(tx, row, changes)
            await self._tell(tx, EventKind.DEVICE_CHANGED, by, detail, reason=reason)

    async def renew_certificate(
        self, ae_title: str, certificate_pem: str, *, overlap: timedelta = OVERLAP, by: str = "system"
    ) -> Device:
        """Give a registered device a new certificate; the present one is let in beside it until `overlap` is over.

        Registration, state and agent stay. Raises NotFound, Invalid for a bad certificate or overlap, Conflict for
        the certificate that is there already and for a retired device.
        """
        now, overlap = self._clock.now(), check_overlap(overlap)
        pem, fingerprint = read_living_certificate(certificate_pem, now)
        async with self._rows.writing() as tx:
            row = await self._device_row(tx, ae_title)
            device = device_of(row)
            device.require_in_service()
            require_other(fingerprint, device.fingerprint)
            if device.port is not None:
                require_serving(pem)
            changes: dict[str, Any] = {"certificate": pem, "fingerprint": fingerprint} | NO_FORMER
            if device.certificate is not None and overlap > timedelta(0):
                changes |= {
                    "former_certificate": device.certificate,
                    "former_fingerprint": device.fingerprint,
                    "former_until": overlap_end(device.certificate, overlap, now),
                }
            await self._write(tx, row, changes)
            until = changes["former_until"]
            detail = {
                "ae_title": ae_title,
                "fingerprint": fingerprint,
                "former": device.fingerprint or "",
                "former_until": until.isoformat() if until else None,
            }
            await self._tell(tx, EventKind.DEVICE_CERTIFICATE_RENEWED, by, detail)
        return await self.device(ae_title)

    async def move_device(self, ae_title: str, address: str, *, by: str = "system") -> Device:
        """Give a registered device another address or range; all else stays. Raises NotFound, Invalid, Conflict."""
        place = check_address(address)
        async with self._rows.writing() as tx:
            row = await self._device_row(tx, ae_title)
            device = device_of(row)
            device.require_in_service()
            check_port(device.port, place)
            await self._write(tx, row, {"address": place})
            detail = {"ae_title": ae_title, "address": place, "before": device.address}
            await self._tell(tx, EventKind.DEVICE_CHANGED, by, detail)
        return await self.device(ae_title)

    async def end_overlap(self, ae_title: str, *, by: str = "system") -> None:
        """Let the former certificate in no more, before its overlap is over. Raises NotFound."""
        async with self._rows.writing() as tx:
            row = await self._device_row(tx, ae_title)
            device = device_of(row)
            if device.former is None:
                return
            await self._write(tx, row, NO_FORMER)
            detail = {"ae_title": ae_title, "ended": device.former.fingerprint}
            await self._tell(tx, EventKind.DEVICE_CHANGED, by, detail)

    async def set_agent(self, ae_title: str, agent: str, *, by: str = "system") -> None:
        """Say that an edge agent with this key (Ed25519, hex) stands beside a device: from now on its media must be
        wiped before the device leaves service. An agent is never taken away: a wiped device retires, and begins anew.
        Whose key takes another's place can certify a wipe that the other never made, so the log names both.

        Raises NotFound, Invalid for a bad key, Conflict for a device that is not in use.
        """
        key = read_agent_key(agent)
        async with self._rows.writing() as tx:
            row = await self._device_row(tx, ae_title)
            device = device_of(row)
            device.require_in_service()
            if device.state is not DeviceState.ACTIVE:  # else it could retire with an agent that nobody wiped
                raise Conflict(
                    "This device is in maintenance.", mend="Put it in use first.", code="device-maintenance"
                )
            await self._write(tx, row, {"agent": key})
            detail = {"ae_title": ae_title, "agent": key}
            if device.agent not in (None, key):
                detail["replaced_agent"] = device.agent
            await self._tell(tx, EventKind.DEVICE_CHANGED, by, detail)

    async def admit_device(
        self, calling_ae: str, called_ae: str, address: str, certificate_der: bytes | None, tls: bool
    ) -> Principal:
        """The gate for one association. Raises DeviceRefused naming each of AE title, address and certificate that
        was wrong."""
        calling = calling_ae.strip(" ")
        known = await self._found(calling)
        knock = Knock(calling, called_ae, address, certificate_der, tls)
        device = examine(known, knock, own_ae_title=self.ae_title, now=self._clock.now())
        return device.principal(self.node)

    def _kept(self, row: Any, fingerprint: str | None) -> dict[str, Any]:
        """What a registration takes over from the one before: nothing of a row that was altered or is retired."""
        now = self._clock.now()
        fresh: dict[str, Any] = {
            "state": DeviceState.ACTIVE.value,
            "since": now,
            "state_reason": "",
            "agent": None,
        } | NO_FORMER
        if row is None:
            return fresh
        device = device_of(row)
        if device.state is DeviceState.RETIRED:
            if fingerprint is not None:
                require_other(fingerprint, device.fingerprint)
            return fresh
        kept = {"state": row.state, "since": row.since, "state_reason": row.state_reason, "agent": row.agent}
        return fresh | kept

    async def _wiped(self, tx: Tx, device: Device, wipe: str | None) -> dict[str, Any]:
        """What the log says of a wipe certificate that lets the device leave service. Raises when none does."""
        if not wipe or device.agent is None:
            raise wipe_needed()
        mine = activity_table.c.ae_title == device.ae_title
        seen = (await tx.execute(select(activity_table.c.last_seen).where(mine))).scalar_one_or_none()
        signed = check_wipe(
            wipe,
            ae_title=device.ae_title,
            agent=device.agent,
            last_seen=seen,
            now=self._clock.now(),
            since=device.since,
        )
        return {"wipe": signed.token, "wiped": list(signed.body.done), "unproven": list(signed.body.unproven)}

    async def _write(self, tx: Tx, row: Any, changes: Mapping[str, Any]) -> None:
        await self._rows.update(tx, device_table, row, changes)

    async def _device_row(self, tx: Tx, ae_title: str) -> Any:
        """The row to be changed in this transaction, checked. Raises NotFound."""
        query = _device_query(ae_title).with_for_update()
        row = await self._rows.read(lambda on: on.check(device_table, on.execute(query).one_or_none()), tx=tx)
        if row is None:
            raise _no_device()
        return row

    async def _found(self, ae_title: str) -> Device | None:
        query = _device_query(ae_title)
        row = await self._rows.read(lambda on: on.check(device_table, on.execute(query).one_or_none()))
        return None if row is None else device_of(row)

    async def _tell(
        self, tx: Tx, kind: EventKind, by: str, detail: Mapping[str, Any], *, reason: str = ""
    ) -> None:
        await self._log.append(tx, Event(kind, by, detail=detail, reason=reason))


NO_FORMER: dict[str, Any] = {"former_certificate": None, "former_fingerprint": None, "former_until": None}
"""The columns of the overlap, when there is none."""


def _no_device() -> NotFound:
    return NotFound("There is no such device.", mend="List them in the portal, or add it.")


def _device_query(ae_title: str) -> Select[Any]:
    return select(device_table).where(device_table.c.ae_title == ae_title)

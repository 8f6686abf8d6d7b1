"""What a node does with other members, built from the foundation: part of `ops.compose`.

Holds the parts of the exchange and how they hang together; leaves listeners and duties to `compose` and `duties`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from federation import keys as peers
from federation.archive import Archive
from federation.asking import Asking
from federation.channel import Channel
from federation.client import PeerClient
from federation.doorway import Doorway
from federation.fetching import Fetching
from federation.following import Following
from federation.grants import Grants
from federation.holdings import Holdings
from federation.incoming import Incoming
from federation.leased_keys import LeasedKeys
from federation.leases import Leases
from federation.members import Members
from federation.notices import Notices
from federation.releases import Releases
from federation.reporting import Reporter
from federation.witnessing import Witnessing
from node.access.certificates import read_certificate
from node.audit.witness import Witness
from node.gateway import Gateway
from node.index import Index
from ops.foundation import Foundation
from ops.region import build_channel

if TYPE_CHECKING:
    from federation.discovery import Discovery


@dataclass(frozen=True)
class Exchange:
    """What a node does with other members."""

    members: Members
    channel: Channel
    client: PeerClient
    doorway: Doorway
    following: Following
    asking: Asking
    incoming: Incoming
    grants: Grants
    notices: Notices
    releases: Releases
    leases: Leases
    holdings: Holdings
    fetching: Fetching
    leased_keys: LeasedKeys
    witnessing: Witnessing
    reporter: Reporter
    discovery: Discovery | None

    def services(self) -> dict[web.AppKey[Any], Any]:
        """For the applications, under their keys."""
        return {
            peers.MEMBERS: self.members,
            peers.DOORWAY: self.doorway,
            peers.ASKING: self.asking,
            peers.INCOMING: self.incoming,
            peers.GRANTS: self.grants,
            peers.NOTICES: self.notices,
            peers.RELEASES: self.releases,
            peers.LEASES: self.leases,
            peers.HOLDINGS: self.holdings,
            peers.FETCHING: self.fetching,
            peers.WITNESSING: self.witnessing,
        }


def build_exchange(base: Foundation, index: Index, gateway: Gateway) -> Exchange:
    """Build what a node does with other members."""
    database, log, clock, identity, records = base.database, base.log, base.clock, base.identity, base.records
    members = base.members
    channel = build_channel(base)
    discovery = _discovery(base)
    client = PeerClient(
        members=members,
        channel=channel,
        log=log,
        **({"hints": discovery.addresses} if discovery else {}),
    )
    archive = Archive(index=index, pseudonyms=index.pseudonyms, care=base.care, clock=clock, packs=gateway)
    asking = Asking(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        client=client,
        policies=base.policies,
    )
    incoming = Incoming(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        archive=archive,
        policies=base.policies,
    )
    notices = Notices(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        client=client,
        records=records,
    )
    grants = Grants(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        archive=archive,
        records=records,
        incoming=incoming,
        notices=notices,
        policies=base.policies,
    )
    holdings = Holdings(
        root=base.settings.folder / "held",
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        client=client,
        records=records,
        asking=asking,
    )
    return Exchange(
        members=members,
        channel=channel,
        client=client,
        doorway=Doorway(members=members, log=log, clock=clock),
        following=Following(identity=identity, members=members, client=client, clock=clock),
        asking=asking,
        incoming=incoming,
        grants=grants,
        notices=notices,
        releases=Releases(
            log=log,
            clock=clock,
            identity=identity,
            archive=archive,
            records=records,
            grants=grants,
            policies=base.policies,
        ),
        leases=Leases(
            database=database,
            log=log,
            clock=clock,
            identity=identity,
            members=members,
            archive=archive,
            records=records,
            grants=grants,
            policies=base.policies,
        ),
        holdings=holdings,
        fetching=Fetching(log=log, clock=clock, members=members, client=client, holdings=holdings),
        leased_keys=LeasedKeys(
            clock=clock, identity=identity, members=members, client=client, holdings=holdings
        ),
        witnessing=build_witnessing(base, members, client),
        reporter=Reporter(
            database=database, log=log, clock=clock, identity=identity, members=members, client=client
        ),
        discovery=discovery,
    )


def build_witnessing(base: Foundation, members: Members, client: PeerClient) -> Witnessing:
    """Cosigning others' checkpoints, and having our own cosigned."""
    return Witnessing(
        log=base.log,
        witness=Witness(base.database, signer=base.identity.cosigner, clock=base.clock),
        members=members,
        client=client,
        raise_floor=base.clock.raise_floor,
    )


def _discovery(base: Foundation) -> Discovery | None:
    settings = base.settings
    if not settings.discovery.enabled:
        return None
    from federation.discovery import Discovery

    _, fingerprint = read_certificate(base.identity.authority_pem)
    return Discovery(interface=settings.discovery.interface, fingerprint=fingerprint, port=settings.peer.port)

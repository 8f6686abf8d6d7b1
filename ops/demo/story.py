"""One study's whole life, step by step. Each step observes the effect, not what the doer says of itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import numpy as np
from PIL import Image

from consent.errors import Denied, Unavailable
from node.dicom.sender import Peer, echo, send_files
from node.imaging.part10 import read_part10
from node.imaging.rendering import Renderer
from node.tls import KeyPair, dicom_client_context
from ops.demo import intruders, tampering
from ops.demo.person import Person, Refused
from ops.demo.processes import Site, accord
from ops.demo.region import LEASE_SECONDS, REGISTERED_SECONDS, ROOTS, Region
from ops.demo.report import NotHeld, Report, hold
from ops.demo.search import search
from ops.demo.studies import SAMPLES, SLICES, ZHANG, sample_files, uid, write_ct

STUDY_UID = uid(ZHANG.id, 1, "study")
MIDDLE_UID = uid(ZHANG.id, 1, SLICES // 2)
WAIT_SECONDS = 40.0
SHORT_GRANT_SECONDS = 8


class Story:
    """The story and what its steps hand on to each other."""

    def __init__(self, region: Region, report: Report) -> None:
        self.region = region
        self.report = report
        self.a, self.b, self.c = region.hospitals
        self.scratch = region.folder / "story"
        self.scratch.mkdir(exist_ok=True)
        self.people: dict[str, Person] = {}
        self.study: dict[str, Any] = {}
        self.grant = ""
        self.modality: KeyPair | None = None
        self._stack = AsyncExitStack()

    async def play(self) -> None:
        """Steps 1 to 7 and 9; step 8 is `ops.demo.research`."""
        from ops.demo.research import prepare, train

        step = self.report.step
        async with self._stack:
            await step(
                "1  the hub's roster: three hospitals listed, a fourth refused by all",
                ("E1", "T2"),
                self.roster,
            )
            await step(
                "2a a modality sends real studies over mutual DICOM TLS", ("C1", "C3", "T1", "F5"), self.send
            )
            await step(
                "2b an unregistered device, a wrong AE title and plain DICOM are refused",
                ("C1", "T1"),
                self.refuse,
            )
            await step("3  sealed: no identifier anywhere at A, in any encoding", ("V1",), self.sealed)
            await step(
                "4a A's clinician finds, opens and scrolls; every frame is marked",
                ("U5", "F5", "F6"),
                self.view,
            )
            await step(
                "4b without a treatment relationship: refused, with the reason", ("U1",), self.unrelated
            )
            await step(
                "5a consent, request, grant: B pulls the sealed pack and verifies it",
                ("E2", "E3", "U2"),
                self.share,
            )
            await step(
                "5b B views under a lease; each opening is in A's log", ("E3", "E4", "V4"), self.view_at_b
            )
            await step(
                "5c a flipped byte in transit or on B's disk: nothing of it is shown", ("C3", "T2"), self.flip
            )
            # Research is prepared while the story waits for grants and leases to run out.
            preparing = asyncio.create_task(prepare(self))
            self._stack.callback(preparing.cancel)
            await step("6a C has no grant and is refused", ("E3",), self.without_grant)
            await step(
                "6b a short grant expires: next frame refused, copy shredded, receipt at A",
                ("E4", "U2"),
                self.expire,
            )
            await step("6c A unreachable: B's access ends with the lease", ("E4",), self.unreachable)
            await step("6d the patient withdraws consent: the grant ends at B", ("E2", "E4"), self.withdraw)
            await step("7a A's log verifies; checkpoints cosigned by B, C and the hub", ("A1",), self.log)
            await step(
                "7b an altered entry is found by the check and by the next witness", ("A1",), self.tamper
            )

            async def research() -> str:
                return await train(self, await preparing)

            await step(
                "8  research: federated training under each site's approval",
                ("R1", "R2", "R4", "U6"),
                research,
            )
            await step("9  the hub's page: the network, and not one patient identifier", ("E7",), self.hub)

    async def roster(self) -> str:
        seen: list[dict[str, Any]] = []

        async def agreed() -> None:
            seen[:] = [
                await (await self.person(site.id, self._anyone(site))).get("/api/v1/members")
                for site in self.region.hospitals
            ]
            for answer in seen:
                names = {member["id"] for member in answer["members"]}
                hold(
                    names == {"hub", "a-general", "b-central", "c-clinic"},
                    f"the roster lists {sorted(names)}",
                )
            hold(len({answer["version"] for answer in seen}) == 1, "the hospitals have different rosters")

        # Who joined first learns of who joined last from the hub: that takes a moment.
        await self._eventually(agreed, "the hospitals do not come to one roster")
        refused = await intruders.knock_as_stranger(self.region)
        hold(len(refused) == 4, f"the unlisted node was let in: {refused}")
        return f"roster version {seen[0]['version']}; the unlisted node: {', '.join(sorted(set(refused.values())))}"

    async def send(self) -> str:
        folder = self.scratch / "ct1"
        await accord("device", "issue-certificate", self.a.folder, "--ae-title", "CT1", "--out", folder)
        await accord(
            "device", "add", self.a.folder, "--ae-title", "CT1", "--address", "127.0.0.1",
            "--certificate", folder / "CT1.crt", "--department", "Radiology",
        )  # fmt: skip
        self.modality = KeyPair((folder / "CT1.crt").read_bytes(), (folder / "CT1.key").read_bytes())
        await asyncio.sleep(REGISTERED_SECONDS)
        ct = await asyncio.to_thread(write_ct, self.scratch / "study")
        files = [*sample_files(), *ct]
        sent = [one async for one in send_files(self._peer("CT1", "GENERAL"), files)]
        refused = [one for one in sent if not one.ok]
        hold(not refused, f"{len(refused)} of {len(sent)} were not accepted: {refused[:1]}")
        return f"{len(sent)} instances of {len(sample_files())} sample files and a {len(ct)}-slice CT acknowledged"

    async def refuse(self) -> str:
        words = []
        for name, peer in (
            ("unregistered device", self._peer("CT9", "GENERAL")),
            ("wrong AE title", self._peer("CT1", "NOBODY")),
            ("plain DICOM", Peer("127.0.0.1", self.a.ports["plain"], "GENERAL", "CT1")),
        ):
            try:
                await echo(peer)
            except (Denied, Unavailable) as error:
                words.append(f"{name}: {error.message}")
            else:
                hold(False, f"{name} was let in")
        entries = await self.entries(self.a, kind="AssociationRefused")
        hold(len(entries) >= 3, f"only {len(entries)} refusals are in the log")
        return "; ".join(entry["reason"] for entry in entries[:3])

    async def sealed(self) -> str:
        words = [word for patient in (ZHANG, *SAMPLES) for word in patient.words()]
        found = await asyncio.to_thread(lambda: list(search(self.a.folder, words, also=[self.a.output])))
        hold(not found, f"found: {found[:3]}")
        size = sum(path.stat().st_size for path in self.a.folder.rglob("*") if path.is_file())
        return (
            f"{len(words)} words searched in {size / 1e6:.0f} MB of packs, database, WAL, keystore and output"
        )

    async def view(self) -> str:
        await accord("care", "add", self.a.folder, "--user", "dr.li", "--patient", ZHANG.id)
        li = await self.person("a-general", "dr.li")
        exact = await li.get("/api/v1/studies", PatientID=ZHANG.id)
        wild = await li.get("/api/v1/studies", PatientName="zhang^wei*")
        hold(
            [s["study_instance_uid"] for s in exact] == [STUDY_UID],
            "the exact search does not find the study",
        )
        hold(
            [s["study"] for s in wild] == [s["study"] for s in exact],
            "the wildcard search finds something else",
        )
        self.study = exact[0]
        hold(self.study["instances"] == SLICES, f"the study has {self.study['instances']} instances")
        opening = await li.post("/api/v1/openings", {"study": self.study["study"], "purpose": "TREAT"})
        instances = opening["series"][0]["instances"]
        hold(len(instances) == SLICES, f"the viewer lists {len(instances)} slices")
        for instance in instances[::20]:
            await li.picture(f"/api/v1/openings/{opening['opening']}/frames/{instance['uid']}/1")
        marked = await li.picture(
            f"/api/v1/openings/{opening['opening']}/frames/{MIDDLE_UID}/1", wc=-500, ww=1500, format="png"
        )
        changed = await self._difference(marked.content)
        hold(changed > 0.02, f"only {changed:.1%} of the picture differs from the unmarked one")
        page = await li.page(f"/viewer/{self.study['study']}")
        hold("<html" in page and ZHANG.name.split("^")[0] in page, "the viewer's page does not open")
        return f"{len(instances[::20]) + 1} frames; the mark changes {changed:.0%} of the pixels"

    async def unrelated(self) -> str:
        chen = await self.person("a-general", "dr.chen")
        hold(await chen.get("/api/v1/studies", PatientID=ZHANG.id) == [], "a search shows a stranger's study")
        try:
            await chen.post("/api/v1/openings", {"study": self.study["study"], "purpose": "TREAT"})
        except Refused as refused:
            hold(refused.status == 403, f"refused with {refused.status}")
            hold(refused.problem.get("reasons"), "refused without a reason")
            return "; ".join(refused.problem["reasons"])
        hold(False, "opened without a relationship")
        return ""

    async def share(self) -> str:
        li, wang = await self.person("a-general", "dr.li"), await self.person("b-central", "dr.wang")
        await li.post(
            "/api/v1/consents",
            {
                "patient": self.study["patient"],
                "basis": "Signed form of 20 November",
                "recipients": ["b-central"],
            },
        )
        self.grant = await self._granted(wang, li)
        held = await wang.post(f"/api/v1/held/{self.grant}/fetch")
        hold(held["state"] == "held", f"the copy is {held['state']}: {held['words']}")
        return (
            f"{held['size_bytes'] / 1e6:.0f} MB pulled as it lies at A; signature and every digest verified"
        )

    async def view_at_b(self) -> str:
        wang = await self.person("b-central", "dr.wang")
        opening = await self._open_at_b(wang)
        hold(sum(len(series["instances"]) for series in opening["series"]) == SLICES, "the copy lacks slices")
        picture = await wang.picture(self._frame(opening))
        hold(len(picture.content) > 1000, "no picture")
        leases = await self.entries(self.a, kind="LeaseReleased")
        hold(any("dr.wang" in str(entry) for entry in leases), "A's log does not show who opened it at B")
        words = list(search(self.b.folder, ZHANG.words(), also=[self.b.output]))
        hold(not words, f"identifiers in clear at B: {words[:2]}")
        return f"A's log: {leases[0]['actor']} released keys for {leases[0]['detail']}"

    async def flip(self) -> str:
        wang, li = await self.person("b-central", "dr.wang"), await self.person("a-general", "dr.li")
        held = tampering.pack_of(self.b.folder / "held", self.study["study"])
        with tampering.changed(held, everywhere=True):
            on_disk = await self._unseen(lambda: self._shown(wang), "a changed byte on B's disk was shown")
        # What A sends is not what A signed: one bit behind TLS, where only the manifest's digests can tell.
        await self._ended(wang, li, self.grant, "A changed pack follows")
        copies = tampering.packs_of(self.a.folder / "storage", self.study["study"])
        hold(len(copies) == len(ROOTS), f"{len(copies)} copies of the study lie at A")
        with ExitStack() as spoiling:
            for copy in copies:  # of one changed copy nobody would notice anything
                spoiling.enter_context(tampering.changed(copy, everywhere=False))
            spoiled = await self._granted(wang, li)
            sent = await self._unseen(lambda: self._fetch(wang, spoiled), "a changed pack counts as held")
        hold(await self.entries(self.b, kind="IntegrityFailed"), "B's log does not say that integrity failed")
        await self._ended(wang, li, spoiled, "A spoiled wire follows")
        self.region.wire.spoil()
        self.grant = await self._granted(wang, li)
        await self._eventually(
            lambda: self._fetch(wang, self.grant), "a transfer after a spoiled one does not heal"
        )
        hold(self.region.wire.flipped == 1, "the wire flipped nothing")
        return f"on B's disk: {on_disk}; as sent: {sent}; on the wire: that connection did not count, fetched again"

    async def without_grant(self) -> str:
        reason = await intruders.ask_as_member(self.region, self.c, self.a, self.grant)
        ma = await self.person("c-clinic", "dr.ma")
        hold(await ma.get("/api/v1/held") == [], "C holds something")
        return reason

    async def expire(self) -> str:
        wang, li = await self.person("b-central", "dr.wang"), await self.person("a-general", "dr.li")
        await li.post(f"/api/v1/grants/{self.grant}/revoke", {"reason": "A short one follows"})
        await self._eventually(
            lambda: self._state(wang, self.grant, "shredded"), "the revoked copy is not shredded"
        )
        short = await self._granted(wang, li, seconds=SHORT_GRANT_SECONDS)
        await self._eventually(lambda: self._fetch(wang, short), "the copy does not come")
        opening = await self._open_at_b(wang)
        await wang.picture(self._frame(opening))
        await asyncio.sleep(SHORT_GRANT_SECONDS)
        reason = await self._refused_frame(wang, opening)
        await self._eventually(
            lambda: self._state(wang, short, "shredded"), "the expired copy is not shredded"
        )
        hold(not tampering.packs_of(self.b.folder / "held", self.study["study"]), "the pack still lies at B")
        await self._eventually(lambda: self._receipt(short), "A has no receipt")
        return reason

    async def unreachable(self) -> str:
        wang, li = await self.person("b-central", "dr.wang"), await self.person("a-general", "dr.li")
        self.grant = await self._granted(wang, li)
        await self._eventually(lambda: self._fetch(wang, self.grant), "the copy does not come")
        opening = await self._open_at_b(wang)
        await wang.picture(self._frame(opening))
        self.region.wire.break_now()
        try:
            await asyncio.sleep(LEASE_SECONDS + 1)
            reason = await self._refused_frame(wang, opening)
        finally:
            self.region.wire.cut = False
        await self._eventually(lambda: self._shown(wang), "access does not come back with the line")
        return f"after {LEASE_SECONDS:g} s: {reason}"

    async def withdraw(self) -> str:
        wang, li = await self.person("b-central", "dr.wang"), await self.person("a-general", "dr.li")
        opening = await self._open_at_b(wang)
        await wang.picture(self._frame(opening))
        consents = await li.get("/api/v1/consents", patient=self.study["patient"])
        started = asyncio.get_running_loop().time()
        await li.post(
            f"/api/v1/consents/{consents[0]['id']}/withdraw", {"basis": "The patient asked by telephone"}
        )
        await self._eventually(lambda: self._gone(wang, opening), "frames still come after the withdrawal")
        seconds = asyncio.get_running_loop().time() - started
        await self._eventually(lambda: self._state(wang, self.grant, "shredded"), "the copy is not shredded")
        return f"ended at B {seconds:.1f} s after the withdrawal"

    async def log(self) -> str:
        checked: dict[str, Any] = {}

        async def cosigned() -> None:
            checked.update(await accord("log", "verify", self.a.folder))
            hold(checked["ok"], f"faults: {checked['faults'][:2]}")
            names = {name.rsplit("/", 1)[-1] for name in checked["cosigned_by"]}
            hold(
                names >= {"b-central", "c-clinic", "hub"},
                f"the newest checkpoint is cosigned by {sorted(names)}",
            )

        await self._eventually(cosigned, "the log does not verify")
        proof = await accord("log", "prove", self.a.folder, "3")
        hold("c2sp.org/tlog-proof" in proof["proof"], "no proof file")
        return f"{checked['entries']} entries; cosigned by {', '.join(checked['cosigned_by'])}"

    async def tamper(self) -> str:
        return await tampering.alter_and_detect(self)

    async def hub(self) -> str:
        operator = await self.person("hub", "operator.hu")
        page = await operator.page("/")
        overview = await operator.get("/api/v1/hub")
        for site in self.region.hospitals:
            hold(site.name in page, f"the page does not show {site.name}")
        patients = (ZHANG, *SAMPLES)
        words = [word for patient in patients for word in patient.words()] + ["dr.li", "dr.wang", STUDY_UID]
        told = [word for word in words if word in page or word in str(overview)]
        hold(not told, f"the hub's page shows {told}")
        found = await asyncio.to_thread(
            lambda: list(search(self.region.hub.folder, words, also=[self.region.hub.output]))
        )
        hold(not found, f"in the hub's folder: {found[:2]}")
        return f"{len(page)} characters of page, {len(words)} identifiers, none on it or in the hub's folder"

    # What several steps need

    async def person(self, site_id: str, login: str) -> Person:
        """Somebody signed in; sessions are shared between steps."""
        key = f"{site_id}/{login}"
        if key not in self.people:
            self.people[key] = await self._stack.enter_async_context(self.region.person(site_id, login))
        return self.people[key]

    async def entries(self, site: Site, **query: Any) -> list[dict[str, Any]]:
        """The log of a site as its security officer reads it, newest first."""
        officer = {"a-general": "officer.wu", "b-central": "officer.gao", "c-clinic": "officer.xie"}[site.id]
        found = await (await self.person(site.id, officer)).get("/api/v1/log", **query)
        return list(found)

    def _anyone(self, site: Site) -> str:
        return {"a-general": "dr.li", "b-central": "dr.wang", "c-clinic": "dr.ma"}[site.id]

    def _peer(self, calling: str, called: str) -> Peer:
        assert self.modality is not None
        context = dicom_client_context(self.modality, [self.region.authorities["a-general"]])
        return Peer("127.0.0.1", self.a.ports["dicom"], called, calling, context, name="a-general")

    async def _granted(self, wang: Person, li: Person, *, hours: int = 24, seconds: int | None = None) -> str:
        asked = await wang.post(
            "/api/v1/requests",
            {
                "home": "a-general",
                "study_instance_uid": STUDY_UID,
                "purpose": "TREAT",
                "reason": "Second opinion on a lung nodule",
                "hours": hours,
            },
        )
        incoming: list[dict[str, Any]] = []

        async def arrived() -> None:
            found = await li.get("/api/v1/incoming")
            incoming[:] = [one for one in found if one["id"] == asked["id"]]
            hold(incoming, "the request has not arrived")

        await self._eventually(arrived, "the request does not arrive at A")
        terms: dict[str, Any] = {"hours": hours} if seconds is None else {"seconds": seconds}
        granted = await li.post(f"/api/v1/incoming/{asked['id']}/grant", {"rights": ["view"], **terms})

        async def known() -> None:
            hold(
                any(one["grant"] == granted["grant"] for one in await wang.get("/api/v1/held")),
                "unknown at B",
            )

        await self._eventually(known, "the grant does not arrive at B")
        return str(granted["grant"])

    async def _fetch(self, wang: Person, grant: str) -> None:
        held = next(one for one in await wang.get("/api/v1/held") if one["grant"] == grant)
        if held["state"] != "held":
            held = await wang.post(f"/api/v1/held/{grant}/fetch")
        hold(held["state"] == "held", f"the copy is {held['state']}")

    async def _open_at_b(self, wang: Person) -> dict[str, Any]:
        return dict(
            await wang.post(
                "/api/v1/openings", {"study": self.study["study"], "home": "a-general", "purpose": "TREAT"}
            )
        )

    def _frame(self, opening: dict[str, Any]) -> str:
        return f"/api/v1/openings/{opening['opening']}/frames/{MIDDLE_UID}/1"

    async def _refused_frame(self, wang: Person, opening: dict[str, Any]) -> str:
        try:
            await wang.picture(self._frame(opening))
        except Refused as refused:
            return str(refused)
        hold(False, "a frame came all the same")
        return ""

    async def _gone(self, wang: Person, opening: dict[str, Any]) -> None:
        await self._refused_frame(wang, opening)

    async def _unseen(self, attempt: Callable[[], Awaitable[Any]], complaint: str) -> str:
        """The words with which an attempt is refused; it must be."""
        try:
            await attempt()
        except (Refused, NotHeld) as refused:
            return str(refused)
        hold(False, complaint)
        return ""

    async def _ended(self, wang: Person, li: Person, grant: str, reason: str) -> None:
        await li.post(f"/api/v1/grants/{grant}/revoke", {"reason": reason})
        await self._eventually(
            lambda: self._state(wang, grant, "shredded"), "the revoked copy is not shredded"
        )

    async def _shown(self, wang: Person) -> None:
        await wang.picture(self._frame(await self._open_at_b(wang)))

    async def _state(self, wang: Person, grant: str, state: str) -> None:
        states = {one["grant"]: one["state"] for one in await wang.get("/api/v1/held")}
        hold(states.get(grant, "shredded") == state, f"it is {states.get(grant)}")

    async def _receipt(self, grant: str) -> None:
        entries = await self.entries(self.a, kind="ShredReceiptReceived")
        hold(any(grant in str(entry["detail"]) for entry in entries), "no receipt in A's log")

    async def _eventually(self, check: Callable[[], Awaitable[Any]], complaint: str) -> None:
        """Try until `check` holds; the other side needs a moment."""
        loop = asyncio.get_running_loop()
        end = loop.time() + WAIT_SECONDS
        while True:
            try:
                await check()
                return
            except Exception as error:
                if loop.time() > end:
                    hold(False, f"{complaint} ({error})")
            await asyncio.sleep(0.25)

    async def _difference(self, marked: bytes) -> float:
        """Which share of the pixels the watermark changed, against the same slice rendered without it."""
        raw = await asyncio.to_thread((self.scratch / "study" / f"{SLICES // 2:04d}.dcm").read_bytes)
        head = read_part10(raw)
        async with Renderer(1) as renderer:
            plain = await renderer.render(
                raw[head.dataset_offset :],
                head.transfer_syntax_uid,
                1,
                window=(-500, 1500),
                media_type="image/png",
            )
        before = np.asarray(Image.open(io.BytesIO(plain)).convert("L"), np.int16)
        after = np.asarray(Image.open(io.BytesIO(marked)).convert("L"), np.int16)[
            : before.shape[0], : before.shape[1]
        ]
        return float((np.abs(after - before) > 8).mean())

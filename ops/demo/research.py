"""Step 8: a researcher's plan, the sites' decisions, real Flower processes, and a model better than any site alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.dicom.sender import Outgoing, Peer, send
from node.imaging.part10 import read_part10
from node.tls import KeyPair, dicom_client_context
from ops.demo.person import Person, Refused
from ops.demo.processes import Site, accord
from ops.demo.region import REGISTERED_SECONDS
from ops.demo.report import hold

if TYPE_CHECKING:
    from ops.demo.story import Story

IMAGES_PER_SITE = 160
UNCONSENTED = 20
"""So many patients of each site did not consent to research; their images must not take part."""
MARGIN = 0.10
"""By so much the federated model must beat the best site alone, on the references that all sites share."""
AT_ONCE = 8
ROUNDS = 8
OFFERED_SECONDS = 60.0
RUN_SECONDS = 240.0
CHIEFS = {"a-general": "chief.zhao", "b-central": "chief.he", "c-clinic": "chief.luo"}
OFFICERS = {"a-general": "officer.wu", "b-central": "officer.gao", "c-clinic": "officer.xie"}


async def prepare(story: Story) -> str:
    """Fill the sites, propose, let A and B approve; return the plan's digest. Flower starts meanwhile."""
    await asyncio.gather(*(_fill(story, number) for number in range(len(story.region.hospitals))))
    researcher = await story.person("hub", "researcher.tan")
    plan = await researcher.post("/api/v1/plans", _plan())
    await asyncio.gather(*(_decide(story, site, plan["digest"]) for site in story.region.hospitals[:2]))
    return str(plan["digest"])


async def train(story: Story, plan: str) -> str:
    """Launch without C's approval, let C approve after the first round, and look at what came out."""
    researcher = await story.person("hub", "researcher.tan")
    final = await _run(story, researcher, plan)
    hold(final["state"] == "finished", f"the run ended {final['state']}: {final['words']}")
    first, last = _round(final, 1), _round(final, ROUNDS)
    unapproved = first["sites"]["c-clinic"]
    hold(unapproved["state"] == "refused", f"C took part unapproved: {unapproved}")
    federated, alone = final["accuracy"], final["alone"]
    hold(len(alone) == 3, f"only {sorted(alone)} trained alone")
    best = max(alone.values())
    for site in story.region.hospitals:
        _held_back(last, site.id)
    curve = ", ".join(
        "-" if one["accuracy"] is None else f"{one['accuracy']:.2f}" for one in final["rounds_table"]
    )
    with_c = [one["round"] for one in final["rounds_table"] if one["sites"]["c-clinic"]["state"] == "trained"]
    took_part = "; ".join(f"{one['round']} {_taking_part(one)}" for one in final["rounds_table"])
    hold(2 * len(with_c) > ROUNDS, f"C trained in rounds {with_c} only: {took_part}")
    hold(
        federated is not None and federated >= best + MARGIN,
        f"federated {federated} does not beat {best} by {MARGIN}; {took_part}; round by round: {curve}",
    )
    model = await researcher.get(f"/api/v1/models/{final['model']}")
    parameters = await researcher.picture(f"/api/v1/models/{final['model']}/parameters")
    plot = await researcher.picture(f"/api/v1/runs/{final['id']}/plot.svg")
    hold(parameters.content[:2] == b"PK", "the parameters are no npz")
    hold(b"<svg" in plot.content, "there is no plot")
    (story.scratch / "rounds.svg").write_bytes(plot.content)
    shown = ", ".join(f"{site} {value:.2f}" for site, value in sorted(alone.items()))
    return (
        f"{final['rounds_done']} rounds ({curve}; C in {len(with_c)}, from round {with_c[0]}); "
        f"federated {federated:.3f}, alone {shown}; "
        f"model {model['digest'][:12]}; C in round 1: {unapproved['words']}"
    )


def _taking_part(one: dict[str, Any]) -> str:
    return "".join(site[0] if said["state"] == "trained" else "-" for site, said in one["sites"].items())


def _held_back(one: dict[str, Any], site: str) -> None:
    """A site's example count, as it may leave, is that of the consenting patients' images and no more."""
    from learning.digits import digits_of
    from learning.egress import rounded_count

    number = list(CHIEFS).index(site)
    there = sum(not digit.reference for digit in digits_of(number, len(CHIEFS), limit=IMAGES_PER_SITE))
    said, wanted = one["sites"][site], rounded_count(there - UNCONSENTED)
    hold(said["state"] == "trained", f"{site} did not take part in round {one['round']}: {said['words']}")
    hold(said["examples"] == wanted, f"{site} trained on {said['examples']} images, not on {wanted}")


def _round(run: dict[str, Any], number: int) -> dict[str, Any]:
    return next(one for one in run["rounds_table"] if one["round"] == number)


async def _fill(story: Story, number: int) -> None:
    """Send a site's digits by DICOM and record its patients' consent to research."""
    from learning.digits import digits_of, part10, patient_id

    site = story.region.hospitals[number]
    folder = story.scratch / f"dx-{site.id}"
    await accord("device", "issue-certificate", site.folder, "--ae-title", "DX1", "--out", folder)
    await accord(
        "device",
        "add",
        site.folder,
        "--ae-title",
        "DX1",
        "--address",
        "127.0.0.1",
        "--certificate",
        folder / "DX1.crt",
    )
    await asyncio.sleep(REGISTERED_SECONDS)
    digits = await asyncio.to_thread(digits_of, number, len(CHIEFS), limit=IMAGES_PER_SITE)
    files = await asyncio.to_thread(lambda: [part10(digit) for digit in digits])
    # Spread over the site's classes, and never a reference: every site measures on the same images.
    own = [patient_id(digit.number) for digit in digits if not digit.reference]
    unconsented = set(own[:: len(own) // UNCONSENTED][:UNCONSENTED])
    sent = [one async for one in send(_device(site, folder), [_outgoing(raw) for raw in files])]
    refused = [one for one in sent if not one.ok]
    hold(not refused, f"{site.name} refused {len(refused)} images: {refused[:1]}")
    chief = await story.person(site.id, CHIEFS[site.id])
    patients: list[dict[str, Any]] = []
    await story._eventually(lambda: _found(chief, patients, len(files)), "the images are not found")
    turns = asyncio.Semaphore(AT_ONCE)

    async def consent(patient: str) -> None:
        async with turns:
            await chief.post(
                "/api/v1/consents",
                {
                    "patient": patient,
                    "basis": "Research consent form",
                    "purposes": ["HRESCH"],
                    "research": True,
                },
            )

    willing = [one["patient"] for one in patients if one["patient_id"] not in unconsented]
    hold(len(willing) == len(files) - UNCONSENTED, f"{len(willing)} of {len(files)} patients consent")
    await asyncio.gather(*(consent(patient) for patient in willing))


async def _found(chief: Person, patients: list[dict[str, Any]], count: int) -> None:
    patients[:] = await chief.get("/api/v1/studies", ModalitiesInStudy="DX", limit=1000)
    hold(len(patients) == count, f"{len(patients)} of {count} are indexed")


async def _decide(story: Story, site: Site, digest: str) -> None:
    officer = await story.person(site.id, OFFICERS[site.id])

    async def offered() -> None:
        plans = await officer.get("/api/v1/plans")
        hold(any(one["digest"] == digest for one in plans["plans"]), "the plan has not come")

    await story._eventually(offered, f"the plan does not reach {site.name}")
    await officer.post(f"/api/v1/plans/{digest}/approve", {"reason": "Reviewed by the board"})


async def _run(story: Story, researcher: Person, digest: str) -> dict[str, Any]:
    """Launch when two approvals are known at the hub, follow the rounds live, return the run at its end."""

    async def launched() -> dict[str, Any]:
        while True:
            try:
                return dict(await researcher.post("/api/v1/runs", {"plan": digest}))
            except Refused as refused:
                if refused.status not in (409, 503):
                    raise
            await asyncio.sleep(0.5)

    async with asyncio.timeout(OFFERED_SECONDS):
        run = await launched()
    await story.person(
        story.c.id, OFFICERS[story.c.id]
    )  # signed in before the approval is a matter of seconds
    path, events, approved = f"/api/v1/runs/{run['id']}", 0, False
    async with asyncio.timeout(RUN_SECONDS):
        async for _data in researcher.events(f"{path}/events"):
            events += 1
            if not approved and (await researcher.get(path))["rounds_done"] >= 1:
                approved = True
                await _decide(story, story.c, digest)
        while (seen := await researcher.get(path))["ended"] is None:
            await asyncio.sleep(0.5)
    hold(events > 1, "nothing could be followed live")
    return dict(seen)


def _plan() -> dict[str, Any]:
    from learning.corpus import ATTRIBUTE, BODY_PART, CODES, MODALITY, REFERENCE, SCHEME

    return {
        "title": "Digits across three hospitals",
        "purpose": "Show that hospitals with different cases learn more together than each alone.",
        "model": {"network": "small-cnn", "width": 16, "hidden": 64},
        "labels": {"attribute": ATTRIBUTE, "scheme": SCHEME, "codes": list(CODES)},
        "cohort": {"modality": MODALITY, "body_part": BODY_PART, "minimum_patients": 5},
        "image": {"rows": 8, "columns": 8},
        "holdout": {"fraction": 0.2, "code": REFERENCE},
        "training": {
            "learning_rate": 0.03,
            "momentum": 0.9,
            "batch_size": 8,
            "local_epochs": 6,
            "update_norm_max": 25.0,
            "seed": 1,
        },
        "schedule": {"rounds": ROUNDS, "minimum_sites": 2, "round_seconds": 60, "deadline_seconds": 600},
        "baseline": True,
    }


def _device(site: Site, folder: Path) -> Peer:
    pair = KeyPair((folder / "DX1.crt").read_bytes(), (folder / "DX1.key").read_bytes())
    context = dicom_client_context(pair, [(folder / "ca.crt").read_text("ascii")])
    return Peer("127.0.0.1", site.ports["dicom"], site.ae_title, "DX1", context, name=site.id)


def _outgoing(raw: bytes) -> Outgoing:
    head = read_part10(raw)
    return Outgoing(
        "digit",
        head.sop_class_uid,
        head.sop_instance_uid,
        head.transfer_syntax_uid,
        raw[head.dataset_offset :],
    )

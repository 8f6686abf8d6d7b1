"""A plan's cohort at this hospital: which images take part *now*, as examples.

For each message of a run the gateway is asked again: which studies match, whose patients consent to research at
this moment. What it lets through arrives de-identified under a key of this plan alone, and is turned into
arrays; arrays of studies that were let through before are kept in memory while the run lasts and are dropped as
soon as the gateway no longer passes their study. Nothing lies in a file. Pixels are decoded in the confined
rendering workers only.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from time import monotonic
from typing import Any

import numpy as np
import structlog
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray
from PIL import Image as Pictures

from consent.errors import AccordError, Invalid, Unavailable
from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import Role
from learning.dataset import Examples, TooFewPatients
from learning.plans import LABEL_ATTRIBUTES, Labels, TrainingPlan
from node.gateway import Gateway
from node.imaging.deidentified import DeidentifiedInstance
from node.imaging.dicom_json import json_model
from node.imaging.rendering import Renderer
from node.index import Level, Query
from node.policies import Policies

PAGE = 5000
KEPT_SECONDS = 900.0
"""Arrays of a plan that was not asked for so long are dropped."""

MAX_KEPT_BYTES = 2 * 1024**3
IN_FLIGHT = 8
"""How many instances are prepared at once; the rendering workers are the narrow place."""
DRAW_PAUSES_SECONDS = (0.2, 1.0)
"""Between attempts to have one drawn."""

logger = structlog.get_logger()

_SECRET = "learning/projects"
_CODE_VALUE, _SCHEME, _MODIFIERS = "00080100", "00080102", "00082230"


@dataclass(frozen=True)
class Example:
    """One image as the trainer gets it, its SHA-256, and whose it is (the pseudonym of the project)."""

    image: NDArray[np.float32]
    label: int
    held_out: bool
    patient: str
    digest: bytes


@dataclass
class Kept:
    """What is in memory for one plan, by study."""

    studies: dict[str, list[Example]] = field(default_factory=dict)
    used: float = 0.0

    @property
    def size_bytes(self) -> int:
        return sum(one.image.nbytes for some in self.studies.values() for one in some)


class Cohorts:
    """`site.Gatherer` over the gateway. `secret` gives the 32 bytes that this node keeps under a name; `approved` says of a
    plan's digest whether this site's signed decision approves it now (`PlanBook.approves`), and is asked for each study. The
    fewest patients are the plan's, or this node's policy's where that asks for more.
    """

    def __init__(
        self,
        *,
        node_id: str,
        gateway: Gateway,
        renderer: Renderer,
        secret: Callable[[str], Awaitable[bytes]],
        approved: Callable[[str], Awaitable[bool]],
        policies: Policies,
    ) -> None:
        self._who = Principal("training", Role.JOB, "training", node_id)
        self._gateway, self._renderer, self._secret, self._approved = gateway, renderer, secret, approved
        self._policies = policies
        self._kept: dict[str, Kept] = {}
        self._turn = asyncio.Lock()

    async def gather(self, plan: Signed[TrainingPlan]) -> Examples:
        """The examples of this moment. Raises TooFewPatients, Unavailable."""
        async with self._turn:
            self._forget_others(plan.digest)
            kept = self._kept.setdefault(plan.digest, Kept())
            allowed = await self._take_in(plan, kept)
            kept.studies = {study: some for study, some in kept.studies.items() if study in allowed}
            kept.used = monotonic()
            # By content: names of studies are drawn per node, and the plan's seed must give the same batches again.
            examples = sorted(
                (one for some in kept.studies.values() for one in some),
                key=lambda one: (one.label, one.digest),
            )
        fewest = max(plan.body.cohort.minimum_patients, self._policies.parameters.min_cohort)
        if len({one.patient for one in examples}) < fewest:
            raise TooFewPatients("Fewer patients match than the plan's minimum and the policy's.")
        return _stacked(examples)

    def forget(self) -> None:
        """Drop every array."""
        self._kept.clear()

    def _forget_others(self, digest: str) -> None:
        now = monotonic()
        self._kept = {
            name: kept
            for name, kept in self._kept.items()
            if name == digest or now - kept.used < KEPT_SECONDS
        }

    async def _take_in(self, plan: Signed[TrainingPlan], kept: Kept) -> set[str]:
        """Read what is new; return every study that may be used now."""
        allowed: set[str] = set()
        reading = ""

        def have(_patient: str, study: str) -> bool:
            nonlocal reading
            allowed.add(study)
            reading = study
            return study in kept.studies

        project_key = await self._project_key(plan.digest)
        room = asyncio.Semaphore(IN_FLIGHT)
        fresh: dict[str, list[Example]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                async for _, made in self._gateway.training_instances(
                    self._who,
                    _query(plan.body),
                    plan=plan.digest,
                    approved=self._approved,
                    project_key=project_key,
                    have=have,
                ):
                    await room.acquire()
                    group.create_task(self._prepare(plan.body, made, fresh.setdefault(reading, []), room))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        kept.studies |= {study: fresh.get(study, []) for study in allowed - set(kept.studies)}
        if kept.size_bytes > MAX_KEPT_BYTES:
            raise Invalid("The cohort is larger than this node prepares at once.", code="cohort-size")
        return allowed

    async def _prepare(
        self, plan: TrainingPlan, made: DeidentifiedInstance, into: list[Example], room: asyncio.Semaphore
    ) -> None:
        """Add the instance as an example; one without a usable label or picture is left out.

        Raises Unavailable when the renderer stays busy: prepared cohorts are kept, and one without this image would be
        kept as if it were whole.
        """
        try:
            coded = label_of(made, plan.labels)
            if coded is None:
                return
            label, modifiers = coded
            picture = await self._drawn(plan, made)
            image = _grey(picture, plan.image.rows, plan.image.columns)
            held_out = _held_out(plan, made.patient_id, modifiers)
            into.append(Example(image, label, held_out, made.patient_id, sha256(image.tobytes()).digest()))
        except Unavailable:
            raise
        except (AccordError, OSError, ValueError) as error:
            logger.warning("training.left_out", error=type(error).__name__)
        finally:
            room.release()

    async def _drawn(self, plan: TrainingPlan, made: DeidentifiedInstance) -> bytes:
        """The instance as a picture; a renderer that is busy or lost a worker is asked again a few times."""
        for pause in (*DRAW_PAUSES_SECONDS, None):
            try:
                return await self._renderer.render(
                    made.data,
                    made.transfer_syntax,
                    size=max(plan.image.rows, plan.image.columns),
                    media_type="image/png",
                )
            except Unavailable as error:
                if pause is None:
                    raise
                logger.warning("training.draw_again", error=error.message)
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _project_key(self, digest: str) -> bytes:
        """A key for this plan alone: its pseudonyms and UIDs cannot be linked to another plan's."""
        master = await self._secret(_SECRET)
        return HKDF(SHA256(), length=32, salt=None, info=f"accord/project/v1|{digest}".encode()).derive(
            master
        )


def label_of(made: DeidentifiedInstance, labels: Labels) -> tuple[int, frozenset[str]] | None:
    """Class number and modifier codes of the instance's label item, or None when it has none of this plan's."""
    model = json_model(made.data, made.transfer_syntax)
    for item in _items(model, f"{LABEL_ATTRIBUTES[labels.attribute]:08X}"):
        code = _text(item, _CODE_VALUE)
        if _text(item, _SCHEME) == labels.scheme and code in labels.codes:
            return labels.codes.index(code), frozenset(
                _text(modifier, _CODE_VALUE) for modifier in _items(item, _MODIFIERS)
            )
    return None


def _held_out(plan: TrainingPlan, patient: str, modifiers: frozenset[str]) -> bool:
    if plan.holdout.code is not None:
        return plan.holdout.code in modifiers
    drawn = int.from_bytes(sha256(b"accord/hold-out|" + patient.encode()).digest()[:8], "big")
    return drawn / 2**64 < plan.holdout.fraction


def _query(plan: TrainingPlan) -> Query:
    keys = {"Modality": plan.cohort.modality}
    if plan.cohort.body_part:
        keys["BodyPartExamined"] = plan.cohort.body_part
    return Query.of(Level.SERIES, keys, limit=PAGE)


def _grey(png: bytes, rows: int, columns: int) -> NDArray[np.float32]:
    with Pictures.open(io.BytesIO(png), formats=["PNG"]) as opened:
        grey = opened.convert("L")
        if grey.size != (columns, rows):
            grey = grey.resize((columns, rows), Pictures.Resampling.BILINEAR)
        return np.asarray(grey, np.float32) / np.float32(255)


def _stacked(examples: list[Example]) -> Examples:
    return Examples(
        np.stack([one.image for one in examples]),
        np.array([one.label for one in examples], np.int64),
        np.array([one.held_out for one in examples], np.bool_),
    )


def _items(model: Any, tag: str) -> list[Any]:
    value = model.get(tag, {}).get("Value", [])
    return [item for item in value if isinstance(item, dict)]


def _text(item: dict[str, Any], tag: str) -> str:
    value = item.get(tag, {}).get("Value", [""])
    return str(value[0]) if value else ""

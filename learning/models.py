"""Model versions: a signed record with the whole provenance, and the parameters it names, sealed at rest.

Parameters are an npz of the declared arrays (float32), never a pickle; the record names their SHA-256, the plan,
the approvals, who took part in which round, and what was measured. Format: docs/formats/model.md.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.errors import Corrupt, Invalid, NotFound
from consent.fields import Fields
from learning.networks import Vector, declared_arrays, split_vector
from learning.plans import MAX_ROUNDS, MAX_SITES, Model, TrainingPlan

NONCE_BYTES = 12
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Approval:
    """A site's approval that the run rested on: digest of the signed decision."""

    site: str
    decision: str

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "model's approval")
        return cls(fields.text("site", limit=64), fields.text("decision", limit=64))


@dataclass(frozen=True)
class RoundRecord:
    """One round: who took part, and the accuracy of the model after it where it was measured."""

    round: int
    sites: tuple[str, ...]
    accuracy: float | None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "model's round")
        accuracy = None if data.get("accuracy") is None else fields.number("accuracy", high=1.0)
        return cls(fields.integer("round", high=MAX_ROUNDS), fields.texts("sites", limit=MAX_SITES), accuracy)


@dataclass(frozen=True)
class ModelVersion:
    """A trained model and where it comes from. `baseline` is each site's accuracy training alone, where measured."""

    title: str
    plan: str
    run: str
    app: str
    model: Model
    labels: tuple[str, ...]
    parameters: str
    size_bytes: int
    approvals: tuple[Approval, ...]
    rounds: tuple[RoundRecord, ...]
    accuracy: float
    site_accuracy: Mapping[str, float]
    baseline: Mapping[str, float]
    differential_privacy: bool
    secure_aggregation: bool
    software: Mapping[str, str]

    KIND: ClassVar[str] = "model"
    VERSION: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{
                name: getattr(self, name)
                for name in ("title", "plan", "run", "app", "parameters", "size_bytes")
            },
            "model": {
                "network": self.model.network.value,
                "width": self.model.width,
                "hidden": self.model.hidden,
            },
            "labels": list(self.labels),
            "approvals": [vars(one) for one in self.approvals],
            "rounds": [vars(one) | {"sites": list(one.sites)} for one in self.rounds],
            "accuracy": self.accuracy,
            "site_accuracy": dict(self.site_accuracy),
            "baseline": dict(self.baseline),
            "differential_privacy": self.differential_privacy,
            "secure_aggregation": self.secure_aggregation,
            "software": dict(self.software),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises Invalid."""
        fields = Fields(data, "model version")
        for name in ("plan", "app", "parameters"):
            if not _DIGEST.fullmatch(fields.text(name)):
                raise Invalid(f"The model version's {name!r} is not a SHA-256 in hexadecimal.")
        return cls(
            fields.text("title", limit=200),
            fields.text("plan"),
            fields.text("run", limit=64),
            fields.text("app"),
            Model.from_json(fields.mapping("model")),
            fields.texts("labels", limit=100),
            fields.text("parameters"),
            fields.integer("size_bytes"),
            fields.objects("approvals", Approval.from_json, limit=MAX_SITES),
            fields.objects("rounds", RoundRecord.from_json, limit=MAX_ROUNDS + 1),
            fields.number("accuracy", high=1.0),
            _fractions(fields.mapping("site_accuracy")),
            _fractions(fields.mapping("baseline")),
            fields.flag("differential_privacy"),
            fields.flag("secure_aggregation"),
            {str(name): str(value)[:64] for name, value in fields.mapping("software").items()},
        )


class ModelStore:
    """Parameters on disk, each file AES-256-GCM under the hub's key and bound to its digest."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self._folder, self._cipher = folder, AESGCM(key)

    async def put(self, content: bytes) -> str:
        """Keep; return the SHA-256, hex. Durable when it returns."""
        digest = sha256(content).hexdigest()
        await asyncio.to_thread(self._write, digest, content)
        return digest

    async def get(self, digest: str) -> bytes:
        """Raises NotFound, Corrupt."""
        return await asyncio.to_thread(self._read, digest)

    async def discard(self, digest: str) -> None:
        """Remove what no longer matters, such as an old checkpoint. Quiet when it is not there."""
        await asyncio.to_thread(self._path(digest).unlink, True)

    def _write(self, digest: str, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, content, digest.encode())
        scratch = self._path(digest).with_suffix(".new")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(self._path(digest))
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self, digest: str) -> bytes:
        try:
            sealed = self._path(digest).read_bytes()
        except FileNotFoundError as error:
            raise NotFound("The parameters of this model are not here.") from error
        try:
            content = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], digest.encode())
        except (InvalidTag, ValueError) as error:
            raise Corrupt("The parameters of this model were altered.", code="model-altered") from error
        if sha256(content).hexdigest() != digest:
            raise Corrupt("The parameters of this model were altered.", code="model-altered")
        return content

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise Invalid("Not a SHA-256 in hexadecimal.")
        return self._folder / f"{digest}.model"


def to_npz(vector: Vector, plan: TrainingPlan) -> bytes:
    """The parameters as an npz of the declared arrays: the same vector gives the same bytes."""
    arrays = split_vector(vector, declared_arrays(plan.model, len(plan.labels.codes)))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _fractions(data: dict[str, Any]) -> dict[str, float]:
    fields = Fields(data, "model's accuracies")
    return {name: fields.number(name, high=1.0) for name in data}

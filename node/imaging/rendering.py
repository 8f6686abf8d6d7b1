"""Work on images as the node sees it: what one may ask of a small pool of confined worker processes.

`Renderer` hands a data set to a worker and returns an encoded picture, a de-identified or transcoded data set, or what
somebody else's JSON comes to; the node itself never decodes pixels. Leaves the processes to `workers`: one that takes
longer than the deadline or dies is replaced and the caller gets a clear refusal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from consent.errors import Invalid, Sentence
from node.imaging.confidentiality import Action, Option
from node.imaging.deidentified import DeidentifiedInstance, Refusal
from node.imaging.viewport import Viewport
from node.imaging.watermark_text import WatermarkText
from node.imaging.window import Window
from node.imaging.workers import DEADLINE_SECONDS, REST_SECONDS, Bytes, Workers

MEDIA_TYPES = ("image/webp", "image/jpeg", "image/png")
THUMBNAIL_SIDE = 160
MAX_THUMBNAIL_SIDE = 512
THUMBNAIL_QUALITY = 75


class JsonModel(NamedTuple):
    """An instance in DICOM JSON, and every BulkDataURI that it names."""

    text: bytes
    uris: tuple[str, ...]


class Renderer:
    """At most `workers` processes; use as `async with Renderer() as renderer`."""

    def __init__(
        self,
        workers: int = 2,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        self._workers = Workers(workers, deadline_seconds=deadline_seconds, rest_seconds=rest_seconds)

    async def __aenter__(self) -> Renderer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def wake(self) -> None:
        """Have every worker started, without waiting for it: somebody is about to look at pictures."""
        self._workers.wake()

    async def close(self) -> None:
        """End every worker; work that is under way ends with a refusal."""
        await self._workers.close()

    async def render(
        self,
        dataset: bytes,
        transfer_syntax: str,
        frame: int = 1,
        *,
        pixels: bytes | None = None,
        window: tuple[float, float] | Window | None = None,
        size: int | None = None,
        viewport: Viewport | None = None,
        media_type: str = "image/webp",
        quality: int | None = None,
        watermark: WatermarkText | None = None,
    ) -> bytes:
        """Return one frame (from 1) as an encoded picture, its longer side at most `size` pixels.

        With `pixels`, those are the stored bytes of this frame alone (see `frames`), and `dataset` is what lies before
        the pixels. Raises Invalid when it cannot be decoded or drawn, Unavailable when the pool is overloaded or the
        deadline passed.
        """
        if media_type not in MEDIA_TYPES:
            raise Invalid(
                Sentence("%(media_type)s is not offered.", media_type=media_type),
                mend=Sentence("Ask for one of %(choices)s.", choices=", ".join(MEDIA_TYPES)),
            )
        if quality is not None and not 1 <= quality <= 100:
            raise Invalid("The quality of a picture is a number from 1 to 100.", code="quality")
        job = {
            **_of_frame(dataset, transfer_syntax, frame, pixels),
            "kind": "render",
            "window": Window.of(*window) if window is not None else None,
            "size": size,
            "viewport": viewport,
            "media_type": media_type,
            "quality": quality,
            "watermark": _told(watermark),
        }
        _, picture = await self._workers.run(job, dataset, pixels or b"")
        return picture

    async def thumbnail(
        self,
        dataset: bytes,
        transfer_syntax: str,
        frame: int = 1,
        *,
        pixels: bytes | None = None,
        size: int = THUMBNAIL_SIDE,
        watermark: WatermarkText | None = None,
    ) -> bytes:
        """Return a small JPEG of one frame; a mark that is owed is burned in at that size, with its footer below."""
        job = {
            **_of_frame(dataset, transfer_syntax, frame, pixels),
            "kind": "render",
            "size": max(1, min(size, MAX_THUMBNAIL_SIDE)),
            "media_type": "image/jpeg",
            "quality": THUMBNAIL_QUALITY,
            "small": True,
            "watermark": _told(watermark),
        }
        _, picture = await self._workers.run(job, dataset, pixels or b"")
        return picture

    async def deidentify(
        self,
        dataset: bytes,
        transfer_syntax: str,
        *,
        project_key: bytes,
        options: frozenset[Option] = frozenset(),
    ) -> DeidentifiedInstance | Refusal:
        """De-identify one data set; see `node.imaging.deidentify`. Raises Unavailable as `render` does."""
        job = {
            "kind": "deidentify",
            "transfer_syntax": transfer_syntax,
            "project_key": project_key.hex(),
            "options": sorted(options),
        }
        head, data = await self._workers.run(job, dataset)
        if "refusal" in head:
            return Refusal(**head["refusal"])
        instance = head["instance"]
        actions = tuple((tag, Action(action)) for tag, action in instance.pop("actions"))
        return DeidentifiedInstance(**{**instance, "data": data, "actions": actions})

    async def transcode(self, dataset: bytes, transfer_syntax: str, target: str) -> bytes:
        """Bring one data set into another transfer syntax; see `node.imaging.transcode`.

        Raises Invalid when it cannot be decoded, Unavailable as `render` does.
        """
        job = {"kind": "transcode", "transfer_syntax": transfer_syntax, "target": target}
        _, data = await self._workers.run(job, dataset)
        return data

    async def transcode_frame(self, head: bytes, pixels: bytes, transfer_syntax: str, target: str) -> bytes:
        """Bring one frame, its stored bytes, into another transfer syntax; `head` is what lies before the pixels.

        Raises as `transcode` does.
        """
        job = {"kind": "transcode-frame", "transfer_syntax": transfer_syntax, "target": target}
        _, data = await self._workers.run({**job, "head_bytes": len(head)}, head, pixels)
        return data

    async def assemble(self, model: bytes, values: Mapping[str, Bytes], transfer_syntax: str) -> bytes:
        """A DICOM file from its DICOM JSON and bulk data by BulkDataURI; see `node.imaging.assemble`.

        Raises Invalid when it is no data set, Unavailable as `render` does.
        """
        pieces = (model, *values.values())
        sizes = _sizes(pieces, tuple(values))
        job = {"kind": "assemble", "transfer_syntax": transfer_syntax, "sizes_bytes": len(sizes)}
        _, data = await self._workers.run(job, sizes, *pieces)
        return data

    async def models(
        self, texts: Sequence[Bytes], *, most_models: int, most_uris: int
    ) -> tuple[JsonModel, ...]:
        """The models of instances in DICOM JSON: to parse somebody else's JSON can take seconds.

        Raises Invalid when it is none, or past the bounds; Unavailable as `render` does.
        """
        sizes = _sizes(texts)
        bounds = {"most_models": most_models, "most_uris": most_uris}
        job = {"kind": "models", "sizes_bytes": len(sizes), **bounds}
        head, data = await self._workers.run(job, sizes, *texts)
        found: list[JsonModel] = []
        at = 0
        for size, uris in head["models"]:
            found.append(JsonModel(data[at : at + size], tuple(uris)))
            at += size
        return tuple(found)


def _of_frame(dataset: bytes, transfer_syntax: str, frame: int, pixels: bytes | None) -> dict[str, Any]:
    cut = {} if pixels is None else {"head_bytes": len(dataset)}
    return {"transfer_syntax": transfer_syntax, "frame": frame, **cut}


def _sizes(pieces: Sequence[Bytes], names: Sequence[str] = ()) -> bytes:
    """What stands before the pieces of a job that has several."""
    return json.dumps([names, [len(piece) for piece in pieces]]).encode()


def _told(watermark: WatermarkText | None) -> dict[str, Any] | None:
    return {"lines": watermark.lines, "seed": watermark.seed} if watermark else None

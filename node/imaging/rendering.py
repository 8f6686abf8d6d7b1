"""Work on images as the node sees it: a small pool of confined worker processes.

`Renderer` hands a data set to a worker and returns an encoded picture, a de-identified or transcoded data set, or what
somebody else's JSON comes to. A worker that takes longer than the deadline or dies is replaced and the caller gets a
clear refusal; the node itself never decodes pixels. Callers wait their turn in order; more than MAX_WAITING of them are refused at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from consent.errors import Invalid, Sentence, Unavailable
from node.imaging.confidentiality import Action, Option
from node.imaging.deidentified import DeidentifiedInstance, Refusal
from node.imaging.passage import Passage
from node.imaging.viewport import Viewport
from node.imaging.watermark_text import WatermarkText
from node.imaging.window import Window

DEADLINE_SECONDS = 20.0
MAX_WAITING = 256
LARGE_BYTES = 4 * 1024 * 1024
"""More than this is copied for a worker in a thread."""
READY = b"R"
"""What a worker writes once its imports are done and its limits are set."""
PROGRAM = ("-m", "node.imaging.worker")
JOBS_PER_WORKER = 2_000
"""A worker is replaced after so many pictures, so that a leak in a decoder stays small."""
MEDIA_TYPES = ("image/webp", "image/jpeg", "image/png")
THUMBNAIL_SIDE = 160
MAX_THUMBNAIL_SIDE = 512
THUMBNAIL_QUALITY = 75
_PLACES = re.compile(r"(?:[^%]|%\(\w+\)s)*")

Bytes = bytes | bytearray


class JsonModel(NamedTuple):
    """An instance in DICOM JSON, and every BulkDataURI that it names."""

    text: bytes
    uris: tuple[str, ...]


class Renderer:
    """A pool of `workers` rendering processes; use as `async with Renderer() as renderer`."""

    def __init__(self, workers: int = 2, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._workers = [_Worker() for _ in range(workers)]
        self._deadline_seconds = deadline_seconds
        self._waiting = 0
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def __aenter__(self) -> Renderer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def warm(self) -> None:
        """Start every worker now, so that the first picture does not wait for the imports.

        A worker that does not start is tried again by the first picture that needs it.
        """
        await asyncio.gather(*(self._warm_one() for _ in self._workers))

    async def _warm_one(self) -> None:
        worker = await self._idle.get()
        try:
            with suppress(OSError, EOFError):
                await worker.start()
        finally:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(worker.stop() for worker in self._workers))

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
        _, picture = await self._run(job, dataset, pixels or b"")
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
        _, picture = await self._run(job, dataset, pixels or b"")
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
        head, data = await self._run(job, dataset)
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
        _, data = await self._run(job, dataset)
        return data

    async def transcode_frame(self, head: bytes, pixels: bytes, transfer_syntax: str, target: str) -> bytes:
        """Bring one frame, its stored bytes, into another transfer syntax; `head` is what lies before the pixels.

        Raises as `transcode` does.
        """
        job = {"kind": "transcode-frame", "transfer_syntax": transfer_syntax, "target": target}
        _, data = await self._run({**job, "head_bytes": len(head)}, head, pixels)
        return data

    async def assemble(self, model: bytes, values: Mapping[str, Bytes], transfer_syntax: str) -> bytes:
        """A DICOM file from its DICOM JSON and bulk data by BulkDataURI; see `node.imaging.assemble`.

        Raises Invalid when it is no data set, Unavailable as `render` does.
        """
        pieces = (model, *values.values())
        sizes = _sizes(pieces, tuple(values))
        job = {"kind": "assemble", "transfer_syntax": transfer_syntax, "sizes_bytes": len(sizes)}
        _, data = await self._run(job, sizes, *pieces)
        return data

    async def models(
        self, texts: Sequence[Bytes], *, most_models: int, most_uris: int
    ) -> tuple[JsonModel, ...]:
        """The models of instances in DICOM JSON: to parse somebody else's JSON can take seconds.

        Raises Invalid when it is none, or past the bounds; Unavailable as `render` does.
        """
        sizes = _sizes(texts)
        bounds = {"most_models": most_models, "most_uris": most_uris}
        head, data = await self._run({"kind": "models", "sizes_bytes": len(sizes), **bounds}, sizes, *texts)
        found: list[JsonModel] = []
        at = 0
        for size, uris in head["models"]:
            found.append(JsonModel(data[at : at + size], tuple(uris)))
            at += size
        return tuple(found)

    async def _run(self, job: Mapping[str, Any], *data: Bytes) -> tuple[dict[str, Any], bytes]:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("Too many pictures are waiting to be drawn.", mend="Try again in a moment.")
        self._waiting += 1
        try:
            worker = await self._idle.get()
        finally:
            self._waiting -= 1
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await worker.run(job, *data)
        except (TimeoutError, EOFError, OSError) as error:
            await worker.stop()
            raise Unavailable(
                "Work on this image took too long or too much memory and was stopped.",
                mend="Ask for a smaller picture, or download the instance.",
                code="render-stopped",
            ) from error
        except asyncio.CancelledError:
            await worker.stop()  # its answer would otherwise be taken for the next job's
            raise
        finally:
            self._idle.put_nowait(worker)


class _Worker:
    """One child process, its pipes, and the memory by which it gets its jobs' data."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._passage: Passage | None = None
        self._jobs = 0

    async def start(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None or self._jobs >= JOBS_PER_WORKER:
            await self.stop()
            self._passage = Passage.opened()
            readers = () if self._passage is None else (self._passage.reader,)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *PROGRAM,
                *map(str, readers),
                pass_fds=readers,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # decoders print what they parsed; nothing of it may leak
                env=_environment(),
                limit=4 * 1024 * 1024,
            )
            self._jobs = 0
            assert self._process.stdout is not None
            await self._process.stdout.readexactly(len(READY))
        return self._process

    async def run(self, job: Mapping[str, Any], *data: Bytes) -> tuple[dict[str, Any], bytes]:
        size_bytes = sum(map(len, data))
        head = json.dumps({**job, "size_bytes": size_bytes}).encode()
        try:
            process = await self.start()
            assert process.stdin is not None
            assert process.stdout is not None
            self._jobs += 1
            if self._passage is not None and size_bytes > LARGE_BYTES:
                await asyncio.to_thread(self._passage.put, data)
            elif self._passage is not None:
                self._passage.put(data)
            process.stdin.write(struct.pack(">I", len(head)) + head)
            if self._passage is None:
                process.stdin.writelines(data)
            await process.stdin.drain()
            (size,) = struct.unpack(">I", await process.stdout.readexactly(4))
            answer = json.loads(await process.stdout.readexactly(size))
            body = await process.stdout.readexactly(answer["size_bytes"])
        except asyncio.IncompleteReadError as error:
            raise EOFError("the worker ended") from error
        if self._passage is not None:
            self._passage.clear()
        if not answer["ok"]:
            raise Invalid(_heard(*answer["message"]), mend=_heard(*answer["mend"]), code=answer["code"])
        return answer, body

    async def stop(self) -> None:
        process, self._process = self._process, None
        passage, self._passage = self._passage, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if passage is not None:
            passage.close()


def _of_frame(dataset: bytes, transfer_syntax: str, frame: int, pixels: bytes | None) -> dict[str, Any]:
    cut = {} if pixels is None else {"head_bytes": len(dataset)}
    return {"transfer_syntax": transfer_syntax, "frame": frame, **cut}


def _sizes(pieces: Sequence[Bytes], names: Sequence[str] = ()) -> bytes:
    """What stands before the pieces of a job that has several."""
    return json.dumps([names, [len(piece) for piece in pieces]]).encode()


def _told(watermark: WatermarkText | None) -> dict[str, Any] | None:
    return {"lines": watermark.lines, "seed": watermark.seed} if watermark else None


def _heard(words: str, values: Mapping[str, object]) -> str:
    """What a worker said. One that an image took over gets no format of its own."""
    return Sentence(words, **values) if values and _PLACES.fullmatch(words) else words


def _environment() -> dict[str, str]:
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ
    }
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

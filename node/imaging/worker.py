"""The rendering worker: a child process that may neither write a file nor grow or compute without bound.

Started by `node.imaging.workers`; `JOBS` says what it does. Reads one job at a time from
standard input and answers on what was its standard output: 4-byte big-endian length, JSON head, then (for an answer)
the picture's bytes. The data set of a job lies in shared memory that it can only read, or follows the head where there
is none. The limits are set before the first byte of an image is read.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import resource
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from consent.errors import AccordError, Sentence
from node.imaging.confidentiality import Option
from node.imaging.decode import StoredFrame, decode_frame
from node.imaging.deidentified import Refusal
from node.imaging.elements import Buffer
from node.imaging.encode import Picture, encoded, fitted, scaled
from node.imaging.passage import READY
from node.imaging.presentation import present
from node.imaging.viewport import Viewport
from node.imaging.watermark import burn
from node.imaging.watermark_text import WatermarkText
from node.imaging.window import Window

MEMORY_BYTES = 3 * 1024**3
CPU_SECONDS = 15
"""What one job may compute; the system ends the worker past it."""
OPEN_FILES = 64
LARGE_BYTES = 8 * 1024 * 1024
PIPE_BYTES = 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
MIN_MARKED_WIDTH = 320

_Answer = tuple[dict[str, Any], bytes]


def render(job: dict[str, Any], data: Buffer) -> _Answer:
    """Decode, present, scale, mark and encode one frame."""
    window = Window(*job["window"]) if job.get("window") else None
    picture = present(_stored(job, data), window)
    viewport = Viewport(*job["viewport"]) if job.get("viewport") else None
    picture = fitted(picture, job.get("size"), viewport)
    if job.get("watermark"):
        text = WatermarkText(tuple(job["watermark"]["lines"]), job["watermark"]["seed"])
        picture = burn(picture if job.get("small") else _legible(picture), text)
    return {}, encoded(picture, job["media_type"], job.get("quality"))


def deidentify(job: dict[str, Any], data: Buffer) -> _Answer:
    """De-identify one data set; the head says what it is now, or why it was refused."""
    from node.imaging.deidentify import Deidentifier  # brings pydicom, which pictures do without

    options = frozenset(Option(name) for name in job["options"])
    result = Deidentifier(bytes.fromhex(job["project_key"]), options).apply(
        bytes(data), job["transfer_syntax"]
    )
    if isinstance(result, Refusal):
        return {"refusal": asdict(result)}, b""
    head = asdict(result)
    return {"instance": {**head, "data": None}}, result.data


def bring_into(job: dict[str, Any], data: Buffer) -> _Answer:
    """One data set in another transfer syntax."""
    from node.imaging.transcode import transcode  # all of pydicom, for what few peers ask

    return {}, transcode(bytes(data), job["transfer_syntax"], job["target"])


def bring_frame_into(job: dict[str, Any], data: Buffer) -> _Answer:
    """One frame, behind the head of its data set, in another transfer syntax."""
    from node.imaging.transcode import transcode_frame

    head, stored = bytes(data[: job["head_bytes"]]), bytes(data[job["head_bytes"] :])
    return {}, transcode_frame(head, stored, job["transfer_syntax"], job["target"])


def put_together(job: dict[str, Any], data: Buffer) -> _Answer:
    """A file from its JSON model and the values in other parts; what lies where stands before them."""
    from node.imaging.assemble import assemble

    uris, (model, *values) = _pieces(job, data)
    return {}, assemble(model, dict(zip(uris, values, strict=True)), job["transfer_syntax"])


def take_apart(job: dict[str, Any], data: Buffer) -> _Answer:
    """The models in DICOM JSON, one behind the other; the head says how long each is and what it names."""
    from node.imaging.assemble import models_of

    _, texts = _pieces(job, data)
    models = models_of(texts, most_models=job["most_models"], most_uris=job["most_uris"])
    return {"models": [(len(text), uris) for text, uris in models]}, b"".join(text for text, _ in models)


def _pieces(job: dict[str, Any], data: Buffer) -> tuple[list[str], list[Buffer]]:
    """The names and the pieces of a job that has several: what is called what, and how long each is, stands before them."""
    at = job["sizes_bytes"]
    names, sizes = json.loads(bytes(data[:at]))
    pieces: list[Buffer] = []
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return names, pieces


JOBS: dict[str, Callable[[dict[str, Any], Buffer], _Answer]] = {
    "render": render,
    "deidentify": deidentify,
    "transcode": bring_into,
    "transcode-frame": bring_frame_into,
    "assemble": put_together,
    "models": take_apart,
}


def _stored(job: dict[str, Any], data: Buffer) -> StoredFrame:
    """The frame of a job, out of its data set or (where the head's length is given) as it was cut from it."""
    head_bytes = job.get("head_bytes")
    if head_bytes is None:
        return decode_frame(data, job["transfer_syntax"], job["frame"])
    view = memoryview(data)
    return decode_frame(view[:head_bytes], job["transfer_syntax"], job["frame"], view[head_bytes:])


def _legible(picture: Picture) -> Picture:
    """Enlarge a tiny picture, so that the mark's letters fit on it."""
    width = picture.shape[1]
    return picture if width >= MIN_MARKED_WIDTH else scaled(picture, -(-MIN_MARKED_WIDTH // width))


def _answers() -> BinaryIO:
    """Where answers go. Standard output leads nowhere from here on: a decoder that prints must not forge one."""
    sink = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return sink


def _widen_pipes() -> None:
    """Let a whole picture lie in the pipe: with 64 KiB the node and its worker would take turns."""
    for stream in (sys.stdin, sys.stdout):
        # Linux alone; less where the user's share of pipe memory is used up.
        with suppress(OSError, AttributeError):
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def _allow_cpu() -> None:
    """Let the next job compute for CPU_SECONDS more than what was used so far."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(time.process_time()) + CPU_SECONDS
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _data_of(job: dict[str, Any], source: BinaryIO, passage: int | None) -> Buffer:
    size = job["size_bytes"]
    if passage is None or not size:
        return _read_exactly(source, size)
    return memoryview(mmap.mmap(passage, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))


def _done(job: dict[str, Any], data: Buffer) -> _Answer:
    try:
        head, body = JOBS[job["kind"]](job, data)
        return {"ok": True, **head}, body
    except AccordError as error:
        return _refusal(error.message, error.code, error.mend)
    except MemoryError:
        return _refusal(Sentence("This picture needs more memory than a view may use."), "too-large")
    except Exception as error:  # one bad image must not end the worker
        return _refusal(
            Sentence("The picture cannot be drawn (%(fault)s).", fault=type(error).__name__), "undecodable"
        )


def _refusal(message: str, code: str, mend: str = "") -> _Answer:
    return {"ok": False, "message": _said(message), "mend": _said(mend), "code": code}, b""


def _said(text: str) -> tuple[str, dict[str, object]]:
    return (text.words, text.values) if isinstance(text, Sentence) else (text, {})


def _give_back_memory() -> None:
    """After a large image, return to the system what the allocator keeps."""
    with suppress(OSError, AttributeError):  # the C library of Linux alone
        ctypes.CDLL(None).malloc_trim(0)


def _serve(source: BinaryIO, sink: BinaryIO, passage: int | None) -> None:
    while True:
        (head_size,) = struct.unpack(">I", _read_exactly(source, 4))
        job = json.loads(_read_exactly(source, min(head_size, MAX_HEAD_BYTES)))
        _allow_cpu()
        head, body = _done(job, _data_of(job, source, passage))
        answer = json.dumps({**head, "size_bytes": len(body)}).encode()
        sink.write(struct.pack(">I", len(answer)) + answer + body)
        sink.flush()
        if job["size_bytes"] > LARGE_BYTES:
            _give_back_memory()


def main() -> None:
    """Serve until standard input closes. The argument, where there is one, is the descriptor of the passage."""
    Image.MAX_IMAGE_PIXELS = 256 * 1024 * 1024
    Image.preinit()  # now, and not when somebody waits for the first picture
    np.seterr(all="ignore")
    passage = int(sys.argv[1]) if len(sys.argv) > 1 else None
    _widen_pipes()
    sink = _answers()
    _confine()
    sink.write(READY)
    sink.flush()
    try:
        _serve(sys.stdin.buffer, sink, passage)
    except EOFError:
        return


if __name__ == "__main__":
    main()

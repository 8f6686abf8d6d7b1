"""The rendering worker: a child process that may neither write a file nor grow without bound.

Started by `node.imaging.rendering`. Renders frames and de-identifies data sets. Reads one job at a time from
standard input and answers on what was its standard output: 4-byte big-endian length, JSON head, then (for a job) the data set's bytes or (for an answer) the
picture's. The limits are set after the imports, before the first byte of an image is read.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import resource
import struct
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from consent.errors import AccordError
from node.imaging.confidentiality import Option
from node.imaging.decode import decode_frame
from node.imaging.deidentified import Refusal
from node.imaging.deidentify import Deidentifier
from node.imaging.presentation import present
from node.imaging.rendering import READY
from node.imaging.watermark import burn
from node.imaging.watermark_text import WatermarkText

MEMORY_BYTES = 3 * 1024**3
PIPE_BYTES = 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
MAX_OUTPUT_SIDE = 4096
MIN_MARKED_WIDTH = 320
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 90, "subsampling": 0},
    "PNG": {"compress_level": 2},
    "WEBP": {"quality": 88, "method": 0},
}


def render(job: dict[str, Any], data: bytes) -> bytes:
    """Decode, present, scale, mark and encode one frame."""
    window = tuple(job["window"]) if job.get("window") else None
    picture = present(decode_frame(data, job["transfer_syntax"], job["frame"]), window)
    picture = _scaled(picture, job.get("size"))
    if job.get("watermark"):
        picture = burn(
            _legible(picture), WatermarkText(tuple(job["watermark"]["lines"]), job["watermark"]["seed"])
        )
    form = FORMATS[job["media_type"]]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **OPTIONS[form])
    return buffer.getvalue()


def deidentify(job: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """De-identify one data set; the head says what it is now, or why it was refused."""
    options = frozenset(Option(name) for name in job["options"])
    result = Deidentifier(bytes.fromhex(job["project_key"]), options).apply(data, job["transfer_syntax"])
    if isinstance(result, Refusal):
        return {"refusal": asdict(result)}, b""
    head = asdict(result)
    return {"instance": {**head, "data": None}}, result.data


def _scaled(picture: np.ndarray[Any, np.dtype[np.uint8]], size: int | None) -> np.ndarray[Any, Any]:
    limit = min(size or MAX_OUTPUT_SIDE, MAX_OUTPUT_SIDE)
    height, width = picture.shape[:2]
    if max(height, width) <= limit:
        return picture
    ratio = limit / max(height, width)
    target = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(Image.fromarray(picture).resize(target, Image.Resampling.BILINEAR), np.uint8)


def _legible(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Enlarge a tiny picture, so that the mark's letters fit on it."""
    height, width = picture.shape[:2]
    if width >= MIN_MARKED_WIDTH:
        return picture
    factor = -(-MIN_MARKED_WIDTH // width)
    enlarged = Image.fromarray(picture).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.uint8)


def _answers() -> BinaryIO:
    """Where answers go. Standard output leads nowhere from here on: a decoder that prints must not forge one."""
    sink = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return sink


def _widen_pipes() -> None:
    """Let a whole slice lie in the pipe: with 64 KiB the node and its worker would take turns eight times a slice."""
    for stream in (sys.stdin, sys.stdout):
        with suppress(
            OSError, AttributeError
        ):  # Linux alone; less where the user's share of pipe memory is used up
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    while True:
        (head_size,) = struct.unpack(">I", _read_exactly(source, 4))
        job = json.loads(_read_exactly(source, min(head_size, MAX_HEAD_BYTES)))
        data = _read_exactly(source, job["size_bytes"])
        body = b""
        try:
            head: dict[str, Any] = {"ok": True}
            if job["kind"] == "render":
                body = render(job, data)
            else:
                result, body = deidentify(job, data)
                head |= result
        except AccordError as error:
            head = {"ok": False, "message": error.message, "mend": error.mend, "code": error.code}
        except MemoryError:
            head = {
                "ok": False,
                "message": "This picture needs more memory than a view may use.",
                "code": "too-large",
            }
        except Exception as error:  # one bad image must not end the worker
            head = {
                "ok": False,
                "message": f"The picture cannot be drawn ({type(error).__name__}).",
                "code": "undecodable",
            }
        answer = json.dumps({**head, "size_bytes": len(body)}).encode()
        sink.write(struct.pack(">I", len(answer)) + answer + body)
        sink.flush()


def main() -> None:
    """Serve until standard input closes."""
    Image.MAX_IMAGE_PIXELS = 256 * 1024 * 1024
    sink = _answers()
    _confine()
    sink.write(READY)
    sink.flush()
    try:
        _serve(sys.stdin.buffer, sink)
    except EOFError:
        return


if __name__ == "__main__":
    main()

"""WADO-RS (PS3.18 §10.4): data sets, metadata, frames, pictures and bulk data of studies, by URL.

Bytes of images are a download and asked for as such; metadata and pictures are a view. What is sent has a known
length, and a stream that cannot be completed is cut, never closed as if it were whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from aiohttp import web

from consent.errors import Invalid, NotFound
from consent.vocabulary import Action
from node.descriptions import at_address
from node.dicom import accept
from node.dicom.body import Body
from node.dicom.multipart import MultipartWriter
from node.imaging.part10 import part10_head
from node.index import InstanceRow
from node.openings import Opening
from node.web.keys import GATEWAY, PSEUDONYMS
from node.web.kit import address_of, current_person

MAX_FRAMES_ASKED = 1000
MAX_VIEWPORT = 4096
THUMBNAIL_PIXELS = 128
MAX_WINDOW = 1e7


async def retrieve(request: web.Request) -> web.StreamResponse:
    """GET a study, a series or an instance as DICOM files."""
    where = request.match_info
    opening = await visit(request, Action.DOWNLOAD)
    gateway = request.app[GATEWAY]
    rows = await gateway.rows(opening, where.get("series", ""), where.get("instance", ""))
    single = "instance" in where
    syntaxes = {row.transfer_syntax_uid for row in rows}
    form = accept.data_sets(request.headers.get("Accept"), syntaxes, single=single)
    heads = [part10_head(row.sop_class_uid, row.sop_instance_uid, row.transfer_syntax_uid) for row in rows]
    sizes = [len(head) + row.size_bytes for head, row in zip(heads, rows, strict=True)]
    writer = MultipartWriter(accept.DICOM) if form.multipart else None
    before = [
        writer.head(_part_type(row), size, first=number == 0) if writer else b""
        for number, (row, size) in enumerate(zip(rows, sizes, strict=True))
    ]
    end = writer.end() if writer else b""
    kind = writer.content_type if writer else _part_type(rows[0])
    stream = gateway.stream(opening, rows)
    # The first instance is read and proved before the status goes out: most failures are still a clear refusal.
    first_row, first = await anext(stream)
    assert first_row is rows[0]
    length = sum(sizes) + sum(map(len, before)) + len(end)
    async with aclosing(stream), Body(request, length, {"Content-Type": kind}) as body:
        await body.write(before[0] + heads[0])
        async for piece in first:
            await body.write(piece)
        number = 0
        async for _, pieces in stream:
            number += 1
            await body.write(before[number] + heads[number])
            async for piece in pieces:
                await body.write(piece)
        await body.write(end)
        return await body.end()


async def metadata(request: web.Request) -> web.Response:
    """GET …/metadata: DICOM JSON of a study, a series or an instance."""
    kind = accept.metadata(request.headers.get("Accept"))
    where = request.match_info
    opening = await visit(request, Action.VIEW)
    payload = await request.app[GATEWAY].metadata(opening, where.get("series", ""), where.get("instance", ""))
    body = at_address(payload, f"{request.url.origin()}/dicom-web/studies/")
    return web.Response(body=body, content_type=kind, headers={"Cache-Control": "no-store"})


async def frames(request: web.Request) -> web.StreamResponse:
    """GET …/frames/{list}: frames as they are stored."""
    numbers = frame_list(request.match_info["frames"])
    opening = await visit(request, Action.DOWNLOAD)
    (row,) = await _one(request, opening)
    form = accept.frames(request.headers.get("Accept"), row.transfer_syntax_uid, single=len(numbers) == 1)
    found = await request.app[GATEWAY].stored_frames(opening, row.sop_instance_uid, numbers)
    kind = f"{form.media_type}; transfer-syntax={row.transfer_syntax_uid}"
    return await _send(request, found, kind, form)


async def bulk_data(request: web.Request) -> web.StreamResponse:
    """GET …/bulkdata/{tag}: the bytes of one element, the pixels of an encapsulated instance frame by frame."""
    opening = await visit(request, Action.DOWNLOAD)
    (row,) = await _one(request, opening)
    path = request.match_info["path"]
    form = accept.frames(request.headers.get("Accept"), row.transfer_syntax_uid, single=True)
    if path == "7FE00010" and row.pixel is not None and row.pixel["encapsulated"]:
        every = range(1, row.frames + 1)
        found = await request.app[GATEWAY].stored_frames(opening, row.sop_instance_uid, every)
        form = accept.Form(True, form.media_type)
    else:
        found = [await request.app[GATEWAY].bulk(opening, row.sop_instance_uid, path)]
    kind = f"{form.media_type}; transfer-syntax={row.transfer_syntax_uid}"
    return await _send(request, found, kind, form)


async def rendered(request: web.Request) -> web.Response:
    """GET …/rendered: one frame as a picture, the watermark burned in."""
    numbers = frame_list(request.match_info.get("frames", "1"))
    if len(numbers) != 1:
        raise Invalid("One frame is drawn at a time.", mend="Ask for a single frame.")
    return await _picture(request, numbers[0], _viewport(request))


async def thumbnail(request: web.Request) -> web.Response:
    """GET …/thumbnail: the first frame, small."""
    return await _picture(request, 1, _viewport(request) or THUMBNAIL_PIXELS)


async def visit(request: web.Request, action: Action) -> Opening:
    """The opening under which this request is answered: one for all requests of a person to a study."""
    study = request.app[PSEUDONYMS].study(request.match_info["study"])
    return await request.app[GATEWAY].visit(
        current_person(request), study, action=action, address=address_of(request)
    )


def frame_list(text: str) -> list[int]:
    """The numbers of a frame list such as `1,2,5`. Raises Invalid."""
    numbers = [int(part) for part in text.split(",") if part.isdecimal() and len(part) < 8]
    if not 0 < len(numbers) <= MAX_FRAMES_ASKED or len(numbers) != text.count(",") + 1 or min(numbers) < 1:
        raise Invalid(f"A frame list is 1 to {MAX_FRAMES_ASKED} numbers from 1, separated by commas.")
    return numbers


async def _picture(request: web.Request, frame: int, size: int | None) -> web.Response:
    kind = accept.picture(request.query.get("accept") or request.headers.get("Accept"))
    window = _window(request)
    opening = await visit(request, Action.VIEW)
    where = request.match_info
    gateway = request.app[GATEWAY]
    row = (await gateway.rows(opening, where.get("series", ""), where.get("instance", "")))[0]
    picture = await gateway.frame(opening, row.sop_instance_uid, frame, window=window, size=size, fmt=kind)
    return web.Response(
        body=picture.content, content_type=picture.media_type, headers={"Cache-Control": "no-store"}
    )


def _window(request: web.Request) -> tuple[float, float] | None:
    """`window=centre,width[,function]` (PS3.18 §8.3.5.1.4)."""
    text = request.query.get("window")
    if text is None:
        return None
    parts = text.split(",")
    try:
        centre, width = float(parts[0]), float(parts[1])
    except (ValueError, IndexError) as error:
        raise Invalid("window is `centre,width`, two numbers.") from error
    if not (abs(centre) <= MAX_WINDOW and 0 < width <= MAX_WINDOW):
        raise Invalid("window needs a centre and a width above 0.")
    return centre, width


def _viewport(request: web.Request) -> int | None:
    """`viewport=width,height` (PS3.18 §8.3.5.1.3): the picture fits into it."""
    text = request.query.get("viewport")
    if text is None:
        return None
    parts = text.split(",")[:2]
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 8 for part in parts):
        raise Invalid("viewport is `width,height`, two whole numbers.")
    sides = [int(part) for part in parts]
    if not all(1 <= side <= MAX_VIEWPORT for side in sides):
        raise Invalid(f"viewport has sides from 1 to {MAX_VIEWPORT}.")
    return min(sides)


async def _one(request: web.Request, opening: Opening) -> tuple[InstanceRow]:
    where = request.match_info
    rows = await request.app[GATEWAY].rows(opening, where["series"], where["instance"])
    if len(rows) != 1:
        raise NotFound("There is no such instance in this study.")
    return (rows[0],)


async def _send(
    request: web.Request, bodies: Sequence[bytes], kind: str, form: accept.Form
) -> web.StreamResponse:
    """Send bodies that are in memory, as parts or as the one there is."""
    writer = MultipartWriter(form.media_type) if form.multipart else None
    heads = [
        writer.head(kind, len(body), first=number == 0) if writer else b""
        for number, body in enumerate(bodies)
    ]
    end = writer.end() if writer else b""
    length = sum(map(len, bodies)) + sum(map(len, heads)) + len(end)
    async with Body(request, length, {"Content-Type": writer.content_type if writer else kind}) as answer:
        for head, body in zip(heads, bodies, strict=True):
            await answer.write(head)
            await answer.write(body)
        await answer.write(end)
        return await answer.end()


def _part_type(row: InstanceRow) -> str:
    return f"{accept.DICOM}; transfer-syntax={row.transfer_syntax_uid}"

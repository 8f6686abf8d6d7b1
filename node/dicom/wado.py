"""WADO-RS (PS3.18 §10.4): data sets, metadata, frames and bulk data of studies, by URL; pictures are in `renderings`.

Bytes of images are a download and asked for as such; metadata is a view. What is handed over as it is stored has a known
length, and a stream that cannot be completed is cut, never closed as if it were whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from aiohttp import web

from consent.errors import Invalid, NotFound
from consent.vocabulary import Action
from node.dicom import accept
from node.dicom.body import FRESH, Body, Piece, range_headers, send_one, send_parts, span_asked, stream_parts
from node.dicom.multipart import MultipartWriter
from node.imaging.dicom_json import bulk_uris
from node.imaging.model_lines import at_address
from node.imaging.part10 import part10_head
from node.index import InstanceRow
from node.openings import Opening
from node.web.keys import GATEWAY, PSEUDONYMS
from node.web.kit import address_of, current_person
from node.web.openapi import Parameter, described

MAX_FRAMES_ASKED = 1000
FRAMES_AT_ONCE = 8
"""Frames that are in memory together."""
READ_BYTES = 4 * 1024 * 1024
HEADS_AT_ONCE = 500
PIXEL_DATA = "7FE00010"
ACCEPT = Parameter("accept", "What is accepted, instead of the header.")
_PARTS_OF_DICOM = f'multipart/related; type="{accept.DICOM}"'
_PARTS_OF_OCTETS = f'multipart/related; type="{accept.OCTETS}"'


@described(query=(ACCEPT,), answers={200: (_PARTS_OF_DICOM, accept.DICOM), 206: (accept.DICOM,)})
async def retrieve(request: web.Request) -> web.StreamResponse:
    """Retrieve a study, a series or an instance as DICOM files."""
    where = request.match_info
    opening = await visit(request, Action.DOWNLOAD)
    rows = await request.app[GATEWAY].rows(opening, where.get("series", ""), where.get("instance", ""))
    stored = {row.transfer_syntax_uid for row in rows}
    form = accept.data_sets(accept_of(request), stored, single="instance" in where)
    if form.transfer_syntax and stored != {form.transfer_syntax}:
        files = _transcoded(request, opening, rows, form)
        return await (stream_parts(request, accept.DICOM, files) if form.multipart else _only(request, files))
    if not form.multipart:
        return await _file(request, opening, rows[0])
    return await _files(request, opening, rows)


@described(query=(ACCEPT,), answers={200: (accept.JSON, "application/json")})
async def metadata(request: web.Request) -> web.Response:
    """Describe a study, a series or an instance in DICOM JSON, without its bulk data."""
    kind = accept.metadata(accept_of(request))
    where = request.match_info
    opening = await visit(request, Action.VIEW)
    payload = await request.app[GATEWAY].metadata(opening, where.get("series", ""), where.get("instance", ""))
    return web.Response(body=at_address(payload, studies_url(request)), content_type=kind, headers=FRESH)


@described(
    query=(ACCEPT,),
    answers={200: (_PARTS_OF_OCTETS, accept.OCTETS, *accept.SYNTAXES_OF), 206: (accept.OCTETS,)},
)
async def frames(request: web.Request) -> web.StreamResponse:
    """Retrieve frames of an instance, numbered from 1."""
    numbers = frame_list(request.match_info["frames"])
    opening = await visit(request, Action.DOWNLOAD)
    row = await one_row(request, opening)
    form = accept.frames(accept_of(request), row.transfer_syntax_uid, single=len(numbers) == 1)
    pieces = _frames(request, opening, row, numbers, form)
    if len(numbers) > FRAMES_AT_ONCE:
        return await stream_parts(request, form.media_type, pieces)
    found = [piece async for piece in pieces]
    if form.multipart:
        return await send_parts(request, form.media_type, found)
    return await send_one(request, found[0])


@described(query=(ACCEPT,), answers={200: (_PARTS_OF_OCTETS, accept.OCTETS), 206: (accept.OCTETS,)})
async def bulk_data(request: web.Request) -> web.StreamResponse:
    """Retrieve the value of one element, by the BulkDataURI that the metadata has for it."""
    opening = await visit(request, Action.DOWNLOAD)
    row = await one_row(request, opening)
    path = request.match_info["path"]
    if path == PIXEL_DATA and row.pixel is not None and row.pixel["encapsulated"]:
        form = accept.frames(accept_of(request), row.transfer_syntax_uid, single=row.frames == 1)
        pieces = _frames(request, opening, row, range(1, row.frames + 1), form)
        if form.multipart:
            return await stream_parts(request, form.media_type, pieces)
        return await _only(request, pieces)
    form = accept.bulk_data(accept_of(request))
    value = await request.app[GATEWAY].bulk(opening, row.sop_instance_uid, path)
    piece = Piece(_octets(path, row), value, instance_url(request, opening, row) + f"/bulkdata/{path}")
    if form.multipart:
        return await send_parts(request, accept.OCTETS, [piece])
    return await send_one(request, piece)


@described(query=(ACCEPT,), answers={200: (_PARTS_OF_OCTETS,)})
async def every_bulk_data(request: web.Request) -> web.StreamResponse:
    """Retrieve the bulk data of a study, a series or an instance, or of that only its pixels, part by part."""
    form = accept.bulk_data(accept_of(request))
    if not form.multipart:
        raise Invalid(
            "Bulk data of several elements is sent in parts.",
            mend=f'Accept multipart/related; type="{accept.OCTETS}".',
            code="not-acceptable",
        )
    only_pixels = request.path.endswith("/pixeldata")
    opening = await visit(request, Action.DOWNLOAD)
    viewing = await visit(request, Action.VIEW)
    where = request.match_info
    rows = await request.app[GATEWAY].rows(opening, where.get("series", ""), where.get("instance", ""))
    pieces = _bulk_pieces(request, opening, viewing, rows, only_pixels)
    return await stream_parts(request, accept.OCTETS, pieces)


async def visit(request: web.Request, action: Action) -> Opening:
    """The opening under which this request is answered: one for all requests of a person to a study."""
    study = request.app[PSEUDONYMS].study(request.match_info["study"])
    return await request.app[GATEWAY].visit(
        current_person(request), study, action=action, address=address_of(request)
    )


def accept_of(request: web.Request) -> str | None:
    """What the client accepts: by the query parameter (PS3.18 §8.3.3.1), or by the header."""
    return request.query.get("accept") or request.headers.get("Accept")


def frame_list(text: str) -> list[int]:
    """The numbers of a frame list such as `1,2,5`. Raises Invalid."""
    numbers = [int(part) for part in text.split(",") if part.isdecimal() and len(part) < 8]
    if not 0 < len(numbers) <= MAX_FRAMES_ASKED or len(numbers) != text.count(",") + 1 or min(numbers) < 1:
        raise Invalid(f"A frame list is 1 to {MAX_FRAMES_ASKED} numbers from 1, separated by commas.")
    return numbers


async def one_row(request: web.Request, opening: Opening) -> InstanceRow:
    """The instance that the address names. Raises NotFound."""
    where = request.match_info
    rows = await request.app[GATEWAY].rows(opening, where["series"], where["instance"])
    if len(rows) != 1:
        raise NotFound("There is no such instance in this study.")
    return rows[0]


def studies_url(request: web.Request) -> str:
    """The address below which the studies are, with a slash at its end."""
    return f"{request.url.origin()}/dicom-web/studies/"


def instance_url(request: web.Request, opening: Opening, row: InstanceRow) -> str:
    """The address of an instance, by the names that the request gives its study (and its series, when it does)."""
    where = request.match_info
    series = where.get("series")
    middle = f"/series/{series}" if series else ""
    return f"{studies_url(request)}{where['study']}{middle}/instances/{row.sop_instance_uid}"


async def _files(request: web.Request, opening: Opening, rows: Sequence[InstanceRow]) -> web.StreamResponse:
    """Data sets as they are stored, in parts whose lengths are known."""
    writer = MultipartWriter(accept.DICOM)
    before: list[bytes] = []
    for row in rows:
        head = part10_head(row.sop_class_uid, row.sop_instance_uid, row.transfer_syntax_uid)
        size = len(head) + row.size_bytes
        before.append(writer.head(_part_type(row), size, first=not before) + head)
        if len(before) % HEADS_AT_ONCE == 0:
            await asyncio.sleep(0)  # a study may have fifty thousand: others come in between
    length = sum(map(len, before)) + sum(row.size_bytes for row in rows) + len(writer.end())
    if request.method == "HEAD":
        return await _nothing(request, length, {"Content-Type": writer.content_type})
    stream = request.app[GATEWAY].stream(opening, rows)
    async with aclosing(stream):
        # The first instance is read and proved before the status goes out: most failures are still a clear refusal.
        _, pieces = await anext(stream)
        async with Body(request, length, {"Content-Type": writer.content_type}) as body:
            await body.write(before[0])
            async for piece in pieces:
                await body.write(piece)
            number = 0
            async for _, pieces in stream:
                number += 1
                await body.write(before[number])
                async for piece in pieces:
                    await body.write(piece)
            await body.write(writer.end())
            return await body.end()


async def _file(request: web.Request, opening: Opening, row: InstanceRow) -> web.StreamResponse:
    """One data set as it is stored, or a range of it."""
    gateway = request.app[GATEWAY]
    head = part10_head(row.sop_class_uid, row.sop_instance_uid, row.transfer_syntax_uid)
    total = len(head) + row.size_bytes
    span = span_asked(request, total)
    headers = {"Content-Type": _part_type(row), **range_headers(span)}
    if request.method == "HEAD":
        return await _nothing(request, total, headers)
    if span is None:
        stream = gateway.stream(opening, [row])
        async with aclosing(stream):
            _, pieces = await anext(stream)
            async with Body(request, total, headers) as body:
                await body.write(head)
                async for piece in pieces:
                    await body.write(piece)
                await anext(stream, None)
                return await body.end()
    offset, end = span.offset - len(head), span.offset + span.length - len(head)
    first = await gateway.part(
        opening, row.sop_instance_uid, max(0, offset), max(0, min(READ_BYTES, end - max(0, offset)))
    )
    async with Body(request, span.length, headers, status=206) as body:
        if offset < 0:
            await body.write(head[span.offset : span.offset + span.length])
        await body.write(first)
        for start in range(max(0, offset) + len(first), end, READ_BYTES):
            await body.write(
                await gateway.part(opening, row.sop_instance_uid, start, min(READ_BYTES, end - start))
            )
        return await body.end()


async def _nothing(request: web.Request, length: int, headers: Mapping[str, str]) -> web.StreamResponse:
    """The answer to HEAD: how long the answer to GET would be, for which nothing has to be read."""
    async with Body(request, length, headers) as body:
        return await body.end()


async def _transcoded(
    request: web.Request, opening: Opening, rows: Sequence[InstanceRow], form: accept.Form
) -> AsyncGenerator[Piece, None]:
    """Files in another transfer syntax. One that cannot be brought into it is sent as stored, unless it was insisted on."""
    gateway = request.app[GATEWAY]
    for row in rows:
        try:
            found = await gateway.transcoded(opening, row.sop_instance_uid, form.transfer_syntax)
        except Invalid as error:
            # Reports, curves and the like have nothing to compress; a default is not an insistence.
            if form.insisted and error.code != "no-pixels":
                raise
            found = await gateway.instance(opening, row.sop_instance_uid)
        head = part10_head(row.sop_class_uid, row.sop_instance_uid, found.transfer_syntax_uid)
        yield Piece(f"{accept.DICOM}; transfer-syntax={found.transfer_syntax_uid}", head + found.data)


async def _frames(
    request: web.Request, opening: Opening, row: InstanceRow, numbers: Sequence[int], form: accept.Form
) -> AsyncGenerator[Piece, None]:
    """Frames in the form that was negotiated, some of them in memory at a time."""
    gateway = request.app[GATEWAY]
    syntax = form.transfer_syntax or row.transfer_syntax_uid
    kind = f"{form.media_type}; transfer-syntax={syntax}"
    address = f"{instance_url(request, opening, row)}/frames/"
    for start in range(0, len(numbers), FRAMES_AT_ONCE):
        some = numbers[start : start + FRAMES_AT_ONCE]
        if form.transfer_syntax:
            found = await gateway.transcoded_frames(opening, row.sop_instance_uid, some, syntax)
        else:
            found = await gateway.stored_frames(opening, row.sop_instance_uid, some)
        for number, frame in zip(some, found, strict=True):
            yield Piece(kind, frame, f"{address}{number}")


async def _bulk_pieces(
    request: web.Request,
    opening: Opening,
    viewing: Opening,
    rows: Sequence[InstanceRow],
    only_pixels: bool,
) -> AsyncGenerator[Piece, None]:
    gateway = request.app[GATEWAY]
    for row in rows:
        (model,) = json.loads(await gateway.metadata(viewing, sop_uid=row.sop_instance_uid))
        for uri in bulk_uris(model):
            path = uri.partition("/bulkdata/")[2]
            if path == PIXEL_DATA and row.pixel is not None and row.pixel["encapsulated"]:
                form = accept.Form(True, accept.OCTETS)
                async for piece in _frames(request, opening, row, range(1, row.frames + 1), form):
                    yield piece
            elif path == PIXEL_DATA or not only_pixels:
                value = await gateway.bulk(opening, row.sop_instance_uid, path)
                yield Piece(_octets(path, row), value, studies_url(request) + uri)


async def _only(request: web.Request, pieces: AsyncGenerator[Piece, None]) -> web.StreamResponse:
    async with aclosing(pieces):
        return await send_one(request, await anext(pieces))


def _octets(path: str, row: InstanceRow) -> str:
    return (
        f"{accept.OCTETS}; transfer-syntax={row.transfer_syntax_uid}" if path == PIXEL_DATA else accept.OCTETS
    )


def _part_type(row: InstanceRow) -> str:
    return f"{accept.DICOM}; transfer-syntax={row.transfer_syntax_uid}"

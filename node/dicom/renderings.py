"""Rendered resources and thumbnails (PS3.18 §10.4.1.1.3 and -4): pictures of what a study holds, the watermark burned in.

A view, not a download. One picture stands for whatever was asked for, the middle one of many; who accepts parts gets a
picture of every frame, up to MAX_PICTURES.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from aiohttp import web

from consent.errors import Invalid, NotFound
from consent.vocabulary import Action
from node.dicom import accept
from node.dicom.body import FRESH, Piece, stream_parts
from node.dicom.wado import ACCEPT, accept_of, frame_list, instance_url, visit
from node.imaging.viewport import Viewport
from node.imaging.window import Window
from node.index import InstanceRow
from node.openings import Opening
from node.web.keys import GATEWAY
from node.web.openapi import Parameter, described

MAX_PICTURES = 500
MAX_VIEWPORT = 4096
MAX_NUMBER_CHARACTERS = 24
THUMBNAIL_PIXELS = 160
_DRAWING = (
    ACCEPT,
    Parameter("viewport", "`width,height`, or with a region `width,height,left,top,width,height`."),
    Parameter("window", "`centre,width,function`: linear, linear-exact or sigmoid."),
    Parameter("quality", "1 to 100, of a lossy picture.", "integer"),
)

Target = tuple[InstanceRow, int]
"""An instance and one of its frames."""
Targets = Sequence[tuple[InstanceRow, Sequence[int]]]
"""Instances and which of their frames: never listed one by one, for an instance may claim to have any number."""


@described(
    query=_DRAWING, answers={200: (*accept.PICTURES, f'multipart/related; type="{accept.PICTURES[0]}"')}
)
async def rendered(request: web.Request) -> web.StreamResponse:
    """Draw a study, a series, an instance or frames of it."""
    form = accept.pictures(accept_of(request))
    view = _View.of(request)
    opening = await visit(request, Action.VIEW)
    targets = await _targets(request, opening)
    if form.multipart:
        if _count(targets) > MAX_PICTURES:
            raise Invalid(
                f"These are {_count(targets)} pictures; {MAX_PICTURES} are drawn at a time.",
                mend="Ask for one series or instance, or for some frames.",
                code="too-large",
            )
        return await stream_parts(
            request, form.media_type, _pictures(request, opening, targets, view, form.media_type)
        )
    row, frame = _standing_for(targets, request)
    picture = await view.draw(request, opening, row, frame, form.media_type)
    return web.Response(body=picture, content_type=form.media_type, headers=FRESH)


@described(query=_DRAWING[:2], answers={200: accept.PICTURES})
async def thumbnail(request: web.Request) -> web.Response:
    """Draw a small picture that stands for a study, a series, an instance or a frame."""
    kind = accept.picture(accept_of(request))
    viewport = viewport_of(request.query.get("viewport"))
    opening = await visit(request, Action.VIEW)
    row, frame = _standing_for(await _targets(request, opening), request)
    size = min(viewport.width, viewport.height) if viewport else THUMBNAIL_PIXELS
    picture = await request.app[GATEWAY].thumbnail(opening, row.sop_instance_uid, frame, size=size, fmt=kind)
    return web.Response(body=picture.content, content_type=picture.media_type, headers=FRESH)


class _View:
    """How to draw: the query parameters of PS3.18 §8.3.5.1 that bear on a picture."""

    def __init__(self, window: Window | None, viewport: Viewport | None, quality: int | None) -> None:
        self._window = window
        self._viewport = viewport
        self._quality = quality

    @classmethod
    def of(cls, request: web.Request) -> _View:
        """Read them. Raises Invalid, naming the parameter."""
        query = request.query
        return cls(
            window_of(query.get("window")),
            viewport_of(query.get("viewport")),
            quality_of(query.get("quality")),
        )

    async def draw(
        self, request: web.Request, opening: Opening, row: InstanceRow, frame: int, kind: str
    ) -> bytes:
        """One frame, encoded."""
        picture = await request.app[GATEWAY].frame(
            opening,
            row.sop_instance_uid,
            frame,
            window=self._window,
            viewport=self._viewport,
            quality=self._quality,
            fmt=kind,
        )
        return picture.content


async def _pictures(
    request: web.Request, opening: Opening, targets: Targets, view: _View, kind: str
) -> AsyncGenerator[Piece, None]:
    for row, numbers in targets:
        for frame in numbers:
            picture = await view.draw(request, opening, row, frame, kind)
            yield Piece(kind, picture, f"{instance_url(request, opening, row)}/frames/{frame}/rendered")


async def _targets(request: web.Request, opening: Opening) -> Targets:
    """Every frame that the address names. Raises NotFound when there is nothing to see."""
    where = request.match_info
    rows = await request.app[GATEWAY].rows(opening, where.get("series", ""), where.get("instance", ""))
    if "frames" in where:
        return [(rows[0], frame_list(where["frames"]))]
    drawn = [row for row in rows if row.rows and row.columns] or (list(rows) if "instance" in where else [])
    if not drawn:
        raise NotFound("There is nothing to be seen in this.")
    return [(row, range(1, row.frames + 1)) for row in drawn]


def _count(targets: Targets) -> int:
    return sum(len(numbers) for _, numbers in targets)


def _standing_for(targets: Targets, request: web.Request) -> Target:
    """The picture that stands for all: the frame that was asked for, the first of an instance, the middle one of more."""
    if "frames" in request.match_info and _count(targets) > 1:
        raise Invalid(
            "Several frames are drawn in parts.",
            mend=f'Accept multipart/related; type="{accept.PICTURES[0]}", or ask for one frame.',
            code="not-acceptable",
        )
    place = 0 if "instance" in request.match_info else _count(targets) // 2
    for row, numbers in targets:
        if place < len(numbers):
            return row, numbers[place]
        place -= len(numbers)
    raise NotFound("There is nothing to be seen in this.")


def window_of(text: str | None) -> Window | None:
    """`window=centre,width[,function]` (PS3.18 §8.3.5.1.4). Raises Invalid."""
    if text is None:
        return None
    parts = text.split(",")
    try:
        if len(parts) not in (2, 3) or max(map(len, parts)) > MAX_NUMBER_CHARACTERS:
            raise ValueError
        centre, width = float(parts[0]), float(parts[1])
    except ValueError as error:
        raise Invalid(
            "window is `centre,width,function`: two numbers, and linear, linear-exact or sigmoid."
        ) from error
    return Window.of(centre, width, parts[2] if len(parts) == 3 else "")


def viewport_of(text: str | None) -> Viewport | None:
    """`viewport=width,height[,left,top,width,height]` (PS3.18 §8.3.5.1.3). Raises Invalid."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (2, 6) or max(map(len, parts)) > MAX_NUMBER_CHARACTERS:
        raise _bad_viewport()
    try:
        numbers = [round(float(part)) if part else None for part in parts]
    except (ValueError, OverflowError) as error:
        raise _bad_viewport() from error
    width, height = numbers[0], numbers[1]
    if not width or not height or not (0 < width <= MAX_VIEWPORT and 0 < height <= MAX_VIEWPORT):
        raise Invalid(f"viewport has sides from 1 to {MAX_VIEWPORT}.")
    region = numbers[2:]
    if any(number is None for number in region):
        raise _bad_viewport()
    left, top, across, down = [number or 0 for number in region] or (0, 0, 0, 0)
    return Viewport.of(width, height, (left, top, across, down) if region else None)


def quality_of(text: str | None) -> int | None:
    """`quality=1…100` of a lossy picture (PS3.18 §8.3.5.1.2). Raises Invalid."""
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= 100:
        raise Invalid("quality is a number from 1 to 100.")
    return int(text)


def _bad_viewport() -> Invalid:
    return Invalid("viewport is `width,height`, or with a region `width,height,left,top,width,height`.")

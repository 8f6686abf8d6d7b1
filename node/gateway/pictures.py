"""Looking: frames as pictures, each decided anew, with the watermark burned in where it is owed."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from consent.errors import Invalid, NotFound, Sentence
from consent.obligations import Watermark
from node.clock import Clock
from node.gateway.frames import Frames
from node.gateway.reading import Reading
from node.gateway.visits import Visits
from node.imaging.rendering import Renderer
from node.imaging.viewport import Viewport
from node.imaging.watermark_text import WatermarkText
from node.imaging.window import Window
from node.index import InstanceRow
from node.openings import Contents, Opening, Rendered, Visit

MAX_RENDER_BYTES = 512 * 1024 * 1024
MEDIA_TYPES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}


class _Shown(NamedTuple):
    """A frame that may be shown now: the data set, or its head and the frame's stored bytes, and the mark it owes."""

    visit: Visit
    transfer_syntax: str
    data: bytes
    pixels: bytes | None
    watermark: WatermarkText | None


class Pictures:
    """Draws what an opening may show."""

    def __init__(
        self,
        node_id: str,
        visits: Visits,
        reading: Reading,
        frames: Frames,
        renderer: Renderer,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._visits = visits
        self._reading = reading
        self._frames = frames
        self._renderer = renderer
        self._clock = clock

    async def frame(
        self,
        opening: Opening,
        sop_uid: str,
        frame: int = 1,
        *,
        window: tuple[float, float] | Window | None = None,
        size: int | None = None,
        viewport: Viewport | None = None,
        quality: int | None = None,
        fmt: str = "webp",
    ) -> Rendered:
        """One frame (from 1) as a picture, decided anew, with the watermark burned in where it is owed.

        What window, size, viewport and quality mean says `Renderer.render`. Raises Denied when it may not be
        shown any more, Corrupt when it is not what arrived, NotFound, Invalid.
        """
        media_type = MEDIA_TYPES.get(fmt, fmt)
        shown = await self._shown(opening, sop_uid, frame)
        picture = await self._renderer.render(
            shown.data,
            shown.transfer_syntax,
            frame,
            pixels=shown.pixels,
            window=window,
            size=size,
            viewport=viewport,
            media_type=media_type,
            quality=quality,
            watermark=shown.watermark,
        )
        shown.visit.saw(sop_uid, frame)
        return Rendered(picture, media_type)

    async def thumbnail(
        self, opening: Opening, sop_uid: str, frame: int = 1, *, size: int, fmt: str = "jpeg"
    ) -> Rendered:
        """One frame as a small picture, its longer side at most `size` pixels; decided and marked as `frame` is."""
        if MEDIA_TYPES.get(fmt, fmt) != "image/jpeg":
            return await self.frame(opening, sop_uid, frame, size=size, fmt=fmt)
        shown = await self._shown(opening, sop_uid, frame)
        picture = await self._renderer.thumbnail(
            shown.data,
            shown.transfer_syntax,
            frame,
            pixels=shown.pixels,
            size=size,
            watermark=shown.watermark,
        )
        shown.visit.saw(sop_uid, frame)
        return Rendered(picture, "image/jpeg")

    async def _shown(self, opening: Opening, sop_uid: str, frame: int) -> _Shown:
        """What a picture is made of, decided anew. Raises as `frame` does."""
        visit = await self._visits.still(opening, fresh=True)
        row, contents = await self._reading.row(visit, sop_uid)
        if not 1 <= frame <= row.frames:
            raise NotFound(
                Sentence(
                    "There is no frame %(frame)s; the instance has %(frames)s.",
                    frame=frame,
                    frames=row.frames,
                )
            )
        data, pixels = await self._drawn_from(visit, row, frame)
        return _Shown(
            visit, row.transfer_syntax_uid, data, pixels, self._watermark(visit, contents, sop_uid, frame)
        )

    async def _drawn_from(self, visit: Visit, row: InstanceRow, frame: int) -> tuple[bytes, bytes | None]:
        """The data set whole; of many frames only its head and the one frame, where that can be cut out."""
        if row.frames > 1 and row.pixel is not None:
            try:
                head, stored = await self._frames.cut(visit, row, frame)
                return head, stored
            except Invalid:  # not cut at bytes: the decoder finds it in the whole
                pass
        if row.size_bytes > MAX_RENDER_BYTES:
            raise Invalid("This instance is too large to be drawn here.", mend="Download it.")
        return await self._reading.read(visit, row), None

    def _watermark(self, visit: Visit, contents: Contents, sop_uid: str, frame: int) -> WatermarkText | None:
        if not visit.permit.owes(Watermark):
            return None
        opening = visit.opening
        lines = (
            contents.patient_id or visit.resource.patient or "",
            f"{opening.who.name} ({opening.who.id}@{opening.who.node})",
            self._clock.now().strftime("%Y-%m-%d %H:%M UTC"),
            f"{self._node_id} {opening.id[:8]}",
        )
        seed = sha256(f"{opening.who.id}|{opening.id}|{sop_uid}|{frame}".encode()).digest()
        return WatermarkText(lines, int.from_bytes(seed[:4]))

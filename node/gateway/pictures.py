"""Looking: frames as pictures, each decided anew, with the watermark burned in where it is owed."""

from __future__ import annotations

from hashlib import sha256

from consent.errors import Invalid, NotFound
from consent.obligations import Watermark
from node.clock import Clock
from node.gateway.reading import Reading
from node.gateway.visits import Visits
from node.imaging.rendering import Renderer
from node.imaging.watermark_text import WatermarkText
from node.openings import Contents, Opening, Rendered, Visit

MAX_RENDER_BYTES = 512 * 1024 * 1024
MEDIA_TYPES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}


class Pictures:
    """Draws what an opening may show."""

    def __init__(
        self, node_id: str, visits: Visits, reading: Reading, renderer: Renderer, clock: Clock
    ) -> None:
        self._node_id = node_id
        self._visits = visits
        self._reading = reading
        self._renderer = renderer
        self._clock = clock

    async def frame(
        self,
        opening: Opening,
        sop_uid: str,
        frame: int = 1,
        *,
        window: tuple[float, float] | None = None,
        size: int | None = None,
        fmt: str = "webp",
    ) -> Rendered:
        """One frame (from 1) as a picture, decided anew, with the watermark burned in where it is owed.

        Raises Denied when it may not be shown any more, Corrupt when it is not what arrived, NotFound, Invalid.
        """
        visit = await self._visits.still(opening, fresh=True)
        media_type = MEDIA_TYPES.get(fmt, fmt)
        row, contents = await self._reading.row(visit, sop_uid)
        if not 1 <= frame <= row.frames:
            raise NotFound(f"There is no frame {frame}; the instance has {row.frames}.")
        if row.size_bytes > MAX_RENDER_BYTES:
            raise Invalid("This instance is too large to be drawn here.", mend="Download it.")
        data = await self._reading.read(visit, row)
        picture = await self._renderer.render(
            data,
            row.transfer_syntax_uid,
            frame,
            window=window,
            size=size,
            media_type=media_type,
            watermark=self._watermark(visit, contents, sop_uid, frame),
        )
        visit.pictures += 1
        visit.seen.add((sop_uid, frame))
        return Rendered(picture, media_type)

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

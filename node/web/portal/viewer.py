"""The viewer: one page with a canvas; every picture is drawn, windowed and watermarked at the node."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Final

from aiohttp import web

from consent.errors import Denied, Invalid, NotFound
from consent.signed import Json
from node.web.keys import GATEWAY, INDEX
from node.web.kit import render
from node.web.portal.studies import home_name, opening_of, refused
from node.web.text import _, format_person_name

if TYPE_CHECKING:
    from node.openings import Opening, SeriesView

MAX_FRAMES: Final = 20_000
MAX_WINDOWED_SERIES: Final = 50
MAX_BITS: Final = 32


async def viewer_page(request: web.Request) -> web.Response:
    """GET /viewer/{study}?home=&opening=: an opening may be named; otherwise the study is opened now."""
    study, home = request.match_info["study"], request.query.get("home", "")
    try:
        opening = await opening_of(request, study, home)
        series = await request.app[GATEWAY].series(opening)
    except Denied as error:
        return refused(request, error, study, home)
    if opening.home:
        title = _("Study from %(home)s", home=home_name(request, opening.home))
    else:
        row = await request.app[INDEX].study(opening.study)
        title = format_person_name(row.values.get("PatientName")) or _("Study")
    back = f"/studies/{opening.study}?opening={opening.id}" + (
        f"&home={opening.home}" if opening.home else ""
    )
    windows = await _windows(request, opening, series)
    data: Json = {
        "frames": f"/viewer/frames/{opening.id}",
        "back": back,
        "series": [_series_json(one, windows.get(one.uid)) for one in series],
        "words": _words(),
    }
    context = {"opening": opening, "data": data, "patient": title, "back": back}
    return render(request, "viewer.html", context)


def _series_json(series: SeriesView, window: tuple[float, float] | None) -> Json:
    """Frames in order: one entry per frame of each instance, bounded. `window`: where dragging starts from."""
    frames = (
        {"sop": instance.uid, "frame": number, "number": instance.number}
        for instance in series.instances
        for number in range(1, instance.frames + 1)
    )
    return {
        "uid": series.uid,
        "number": series.number,
        "modality": series.modality,
        "description": series.description,
        "frames": list(islice(frames, MAX_FRAMES)),  # an instance may claim to have any number
        "window": window,
    }


async def _windows(
    request: web.Request, opening: Opening, series: tuple[SeriesView, ...]
) -> dict[str, tuple[float, float]]:
    """The window of the middle instance of each of the first series, from its metadata; without one, from its range."""
    found: dict[str, tuple[float, float]] = {}
    for one in series[:MAX_WINDOWED_SERIES]:
        if not one.instances:
            continue
        middle = one.instances[len(one.instances) // 2].uid
        try:
            lines = json.loads(await request.app[GATEWAY].metadata(opening, one.uid, middle))
        except (Invalid, NotFound):
            continue
        window = _window_of(lines[0]) if lines else None
        if window is not None:
            found[one.uid] = window
    return found


def _window_of(model: Json) -> tuple[float, float] | None:
    """Window Centre and Width (PS3.3 §C.11.2), else the middle and width of the stored range after rescaling."""
    centre, width = _value(model, "00281050"), _value(model, "00281051")
    if centre is not None and width is not None and width > 0:
        return centre, width
    slope, intercept = _value(model, "00281053") or 1.0, _value(model, "00281052") or 0.0
    low, high = _value(model, "00280106"), _value(model, "00280107")
    if low is None or high is None or high <= low:
        bits = _value(model, "00280101")
        if bits is None or not 1 <= bits <= MAX_BITS:
            return None
        low, high = 0.0, 2.0 ** (bits - 1)
    return (low + high) / 2 * slope + intercept, max(1.0, (high - low) * abs(slope))


def _value(model: Json, tag: str) -> float | None:
    values = model.get(tag, {}).get("Value") or [None]
    try:
        return float(values[0])
    except (TypeError, ValueError):
        return None


def _words() -> dict[str, str]:
    """What the script says, in the person's language."""
    return {
        "image": _("Image"),
        "series": _("Series"),
        "loading": _("Loading …"),
        "loaded": _("loaded"),
        "ended": _("Access has ended"),
        "ended_text": _(
            "The node no longer shows this study to you. What was on the screen has been removed."
        ),
        "failed": _("This picture cannot be shown"),
        "unreachable": _("The node cannot be reached. Trying again …"),
        "images": _("images"),
        "none": _("This study has no pictures."),
        "default": _("As stored"),
        "Brain": _("Brain"),
        "Soft tissue": _("Soft tissue"),
        "Lung": _("Lung"),
        "Bone": _("Bone"),
        "Liver": _("Liver"),
    }


ROUTES = [web.get("/viewer/{study}", viewer_page)]

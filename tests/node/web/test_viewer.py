"""What the viewer's page is told of a study."""

from __future__ import annotations

import pytest

from node.openings import InstanceView, SeriesView
from node.web.api import studies  # noqa: F401  the pages are loaded by the interfaces
from node.web.portal.viewer import MAX_FRAMES, _series_json


@pytest.mark.requirement("F4")
def test_viewer_lists_no_more_frames_than_it_shows() -> None:
    """A series of an image that claims any number of frames is cut before it is listed."""
    view = SeriesView("1.2.3", 1, "OT", "", (InstanceView("1.2.3.4", 1, 10**12, 8, 8),))

    assert len(_series_json(view, None)["frames"]) == MAX_FRAMES

"""Readers while devices send: four associations each store a study at full speed, somebody searches, somebody scrolls.

Search and frame are asked at a steady pace, as a person and a viewer do; a request that finds the last one unanswered waits
for it. Only requests that were begun before the last instance was stored count. Orthanc has no portal: it is asked for the
rendered frame of DICOMweb instead, without sign-in, decision, log or watermark.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from tests.bench.client import Client, Web
from tests.bench.ingest import Studies, send_each, turned
from tests.bench.portal import PICTURE, viewer
from tests.bench.results import Results
from tests.bench.retrieve import JSON, WARM_UPS
from tests.bench.servers import Server, Stage
from tests.bench.workload import ct_name
from tests.support.dicom import uid

SEARCH_EVERY_SECONDS = 0.05
FRAME_EVERY_SECONDS = 0.1
SEARCH = "while four associations ingest: QIDO StudyInstanceUID"
FRAME = "while four associations ingest: frame at the portal (Orthanc: rendered)"
STORE = "C-STORE, 4 associations, while people search and scroll"


def mixed(
    stage: Stage, studies: Studies, study: int, slices: int, results: Results, *, runs: int, associations: int
) -> None:
    """One burst of whole studies into each server and run, with the readers beside it; `study` is what they look at."""
    for run in range(runs):
        with ExitStack() as stack:
            shares = [stack.enter_context(studies.fresh()) for _ in range(associations)]
            size = sum(path.stat().st_size for share in shares for path in share)
            for server in turned(stage.with_web(), run):
                readers = [
                    _Reader(server.web, _search(study), JSON, SEARCH_EVERY_SECONDS),
                    _frames(server, study, slices),
                ]
                for reader in readers:
                    reader.start()
                try:
                    seconds = send_each(server.door, shares)
                    ended = time.perf_counter()
                finally:
                    for reader in readers:
                        reader.end()
                results.add(STORE, server.name, "MB/s", size / seconds / 1e6)
                for what, reader in zip((SEARCH, FRAME), readers, strict=True):
                    for took in reader.seconds_until(ended):
                        results.add(what, server.web_name, "ms", took * 1e3)


def _search(study: int) -> Callable[[int], str]:
    return lambda _: f"/studies?StudyInstanceUID={uid(ct_name(study))}"


def _frames(server: Server, study: int, slices: int) -> _Reader:
    """Another slice each time, as scrolling asks for them."""
    name = ct_name(study)

    def sop(number: int) -> str:
        return uid(name, 1, number % slices + 1)

    if server.password:
        place = viewer(server, uid(name))
        return _Reader(place, lambda number: f"/{sop(number)}/1", PICTURE, FRAME_EVERY_SECONDS)
    series = f"/studies/{uid(name)}/series/{uid(name, 1)}"
    return _Reader(
        server.web,
        lambda number: f"{series}/instances/{sop(number)}/rendered",
        "image/jpeg",
        FRAME_EVERY_SECONDS,
    )


class _Reader:
    """Asks at its pace in a thread of its own between `start` and `end`, after a few requests to warm up."""

    def __init__(
        self, web: Web | None, path: Callable[[int], str], accept: str, every_seconds: float
    ) -> None:
        assert web is not None
        self._client = Client(web)
        self._path = path
        self._accept = accept
        self._every = every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._asked: list[tuple[float, float]] = []
        self._wrong: str = ""

    def start(self) -> None:
        """Warm up, then ask in the background."""
        for number in range(WARM_UPS):
            self._ask(number)
        self._thread.start()

    def end(self) -> None:
        """Ask no more. Raises RuntimeError when an answer was not what was asked for."""
        self._over.set()
        self._thread.join()
        self._client.close()
        if self._wrong:
            raise RuntimeError(self._wrong)

    def seconds_until(self, moment: float) -> list[float]:
        """What each request took that was begun before `moment`."""
        return [took for began, took in self._asked if began < moment]

    def _run(self) -> None:
        number, following = WARM_UPS, time.perf_counter()
        while not self._over.wait(max(0.0, following - time.perf_counter())):
            following = max(following + self._every, time.perf_counter())
            self._client.connect()
            began = time.perf_counter()
            try:
                self._asked.append((began, self._ask(number)))
            except (OSError, RuntimeError) as error:
                self._wrong = str(error)
                return
            number += 1

    def _ask(self, number: int) -> float:
        answer = self._client.get(self._path(number), self._accept)
        if answer.status != 200 or not answer.size_bytes:
            raise RuntimeError(f"A reader was answered {answer.status} with {answer.size_bytes} bytes.")
        return answer.seconds

"""How fast studies come out: WADO-RS, metadata, searches among thousands, rendered slices. Connections are kept open."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from tests.bench.client import Answer, Client
from tests.bench.ingest import at_once, turned
from tests.bench.meter import metered
from tests.bench.results import Results
from tests.bench.rivals import floor
from tests.bench.servers import Server, Stage
from tests.bench.workload import NAMES, ct_name, tiny_accession, tiny_patient, tiny_uid
from tests.support.dicom import uid

DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
JSON = "application/dicom+json"
WARM_UPS = 3
PAGE_ANSWERS = 100
HALF_YEARS = 12
"""Tiny studies lie evenly in twelve half years: a search for one finds a twelfth of them."""


def wado(stage: Stage, study: int, results: Results, *, runs: int, parallel: int) -> None:
    """The whole study by one client and by several at once, beside aiohttp streaming as many bytes by TLS."""
    path = f"/studies/{uid(ct_name(study))}"
    with floor(stage.keys) as bare, _clients([*stage.with_web(), bare], parallel) as clients:
        whole = [_require(connected[0].get(path, DICOM), server) for server, connected in clients[:-1]]
        bare_path = f"/bytes?size={whole[0].size_bytes}"
        for count in (1, parallel):
            what = f"WADO-RS study, {count} client{'s' if count > 1 else ''}"
            for run in range(runs):
                for server, connected in turned(clients, run):
                    answers: list[Answer] = []
                    asked = bare_path if server is bare else path
                    works = [partial(_collect, client, asked, answers) for client in connected[:count]]
                    for client in connected[:count]:
                        client.connect()
                    with metered(server.pid) as cost:
                        seconds = at_once(works)
                    for answer in answers:
                        _require(answer, server)
                    size = sum(answer.size_bytes for answer in answers)
                    results.add(
                        what, server.web_name, "MB/s", size / seconds / 1e6,
                        cpu_seconds=cost.cpu_seconds / size * 1e8, peak_bytes=cost.peak_bytes,
                    )  # fmt: skip
                    if count == 1:
                        first = answers[0].first_byte_seconds * 1e3
                        results.add("WADO-RS study, first byte", server.web_name, "ms", first)


def _collect(client: Client, path: str, answers: list[Answer]) -> None:
    answers.append(client.get(path, DICOM))


def metadata(stage: Stage, study: int, results: Results, *, count: int) -> None:
    """DICOM JSON of the series of the study."""
    name = ct_name(study)
    path = f"/studies/{uid(name)}/series/{uid(name, 1)}/metadata"
    _timed(stage, results, "series metadata", lambda _: path, JSON, count)


def qido(stage: Stage, results: Results, *, studies: int, count: int) -> None:
    """Searches as a worklist makes them, among `studies` tiny studies: for one answer, and for a page of answers."""
    among = f"{studies:,} studies"
    one: dict[str, Callable[[int], str]] = {
        "StudyInstanceUID": lambda n: f"/studies?StudyInstanceUID={tiny_uid(n * 41 % studies)}",
        "PatientID": lambda n: f"/studies?PatientID={tiny_patient(n * 37 % studies)}",
        "AccessionNumber": lambda n: f"/studies?AccessionNumber={tiny_accession(n * 31 % studies)}",
        "series of a study": lambda n: f"/studies/{tiny_uid(n * 43 % studies)}/series",
    }
    for what, path in one.items():
        _timed(stage, results, f"QIDO {what}, {among}", path, JSON, count, answers=1)
    page = max(1, min(PAGE_ANSWERS, studies // HALF_YEARS))
    many: dict[str, Callable[[int], str]] = {
        "PatientName wildcard": lambda n: f"/studies?PatientName={NAMES[n % len(NAMES)][:3]}*&limit={page}",
        "StudyDate range": lambda n: f"/studies?StudyDate=202{n % 6}0101-202{n % 6}0630&limit={page}",
    }
    for what, path in many.items():
        measured = f"QIDO {what}, {page} answers, {among}"
        _timed(stage, results, measured, path, JSON, max(10, count // 3), answers=page)


def rendered(stage: Stage, study: int, slices: int, results: Results, *, count: int) -> None:
    """A slice as a picture, another slice each time."""
    name = ct_name(study)

    def path(number: int) -> str:
        instance = uid(name, 1, number % slices + 1)
        return f"/studies/{uid(name)}/series/{uid(name, 1)}/instances/{instance}/rendered"

    for media_type in ("image/jpeg", "image/png"):
        _timed(stage, results, f"rendered {media_type.partition('/')[2]}", path, media_type, count)


def wait_until_indexed(stage: Stage, study: int, slices: int) -> None:
    """Return when every server answers for the whole study."""
    path = f"/studies/{uid(ct_name(study))}/instances?limit={slices + 1}"
    with _clients(stage.with_web(), 1) as clients:
        for server, (client,) in clients:
            for _ in range(200):
                answer = client.get(path, JSON, keep=True)
                if answer.status == 200 and len(json.loads(answer.body)) == slices:
                    break
            else:
                raise RuntimeError(f"{server.name} does not show the study")


def _timed(
    stage: Stage,
    results: Results,
    what: str,
    path: Callable[[int], str],
    accept: str,
    count: int,
    *,
    answers: int | None = None,
) -> None:
    """Ask every server the same, request by request in turns; milliseconds until the last byte.

    Raises RuntimeError when a search has another number of answers than `answers`.
    """
    with _clients(stage.with_web(), 1) as clients:
        for number in range(WARM_UPS):
            for server, (client,) in clients:
                answer = _require(client.get(path(number), accept, keep=answers is not None), server)
                if answers is not None and len(json.loads(answer.body)) != answers:
                    raise RuntimeError(
                        f"{server.web_name} found another number than {answers}: {path(number)}"
                    )
        for number in range(count):
            for server, (client,) in turned(clients, number):
                client.connect()
                answer = _require(client.get(path(WARM_UPS + number), accept), server)
                results.add(what, server.web_name, "ms", answer.seconds * 1e3)


def _require(answer: Answer, server: Server) -> Answer:
    if answer.status != 200 or not answer.size_bytes:
        raise RuntimeError(f"{server.web_name} answered {answer}")
    return answer


@contextmanager
def _clients(servers: Sequence[Server], count: int) -> Iterator[list[tuple[Server, list[Client]]]]:
    """So many open connections to each server."""
    with ExitStack() as stack:
        made = []
        for server in servers:
            assert server.web is not None
            clients = [stack.enter_context(Client(server.web)) for _ in range(count)]
            made.append((server, clients))
        yield made

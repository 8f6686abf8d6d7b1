"""Searching the index: what the database can decide it decides, the rest is matched on opened rows.

Rows come in the order of the answer, page by page behind the last key, so a search costs what it answers and
not what the archive holds. Names come from the table in memory. Nothing here asks whether somebody may see a
row, except through `Visible`, which the gateway makes from decisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, or_, select, tuple_

from consent.errors import Invalid, Sentence
from consent.vocabulary import Grade
from node.index.names import NameTable
from node.index.pseudonyms import Pseudonyms
from node.index.query import (
    EMPTY,
    Level,
    Matcher,
    Query,
    combined_range,
    is_range,
    is_wild,
    matcher,
    path_of,
    uids,
)
from node.index.reads import Reads
from node.index.rows import Match
from node.index.sealing import RowSealer, altered
from node.index.tables import INSTANCES, NO_NUMBER, SERIES, STUDIES

PAGE_ROWS = 500
MAX_ROWS_OPENED = 200_000
"""A search that would open more rows than this is refused: it should be narrowed."""
MAX_CANDIDATES = 5_000
"""At most so many studies found by name are handed to the database at once, at some 15 µs each; of series and instances more are
picked out of its pages."""
MAX_PATIENTS = 10_000
"""Patients to whom a search can be restricted."""


@dataclass(frozen=True)
class Visible:
    """What the asker may find: studies of `grades` of anybody, and of `patient_grades` of these patients."""

    grades: frozenset[Grade] = frozenset()
    patients: frozenset[str] = frozenset()
    patient_grades: frozenset[Grade] = frozenset()

    def condition(self) -> ColumnElement[bool] | None:
        """As SQL; None when everything is visible. Raises Invalid when there are too many patients."""
        if self.grades == frozenset(Grade):
            return None
        if len(self.patients) > MAX_PATIENTS:
            raise Invalid(
                Sentence("A search covers at most %(most)s patients in somebody's care.", most=MAX_PATIENTS),
                mend="Search by Patient ID, or end treatment relationships that are over.",
            )
        own = and_(
            STUDIES.c.patient.in_(sorted(self.patients)),
            STUDIES.c.grade.in_(sorted(int(grade) for grade in self.patient_grades)),
        )
        return or_(STUDIES.c.grade.in_(sorted(int(grade) for grade in self.grades)), own)


EVERYTHING = Visible(grades=frozenset(Grade))


@dataclass(frozen=True)
class Page:
    """Answers, and whether there are more behind them."""

    matches: tuple[Match, ...]
    more: bool


Test = Callable[[Match], bool]
"""Whether an opened row is an answer."""


@dataclass(frozen=True)
class _Plan:
    """A query taken apart: conditions for the database, tests for opened rows, and studies found by name with their dates."""

    conditions: tuple[ColumnElement[bool], ...]
    tests: Sequence[Test]
    named: Mapping[str, str] | None
    allowed: ColumnElement[bool] | None
    shows: Test | None
    narrow: bool = False
    """Whether an index finds the few rows there can be."""

    def answers(self, match: Match) -> bool:
        """Whether an opened row passes every test, and may be shown."""
        return all(test(match) for test in self.tests) and (self.shows is None or self.shows(match))


class Search:
    """Answers queries; holds no state but what it is given."""

    def __init__(self, reads: Reads, pseudonyms: Pseudonyms, sealer: RowSealer, names: NameTable) -> None:
        self._reads = reads
        self._pseudonyms = pseudonyms
        self._sealer = sealer
        self._names = names

    async def run(self, query: Query, visible: Visible, shows: Test | None = None) -> Page:
        """Return up to `query.limit` answers behind `query.offset`. Raises Invalid when the search is too broad."""
        found: list[Match] = []
        skip = query.offset
        wanted = min(PAGE_ROWS, query.limit + query.offset + 1)
        async with aclosing(self.stream(query, visible, shows, page_rows=wanted)) as matches:
            async for match in matches:
                if skip:
                    skip -= 1
                    continue
                if len(found) == query.limit:
                    return Page(tuple(found), True)
                found.append(match)
        return Page(tuple(found), False)

    async def stream(
        self, query: Query, visible: Visible, shows: Test | None = None, *, page_rows: int = PAGE_ROWS
    ) -> AsyncGenerator[Match, None]:
        """Every answer in order, read page by page as it is asked for; `query.limit` and `query.offset` say nothing here.

        `shows` is what cannot be said in the database's terms about what the asker may find. Raises Invalid when the
        search is too broad.
        """
        plan = await self._plan(query, visible, shows)
        opened: dict[str, dict[str, Any]] = {}
        patient = ""
        async for row in self._rows(query.level, plan, page_rows):
            if query.level is Level.PATIENT and row.patient == patient:
                continue
            match = self._open(query.level, row, opened)
            if not plan.answers(match):
                continue
            patient = row.patient
            yield await self._with_totals(match, plan) if query.totals else match

    async def _plan(self, query: Query, visible: Visible, shows: Test | None) -> _Plan:
        conditions: list[ColumnElement[bool]] = []
        tests: list[Test] = []
        items: dict[str, dict[str, Matcher]] = {}
        named: Mapping[str, str] | None = None
        moment = _moment_test(query)
        for keyword, value in query.keys.items():
            if keyword == "StudyTime" and moment is not None:
                continue
            wants_empty = query.empty and value == EMPTY
            condition = None if wants_empty else self._condition(keyword, value)
            if condition is not None:
                conditions.append(condition)
                continue
            if keyword == "PatientName" and not wants_empty:
                match_names = self._names.match_fuzzily if query.fuzzy else self._names.match
                hits = await match_names(value)
                if hits is not None:
                    if len(hits) <= (PAGE_ROWS if query.level is Level.STUDY else MAX_CANDIDATES):
                        conditions.append(STUDIES.c.study.in_(sorted(hits)))
                    else:
                        named = hits
                    continue
            *sequence, attribute = path_of(keyword)
            matches = matcher(attribute, value, empty=query.empty, fuzzy=query.fuzzy)
            if sequence:
                items.setdefault(sequence[0].keyword, {})[attribute.keyword] = matches
            else:
                tests.append(_value_test(keyword, matches))
        tests += (_item_test(sequence, inner) for sequence, inner in items.items())
        if moment is not None:
            tests.append(moment)
        allowed = visible.condition()
        if allowed is not None:
            conditions.append(allowed)
        narrow = query.level is not Level.INSTANCE and any(
            keyword in _NARROWING and not is_wild(value) and value != EMPTY
            for keyword, value in query.keys.items()
        )
        return _Plan(tuple(conditions), tests, named, allowed, shows, narrow)

    async def _with_totals(self, match: Match, plan: _Plan) -> Match:
        """A patient's answer with the counts of what the asker may find of that patient."""
        own = select(*_STUDY_COLUMNS).where(STUDIES.c.patient == match.patient)
        rows = await self._reads.rows(own if plan.allowed is None else own.where(plan.allowed))
        if plan.shows is not None:
            rows = [row for row in rows if plan.shows(self._open(Level.STUDY, row, {}))]
        totals = {
            "NumberOfPatientRelatedStudies": len(rows),
            "NumberOfPatientRelatedSeries": sum(row.series_count for row in rows),
            "NumberOfPatientRelatedInstances": sum(row.study_count for row in rows),
        }
        return replace(match, values={**match.values, **totals})

    def _condition(self, keyword: str, value: str) -> ColumnElement[bool] | None:
        """The database's condition that decides this key fully, or None when it cannot."""
        names = self._pseudonyms
        match keyword:
            case "StudyInstanceUID":
                return STUDIES.c.study.in_([names.study(uid) for uid in uids(value)])
            case "SeriesInstanceUID":
                return SERIES.c.series.in_([names.series(uid) for uid in uids(value)])
            case "SOPInstanceUID":
                return INSTANCES.c.instance.in_([names.instance(uid) for uid in uids(value)])
            case "PatientID" if not is_wild(value):
                return STUDIES.c.patient == names.patient(value.strip())
            case "AccessionNumber" if not is_wild(value):
                return STUDIES.c.accession == names.blind("accession", value.strip())
            case "StudyDate":
                return _dates(value)
            case "ModalitiesInStudy" if value.isalnum():
                return STUDIES.c.modalities.contains(f"/{value}/")
            case "Modality" if value.isalnum():
                return SERIES.c.modality == value
            case _:
                return None

    async def _rows(self, level: Level, plan: _Plan, page_rows: int) -> AsyncIterator[Row[Any]]:
        """Rows that the database finds, in order. Every page begins behind the last row of the one before.

        The first has `page_rows` rows, which is enough where most rows are answers.
        """
        if plan.named is not None and level is Level.STUDY:
            async for row in self._named_rows(plan, plan.named, page_rows):
                yield row
            return
        size = PAGE_ROWS if plan.tests or plan.named or level is Level.PATIENT else page_rows
        statement, order = _statement(level)
        statement = statement.where(*plan.conditions)
        opened = 0
        after: tuple[Any, ...] | None = None
        read = self._reads.point if plan.narrow else self._reads.rows
        while True:
            page = await read(_behind(statement, order, after, level).limit(size))
            for row in page:
                if plan.named is None or row.study in plan.named:
                    yield row
            opened += len(page)
            if len(page) < size:
                return
            if opened >= MAX_ROWS_OPENED:
                raise _too_broad()
            after = tuple(page[-1]._mapping[f"key_{number}"] for number in range(len(order)))
            size = PAGE_ROWS

    async def _named_rows(
        self, plan: _Plan, named: Mapping[str, str], page_rows: int
    ) -> AsyncIterator[Row[Any]]:
        """Studies that were found by name, in order: newest first by the dates that came with the names."""
        whole, _ = _statement(Level.STUDY)
        whole = whole.where(*plan.conditions)
        wanted = await asyncio.to_thread(_newest_first, named)
        start, size = 0, page_rows
        while start < min(len(wanted), MAX_ROWS_OPENED):
            page = whole.where(STUDIES.c.study.in_(wanted[start : start + size]))
            for row in await self._reads.rows(page):
                yield row
            start, size = start + size, PAGE_ROWS
        if start < len(wanted):
            raise _too_broad()

    def _open(self, level: Level, row: Row[Any], opened: dict[str, dict[str, Any]]) -> Match:
        """Open a row; `opened` remembers the study and series that the rows before it shared."""
        values = dict(self._opened("index_study", row.study, row.study_sealed, opened))
        if not self._pseudonyms.fits(row.patient, str(values.get("PatientID") or "")):
            raise altered("index_study")
        department = values.pop("InstitutionalDepartmentName", None)
        values["StudyDate"] = row.study_date
        values["ModalitiesInStudy"] = row.modalities.strip("/").replace("/", "\\")
        values["NumberOfStudyRelatedSeries"] = row.series_count
        values["NumberOfStudyRelatedInstances"] = row.study_count
        series = instance = None
        if level in (Level.SERIES, Level.INSTANCE):
            series = row.series
            values |= self._opened("index_series", f"{row.study}/{series}", row.series_sealed, opened)
            values["Modality"] = row.modality
            values["SeriesNumber"] = _number(row.series_number)
            values["NumberOfSeriesRelatedInstances"] = row.series_instances
        if level is Level.INSTANCE:
            instance = row.instance
            sealed = self._sealer.open_json("index_instance", instance, row.instance_sealed)
            values |= _instance_values(sealed, row.number)
        return Match(row.study, row.patient, Grade(row.grade), values, department, series, instance)

    def _opened(
        self, table: str, key: str, sealed: bytes, opened: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        if key not in opened:
            if len(opened) >= PAGE_ROWS:
                opened.clear()
            opened[key] = self._sealer.open_json(table, key, sealed)
        return opened[key]


_STUDY_COLUMNS = (
    STUDIES.c.study,
    STUDIES.c.patient,
    STUDIES.c.grade,
    STUDIES.c.study_date,
    STUDIES.c.modalities,
    STUDIES.c.series_count,
    STUDIES.c.instance_count.label("study_count"),
    STUDIES.c.sealed.label("study_sealed"),
)
_SERIES_COLUMNS = (
    SERIES.c.series,
    SERIES.c.number.label("series_number"),
    SERIES.c.modality,
    SERIES.c.instance_count.label("series_instances"),
    SERIES.c.sealed.label("series_sealed"),
)
_INSTANCE_COLUMNS = (INSTANCES.c.instance, INSTANCES.c.number, INSTANCES.c.sealed.label("instance_sealed"))


_NARROWING = frozenset({"StudyInstanceUID", "PatientID", "AccessionNumber"})


@cache
def _statement(level: Level) -> tuple[Select[Any], tuple[ColumnElement[Any], ...]]:
    """The SELECT of a level and what it is ordered by: studies newest first, patients one after the other, the rest as in
    the study."""
    if level in (Level.STUDY, Level.PATIENT):
        first = STUDIES.c.study_date if level is Level.STUDY else STUDIES.c.patient
        order: tuple[ColumnElement[Any], ...] = (first, STUDIES.c.study)
        return _ordered(select(*_STUDY_COLUMNS), order, level), order
    in_series = SERIES.c.study == STUDIES.c.study
    if level is Level.SERIES:
        order = (SERIES.c.study, SERIES.c.number, SERIES.c.series)
        found = select(*_STUDY_COLUMNS, *_SERIES_COLUMNS).join_from(STUDIES, SERIES, in_series)
        return _ordered(found, order, level), order
    order = (INSTANCES.c.study, INSTANCES.c.series, INSTANCES.c.number, INSTANCES.c.instance)
    in_instance = and_(INSTANCES.c.study == SERIES.c.study, INSTANCES.c.series == SERIES.c.series)
    found = (
        select(*_STUDY_COLUMNS, *_SERIES_COLUMNS, *_INSTANCE_COLUMNS)
        .join_from(STUDIES, SERIES, in_series)
        .join(INSTANCES, in_instance)
    )
    return _ordered(found, order, level), order


def _ordered(statement: Select[Any], order: tuple[ColumnElement[Any], ...], level: Level) -> Select[Any]:
    keys = [column.label(f"key_{number}") for number, column in enumerate(order)]
    way = [column.desc() if level is Level.STUDY else column.asc() for column in order]
    return statement.add_columns(*keys).order_by(*way)


def _behind(
    statement: Select[Any],
    order: tuple[ColumnElement[Any], ...],
    after: tuple[Any, ...] | None,
    level: Level,
) -> Select[Any]:
    if after is None:
        return statement
    here = tuple_(*order)
    return statement.where(here < after if level is Level.STUDY else here > after)


def _value_test(keyword: str, matches: Matcher) -> Test:
    return lambda match: matches(_text(match.values.get(keyword)))


def _item_test(sequence: str, inner: Mapping[str, Matcher]) -> Test:
    """Whether all keys of a sequence match in one and the same item (PS3.4 §C.2.2.2.6)."""

    nothing: tuple[Mapping[str, str], ...] = ({},)

    def test(match: Match) -> bool:
        return any(
            all(matches(_text(item.get(keyword))) for keyword, matches in inner.items())
            for item in match.values.get(sequence) or nothing
        )

    return test


def _moment_test(query: Query) -> Test | None:
    """The test of Study Date and Study Time together, where both are ranges and that was agreed upon."""
    dates, times = query.keys.get("StudyDate", ""), query.keys.get("StudyTime", "")
    if not (query.combined and is_range(dates) and is_range(times)):
        return None
    within = combined_range(dates, times)
    return lambda match: within(_text(match.values.get("StudyDate")), _text(match.values.get("StudyTime")))


def _dates(value: str) -> ColumnElement[bool]:
    low, dash, high = value.partition("-")
    column = STUDIES.c.study_date
    if not dash:
        return column == low
    # Studies without a date have "", which is below every date.
    bounds = [column >= (low or "0")]
    if high:
        bounds.append(column <= high)
    return and_(*bounds)


def _instance_values(sealed: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {
        "SOPClassUID": sealed["sop_class"],
        "SOPInstanceUID": sealed["uid"],
        "InstanceNumber": _number(number),
        "NumberOfFrames": sealed["frames"],
        "Rows": sealed["rows"],
        "Columns": sealed["columns"],
    }


def _number(stored: int) -> int | None:
    return None if stored == NO_NUMBER else stored


def _newest_first(named: Mapping[str, str]) -> list[str]:
    """Studies by their dates, as `_statement` orders them; of a common name a hundred thousand."""
    return sorted(named, key=lambda study: (named[study], study), reverse=True)


def _too_broad() -> Invalid:
    return Invalid("This search is too broad.", mend="Add a date range, a name or an ID.", code="too-broad")


def _text(value: Any) -> str:
    return "" if value is None else str(value)

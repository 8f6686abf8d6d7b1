"""One small node with a portal, shared by the tests of a module, with a study and people of every role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio

from consent.vocabulary import Role
from tests.support import dicom
from tests.support.node import NodeFixture, small_node
from tests.support.portal import Site, portal

PATIENT_ID, OTHER_PATIENT_ID = "P-0001", "P-0002"


@dataclass
class Hospital:
    """A node with a portal: `li` treats the patient of `study`; `wu` treats nobody; `stranger_study` is of another."""

    site: Site
    node: NodeFixture
    study: str
    stranger_study: str
    patient: str


@pytest_asyncio.fixture
async def hospital(tmp_path: Path) -> AsyncIterator[Hospital]:
    async with small_node(tmp_path) as node, portal(node) as site:
        await node.store(
            *dicom.study(
                name="demo", series=2, slices=3, patient_id=PATIENT_ID, study_description="CT THORAX"
            ),
            *dicom.study(
                name="other",
                slices=1,
                patient_id=OTHER_PATIENT_ID,
                patient_name="Wang^Wu",
                accession_number="B-7",
            ),
        )
        names = node.index.pseudonyms
        patient = names.patient(PATIENT_ID)
        await site.person("li", treats=[patient], name="Li Wei")
        await site.person("wu", name="Wu Min")
        await site.person("chief", Role.CHIEF_PHYSICIAN)
        await site.person("it", Role.ADMINISTRATOR)
        await site.person("sec", Role.SECURITY_OFFICER)
        await site.person("res", Role.RESEARCHER)
        study = names.study(dicom.uid("demo"))
        yield Hospital(site, node, study, names.study(dicom.uid("other")), patient)

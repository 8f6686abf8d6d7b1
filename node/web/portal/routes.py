"""The portal's pages as one table of contents, and its navigation."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from consent.emergency import REVIEWERS
from consent.principals import CLINICAL
from consent.vocabulary import Role
from node.access.resets import APPROVERS
from node.web.pages import NavItem
from node.web.portal import (
    account,
    care,
    consents,
    devices,
    emergency,
    grades,
    home,
    keys,
    log,
    sign_in,
    sign_ins,
    staff,
    storage,
    studies,
    viewer,
)
from node.web.text import N_

CLINICIANS: Final = tuple(sorted(CLINICAL))

NAV: Final[tuple[NavItem, ...]] = (
    NavItem("/", N_("Start"), icon="home"),
    NavItem(
        "/studies",
        N_("Studies"),
        CLINICIANS,
        "image",
        N_("Care"),
        N_("Find a study by patient, date or accession number and open it."),
    ),
    NavItem(
        "/care",
        N_("Treatment relationships"),
        (Role.ADMINISTRATOR, Role.CHIEF_PHYSICIAN),
        "care",
        N_("Care"),
        N_("Record who treats which patient."),
    ),
    NavItem(
        "/people",
        N_("People"),
        (Role.ADMINISTRATOR,),
        "people",
        N_("Administration"),
        N_("Accounts and roles; one-time sign-ins."),
    ),
    NavItem(
        "/devices",
        N_("Devices"),
        (Role.ADMINISTRATOR,),
        "device",
        N_("Administration"),
        N_("Which modalities may send images here."),
    ),
    NavItem(
        "/keys",
        N_("Keys"),
        (Role.ADMINISTRATOR,),
        "lock",
        N_("Administration"),
        N_("Age and rotation of the keys; the grade that two people unlock."),
    ),
    NavItem(
        "/storage",
        N_("Storage"),
        (Role.ADMINISTRATOR,),
        "storage",
        N_("Administration"),
        N_("Where the studies lie; copies, checks, mending."),
    ),
    NavItem(
        "/sign-ins",
        N_("One-time sign-ins"),
        tuple(sorted(APPROVERS)),
        "key",
        N_("Oversight"),
        N_("Decide about people who cannot sign in any more."),
    ),
    NavItem(
        "/log",
        N_("Log"),
        (Role.SECURITY_OFFICER,),
        "log",
        N_("Oversight"),
        N_("Every deed on record; search, verify, prove."),
    ),
    NavItem(
        "/emergencies",
        N_("Emergency reviews"),
        tuple(sorted(REVIEWERS)),
        "alert",
        N_("Oversight"),
        N_("Judge emergency access after the fact."),
    ),
)

ROUTES: Final[list[web.RouteDef]] = [
    *sign_in.ROUTES,
    *home.ROUTES,
    *studies.ROUTES,
    *viewer.ROUTES,
    *grades.ROUTES,
    *emergency.ROUTES,
    *consents.ROUTES,
    *care.ROUTES,
    *staff.ROUTES,
    *storage.ROUTES,
    *sign_ins.ROUTES,
    *devices.ROUTES,
    *keys.ROUTES,
    *log.ROUTES,
    *account.ROUTES,
]

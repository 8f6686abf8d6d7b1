"""The OpenAPI documents: every route and nothing else, in words that somebody can use."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp import web

from node.dicom import dicomweb
from node.web import api
from node.web.kit import make_app
from node.web.openapi import document

DOORS = {"/dicom-web/": dicomweb.ROUTES, "/api/": api.ROUTES}


def template(route: web.RouteDef) -> str:
    """The path of a route without the expressions of its parameters."""
    path, depth, out = route.path, 0, ""
    for at, step in enumerate(path):
        depth += (step == "{") - (path[at - 1] == "}" and at > 0)
        out += step
    while (shorter := re.sub(r"\{(\w+):(?:[^{}]|\{[^{}]*\})*\}", r"{\1}", out)) != out:
        out = shorter
    return out


@pytest.fixture(scope="module")
def app() -> web.Application:
    return make_app(routes=[*dicomweb.ROUTES, *api.ROUTES], services={})


@pytest.mark.requirement("F5", "F6")
@pytest.mark.parametrize("prefix", DOORS)
def test_the_document_equals_the_routes(app: web.Application, prefix: str) -> None:
    """No route is missing, none is made up."""
    found = document(app, prefix, "x")
    described = {(method.upper(), path) for path, methods in found["paths"].items() for method in methods}
    served = {(route.method, template(route)) for route in DOORS[prefix] if route.path.startswith(prefix)}

    assert described == served
    assert len(described) > 20


@pytest.mark.requirement("F5", "F6")
@pytest.mark.parametrize("prefix", DOORS)
def test_every_operation_can_be_understood(app: web.Application, prefix: str) -> None:
    """A summary, an id of its own, its path's parameters, what it answers, and how it fails."""
    found = document(app, prefix, "Title")
    ids: list[str] = []
    for path, methods in found["paths"].items():
        for operation in methods.values():
            ids.append(operation["operationId"])
            assert operation["summary"].endswith("."), path
            inside = [one for one in operation["parameters"] if one["in"] == "path"]
            assert [one["name"] for one in inside] == re.findall(r"\{(\w+)\}", path)
            assert all(re.compile(one["schema"]["pattern"]) for one in inside)
            assert "default" in operation["responses"]
            names = [one["name"] for one in operation["parameters"]]
            assert len(names) == len(set(names))

    assert len(ids) == len(set(ids))
    assert found["openapi"] == "3.1.0"
    assert found["info"]["title"] == "Title"


def references(part: Any) -> list[str]:
    """Every `$ref` inside."""
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [one for value in part.values() for one in references(value)]
    return [one for value in part for one in references(value)] if isinstance(part, list) else []


def test_every_reference_leads_somewhere(app: web.Application) -> None:
    """What the document points to is in it."""
    found = document(app, "/dicom-web/", "x")
    for reference in set(references(found)):
        part: Any = found
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
        assert part


def test_parameters_are_patterns_of_the_router(app: web.Application) -> None:
    """A UID's form and a nested address are told as the router checks them."""
    paths = document(app, "/dicom-web/", "x")["paths"]
    of_bulk = next(one for path, one in paths.items() if path.endswith("/bulkdata/{path}"))["get"][
        "parameters"
    ]
    patterns = {one["name"]: one["schema"]["pattern"] for one in of_bulk if one["in"] == "path"}

    assert patterns["study"] == "^[0-9.]{1,64}$"
    assert re.fullmatch(patterns["path"], "00081115/1/00420011")
    assert not re.fullmatch(patterns["path"], "00081115/1")

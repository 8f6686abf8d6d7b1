"""The code bundle of a run: our fixed server and client code as a Flower App Bundle, the same bytes everywhere.

A site never unpacks it: it hashes what came, and takes part only if that is the digest in the approved plan
*and* the digest of the bundle that its own installed code makes. So the digest that a site approves names the
code that runs there. The files are stored, not deflated, with a fixed date, so the bytes depend on nothing but
the sources. Needs no flwr; `flower` and its contract test say that Flower accepts it.
"""

from __future__ import annotations

import io
import zipfile
from functools import cache
from hashlib import sha256
from importlib.resources import files

FLOWER_VERSION = "1.41.0"
DATE = (1980, 1, 1, 0, 0, 0)
SOURCES = (
    "client_app.py",
    "confinement.py",
    "dataset.py",
    "egress.py",
    "networks.py",
    "plans.py",
    "runner.py",
    "sealed.py",
    "server_app.py",
    "strategy.py",
    "tasks.py",
    "trainer.py",
    "wording.py",
)
"""The modules whose text decides what a run computes, asks and lets out."""

_PROJECT = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "accord-learning"
version = "1.0.0"
description = "Federated training by declarative plans"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={FLOWER_VERSION},<1.42"]

[tool.flwr.app]
publisher = "accord"
fab-format-version = 1
flwr-version-target = "{FLOWER_VERSION}"

[tool.flwr.app.components]
serverapp = "learning.server_app:app"
clientapp = "learning.client_app:app"

[tool.flwr.app.config]
run = ""
plan = ""
"""
_LICENSE = (
    "This bundle carries the training code of an Accord node, for identification. It is not run from here.\n"
)


@cache
def bundle() -> bytes:
    """The bundle's bytes."""
    source = files("learning")
    contents = {"LICENSE": _LICENSE.encode(), "learning/__init__.py": b""}
    contents |= {f"learning/{name}": source.joinpath(name).read_bytes() for name in SOURCES}
    contents = {"pyproject.toml": _PROJECT.encode()} | dict(sorted(contents.items()))
    manifest = "\n".join(
        f"{name},{sha256(data).hexdigest()},{len(data) * 8}" for name, data in contents.items()
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (contents | {".info/CONTENT": manifest.encode()}).items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


@cache
def bundle_digest() -> str:
    """SHA-256 of the bundle, hex: the `app` of every plan that this installation may run."""
    return sha256(bundle()).hexdigest()

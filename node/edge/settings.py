"""Settings of an edge agent: `edge.toml`, every key explained in the file itself.

Holds the model, the reader and the writer. Relative paths are relative to the file's folder. A broken file is Invalid and
the message names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from consent.errors import Invalid
from node.access.devices import check_ae_title
from node.config import Port
from node.settings_file import Section, SettingsFile, words_of

FILE_NAME = "edge.toml"
GIB = 1024**3


class EdgeSection(Section):
    ae_title: str


class ListenSection(Section):
    port: Port = 11112
    ae_title: str


class NodeSection(Section):
    ae_title: str
    host: str = ""
    port: Port = 2762
    discover: str = ""


class SpoolSection(Section):
    max_bytes: int = Field(20 * GIB, ge=1024**2, le=16 * 1024 * GIB)


class ForwardSection(Section):
    retry_seconds: float = Field(60.0, gt=0, le=3600)
    commit_seconds: float = Field(60.0, gt=0, le=3600)


class EdgeSettings(Section):
    """Everything in `edge.toml`; `folder` is where it lies."""

    edge: EdgeSection
    listen: ListenSection
    node: NodeSection
    spool: SpoolSection = SpoolSection()
    forward: ForwardSection = ForwardSection()
    folder: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for title in (self.edge.ae_title, self.listen.ae_title, self.node.ae_title):
            try:
                check_ae_title(title)
            except Invalid as error:
                raise ValueError(error.message) from error
        if not self.node.host and not self.node.discover:
            raise ValueError("name the node's host, or the interface on which to discover it")
        return self

    @property
    def keys(self) -> Path:
        """The folder of the agent's keys."""
        return self.folder / "keys"

    @property
    def spool_key(self) -> Path:
        return self.keys / "spool.key"

    @property
    def agent_key(self) -> Path:
        return self.keys / "agent.key"

    @property
    def device_certificate(self) -> Path:
        return self.keys / "device.crt"

    @property
    def device_key(self) -> Path:
        return self.keys / "device.key"

    @property
    def node_authority(self) -> Path:
        return self.keys / "node.crt"

    @property
    def spool_folder(self) -> Path:
        return self.folder / "spool"

    @property
    def status_file(self) -> Path:
        return self.folder / "status.json"


def load_edge(folder: Path) -> EdgeSettings:
    """Read `edge.toml`. Raises NotFound or Invalid."""
    data = _FILE.read(folder, mend=f"Make an agent first: accord edge init {folder} --ae-title AET …")
    try:
        return EdgeSettings(**data, folder=folder.resolve())
    except ValidationError as error:
        raise _FILE.refused(folder, error) from error


def new_edge(folder: Path, **sections: Mapping[str, Any]) -> EdgeSettings:
    """Settings for a new folder, from what a command line gave. Raises Invalid, naming key and remedy."""
    try:
        return EdgeSettings(**sections, folder=folder.resolve())
    except ValidationError as error:
        raise Invalid(words_of(error), mend="Give another value.", code="bad-setting") from error


def write_edge(settings: EdgeSettings) -> Path:
    """Write a new `edge.toml`. Raises Conflict when one is there."""
    return _FILE.write(settings.folder, settings)


_FILE = SettingsFile(
    FILE_NAME,
    "Settings of this edge agent.",
    {
        "edge": "The device beside which this agent stands.",
        "listen": "Where the modality sends: plain DICOM on the loopback address and nowhere else.",
        "node": "The hospital's node, reached over DICOM TLS. Only its own certificate, under keys/node.crt, is trusted.",
        "spool": "What is kept, sealed, until the node has it.",
        "forward": "How the node is called.",
    },
    {
        "edge.ae_title": "The device's AE title, as it is registered at the node.",
        "listen.port": "TCP port on 127.0.0.1.",
        "listen.ae_title": "The AE title that the modality calls.",
        "node.ae_title": "The node's AE title.",
        "node.host": "Its address; '' to discover it.",
        "node.port": "Its port for DICOM over mutual TLS.",
        "node.discover": "Address of the interface on which the node's announcement is looked for (mDNS), or ''. A hint, never trust.",
        "spool.max_bytes": "How much may wait on this disk. When it is full the modality is told: out of resources.",
        "forward.retry_seconds": "The longest pause between two attempts to reach the node.",
        "forward.commit_seconds": "How long to wait for the node's word that instances are durable, before asking again.",
    },
)

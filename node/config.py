"""Settings of one node or hub: one TOML file, every key explained in the file itself.

Holds the model, the reader and the writer of `node.toml`. Relative paths are relative to the file's folder.
A broken file is Invalid and the message names the key and what is allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from consent.errors import Invalid
from node.settings_file import Section, SettingsFile, words_of
from node.vault.custody.credentials import check_source

FILE_NAME = "node.toml"
UID = re.compile(r"[0-9]+(\.[0-9]+)+")
NODE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,30}[a-z0-9]")
Port = Annotated[int, Field(ge=0, le=65535)]


class NodeSection(Section):
    id: str
    name: str = Field(min_length=1, max_length=120)
    ae_title: str = ""
    kind: Literal["hospital", "hub"] = "hospital"

    @field_validator("id")
    @classmethod
    def _id_is_a_slug(cls, value: str) -> str:
        if not NODE_ID.fullmatch(value):
            raise ValueError("use 2 to 32 of a-z, 0-9 and '-'")
        return value

    @field_validator("ae_title")
    @classmethod
    def _ae_title_fits(cls, value: str) -> str:
        # PS3.5 §6.2: AE is at most 16 characters of the default repertoire, no backslash or control codes.
        if len(value) > 16 or not value.isascii() or not value.isprintable() or "\\" in value:
            raise ValueError("an AE title has at most 16 printable ASCII characters and no backslash")
        return value.strip()


class StorageSection(Section):
    database: str = "sqlite+aiosqlite:///accord.db"
    packs: Path = Path("packs")
    roots: tuple[Path, ...] = Field((), max_length=9)
    quorum: int = Field(0, ge=0, le=9)
    scrub_days: float = Field(7.0, gt=0)
    deep_scrub_days: float = Field(30.0, gt=0)
    scrub_mib_per_second: float = Field(32.0, gt=0)
    refill_mib_per_second: float = Field(128.0, gt=0)


class KeysSection(Section):
    credential_file: Path = Path("secrets/root.credential")
    keystore: Path = Path("keystore.json")


class CustodySection(Section):
    kind: Literal["keystore", "pkcs11", "vault"] = "keystore"
    credential: str = ""
    wait_seconds: float = Field(10.0, gt=0, le=120.0)
    pkcs11_module: str = ""
    pkcs11_token: str = ""
    pkcs11_key: str = "accord-root"
    pkcs11_mechanism: Literal["", "gcm", "kwp"] = ""
    vault_url: str = ""
    vault_mount: str = "transit"
    vault_key: str = "accord-root"
    vault_namespace: str = ""
    vault_authorities: str = ""
    two_person_keystore: str = ""

    @field_validator("credential")
    @classmethod
    def _credential_is_a_source(cls, value: str) -> str:
        return check_source(value)

    @field_validator("vault_url")
    @classmethod
    def _vault_is_reached_safely(cls, value: str) -> str:
        if value and not value.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise ValueError("use https://; http only for an agent on this machine (127.0.0.1)")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _a_kind_has_what_it_needs(self) -> Self:
        needed = {
            "pkcs11": ("pkcs11_module", "pkcs11_token", "credential"),
            "vault": ("vault_url", "credential"),
        }
        missing = [name for name in needed.get(self.kind, ()) if not getattr(self, name)]
        if missing:
            raise ValueError(f"kind {self.kind!r} needs {', '.join(missing)}")
        return self


class HttpSection(Section):
    host: str = "127.0.0.1"
    port: Port = 8443
    names: tuple[str, ...] = ("localhost", "127.0.0.1")


class DicomSection(Section):
    host: str = "127.0.0.1"
    port: Port = 2762
    plain_port: Port = 11112
    max_associations: int = Field(64, ge=1, le=4096)
    max_operations: int = Field(4, ge=1, le=64)
    private_sop_classes: tuple[str, ...] = ()

    @field_validator("private_sop_classes")
    @classmethod
    def _are_uids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for uid in value:
            if len(uid) > 64 or not UID.fullmatch(uid) or uid.startswith("1.2.840.10008."):
                raise ValueError("give UIDs of private SOP classes; the standard's are known")
        return value


class PeerSection(Section):
    host: str = "127.0.0.1"
    port: Port = 8444
    url: str = ""


class MetricsSection(Section):
    host: str = "127.0.0.1"
    port: Port = 0


class DiscoverySection(Section):
    enabled: bool = False
    interface: str = "127.0.0.1"


class LearningSection(Section):
    enabled: bool = False


class IntervalsSection(Section):
    roster_seconds: float = Field(300.0, gt=0)
    checkpoint_seconds: float = Field(10.0, gt=0)
    sweep_seconds: float = Field(30.0, gt=0)
    report_seconds: float = Field(60.0, gt=0)


class PolicySection(Section):
    lease_seconds: float = Field(900.0, gt=0, le=900.0)
    grant_default_hours: float = Field(24.0, gt=0, le=720.0)
    kek_max_age_days: float = Field(90.0, ge=1.0, le=90.0)
    restricted_kek_max_age_days: float = Field(30.0, ge=1.0, le=30.0)
    grade_rules: tuple[str, ...] = ()

    @field_validator("grade_rules")
    @classmethod
    def _grade_rules_can_be_read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from consent.policy import GradeRule  # with the rules' engine, which most commands need not load

        for text in value:
            try:
                GradeRule.parse(text)
            except Invalid as error:
                raise ValueError(str(error)) from error
        return value


class Settings(Section):
    """Everything that `node.toml` can say."""

    node: NodeSection
    storage: StorageSection = StorageSection()
    keys: KeysSection = KeysSection()
    custody: CustodySection = CustodySection()
    http: HttpSection = HttpSection()
    dicom: DicomSection = DicomSection()
    peer: PeerSection = PeerSection()
    metrics: MetricsSection = MetricsSection()
    discovery: DiscoverySection = DiscoverySection()
    learning: LearningSection = LearningSection()
    intervals: IntervalsSection = IntervalsSection()
    policy: PolicySection = PolicySection()
    folder: Path = Path()

    def path(self, relative: Path) -> Path:
        """A path of the file, made absolute against its folder."""
        return relative if relative.is_absolute() else self.folder / relative

    @property
    def storage_roots(self) -> tuple[Path, ...]:
        """The folders that hold the packs: several copies, or one."""
        return tuple(self.path(root) for root in self.storage.roots or (self.storage.packs,))

    @property
    def database_url(self) -> str:
        """The database URL with a relative SQLite file placed in the folder."""
        scheme, _, rest = self.storage.database.partition(":///")
        if scheme.startswith("sqlite") and not rest.startswith("/"):
            return f"{scheme}:///{self.folder / rest}"
        return self.storage.database

    @property
    def peer_url(self) -> str:
        """Where other members reach this node."""
        return self.peer.url or f"https://{self.peer.host}:{self.peer.port}"


def load_settings(folder: Path) -> Settings:
    """Read `folder/node.toml`. Raises NotFound or Invalid, naming file, key and remedy."""
    data = _FILE.read(folder, mend=f"Make a node first: accord init {folder} --name NAME --ae-title AET")
    try:
        return Settings(**data, folder=folder.resolve())
    except ValidationError as error:
        raise _FILE.refused(folder, error) from error


def new_settings(folder: Path, **sections: Mapping[str, Any]) -> Settings:
    """Settings for a new folder, from what a command line gave. Raises Invalid, naming key and remedy."""
    try:
        return Settings(**sections, folder=folder.resolve())
    except ValidationError as error:
        raise Invalid(words_of(error), mend="Give another value.", code="bad-setting") from error


def write_settings(settings: Settings) -> Path:
    """Write a new `node.toml` with every key and what it is for; raises Conflict when one is there."""
    return _FILE.write(settings.folder, settings)


def changed_settings(folder: Path, changes: Mapping[str, object]) -> str:
    """The text of `node.toml` with other values for some keys (`section.key`). Raises Invalid for one not allowed."""
    load_settings(folder)
    text = _FILE.changed(folder, changes)
    read_settings(text, folder)
    return text


def replace_settings(folder: Path, text: str) -> None:
    """Put `text` in the place of `node.toml`, whole and durably."""
    _FILE.replace(folder, text)


def read_settings(text: str, folder: Path) -> Settings:
    """Settings from the text of a `node.toml`. Raises Invalid."""
    try:
        return Settings(**tomllib.loads(text), folder=folder.resolve())
    except ValidationError as error:
        raise _FILE.refused(folder, error) from error
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"This is not valid TOML: {error}.", code="bad-toml") from error


SECTION_WORDS = {
    "node": "Who this node is.",
    "storage": "Where sealed studies and the database lie.",
    "keys": "What opens the root key. Without it the disk is worth nothing to a thief, or to you.",
    "custody": "Who keeps the root key: the built-in keystore, a PKCS#11 token (HSM), or a Vault server's transit engine.",
    "http": "The listener for people: portal, DICOMweb, API. TLS 1.3.",
    "dicom": "The listeners for devices.",
    "peer": "The listener for other members. Mutual TLS, members of the roster only.",
    "metrics": "Prometheus metrics and health, without identifiers. Keep it off public networks.",
    "discovery": "Finding members on the local network by mDNS: a hint, never trust. Off by default.",
    "learning": "Federated training with Flower. Needs the extra: pip install accord-imaging[learning]",
    "intervals": "How often timed duties run, in seconds.",
    "policy": "What this hospital sets tighter than the region's policy.",
}

KEY_WORDS = {
    "node.id": "Short name among members: a-z, 0-9 and '-'. It is in every signature; do not change it later.",
    "node.name": "The hospital's name as people read it.",
    "node.ae_title": "The AE title that devices call (16 characters at most).",
    "node.kind": "'hospital', or 'hub' for the region's hub.",
    "storage.database": "Database URL. A relative SQLite file lies in this folder.",
    "storage.packs": "Folder of the sealed study packs, when there is one copy of them.",
    "storage.roots": "Folders of the copies, each best on a disk of its own; three are usual. Empty: one copy, in 'packs'.",
    "storage.quorum": "How many copies must be on the disk before an image is acknowledged; 0: more than half of the roots.",
    "storage.scrub_days": "How often every byte of every copy is read and checked.",
    "storage.deep_scrub_days": "How often every instance is also opened and held against its first digest, and the index against the packs.",
    "storage.scrub_mib_per_second": "How fast a scrub reads at most. A study counts at least 1 MiB.",
    "storage.refill_mib_per_second": "How fast a root that comes back is brought up to date at most.",
    "keys.credential_file": "File with the credential that opens the keystore. Best on another medium, or a systemd credential.",
    "keys.keystore": "The wrapped root key.",
    "custody.kind": "'keystore', 'pkcs11' or 'vault'. To change it in a node that has keys: accord keys move.",
    "custody.credential": "Where passphrase, PIN or token is: file:PATH, env:NAME, systemd:NAME or ask; never the secret itself. '' takes keys.credential_file.",
    "custody.wait_seconds": "How long a token or server may take to answer (120 at most).",
    "custody.pkcs11_module": "The token's driver, a shared library of its maker.",
    "custody.pkcs11_token": "The token's label.",
    "custody.pkcs11_key": "The label of the AES-256 key in the token.",
    "custody.pkcs11_mechanism": "'gcm', 'kwp', or '' for the first of them that the token offers.",
    "custody.vault_url": "Address of the Vault server (https://…).",
    "custody.vault_mount": "Where its transit engine is mounted.",
    "custody.vault_key": "The name of the transit key (aes256-gcm96).",
    "custody.vault_namespace": "Its namespace, where it has such.",
    "custody.vault_authorities": "PEM file of who may vouch for the server; '' takes the system's.",
    "custody.two_person_keystore": "Keystore of grade 'restricted' that two people unlock; '' leaves the grade under the root key above. Made by: accord keys two-person.",
    "http.host": "Address to listen on.",
    "http.port": "TCP port; 0 closes this listener.",
    "http.names": "Names and addresses by which browsers reach this node; they go into its certificate.",
    "dicom.host": "Address to listen on.",
    "dicom.port": "Port for DICOM over mutual TLS (2762 is the registered one); 0 closes it.",
    "dicom.plain_port": "Port for devices registered as plain, each with a reason; 0 closes it.",
    "dicom.max_associations": "Associations open at once, over all devices.",
    "dicom.max_operations": "Operations under way at once on one association, where the peer negotiates an asynchronous window.",
    "dicom.private_sop_classes": "UIDs of private SOP classes that are stored too, as sent.",
    "peer.host": "Address to listen on.",
    "peer.port": "TCP port; 0 closes this listener.",
    "peer.url": "Address other members use, when it differs from host and port (https://…).",
    "metrics.host": "Address to listen on.",
    "metrics.port": "TCP port; 0 closes this listener.",
    "discovery.enabled": "true announces this node and looks for others.",
    "discovery.interface": "Address of the one interface to use.",
    "learning.enabled": "true lets this node take part in approved training runs.",
    "intervals.roster_seconds": "How often the roster is refreshed: the longest that a suspended member goes on.",
    "intervals.checkpoint_seconds": "How often the log's checkpoint is signed and shown to witnesses.",
    "intervals.sweep_seconds": "How often held copies are checked against their grants.",
    "intervals.report_seconds": "How often counters go to the hub.",
    "policy.lease_seconds": "How long released keys open a shared copy (900 at most): how long access lasts when A and B cannot talk.",
    "policy.grant_default_hours": "How long a grant lasts when nobody says otherwise.",
    "policy.kek_max_age_days": "Age at which the key-encryption keys of grades ordinary and sensitive are replaced (90 at most).",
    "policy.restricted_kek_max_age_days": "The same for grade restricted (30 at most).",
    "policy.grade_rules": 'Further rules for a study\'s grade, such as "restricted: department=STAFF HEALTH"; of several the highest counts. Properties: modality, body_part, department, flag.',
}

_FILE = SettingsFile(FILE_NAME, "Settings of this node.", SECTION_WORDS, KEY_WORDS)

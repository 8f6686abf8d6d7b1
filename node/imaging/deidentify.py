"""De-identification for research: PS3.15 Annex E, driven by Table E.1-1 as data.

`Deidentifier.apply` takes data set bytes and returns a new data set or a refusal with its reason. Default
deny: what the table does not name stays only when it is technical (numbers, code strings) or on a list of
controlled terms. The same rules hold at every depth. UIDs, pseudonyms and date shifts are keyed by the
project: consistent inside it, unlinkable without its key. What the engine cannot make safe by rule it
refuses. Last, the written bytes are searched for the input's own identifiers; any hit is a refusal.

Not done here: burned-in pixels (instances that may have them are refused), safe private elements, graphics,
structured reports. Parsing is pydicom's: run it in a confined process for files from outside.
"""

from __future__ import annotations

import hmac
import re
from datetime import datetime, timedelta
from hashlib import sha256

from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, UID_dictionary

from consent.errors import AccordError, Invalid
from node.imaging.codestream import without_comments
from node.imaging.confidentiality import (
    BASIC_METHOD,
    DATE_VRS,
    EDITION,
    FREE_TEXT_VRS,
    KEPT_TEXT,
    OPTION_METHODS,
    Action,
    Method,
    Option,
    action_for,
)
from node.imaging.decode import read_dataset
from node.imaging.deidentified import DeidentifiedInstance, Refusal
from node.imaging.reidentification import Refused, known_terms, refuse_unsafe, search_for_leaks

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
REWRITTEN_SYNTAXES = frozenset({"1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
"""Big endian and deflated data sets are written back as explicit little endian."""

MAX_DEPTH = 32
MAX_SHIFT_WEEKS = 520
DUMMY_TEXT = "REMOVED"
BINARY_VRS = frozenset({"OB", "OW", "OB or OW", "OL", "OV"})
BINARY_GROUPS = frozenset({0x0028, 0x5400, 0x0066})
"""Look-up tables, waveforms and surfaces; binary values elsewhere could hold anything and go."""
_DUMMIES: dict[str, str] = {"DA": "19000101", "DT": "19000101000000", "TM": "000000", "AS": "000Y"}


class Deidentifier:
    """The engine for one project. `project_key` is at least 16 secret bytes held by the node."""

    def __init__(self, project_key: bytes, options: frozenset[Option] = frozenset()) -> None:
        if len(project_key) < 16:
            raise ValueError("a project key has at least 16 bytes")
        if options >= {Option.RETAIN_FULL_DATES, Option.MODIFIED_DATES}:
            # PS3.15 E.3.6: Retain Longitudinal Temporal Information is the one or the other.
            raise Invalid(
                f"{Option.RETAIN_FULL_DATES} and {Option.MODIFIED_DATES} exclude each other.",
                mend="Choose one of them.",
                code="options",
            )
        self._key = project_key
        self._options = options

    def apply(self, dataset: bytes, transfer_syntax: str) -> DeidentifiedInstance | Refusal:
        """De-identify one instance given as data set bytes (no file meta)."""
        try:
            original = read_dataset(dataset, transfer_syntax)
            refuse_unsafe(original, self._options)
            return self._rewrite(original, transfer_syntax)
        except Refused as refused:
            return refused.refusal
        except AccordError as error:
            return Refusal(error.code, error.message)
        except RecursionError:
            return Refusal("too-deep", "Its sequences are nested too deeply.")
        except Exception as error:  # whatever a parser says about a broken file, the file is not let through
            return Refusal("unreadable", f"It cannot be read and written back ({type(error).__name__}).")

    def _rewrite(self, original: Dataset, transfer_syntax: str) -> DeidentifiedInstance:
        pass_ = _Pass(self._key, self._options, str(original.get("PatientID", "")))
        result = pass_.dataset(original, depth=0)
        _keep_pixels(result, original, transfer_syntax)
        pseudonym = pass_.pseudonym()
        result.PatientID = pseudonym
        result.PatientName = pseudonym
        _say_what_was_done(result, self._options)
        syntax = EXPLICIT_LITTLE if transfer_syntax in REWRITTEN_SYNTAXES else transfer_syntax
        data = _write(result, syntax)
        search_for_leaks(data, original, self._options)
        return DeidentifiedInstance(
            data,
            syntax,
            str(result.SOPClassUID),
            str(result.SOPInstanceUID),
            str(result.SeriesInstanceUID),
            str(result.StudyInstanceUID),
            pseudonym,
            tuple(pass_.actions),
        )


class _Pass:
    """One walk through one data set: builds the new data set item by item and notes each action."""

    def __init__(self, key: bytes, options: frozenset[Option], patient_id: str) -> None:
        self._key = key
        self._options = options
        self._patient_id = patient_id
        self.actions: list[tuple[str, Action]] = []

    def dataset(self, source: Dataset, depth: int) -> Dataset:
        if depth > MAX_DEPTH:
            raise Refused("too-deep", f"Its sequences are nested more than {MAX_DEPTH} deep.")
        target = Dataset()
        for element in source:
            kept = self._element(element, depth)
            if kept is not None:
                target[element.tag] = kept
        # Every string was decoded; UTF-8 writes all of them back.
        if "SpecificCharacterSet" in source:
            target.SpecificCharacterSet = "ISO_IR 192"
        return target

    def _element(self, element: DataElement, depth: int) -> DataElement | None:
        tag, group = int(element.tag), element.tag.group
        if group % 2 or group < 0x0008 or 0x5000 <= group <= 0x501E or 0x6000 <= group <= 0x601E:
            return self._note(element, Action.REMOVE, None)
        if element.tag in (0x7FE00008, 0x7FE00009, 0x7FE00010) and depth == 0:
            return None  # the pixels are put back by themselves
        if element.VR == "UN" or group == 0x7FE0 or (element.VR in BINARY_VRS and group not in BINARY_GROUPS):
            return self._note(element, Action.REMOVE, None)
        action = action_for(tag, self._options) or self._unlisted(element)
        if Option.RETAIN_UIDS in self._options and element.VR == "UI":
            action = Action.KEEP
        return self._carry_out(action, element, depth)

    def _unlisted(self, element: DataElement) -> Action:
        vr = str(element.VR)
        if vr == "UI":
            return Action.UID
        if vr in FREE_TEXT_VRS:
            return Action.KEEP if element.keyword in KEPT_TEXT else Action.EMPTY
        if vr in DATE_VRS:
            if Option.RETAIN_FULL_DATES in self._options:
                return Action.KEEP
            return Action.CLEAN if Option.MODIFIED_DATES in self._options else Action.EMPTY
        return Action.KEEP

    def _carry_out(self, action: Action, element: DataElement, depth: int) -> DataElement | None:
        if element.VR == "SQ":
            return self._sequence(action, element, depth)
        match action:
            case Action.KEEP:
                return element
            case Action.REMOVE:
                return self._note(element, action, None)
            case Action.EMPTY:
                return self._note(element, action, DataElement(element.tag, element.VR, None))
            case Action.UID:
                return self._note(element, action, self._uids(element))
            case Action.CLEAN:
                return self._note(element, action, self._clean(element))
            case Action.DUMMY:
                return self._note(element, action, self._dummy(element))

    def _sequence(self, action: Action, element: DataElement, depth: int) -> DataElement | None:
        if action is Action.REMOVE:
            return self._note(element, action, None)
        if action is Action.EMPTY:
            return self._note(element, action, DataElement(element.tag, "SQ", Sequence()))
        items = Sequence([self.dataset(item, depth + 1) for item in element.value or ()])
        return DataElement(element.tag, "SQ", items)

    def _uids(self, element: DataElement) -> DataElement:
        values = element.value if element.VM > 1 else [element.value]
        mapped = [self.uid(str(value)) if value else "" for value in values]
        return DataElement(element.tag, "UI", mapped if element.VM > 1 else mapped[0])

    def uid(self, uid: str) -> str:
        """Standard UIDs stay; every other becomes 2.25.<128 bits of HMAC> (PS3.5 B.2)."""
        if uid in UID_dictionary or uid.startswith("1.2.840.10008."):
            return uid
        return f"2.25.{int.from_bytes(self._mac(b'uid', uid)[:16], 'big')}"

    def pseudonym(self) -> str:
        """The patient's name within the project."""
        return "P-" + self._mac(b"patient", self._patient_id).hex()[:16].upper()

    def _clean(self, element: DataElement) -> DataElement:
        if str(element.VR) in DATE_VRS:
            values = element.value if element.VM > 1 else [element.value]
            shifted = [self._shift(str(value), str(element.VR)) for value in values if value]
            return DataElement(
                element.tag, element.VR, shifted if element.VM > 1 else shifted[0] if shifted else None
            )
        if str(element.VR) in FREE_TEXT_VRS:
            return DataElement(element.tag, element.VR, _known_words(str(element.value or "")))
        return DataElement(element.tag, element.VR, None)

    def _shift(self, value: str, vr: str) -> str:
        """Move a date by whole weeks, the same for every date of a patient in the project; TM is left."""
        if vr == "TM":
            return value
        weeks = 1 + int.from_bytes(self._mac(b"shift", self._patient_id)[:4], "big") % MAX_SHIFT_WEEKS
        try:
            moved = datetime.strptime(value[:8], "%Y%m%d") - timedelta(weeks=weeks)  # noqa: DTZ007 - a DICOM date has no zone
        except ValueError:
            return ""
        rest = value[8:] if re.fullmatch(r"[0-9.+-]*", value[8:]) else ""
        return f"{moved:%Y%m%d}{rest if vr == 'DT' else ''}"

    def _dummy(self, element: DataElement) -> DataElement:
        vr = str(element.VR)
        if vr == "UI":
            return self._uids(element)
        if vr == "PN":
            return DataElement(element.tag, vr, self.pseudonym())
        if vr in FREE_TEXT_VRS:
            return DataElement(element.tag, vr, DUMMY_TEXT)
        if vr in _DUMMIES:
            return DataElement(element.tag, vr, _DUMMIES[vr])
        if vr in ("IS", "DS", "US", "SS", "UL", "SL", "FL", "FD", "SV", "UV"):
            return DataElement(element.tag, vr, 0)
        return DataElement(element.tag, vr, None)

    def _mac(self, purpose: bytes, text: str) -> bytes:
        return hmac.digest(self._key, b"accord/deid/v1|" + purpose + b"|" + text.strip().encode(), "sha256")

    def _note(self, element: DataElement, action: Action, result: DataElement | None) -> DataElement | None:
        self.actions.append((f"{element.tag.group:04X}{element.tag.element:04X}", action))
        return result


def project_key(secret: bytes, project: str) -> bytes:
    """The key of one project, derived from the node's secret."""
    return hmac.digest(secret, b"accord/deid/project|" + project.encode(), sha256)


def _keep_pixels(target: Dataset, source: Dataset, transfer_syntax: str) -> None:
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in source:
            target[keyword] = source[keyword]
    if "PixelData" not in source:
        return
    element = source["PixelData"]
    if not UID(transfer_syntax).is_encapsulated:
        expected = _expected_bytes(source)
        value = element.value[: expected + expected % 2] if expected else element.value
        target.add(DataElement(element.tag, element.VR, value))
        return
    frames = int(source.get("NumberOfFrames") or 1)
    cleaned = [
        without_comments(frame, transfer_syntax)
        for frame in generate_frames(element.value, number_of_frames=frames)
    ]
    replaced = DataElement(element.tag, "OB", encapsulate(cleaned))
    replaced.is_undefined_length = True
    target.add(replaced)


def _expected_bytes(dataset: Dataset) -> int:
    """Bytes that the pixel description accounts for; what trails is not pixels and goes."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        samples = 2
    return (rows * columns * samples * bits * frames + 7) // 8


def _say_what_was_done(dataset: Dataset, options: frozenset[Option]) -> None:
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"{EDITION} Table E.1-1"
    methods = [
        BASIC_METHOD,
        *(OPTION_METHODS[option] for option in sorted(options) if option in OPTION_METHODS),
    ]
    dataset.DeidentificationMethodCodeSequence = Sequence([_code(method) for method in methods])
    dates = "UNMODIFIED" if Option.RETAIN_FULL_DATES in options else "REMOVED"
    if Option.MODIFIED_DATES in options and dates == "REMOVED":
        dates = "MODIFIED"
    dataset.LongitudinalTemporalInformationModified = dates
    if "PixelData" in dataset:
        dataset.BurnedInAnnotation = "NO"


def _code(method: Method) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = method.value, "DCM", method.meaning
    return code


def _write(dataset: Dataset, transfer_syntax: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = transfer_syntax == "1.2.840.10008.1.2"
    write_dataset(buffer, dataset, parent_encoding=default_encoding)
    return bytes(buffer.getvalue())


def _known_words(text: str) -> str:
    kept = [
        word
        for word in re.split(r"[^\w+-]+", text)
        if word.lower() in known_terms() or re.fullmatch(r"\d{1,3}", word)
    ]
    return " ".join(kept)

"""Read FHIR `Consent` of R4 and R5 as changes of the store.

Source: HL7 FHIR R4 (4.0.1) and R5 (5.0.0), resource Consent; HL7 v3 PurposeOfUse
    (http://terminology.hl7.org/CodeSystem/v3-ActReason).

What the store cannot keep is never rounded up. A permit that is narrower than a purpose (for one
actor, some data, one kind of research) is refused; a deny that is narrower denies all of it. A
resource that says permit and deny of one purpose denies it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from qinjing.data.consent.record import PURPOSES, Change, Decision, span_of
from qinjing.errors import ConfigError, FormatError

Version = Literal["R4", "R5"]

OWN = "urn:qinjing:purpose"
ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
_ACT_REASONS = (ACT_REASON, "http://hl7.org/fhir/v3/ActReason", "")
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
SCOPE = "http://terminology.hl7.org/CodeSystem/consentscope"
CODES = {"care": "TREAT", "research": "HRESCH", "commercial": "HMARKT"}
# Narrower than the purpose: enough to deny it, not to permit it.
_PARTS = {
    **dict.fromkeys(("ETREAT", "CAREMGT", "CLINTRT", "BTG", "ERTREAT", "POPHLTH"), "care"),
    **dict.fromkeys(("BIORCH", "CLINTRCH", "CLINTRCHNPC", "CLINTRCHPC", "PRECLINTRCH", "DSRCH",
                     "POARCH", "TRANSRCH"), "research"),
}  # fmt: skip
_SCOPES = {"research": "research", "treatment": "care"}
_BASES: dict[str, Decision] = {"OPTIN": "permit", "OPTOUT": "deny"}  # codespell:ignore
_NARROWING = ("actor", "class", "code", "data", "dataPeriod", "documentType", "expression",
              "resourceType", "securityLabel")  # fmt: skip
_USES = ("access", "use")
_PATIENT = re.compile(r"(?:.*/)?Patient/([^/]+)(?:/_history/[^/]+)?")
_ENDED = ("inactive", "entered-in-error")
_UNDECIDED = ("draft", "proposed", "not-done", "unknown")


@dataclass(frozen=True)
class Said:
    """What one resource says.

    Attributes:
        changes: a change for each purpose that it decides.
        ended: its status takes back what it gave: None where it does not, else the status.
    """

    changes: tuple[Change, ...]
    ended: str | None = None


@dataclass(frozen=True)
class _Rule:
    decision: Decision
    purposes: frozenset[str]
    start: datetime | None
    end: datetime | None


def read_resource(resource: Any, recorded_by: str, at: datetime) -> Said:
    """Read one `Consent`.

    Args:
        resource: its JSON content.
        recorded_by: who imports it.
        at: now, for what bears no date.

    Raises:
        FormatError: no Consent of the standard.
        ConfigError: one that decides nothing, or what the store cannot keep. No sentence repeats
            a value that could name a patient.
    """
    version = _checked(resource)
    status = resource["status"]
    if status in _UNDECIDED:
        raise ConfigError("status", "one that decides: active, inactive or rejected", status)
    if status not in ("active", "rejected", *_ENDED):
        raise ConfigError("status", "one of the standard", "another")
    patient = _patient(resource.get("patient" if version == "R4" else "subject"))
    when = _span(resource.get("dateTime" if version == "R4" else "date"))
    content = {name: value for name, value in resource.items() if name not in ("meta", "text")}
    named = f"Consent/{resource['id']}" if resource.get("id") else "Consent"
    line = json.dumps(content, sort_keys=True, separators=(",", ":"))
    sha256 = hashlib.sha256(line.encode()).hexdigest()

    def change(purpose: str, rule: _Rule) -> Change:
        # Of a day without an hour a permit is its first moment and a deny its last.
        day = when[0] if rule.decision == "permit" else when[1]
        decided = min(day or at, at)
        return Change(
            patient, purpose, rule.decision, decided, rule.start, rule.end, named, sha256,
            recorded_by,
        )  # fmt: skip

    if status != "active":
        purposes = _mentioned(resource) or frozenset(PURPOSES)
        deny = _Rule("deny", purposes, None, None)
        changes = tuple(change(purpose, deny) for purpose in sorted(purposes))
        return Said(changes, status if status in _ENDED else None)
    rules = list(_rules_r4(resource) if version == "R4" else _rules_r5(resource))
    decided: dict[str, _Rule] = {}
    for rule in rules:
        for purpose in rule.purposes:
            before = decided.get(purpose)
            if before and before != rule and "deny" not in (before.decision, rule.decision):
                raise ConfigError(f"permits for {purpose}", "of one period", "several")
            if before is None or rule.decision == "deny":
                decided[purpose] = rule
    if not decided:
        raise ConfigError(
            "Consent", "for a purpose that is known, and permit or deny it", "neither",
            advice=f"name it by TREAT, HRESCH or HMARKT, or in the system {OWN}",
        )  # fmt: skip
    return Said(tuple(change(purpose, rule) for purpose, rule in sorted(decided.items())))


def _checked(resource: Any) -> Version:
    """The version by which a resource holds to the standard.

    Raises:
        FormatError: none.
        ConfigError: it has parts that whoever does not know them must not pass over.
    """
    from pydantic import ValidationError

    if not isinstance(resource, dict) or resource.get("resourceType") != "Consent":
        raise FormatError("resource", "a Consent", "another")
    is_r5 = {"subject", "decision"} & set(resource) or isinstance(resource.get("provision"), list)
    version: Version = "R5" if is_r5 else "R4"
    try:
        models(version)[0].model_validate(resource)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "resource"
        # The message may repeat what was given, which may be a name; its kind does not.
        raise FormatError(place, f"as FHIR {version} has it", first["type"]) from None
    if resource.get("implicitRules") or _has_modifier(resource):
        raise ConfigError("Consent", "without modifying extensions", "one that has them")
    return version


def _has_modifier(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("modifierExtension")) or any(map(_has_modifier, value.values()))
    return isinstance(value, list) and any(map(_has_modifier, value))


def _patient(reference: Any) -> str:
    """Who a reference means: what follows "Patient/", or the value of an identifier."""
    reference = reference or {}
    match = _PATIENT.fullmatch(str(reference.get("reference") or ""))
    patient = match[1] if match else (reference.get("identifier") or {}).get("value")
    if not patient:
        raise ConfigError("patient", "a reference Patient/ID, or an identifier", "another thing")
    return str(patient)


def _rules_r4(resource: Mapping[str, Any]) -> Iterator[_Rule]:
    """The root's rule, then the nested ones: each says itself whether it permits."""
    root = resource.get("provision") or {}
    base = _decision(root) or next(
        (_BASES[code] for system, code in _codings(resource.get("policyRule"))
         if system == ACT_CODE and code in _BASES), None)  # fmt: skip
    about = _about(resource)
    span = _period(root, (None, None))
    purposes = _purposes(root, base) if root.get("purpose") else _of_base(base, root, about)
    if base and purposes:
        yield _rule(root, base, purposes, span)

    def nested(parent: Mapping[str, Any], above: frozenset[str], span: _Span) -> Iterator[_Rule]:
        for one in parent.get("provision") or ():
            decision, own = _decision(one), _period(one, span)
            if decision is None:
                raise ConfigError("nested provision", "of a type, permit or deny", "none")
            purposes = _purposes(one, decision) if one.get("purpose") else above
            if purposes:
                yield _rule(one, decision, purposes, own)
            yield from nested(one, purposes, own)

    yield from nested(root, purposes or about, span)


def _rules_r5(resource: Mapping[str, Any]) -> Iterator[_Rule]:
    """The base decision, then exceptions from it, each level the opposite of the one above."""
    base = _decision(resource, "decision")
    if base is None:
        raise ConfigError("decision", "permit or deny", "none")
    about = _about(resource)
    span = _period(resource, (None, None))
    provisions = resource.get("provision") or ()
    # A base that denies, with exceptions, is what every consent for one thing looks like: about
    # other purposes it says no more than having none does.
    if base == "permit" or not provisions:
        purposes = _of_base(base, {}, about)
        if purposes:
            yield _rule({}, base, purposes, span)

    def nested(provisions: Any, base: Decision, above: frozenset[str], span: _Span) -> Any:
        decision: Decision = "deny" if base == "permit" else "permit"
        for one in provisions or ():
            own = _period(one, span)
            purposes = _purposes(one, decision) if one.get("purpose") else above
            if purposes:
                yield _rule(one, decision, purposes, own)
            yield from nested(one.get("provision"), decision, purposes, own)

    yield from nested(provisions, base, about, span)


_Span = tuple[datetime | None, datetime | None]


def _of_base(
    base: Decision | None, root: Mapping[str, Any], about: frozenset[str]
) -> frozenset[str]:
    """What a rule without purposes is for: what the whole is about; a bare deny is for all."""
    if base == "deny" and root.get("provision"):  # its exceptions are what it is about
        return frozenset()
    return about if about or base != "deny" else frozenset(PURPOSES)


def _rule(
    provision: Mapping[str, Any], decision: Decision, purposes: frozenset[str], span: _Span
) -> _Rule:
    """A rule that the store can keep.

    Raises:
        ConfigError: a permit for a part only.
    """
    if decision == "permit":
        narrow = [name for name in _NARROWING if provision.get(name)]
        if narrow:
            raise ConfigError(
                "permit", "for all of its purpose, since a store keeps no parts",
                f"one that is limited by {', '.join(narrow)}",
            )  # fmt: skip
        actions = {code for one in provision.get("action") or () for _, code in _codings(one)}
        if provision.get("action") and not actions & set(_USES):
            raise ConfigError("permit", "to access or use", "another action")
    if decision == "permit" and span[0] and span[1] and span[0] >= span[1]:
        raise ConfigError("period", "one that ends after it begins", "another")
    return _Rule(decision, purposes, *(span if decision == "permit" else (None, None)))


def _decision(part: Mapping[str, Any], name: str = "type") -> Decision | None:
    word = part.get(name)
    if word is None or word == "permit" or word == "deny":
        return word
    raise ConfigError(name, "permit or deny", "another word")


def _purposes(provision: Mapping[str, Any], decision: Decision | None) -> frozenset[str]:
    """Purposes of a provision that are ours.

    Raises:
        ConfigError: a permit for a part of one.
    """
    found, parts = set(), set()
    for coding in provision.get("purpose") or ():
        system, code = coding.get("system") or "", coding.get("code") or ""
        if system == OWN and code in PURPOSES:
            found.add(code)
        elif system in _ACT_REASONS:
            found |= {purpose for purpose, known in CODES.items() if known == code}
            found |= set(PURPOSES) if code == "PurposeOfUse" and decision == "deny" else set()
            parts |= {_PARTS[code]} if code in _PARTS else set()
    if decision == "deny":
        return frozenset(found | parts)
    if parts - found:
        raise ConfigError(
            "permit", "for all of its purpose, since a store keeps no parts",
            f"one for a part of {sorted(parts - found)[0]}",
        )  # fmt: skip
    return frozenset(found)


def _mentioned(resource: Mapping[str, Any]) -> frozenset[str]:
    """Every purpose that a resource names, wherever it names it."""

    def walk(part: Any) -> Iterator[str]:
        for one in part if isinstance(part, list) else [part or {}]:
            yield from _purposes(one, "deny")
            if one.get("provision"):
                yield from walk(one["provision"])

    return frozenset(walk(resource.get("provision"))) | _about(resource)


def _about(resource: Mapping[str, Any]) -> frozenset[str]:
    """Purposes that scope (R4) or category (R5 has it there) name for the whole."""
    concepts = [resource.get("scope"), *(resource.get("category") or ())]
    return frozenset(
        _SCOPES[code]
        for concept in concepts
        for system, code in _codings(concept)
        if system == SCOPE and code in _SCOPES
    )


def _codings(concept: Any) -> list[tuple[str, str]]:
    codings = (concept or {}).get("coding") or ()
    return [(one.get("system") or "", one.get("code") or "") for one in codings]


def _period(part: Mapping[str, Any], otherwise: _Span) -> _Span:
    period = part.get("period")
    if not period:
        return otherwise
    return _span(period.get("start"))[0], _span(period.get("end"))[1]


def _span(text: Any) -> _Span:
    if text is None:
        return None, None
    try:
        if not isinstance(text, str):
            raise ValueError
        return span_of(text)
    except (ValueError, OverflowError):
        raise FormatError("date", "one of the standard", "another") from None


def models(version: Version) -> tuple[Any, Any]:
    """Return the classes of Consent and Bundle; R4's Consent is R4B's to the letter.

    Raises:
        ConfigError: the package is not there.
    """
    try:
        if version == "R4":
            from fhir.resources.R4B.bundle import Bundle
            from fhir.resources.R4B.consent import Consent
        else:
            from fhir.resources.bundle import Bundle  # type: ignore[assignment]
            from fhir.resources.consent import Consent  # type: ignore[assignment]
    except ImportError:
        raise ConfigError(
            "FHIR", "read with fhir.resources", "no such package",
            advice="pip install 'qinjing[consent]'",
        ) from None  # fmt: skip
    return Consent, Bundle

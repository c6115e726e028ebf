"""The commands that keep patients' consents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument
from qinjing.cli.record import output_argument, record
from qinjing.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime

PURPOSES = ("care", "research", "commercial", "federated", "export")

_PATIENT = argument(metavar="PATIENT", help="as the data set calls the patient")
_PURPOSES = argument(
    "--purpose", metavar="PURPOSE", choices=PURPOSES, help=f"of {', '.join(PURPOSES)}"
)
_BY = argument("--by", metavar="NAME", help="who records it, instead of this user")


@dataclass(frozen=True)
class ConsentImport(Command):
    """Record what FHIR R4 and R5 Consents say: single resources, Bundles or NDJSON."""

    files: tuple[Path, ...] = field(
        metadata=argument(metavar="FILE", there=True, help="JSON, or a resource a line in .ndjson")
    )
    by: str = field(default="", metadata=_BY)

    def run(self) -> dict[str, Any]:
        """Import; how many rows were recorded, and what was refused."""
        from qinjing.data.consent import Store
        from qinjing.data.consent.exchange import import_files

        with Store(create=True) as store:
            return vars(import_files(store, self.files, self.by))

    def text(self, result: Mapping[str, Any]) -> str:
        """How many of each."""
        return (
            f"{result['resources']} Consents read, {result['recorded']} rows recorded, "
            f"{result['unchanged']} Consents say nothing new, {len(result['refused'])} refused"
        )

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each resource that was refused."""
        return [f"refused {one.place}: {one.reason}" for one in result["refused"]]


@dataclass(frozen=True)
class ConsentExport(Command):
    """Write every standing consent as FHIR Consents, a Bundle or NDJSON."""

    output: Path = field(metadata=output_argument("FILE", "a Bundle, or .ndjson"))
    version: str = field(
        default="R4", metadata=argument("--version", choices=("R4", "R5"), help="of FHIR")
    )

    def run(self) -> dict[str, Any]:
        """Export; how many."""
        from qinjing.data.consent import Store
        from qinjing.data.consent.exchange import export_file

        with Store() as store:
            count, head = store.head()
            written = export_file(store, self.output, "R4" if self.version == "R4" else "R5")
        basis = f"store of {count} rows, head {head}"
        record(self, "consent export", {}, [self.output], basis)
        return {"output": str(self.output), "consents": written, "version": self.version}

    def text(self, result: Mapping[str, Any]) -> str:
        """How many, and where."""
        return f"{result['consents']} Consents ({result['version']}) in {result['output']}"


@dataclass(frozen=True)
class ConsentGrant(Command):
    """Record that a patient permits a purpose."""

    patient: str = field(metadata=_PATIENT)
    purposes: tuple[str, ...] = field(metadata=_PURPOSES)
    start: str | None = field(
        default=None,
        metadata=argument("--from", metavar="DATE", help="first day on which it holds"),
    )
    end: str | None = field(
        default=None, metadata=argument("--until", metavar="DATE", help="last day, month or year")
    )
    by: str = field(default="", metadata=_BY)

    def run(self) -> dict[str, Any]:
        """Append a row for each purpose."""
        start, end = _moment("--from", self.start, 0), _moment("--until", self.end, 1)
        return _append("permit", self.patient, self.purposes, start, end, self.by)

    def text(self, result: Mapping[str, Any]) -> str:
        """What was recorded."""
        return f"recorded: permit for {', '.join(result['purposes'])}"


@dataclass(frozen=True)
class ConsentWithdraw(Command):
    """Record that a patient permits a purpose no more, from now on."""

    patient: str = field(metadata=_PATIENT)
    purposes: tuple[str, ...] = field(metadata=_PURPOSES)
    by: str = field(default="", metadata=_BY)

    def run(self) -> dict[str, Any]:
        """Append a row for each purpose."""
        return _append("deny", self.patient, self.purposes, None, None, self.by)

    def text(self, result: Mapping[str, Any]) -> str:
        """What was recorded, and what to do about models."""
        return (
            f"recorded: deny for {', '.join(result['purposes'])}\n"
            "trainings leave the patient out from their next batch on; "
            "`qinjing consent affected` names the models that saw a case"
        )


@dataclass(frozen=True)
class ConsentShow(Command):
    """Count patients for each purpose, or tell all that one of them ever said."""

    patient: str | None = field(
        default=None, metadata=argument("--patient", metavar="PATIENT", help="this one's history")
    )

    def run(self) -> dict[str, Any]:
        """Look; counts, or rows."""
        from qinjing.data.consent import Store
        from qinjing.data.consent.record import columns, now

        with Store() as store:
            count, head = store.head()
            result: dict[str, Any] = {"store": store.name, "rows": count, "head": head}
            if self.patient is not None:
                return result | {"history": [columns(r) for r in store.history(self.patient)]}
            rows = store.current()
        purposes = {
            purpose: {
                "permitted": sum(own.permits(now()) for own in mine),
                "denied": sum(own.decision == "deny" for own in mine),
                "patients": len(mine),
            }
            for purpose in PURPOSES
            for mine in [[row for row in rows.values() if row.purpose == purpose]]
        }
        return result | {"purposes": purposes}

    def text(self, result: Mapping[str, Any]) -> str:
        """A line a purpose, or a line a row."""
        head = f"{result['store']}: {result['rows']} rows, head {result['head'] or 'none'}"
        if "history" in result:
            names = ("recorded", "purpose", "decision", "start", "end", "source", "recorded_by")
            return head + "\n" + show.table(names, [[_short(row[n]) for n in names]
                                                    for row in result["history"]])  # fmt: skip
        rows = [(k, v["permitted"], v["denied"], v["patients"] - v["permitted"] - v["denied"])
                for k, v in result["purposes"].items()]  # fmt: skip
        return f"{head}\n{show.table(('purpose', 'permitted now', 'denied', 'not now'), rows)}"


@dataclass(frozen=True)
class ConsentVerify(Command):
    """Walk the store's chain and name every row that is not as it was recorded."""

    known: tuple[str, ...] = field(
        default=(),
        metadata=argument(
            "--head", metavar="DIGEST", help="heads noted before, as evidence keeps them"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Verify; faults."""
        from qinjing.data.consent import Store

        with Store() as store:
            faults = store.verify(self.known)
            count, head = store.head()
        return {"verified": not faults, "rows": count, "head": head, "faults": faults}

    def text(self, result: Mapping[str, Any]) -> str:
        """The verdict; the faults follow on standard error."""
        verdict = (
            "verified" if result["verified"] else f"NOT verified: {len(result['faults'])} faults"
        )
        return f"{verdict}; {result['rows']} rows, head {result['head'] or 'none'}"

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each fault."""
        return list(result["faults"])


@dataclass(frozen=True)
class ConsentAffected(Command):
    """List every model that saw a case, or began from one that did."""

    case: str = field(metadata=argument(metavar="CASE", help="a case id"))
    folders: tuple[Path, ...] = field(
        metadata=argument("-i", "--input", metavar="FOLDER", there=True, help="to look below")
    )

    def run(self) -> dict[str, Any]:
        """Look; the models."""
        from qinjing.data.consent import affected

        return {
            "case": self.case,
            "models": [vars(one) for one in affected(self.case, self.folders)],
        }

    def text(self, result: Mapping[str, Any]) -> str:
        """A line a model."""
        rows = [
            (one["folder"], ", ".join(one["dataset"]), "; ".join(one["how"]),
             "yes" if one["signed"] else "NO")
            for one in result["models"]
        ]  # fmt: skip
        if not rows:
            return "no model below these folders saw it"
        return show.table(("model", "data set", "what it did with the case", "signed"), rows)


@dataclass(frozen=True)
class Unlearn(Command):
    """Make a run forget a case: train again, without it, only what had learnt from it."""

    model: Path = field(metadata=argument(metavar="RUN", there=True, help="a run folder"))
    case: str = field(metadata=argument(metavar="CASE", help="its id in the data set"))
    dataset: Path | None = field(
        default=None,
        metadata=argument(
            "-i", "--input", metavar="DATASET", there=True, help="where it lies now, if it moved"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Train again; what was done. The library leaves the evidence."""
        from qinjing.cli.watch import watch
        from qinjing.tasks.unlearn import UnlearnConfig, unlearn

        with watch() as tell:
            return unlearn(UnlearnConfig(self.model, self.case, self.dataset), tell)

    def text(self, result: Mapping[str, Any]) -> str:
        """What was trained again, and what that cost."""
        folds = ", ".join(map(str, result["retrained"])) or "none"
        return (
            f"forgotten: {result['case_id']}; folds trained again: {folds}, "
            f"{100 * result['share']:.0f} % of the run's steps, in {result['seconds']} s"
        )

    def after_stop(self) -> str:
        """How to go on after Ctrl-C."""
        return "give the same command again: the case is not forgotten before it ends"


def _append(
    decision: str,
    patient: str,
    purposes: tuple[str, ...],
    start: datetime | None,
    end: datetime | None,
    by: str,
) -> dict[str, Any]:
    from qinjing.data.consent import Change, Store
    from qinjing.data.consent.exchange import this_user
    from qinjing.data.consent.record import now

    who, word = by or this_user(), "permit" if decision == "permit" else "deny"
    wanted = sorted(set(purposes))
    changes = [
        Change(patient, purpose, word, now(), start, end, recorded_by=who)  # type: ignore[arg-type]
        for purpose in wanted
    ]
    with Store(create=True) as store:
        store.append(changes)
        _, head = store.head()
    return {"purposes": wanted, "decision": word, "head": head}


def _moment(option: str, text: str | None, which: int) -> datetime | None:
    from qinjing.data.consent.record import span_of

    if text is None:
        return None
    try:
        return span_of(text)[which]
    except (ValueError, OverflowError):
        raise ConfigError(option, "a date such as 2027-12-31", repr(text)) from None


def _short(value: Any) -> Any:
    return str(value)[:16].replace("T", " ") if str(value)[4:5] == "-" else value

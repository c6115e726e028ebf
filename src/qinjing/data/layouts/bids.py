"""BIDS: sub-XX[/ses-YY]/anat with label maps beside the images or under derivatives/.

Source: BIDS 1.10, "Imaging derivatives: segmentations" (suffixes dseg and mask).
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from qinjing.config import read_json
from qinjing.data.case import Case, Dataset
from qinjing.data.layouts import declaration as declared
from qinjing.data.layouts.files import image_files
from qinjing.data.layouts.patients import read_participants
from qinjing.data.readers import stem
from qinjing.errors import InputError, LayoutError

LABEL_SUFFIXES = ("dseg", "mask")  # the first that a session has is taken
NO_IMAGE = {*LABEL_SUFFIXES, "probseg", "defacemask", "xfm"}


def recognise(root: Path) -> bool:
    """Whether there is a folder sub-XX/anat or sub-XX/ses-YY/anat."""
    return root.is_dir() and bool(_sessions(root))


def open(root: Path) -> Dataset:
    """Open a BIDS folder: one case a session, one channel per kind of image that most have.

    Values get their names from a ``dseg.tsv`` where there is one.

    Raises:
        FormatError: participants.tsv is not a table.
        LayoutError: a session has several label maps of equal standing, or no session an image.
    """
    groups = read_participants(root)
    sessions = _sessions(root)
    images = {session: _images(root / session / "anat") for session in sessions}
    labels = {session: _label(root, session) for session in sessions}
    labelled = [session for session in sessions if labels[session]] or sessions
    counts = Counter(kind for session in labelled for kind in images[session])
    channels = tuple(sorted(kind for kind, n in counts.items() if 2 * n >= len(labelled)))
    if not channels:
        raise LayoutError("anat", "folders with images of one kind in most sessions", where=root)
    cases = []
    for session in sessions:
        subject = session.parts[0]
        case_id = "_".join(session.parts)
        files = tuple(
            images[session].get(kind, root / session / "anat" / f"{case_id}_{kind}.nii.gz")
            for kind in channels
        )
        cases.append(Case(case_id, subject, files, labels[session], groups.get(subject, "")))
    name, licence = _description(root)
    return Dataset(
        name=name,
        root=root,
        layout="bids",
        channel_names=channels,
        labels=_label_names(root),
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        licence=licence,
    )


def _sessions(root: Path) -> list[Path]:
    """sub-XX or sub-XX/ses-YY, relative to the root, that have an anat folder."""
    found = [*root.glob("sub-*/anat"), *root.glob("sub-*/ses-*/anat")]
    return sorted(folder.parent.relative_to(root) for folder in found if folder.is_dir())


def _kind(file: Path) -> str:
    """The suffix in BIDS' sense: sub-01_run-1_T1w.nii.gz → T1w."""
    return stem(file).rsplit("_", 1)[-1]


def _n_entities(file: Path) -> int:
    return stem(file).count("_")


def _images(anat: Path) -> dict[str, Path]:
    """Kind → file; of several runs or variants the one with the fewest entities, then the first."""
    found: dict[str, Path] = {}
    for file in sorted(image_files(anat), key=lambda f: (_n_entities(f), f.name)):
        if _kind(file) not in NO_IMAGE and "-" not in _kind(file):
            found.setdefault(_kind(file), file)
    return found


def _label(root: Path, session: Path) -> Path | None:
    """The session's label map, beside its images or in any pipeline under derivatives/."""
    folders = [root / session / "anat", *sorted(root.glob(f"derivatives/*/{session}/anat")),
               root / "derivatives" / session / "anat"]  # fmt: skip
    files = [file for folder in folders for file in image_files(folder)]
    for wanted in LABEL_SUFFIXES:
        fitting = [file for file in files if _kind(file) == wanted]
        if not fitting:
            continue
        fewest = min(_n_entities(file) for file in fitting)
        best = [file for file in fitting if _n_entities(file) == fewest]
        if len(best) > 1:
            got = ", ".join(str(file.relative_to(root)) for file in best)
            raise LayoutError(f"_{wanted} of {session}", "one file", got, where=root,
                              advice="list the cases in a MONAI datalist instead")  # fmt: skip
        return best[0]
    return None


def _label_names(root: Path) -> dict[int, str]:
    """Value → name from the first dseg.tsv; empty where there is none to trust."""
    tables = [*root.glob("*dseg.tsv"), *root.glob("derivatives/*dseg.tsv"),
              *root.glob("derivatives/*/*dseg.tsv")]  # fmt: skip
    for path in sorted(tables):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            rows = list(csv.DictReader(lines, delimiter="\t", restval=""))
            return declared.parse_labels({row["index"]: row["name"] for row in rows}, path)
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, InputError):
            continue
    return {}


def _description(root: Path) -> tuple[str, str]:
    """Name and licence from dataset_description.json, which may be missing."""
    path = root / "dataset_description.json"
    try:
        content = read_json(path)
        return declared.name_and_licence(
            {"name": content.get("Name"), "license": content.get("License")}, root, path
        )
    except (InputError, AttributeError):
        return root.resolve().name or "data set", ""

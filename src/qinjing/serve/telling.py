"""What a page is told of studies, images and segmentations."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from qinjing.data.dicom.codes import Term
from qinjing.report.declared import ServedModel
from qinjing.report.product_class import KINDS, allowed, must_be_confirmed
from qinjing.serve.catalogue import Catalogue, Study, study_key
from qinjing.serve.drawn import Image, Segmentation
from qinjing.serve.settings import ServeConfig


def entries(catalogue: Catalogue, found: list[Study]) -> list[dict[str, Any]]:
    """Return what a worklist shows of studies."""
    counted = catalogue.images.counted([one.study_instance_uid for one in found])
    return [_entry(catalogue, one, counted.get(one.study_instance_uid, (0, 0))) for one in found]


def _entry(catalogue: Catalogue, one: Study, counts: tuple[int, int]) -> dict[str, Any]:
    about: Mapping[str, str] = one.about
    jobs = catalogue.queue.of(one.study_instance_uid)
    return {
        "study": study_key(one.study_instance_uid),
        "patient_name": about["PatientName"],
        "patient_id": about["PatientID"],
        "birth_date": about["PatientBirthDate"],
        "study_date": about["StudyDate"],
        "description": about["StudyDescription"],
        "modality": about["Modality"],
        "accession": about["AccessionNumber"],
        "instances": one.instances,
        "received": _iso(one.first),
        "state": one.state,
        "jobs": [
            {"kind": job.kind, "state": job.state, "attempts": job.attempts, "reason": job.reason}
            for job in jobs
        ],
        "images": counts[0],
        "segmentations": counts[1],
    }


def described(image: Image) -> dict[str, Any]:
    """Return what a page needs to know of an image."""
    return {
        "image": image.image_id,
        "study": study_key(image.study) if image.study else None,
        "name": image.name,
        "modality": image.modality,
        "description": image.description,
        "shape": image.shape,
        "spacing_mm": image.spacing_mm,
        "units": image.units,
        "window": image.window,
    }


def told(request: Request, one: Segmentation) -> dict[str, Any]:
    """Return what a page needs to know of a segmentation."""
    model = served_of(request, one)
    confirmed = {"by": one.confirmed_by, "at": _iso(one.confirmed)} if one.confirmed_by else None
    return {
        "segmentation": one.segmentation_id,
        "image": one.image_id,
        "kind": one.kind,
        "author": one.author,
        "state": one.state,
        "version": one.version,
        "labels": {str(value): name for value, name in one.labels.items()},
        "product_class": one.product_class,
        "intended_use": model.declared.intended_use if model else "",
        "made": _iso(one.made),
        "may": [kind for kind in KINDS if allowed(kind, one.product_class)],
        "confirmed": confirmed,
        "needs_confirmation": one.kind == "model"
        and must_be_confirmed(one.product_class)
        and not confirmed,
    }


def terms_of(request: Request, one: Segmentation) -> Mapping[str, Term]:
    """Return the codes of names of the model that drew it, where it is served here."""
    model = served_of(request, one)
    return model.labels()[1] if model else {}


def served_of(request: Request, one: Segmentation) -> ServedModel | None:
    """Return the model that drew a segmentation, where it is served here."""
    config: ServeConfig = request.app.state.config
    known = {model.name: model for model in config.served}
    return known.get(one.author) if one.kind == "model" else None


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")

"""Images and labels as MONAI Label's clients know them: ids, tags, and what stands beside them.

An image has two labels at most for whoever asks: "final", his own that he submitted or the one
that was settled, and "original", what he may begin from: his draft, or a model's.

3D Slicer fetches the next image without the token that all its other requests carry. So an id
holds a seal of whoever it was told to, and opens that one image for a few minutes after it was
handed out as the next; to every other request it is a longer name of the image.

Source: monailabel 0.8.5, interfaces/datastore.py, datastore/local.py and client/client.py; its
plug-in for 3D Slicer, MONAILabel.py, `onNextSampleButton`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request

from qinjing.config import read_json, write_json
from qinjing.data.nifti import read_nifti
from qinjing.report.declared import ServedModel
from qinjing.serve import session
from qinjing.serve.auth import Token, Tokens
from qinjing.serve.clinic import needs, seen_image
from qinjing.serve.drawn import About, Image, Segmentation
from qinjing.serve.guard import Refusal
from qinjing.serve.images import Images
from qinjing.serve.labelling.desk import desk
from qinjing.serve.labelling.files import values_in
from qinjing.serve.projects import Project, Projects

TAGS = ("final", "original")
CLICK = "click"  # what segments without a model
NO_TOKEN = {"WWW-Authenticate": "Bearer"}
_MOST_LISTED = 1000  # clients take a list of all images for something that one can look through
HANDED_S = 600.0  # for how long the next image may be fetched by its id alone
_ID = re.compile(r"([0-9a-f]{32})(?:-([0-9a-f]{8})-([0-9a-f]{32}))?")


def labeller(request: Request) -> Token:
    """Return the token of somebody who may see images.

    Raises:
        Refusal: 401, in the form that clients of this protocol know; 403, the role may see none.
    """
    try:
        who = session.bearer(request)
    except Refusal as refusal:
        if refusal.status == 401:
            refusal.headers |= NO_TOKEN
        raise
    if not who.may("study.read"):
        needs(who, "annotate")
    return who


Labeller = Annotated[Token, Depends(labeller)]


def images_of(request: Request) -> Images:
    """Return the service's images."""
    images: Images = request.app.state.images
    return images


def models_of(request: Request) -> dict[str, ServedModel]:
    """Return the models that answer, by names that the client can put into an address.

    It writes a space there as a plus sign, which an address means as such.
    """
    named: dict[str, ServedModel] = {}
    for model in request.app.state.models:
        name = re.sub(r"[^\w.-]+", "_", model.name).strip(".") or "model"
        while name in named or name == CLICK:
            name += "_"
        named[name] = model
    return named


def label_names(request: Request, who: Token) -> list[str]:
    """Return the names of labels that somebody may draw: of his projects, then of models."""
    known = [one.labels for one in projects_of(request, who)]
    known += [model.labels()[0] for model in models_of(request).values()]
    return list(dict.fromkeys(name for one in known for _, name in sorted(one.items())))


def public_id(who: Token, image_id: str) -> str:
    """Return what an image is called when somebody is told of it."""
    return f"{image_id}-{who.token_id}-{_seal(who, image_id)}"


def sought(request: Request, who: Token, given: str) -> Image:
    """Return the image that a client means: by its id, by the name he gave it, or its series' UID.

    Raises:
        Refusal: 404, there is none that he may see.
    """
    known = _ID.fullmatch(given)
    if known:
        return seen_image(request, who, known[1])
    images = images_of(request)
    own = images.find(_upload(who, given))
    if own is not None:
        return seen_image(request, who, own.image_id)
    # OHIF knows nothing but the UID of the series that it shows.
    found = [one for one in images.all() if one.series and one.series == given]
    if len(found) != 1:
        raise Refusal(404, "image", "image must be one that is here")
    return seen_image(request, who, found[0].image_id)


def by_seal(request: Request, given: str) -> tuple[Token, Image]:
    """Return the image that an id opens without a token, and whom it was handed to.

    Raises:
        Refusal: 401, the id is not of an image that was just handed out.
    """
    refused = Refusal(401, "session", "session must be open: give a token first", NO_TOKEN)
    known, tokens = _ID.fullmatch(given), request.app.state.tokens
    assert isinstance(tokens, Tokens)
    who = tokens.find(known[2]) if known and known[2] else None
    if known is None or who is None or not hmac.compare_digest(_seal(who, known[1]), known[3]):
        raise refused
    here = desk(request)
    with here.lock:
        handed = here.handed.get((who.token_id, known[1]), 0.0)
    if time.time() - handed > HANDED_S:
        raise refused
    return who, seen_image(request, who, known[1])


def hand_out(request: Request, who: Token, image: Image) -> dict[str, Any]:
    """Return what a client is told of the next image, which it may fetch for a while."""
    here, now = desk(request), time.time()
    with here.lock:
        here.handed = {key: at for key, at in here.handed.items() if now - at <= HANDED_S}
        here.handed[who.token_id, image.image_id] = now
    # A client asks next for the label that it may begin from.
    for one in tags_of(images_of(request), who, image.image_id).values():
        _there(request, one, look=True)
    return {"id": public_id(who, image.image_id), **image_info(who, image)}


def image_info(who: Token, image: Image) -> dict[str, Any]:
    """Return what stands beside an image: its UIDs only for those who read studies."""
    info: dict[str, Any] = {"name": f"{image.image_id}.nii.gz"}
    if who.may("study.read") and image.study:
        info |= {
            "Modality": image.modality, "StudyInstanceUID": image.study,
            "SeriesInstanceUID": image.series,
        }  # fmt: skip
    return info


def upload_name(who: Token, given: str) -> str:
    """Return what an image is called that a client named: he may have named its patient."""
    digest = hashlib.sha256(f"{who.person}\0{given}".encode("utf-8", "surrogatepass"))
    return f"upload {digest.hexdigest()[:16]}"


def projects_of(request: Request, who: Token) -> list[Project]:
    """Return the projects that name somebody."""
    projects: Projects = request.app.state.projects
    return projects.of(who.person) if who.may("annotate") else []


def project_of(request: Request, who: Token, image_id: str) -> Project | None:
    """Return the project in which somebody labels an image, the first one that names both."""
    found = (one for one in projects_of(request, who) if image_id in one.images)
    return next(found, None)


def visible(request: Request, who: Token) -> list[Image]:
    """Return what there is to label: what projects that name somebody hold; where none does, and
    he may see all, the newest images.
    """
    images = images_of(request)
    named = dict.fromkeys(one for known in projects_of(request, who) for one in known.images)
    if not named and who.may("study.read"):
        return images.all()[-_MOST_LISTED:]
    return [image for one in named if (image := images.get(one))]


def tags_of(
    images: Images, who: Token, image_id: str, drawn: Iterable[Segmentation] | None = None
) -> dict[str, Segmentation]:
    """Return the labels of an image by their tags: nobody sees another reader's."""
    drawn = images.segmentations(image_id) if drawn is None else drawn
    found: dict[str, Segmentation] = {}
    order = {"model": 0, "reader": 1, "final": 2}
    for one in sorted(drawn, key=lambda one: (order.get(one.kind, -1), one.made)):
        if one.kind == "model":
            found["original"] = one
        elif one.kind == "reader" and one.author == who.person:
            found["original" if one.state == "draft" else "final"] = one
        elif one.kind == "final" and who.may("study.read"):
            found["final"] = one
    return found


def tagged(request: Request, who: Token, given: str, tag: str) -> tuple[Image, Segmentation]:
    """Return an image and its label of a tag.

    Raises:
        Refusal: 404, there is none.
    """
    image = sought(request, who, given)
    found = tags_of(images_of(request), who, image.image_id).get(tag)
    if found is None:
        raise Refusal(404, "label", "label must be one that is here")
    return image, found


def label_info(request: Request, one: Segmentation, *, look: bool = True) -> dict[str, Any]:
    """Return what stands beside a label; the names of those values alone that it holds.

    3D Slicer gives the first name to the smallest value that there is, and so on.

    Args:
        request: of whoever asks.
        one: the label.
        look: into its file, which takes a while; else names are told where somebody has looked.
    """
    names = dict(sorted(one.labels.items()))
    if look or one.kind == "model":
        there = _there(request, one, look)
        names = {value: name for value, name in names.items() if value in there}
    notes = _notes(request, one)
    return {
        "ts": int(one.made),
        "name": f"{one.image_id}.nii.gz",
        "client_id": one.author,
        "label_info": [{"name": name, "idx": value} for value, name in names.items()],
        "params": {"label_names": {name: value for value, name in names.items()}},
        **(read_json(notes) if notes.is_file() else {}),
    }


def _there(request: Request, one: Segmentation, look: bool) -> tuple[int, ...]:
    """The values that a label holds; none where nobody has looked, and nobody shall."""
    known, key = desk(request).values, (one.segmentation_id, one.version)
    if key not in known and look:
        known[key] = values_in(images_of(request).mask(one))
    return known.get(key, ())


def note(request: Request, one: Segmentation, said: Mapping[str, Any]) -> None:
    """Keep what a client says beside a label, such as a reviewer's level and comment."""
    notes = _notes(request, one)
    known = read_json(notes) if notes.is_file() else {}
    ours = {"ts", "name", "client_id", "label_info", "params"}
    write_json(notes, {**known, **{key: value for key, value in said.items() if key not in ours}})


def status(request: Request, who: Token) -> dict[str, Any]:
    """Return how many images there are, and how many are labelled."""
    images = images_of(request)
    found = [tags_of(images, who, one.image_id) for one in visible(request, who)]
    counts = {tag: sum(tag in one for one in found) for tag in TAGS}
    return {
        "total": len(found),
        "completed": counts["final"],
        "label_tags": {tag: count for tag, count in counts.items() if count},
    }


def everything(request: Request, who: Token) -> dict[str, Any]:
    """Return every image with its labels, as the file of a local MONAI Label datastore has them."""
    images = images_of(request)
    objects = {}
    for one in visible(request, who):
        labels = {
            tag: {"ext": ".nii.gz", "info": label_info(request, drawn, look=False)}
            for tag, drawn in tags_of(images, who, one.image_id).items()
        }
        image = {"ext": ".nii.gz", "info": image_info(who, one)}
        objects[public_id(who, one.image_id)] = {"image": image, "labels": labels}
    return {
        "name": "qinjing", "description": "", "images_dir": "", "labels_dir": "labels",
        "objects": objects,
    }  # fmt: skip


def add_upload(request: Request, who: Token, given: str, file: Path) -> Image:
    """Keep an image under a name that is this person's own.

    Raises:
        Refusal: 409, another image of that name is here.
        FormatError: the file is damaged.
    """
    images = images_of(request)
    kept = images.add_image(file, _upload(who, given))
    ours, sent = read_nifti(images.volume(kept.image_id)), read_nifti(file)
    same = np.array_equal(ours.voxels, sent.voxels, equal_nan=ours.voxels.dtype.kind == "f")
    if not same or ours.grid_difference(sent):
        raise Refusal(409, "name", "image must have a name that no other of yours has")
    return kept


def _upload(who: Token, given: str) -> About:
    """What an upload is known by: its name alone, whatever is in it."""
    return About(name=upload_name(who, given), instances="upload")


def _notes(request: Request, one: Segmentation) -> Path:
    return desk(request).folder / "notes" / f"{one.segmentation_id}.json"


def _seal(who: Token, image_id: str) -> str:
    """What only this service can write: its key is a digest that it keeps of the token."""
    key = bytes.fromhex(who.sha256)
    return hmac.new(key, f"image {image_id}".encode(), hashlib.sha256).hexdigest()[:32]

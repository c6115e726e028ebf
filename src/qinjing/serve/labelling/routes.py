"""MONAI Label's protocol, so that the plug-ins of 3D Slicer and OHIF talk to this service.

All of it lies below /monailabel: a client's server URL is the service's with that behind it. Who
signs in gives his token as the password. What a model says here is a segmentation, whatever its
class: no route gives a figure or a finding.

Source: monailabel 0.8.5, endpoints/*.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.security import OAuth2PasswordRequestForm

from qinjing.serve import session
from qinjing.serve.audit import Audit
from qinjing.serve.auth import Token
from qinjing.serve.catalogue import Catalogue
from qinjing.serve.clinic import needs
from qinjing.serve.drawn import Image, Segmentation
from qinjing.serve.guard import Refusal
from qinjing.serve.labelling import data, infer, store
from qinjing.serve.labelling.cases import Labelled, write_cases
from qinjing.serve.labelling.data import Labeller, labeller
from qinjing.serve.labelling.desk import Desk, desk, sent
from qinjing.serve.labelling.train import MINUTES, TRAINER, Effort

# What settles a label: the adjudicated one, else what readers agreed on, else one of theirs.
_SETTLED = ("reader", "consensus", "final")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    known: Desk | None = getattr(app.state, "labelling", None)
    if known is not None:
        known.trainings.stop()


# Another program's protocol, which its own document describes.
router = APIRouter(
    prefix="/monailabel", tags=["labelling"], include_in_schema=False, lifespan=_lifespan
)


def trainer(who: Annotated[Token, Depends(labeller)]) -> Token:
    """Return the token of somebody who may train.

    Raises:
        Refusal: 403, the role may not.
    """
    needs(who, "train")
    return who


Trainer = Annotated[Token, Depends(trainer)]


@router.get("/")
def here() -> dict[str, Any]:
    """Say that this is there: 3D Slicer's reviewer asks before anything else."""
    return {"name": "Qinjing"}


@router.get("/auth/")
def auth_enabled() -> dict[str, Any]:
    """Say that a token is wanted, here as everywhere."""
    return {"enabled": True, "client_id": "qinjing", "realm": ""}


@router.post("/auth/token")
def access_token(
    request: Request, form: Annotated[OAuth2PasswordRequestForm, Depends()]
) -> dict[str, Any]:
    """Take a token that was given as a password, whatever name stands beside it."""
    text = form.password.strip()
    session.checked(request, text)
    return {"access_token": text, "token_type": "Bearer"}


@router.get("/auth/token/valid")
def valid_token(who: Labeller) -> dict[str, Any]:
    """Say whose the token is."""
    return {"username": who.person, "email": None, "name": who.person, "roles": [who.role]}


@router.get("/info/")
def info(who: Labeller, request: Request) -> dict[str, Any]:
    """Tell what can be done here: models, ways to the next image, training."""
    served = data.models_of(request)
    models = {data.CLICK: infer.described(None)}
    models |= {name: infer.described(model) for name, model in served.items()}
    stats = desk(request).trainings.stats() if who.may("train") else {}
    effort = {"description": "qinjing train", "config": {"minutes": MINUTES, "steps": 0}}
    return {
        "name": "Qinjing",
        "description": "Labels for the images of this service.",
        "version": version("qinjing"),
        "labels": data.label_names(request, who),
        "models": models,
        "trainers": {TRAINER: effort} if who.may("train") else {},
        "strategies": {
            name: {"description": said, "config": {}}
            for name, said in infer.STRATEGIES.items()
            if served or name != "uncertainty"
        },
        "scoring": {},
        "train_stats": {TRAINER: stats} if stats else {},
        "datastore": data.status(request, who),
    }


@router.get("/train/")
def train_status(
    who: Trainer, request: Request, all: bool = False, check_if_running: bool = False
) -> Any:
    """Tell how training stands."""
    trainings = desk(request).trainings
    found = trainings.all() if all else trainings.latest(running=check_if_running)
    if not found:
        raise Refusal(404, "training", "training must have begun")
    return found


@router.post("/train/")
def train_all(
    who: Trainer, request: Request, params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train on what is labelled, with what the client says for this trainer or for any."""
    own = (params or {}).get(TRAINER)
    task = _train(who, request, own if isinstance(own, dict) else params or {})
    return {TRAINER: {"result": task, "detail": None}}


@router.post("/train/{model}")
def train(
    model: str, who: Trainer, request: Request, params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train on what is labelled."""
    if model != TRAINER:
        raise Refusal(404, "model", f"model must be {TRAINER}")
    return _train(who, request, params or {})


@router.delete("/train/")
def stop_training(who: Trainer, request: Request) -> dict[str, Any] | None:
    """End the training that runs."""
    stopped = desk(request).trainings.stop()
    if stopped:
        _audit(request).append(who, "training stopped", training=stopped["id"])
    return stopped


@router.get("/logs/")
def logs(
    who: Trainer,
    request: Request,
    lines: int = 300,
    html: bool = True,
    text: bool = False,
    refresh: int = 0,
) -> Response:
    """Send the last lines of the last training's log, all of them where `lines` is 0."""
    found = desk(request).trainings.lines(max(0, lines)) or ["no training yet"]
    content = "\n".join(found) + "\n"
    if text or not html:
        return Response(content, media_type="text/plain; charset=utf-8")
    again = f'<meta http-equiv="refresh" content="{max(3, refresh)}">' if refresh > 0 else ""
    page = f"<!doctype html><title>Training</title>{again}<pre>{escape(content)}</pre>"
    return Response(page, media_type="text/html; charset=utf-8")


router.include_router(infer.router)
router.include_router(store.router)


def _train(who: Token, request: Request, params: Mapping[str, Any]) -> dict[str, Any]:
    with sent():
        effort = Effort.of(params)
    cases = list(_labelled(request))
    if not cases:
        raise Refusal(409, "labels", "labels must be there, to learn from")
    store: str | None = request.app.state.config.store
    order = data.label_names(request, who)

    def prepare(folder: Path, tell: Callable[[str], None]) -> dict[str, str]:
        return write_cases(cases, order, store is not None, folder, tell)

    task = desk(request).trainings.start(prepare, effort, store)
    _audit(request).append(who, "training started", training=task["id"], images=len(cases))
    return task


def _labelled(request: Request) -> Iterable[Labelled]:
    """Every image with a label that is settled, or that a reader submitted."""
    images = data.images_of(request)
    for image in images.all():
        drawn = [one for one in images.segmentations(image.image_id) if _counts(one)]
        if drawn:
            best = max(drawn, key=lambda one: (_SETTLED.index(one.kind), one.made))
            yield Labelled(
                image.image_id, images.volume(image.image_id), images.mask(best), best.labels,
                image.modality, _patient(request, image),
            )  # fmt: skip


def _counts(one: Segmentation) -> bool:
    return one.kind in _SETTLED and one.state != "draft"


def _patient(request: Request, image: Image) -> str:
    """Whose consent counts: an image of no study is called as its patient, as a case may be."""
    catalogue: Catalogue = request.app.state.catalogue
    if not image.study:
        return image.name
    study = catalogue.study(image.study)
    return study.about["PatientID"] if study else ""


def _audit(request: Request) -> Audit:
    audit: Audit = request.app.state.audit
    return audit

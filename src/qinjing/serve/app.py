"""The service's routes in one application."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from qinjing.data.consent import Store
from qinjing.errors import GeometryError, InputError, LabelError
from qinjing.serve import consent, session
from qinjing.serve.auth import Sessions, Throttle, Tokens
from qinjing.serve.guard import REFUSALS, Guard, Refusal, fault
from qinjing.serve.pages import add_pages
from qinjing.serve.seen import Owners
from qinjing.serve.settings import ServeConfig, tokens_file

if TYPE_CHECKING:
    from qinjing.serve.oidc import OidcConfig


def create_app(config: ServeConfig) -> FastAPI:
    """Build the service over a store of consents, a folder of studies, or both.

    Args:
        config: see there. Its host and TLS tell the application how it is reached; opening the
            port is `listen.listen`'s.

    Raises:
        ConfigError: the store or the folder is not there or cannot be used, or the tokens' place
            is not known.
        FormatError: the tokens' file, or a data set, is damaged.
    """
    tokens = Tokens(tokens_file(config.consents, config.tokens, config.folder))
    tokens.all()
    owners = Owners(config.datasets)  # what cannot be read is said now, not to a patient
    alone = config.folder is None
    store = Store(config.consents) if alone or config.store else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if store is not None:
            store.close()

    app = FastAPI(
        title="Qinjing", description="Studies, segmentations and consents.", lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/api/openapi.json", responses=REFUSALS,
    )  # fmt: skip
    app.state.config, app.state.store, app.state.tokens = config, store, tokens
    app.state.owners = owners
    app.state.sessions = Sessions(config.idle_s, config.longest_s)
    app.state.throttle, app.state.walking = Throttle(), threading.Lock()
    app.add_middleware(Guard, config=config, admit=session.bearer)
    app.include_router(session.router)
    if config.oidc is not None:
        _add_oidc(app, config.oidc)
    if store is not None:
        app.include_router(consent.router)
    if config.folder is not None:
        _add_clinic(app, config.folder)
    add_pages(app)
    _add_refusals(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, which says how callers show who they are."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        config: ServeConfig = app.state.config
        document.setdefault("components", {})["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": session.cookie_name(config)},
        }
        document["security"] = [{"token": []}, {"session": []}]
        for method in ("post", "delete"):  # to come in and to go out
            document["paths"]["/api/session"][method]["security"] = []
    return app.openapi_schema or {}


def _add_oidc(app: FastAPI, config: OidcConfig) -> None:
    """Signing in elsewhere; packages that only this needs come with it."""
    from qinjing.serve import oidc

    app.state.oidc = oidc.Provider(config)
    app.include_router(oidc.router)


def _add_clinic(app: FastAPI, folder: Path) -> None:
    """The routes over a folder of studies; packages that only they need come with them."""
    from qinjing.serve import annotation, clicking, clinic, deciding
    from qinjing.serve.audit import Audit
    from qinjing.serve.catalogue import open_catalogue
    from qinjing.serve.doubts import Doubts
    from qinjing.serve.labelling import routes as labelling

    catalogue = open_catalogue(folder, app.state.config.catalogue)
    app.state.catalogue, app.state.images = catalogue, catalogue.images
    app.state.projects, app.state.audit = catalogue.projects, Audit(folder)
    app.state.models = app.state.config.served
    app.state.doubts = Doubts(app.state.models, catalogue.images)
    app.include_router(clinic.router)
    app.include_router(annotation.router)
    app.include_router(deciding.router)
    app.include_router(clicking.router)
    app.include_router(labelling.router)


def _add_refusals(app: FastAPI) -> None:
    """Answer every refusal in one form, without what was sent."""

    def refused(_: Request, error: Any) -> JSONResponse:
        return JSONResponse(error.content, error.status, error.headers)

    def invalid(_: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "body"
        refusal = Refusal(422, "invalid", f"{name[:100]} must be as described: {first['msg']}")
        return JSONResponse(refusal.content, refusal.status)

    def unknown(request: Request, error: Any) -> JSONResponse:
        said = {"error": str(error.detail), "code": "http"}
        headers = dict(error.headers or {})
        if error.status_code == 405:  # Starlette names the methods of one route of several
            headers["Allow"] = ", ".join(sorted(_methods(app, request)))
        return JSONResponse(said, error.status_code, headers)

    def unavailable(_: Request, error: Any) -> JSONResponse:
        return JSONResponse(fault(error), 503)

    def unfit(_: Request, error: Any) -> JSONResponse:
        fault(error)
        refusal = Refusal(409, "unfit", "what was asked of must fit together, and does not")
        return JSONResponse(refusal.content, refusal.status)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(InputError, unavailable)
    for kind in (GeometryError, LabelError):
        app.add_exception_handler(kind, unfit)


def _methods(app: FastAPI, request: Request) -> set[str]:
    """The methods of all routes of a request's path."""
    found: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return found

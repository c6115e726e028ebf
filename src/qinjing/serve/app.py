"""The service's routes in one application."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from qinjing.data.consent import Store
from qinjing.errors import InputError
from qinjing.serve import consent, session
from qinjing.serve.auth import Sessions, Throttle, Tokens
from qinjing.serve.guard import Guard, Refusal, fault
from qinjing.serve.seen import Owners
from qinjing.serve.settings import ServeConfig, tokens_file

# Named one by one: nothing else of the package can be asked for, and no type is guessed.
_STATIC = {
    "consent.css": "text/css; charset=utf-8",
    "consent.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "look.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def create_app(config: ServeConfig) -> FastAPI:
    """Build the service over a store of consents.

    Args:
        config: see there. Its host and TLS tell the application how it is reached; opening the
            port is `listen.listen`'s.

    Raises:
        ConfigError: the store is not there or cannot be used, or the tokens' place is not known.
        FormatError: the tokens' file, or a data set, is damaged.
    """
    tokens = Tokens(tokens_file(config.consents, config.tokens))
    tokens.all()
    owners = Owners(config.datasets)  # what cannot be read is said now, not to a patient
    store = Store(config.consents)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(
        title="Qinjing", description="Patients' consents.", lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
    )  # fmt: skip
    app.state.config, app.state.store, app.state.tokens = config, store, tokens
    app.state.owners = owners
    app.state.sessions = Sessions(config.idle_s, config.longest_s)
    app.state.throttle, app.state.walking = Throttle(), threading.Lock()
    app.add_middleware(Guard, config=config)
    app.include_router(session.router)
    app.include_router(consent.router)
    _add_page(app)
    _add_refusals(app)
    return app


def _add_page(app: FastAPI) -> None:
    folder = resources.files("qinjing.serve") / "static"
    page = (folder / "consent.html").read_bytes()
    static = {name: (folder / name).read_bytes() for name in _STATIC}

    @app.get("/", include_in_schema=False)
    def root() -> RedirectResponse:
        return RedirectResponse("/consent")

    @app.get("/consent", include_in_schema=False)
    def consents() -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    @app.get("/static/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        if name not in static:
            raise HTTPException(404)
        return Response(static[name], headers={"content-type": _STATIC[name]})


def _add_refusals(app: FastAPI) -> None:
    """Answer every refusal in one form, without what was sent."""

    def refused(_: Request, error: Any) -> JSONResponse:
        return JSONResponse(error.content, error.status, error.headers)

    def invalid(_: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "body"
        refusal = Refusal(422, "invalid", f"{name[:100]} must be as described: {first['msg']}")
        return JSONResponse(refusal.content, refusal.status)

    def unknown(_: Request, error: Any) -> JSONResponse:
        return JSONResponse({"error": str(error.detail), "code": "http"}, error.status_code)

    def unavailable(_: Request, error: Any) -> JSONResponse:
        return JSONResponse(fault(error), 503)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(InputError, unavailable)

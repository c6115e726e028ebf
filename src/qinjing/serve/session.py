"""Coming in and going out: a token in a header, or once for a cookie."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from qinjing.serve.auth import RIGHTS, Sessions, Throttle, Token, Tokens
from qinjing.serve.guard import LOG, Refusal
from qinjing.serve.settings import ServeConfig

router = APIRouter(prefix="/api/session", tags=["session"])


def bearer(request: Request) -> Token:
    """Return the token that a request shows, by its header or its session.

    Raises:
        Refusal: 401, it shows none that holds; 429, too many from there were wrong.
    """
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    if kind == "Bearer":
        return checked(request, text)
    state, config = request.app.state, _config(request)
    token_id = state.sessions.token_of(request.cookies.get(cookie_name(config), ""))
    tokens: Tokens = state.tokens
    token = tokens.find(token_id) if token_id else None
    if token is None:
        raise Refusal(401, "session", "session must be open: give a token first")
    return token


Who = Annotated[Token, Depends(bearer)]


def cookie_name(config: ServeConfig) -> str:
    """Return the cookie's name; with this lead a browser takes it over TLS and for this host only.

    Source: https://www.rfc-editor.org/rfc/rfc6265 and its successor's section on name prefixes.
    """
    return "__Host-qinjing" if config.tls else "qinjing"


class TokenShown(BaseModel):
    """What opens a session."""

    model_config = ConfigDict(extra="forbid")
    token: str = Field(min_length=1, max_length=200)


@router.post("")
def begin(shown: TokenShown, request: Request, response: Response) -> dict[str, Any]:
    """Exchange a token for a session's cookie."""
    token = checked(request, shown.token.strip())
    open_session(request, response, token)
    return described(token, _config(request))


def open_session(request: Request, response: Response, token: Token) -> None:
    """Open a session for a token, and give its cookie; one that was open before ends."""
    config = _config(request)
    sessions: Sessions = request.app.state.sessions
    sessions.end(request.cookies.get(cookie_name(config), ""))
    response.set_cookie(
        cookie_name(config), sessions.begin(token.token_id),
        httponly=True, samesite="strict", secure=config.tls, path="/",
    )  # fmt: skip


@router.get("")
def current(who: Who, request: Request) -> dict[str, Any]:
    """Tell whose session it is."""
    return described(who, _config(request))


@router.get("/ways", openapi_extra={"security": []})
def ways(request: Request) -> dict[str, bool]:
    """Tell by what one may come in: a token, and a provider of identities where there is one."""
    return {"token": True, "oidc": _config(request).oidc is not None}


@router.delete("")
def end(request: Request, response: Response) -> dict[str, Any]:
    """Close the session."""
    config = _config(request)
    request.app.state.sessions.end(request.cookies.get(cookie_name(config), ""))
    response.delete_cookie(
        cookie_name(config), httponly=True, samesite="strict", secure=config.tls, path="/"
    )
    return {"closed": True}


def described(token: Token, config: ServeConfig) -> dict[str, Any]:
    """Return what a page needs to know of the one who looks at it."""
    return {
        "token_id": token.token_id,
        "role": token.role,
        "name": token.name,
        "person": token.person,
        "rights": [right for right in RIGHTS[token.role] if _served(right, config)],
        "patient_id": token.patient_id,
        "may_change": token.may_change,
        "may_see_all": token.may_see_all,
        "expires": token.expires,
        "idle_s": config.idle_s,
    }


def _served(right: str, config: ServeConfig) -> bool:
    """Whether there is what a right is over: a store of consents, or a folder of studies."""
    if right.startswith("consent."):
        return config.folder is None or config.store is not None
    return config.folder is not None


def checked(request: Request, text: str) -> Token:
    """Return the token that a text is.

    Args:
        request: which shows it; its address is slowed down after wrong ones.
        text: the token itself.

    Raises:
        Refusal: 401, it is none that holds; 429, too many from there were wrong.
    """
    throttle: Throttle = request.app.state.throttle
    tokens: Tokens = request.app.state.tokens
    address = request.client.host if request.client else ""
    wait = throttle.attempt(address)
    if wait:
        raise Refusal(
            429, "wait", "too many tokens from there were wrong: wait some minutes",
            {"Retry-After": str(math.ceil(wait))},
        )  # fmt: skip
    token = tokens.check(text)
    if token is None:
        LOG.warning("a token from %s opened nothing", address)
        raise Refusal(401, "token", "token must be one that holds, got another")
    throttle.succeeded(address)
    return token


def _config(request: Request) -> ServeConfig:
    config: ServeConfig = request.app.state.config
    return config

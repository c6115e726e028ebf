"""Signing in at the hospital's own provider of identities, instead of with a token of ours.

The authorization code flow with PKCE: what must come back with the browser waits in a cookie of
its own, so that nothing is kept here of people who never return. The provider's word on who came
is believed when it is signed by one of its keys, for us, just now, and for this browser.

Source: OpenID Connect Core 1.0, 3.1 and Discovery 1.0; RFC 7636 (PKCE), 9207 (issuer), 9700.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jwt
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

from qinjing.config import from_json, read_json
from qinjing.errors import ConfigError, FormatError, QinjingError
from qinjing.serve.auth import LONGEST_NAME, ROLES, Role, Token, Tokens, person_of
from qinjing.serve.guard import LOG
from qinjing.serve.peer import Caller, Peer
from qinjing.serve.session import open_session

router = APIRouter(prefix="/api/oidc", tags=["session"])
ALGORITHMS = ("RS256", "ES256")
_OPEN: dict[str, Any] = {"openapi_extra": {"security": []}, "status_code": 303}
_FLOW_S = 600  # from the start to the way back
_KEYS_S, _KEYS_AGAIN_S = 3600.0, 60.0
_CLOCKS_S = 60  # by which two clocks may differ
_LEAST_RSA_BITS = 2048


@dataclass(frozen=True)
class OidcConfig:
    """Who vouches for people, and what that makes them here.

    Attributes:
        issuer: URL, as its discovery document has it.
        client_id: what it calls us.
        url: where browsers reach us; the provider sends them back to `url`/api/oidc/callback.
        roles: value of `claim` → our role; of several the one that stands first.
        claim: that holds a person's groups; dots lead into objects.
        name_claim: that names a person; an email that was verified where it is missing.
        scopes: that are asked for.
        client_secret_file: of one line; "" for a public client.
        ca: certificates in PEM that the provider's own must be signed by; "" for the system's.

    Raises:
        ConfigError: they do not fit together.
    """

    issuer: str
    client_id: str
    url: str
    roles: Mapping[str, str]
    claim: str = "groups"
    name_claim: str = "preferred_username"
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    client_secret_file: str = ""
    ca: str = ""

    def __post_init__(self) -> None:
        for url in (self.issuer, self.url):
            Peer(url)
        if not (self.client_id and self.roles and "openid" in self.scopes):
            raise ConfigError("client_id, roles and openid among scopes", "given", "none")
        known = [role for role in ROLES if role != "patient"]  # who is bound to an id of ours
        for role in self.roles.values():
            if role not in known:
                raise ConfigError("roles", f"of {', '.join(known)}", role)

    @property
    def callback(self) -> str:
        """Where the provider sends browsers."""
        return f"{self.url.rstrip('/')}{router.prefix}/callback"


def read_oidc(path: Path) -> OidcConfig:
    """Read the configuration from a JSON file, beside which other files are looked for.

    Raises:
        ConfigError: it says another thing.
        FormatError: it is no JSON.
    """
    content = read_json(path)
    if isinstance(content, dict):
        for name in ("client_secret_file", "ca"):
            if content.get(name) and isinstance(content[name], str):
                content[name] = str(path.parent / content[name])
    config: OidcConfig = from_json(content, OidcConfig, where=path.name)
    _secret(config)
    return config


class Provider:
    """What a provider says of itself, asked for when it is needed.

    Args:
        config: which.
        clock: seconds that only grow.
    """

    def __init__(self, config: OidcConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self._clock = config, clock
        self._lock = threading.Lock()
        self._document: Mapping[str, Any] = {}
        self._keys: list[dict[str, Any]] = []
        self._of_document = self._of_keys = float("-inf")

    def endpoint(self, name: str) -> str:
        """Return an address of the provider's.

        Raises:
            QinjingError: it does not answer, or its document is another's.
        """
        with self._lock:
            if self._clock() - self._of_document > _KEYS_S:
                path = "/.well-known/openid-configuration"
                document = self._json(self.config.issuer, path)
                if not isinstance(document, dict) or document.get("issuer") != self.config.issuer:
                    raise FormatError("discovery document", "the issuer's own", "another's")
                self._document, self._of_document = document, self._clock()
        return str(self._document.get(name) or "")

    def said(self, name: str) -> Any:
        """Return another value of its document."""
        self.endpoint(name)
        return self._document.get(name)

    def key(self, key_id: str, algorithm: str) -> Any:
        """Return the key that signed.

        Args:
            key_id: its name, "" where none was given.
            algorithm: of `ALGORITHMS`.

        Raises:
            FormatError: it has none such, or a weak one.
        """
        url = self.endpoint("jwks_uri")
        with self._lock:
            age, known = self._clock() - self._of_keys, [one.get("kid", "") for one in self._keys]
            if age > _KEYS_S or (key_id not in known and age > _KEYS_AGAIN_S):
                document = self._json(url, "")
                listed = document.get("keys") if isinstance(document, dict) else None
                self._keys = [one for one in listed or [] if isinstance(one, dict)]
                self._of_keys = self._clock()
            fitting = [one for one in self._keys if _fits(one, algorithm)]
        # A key need not be named where there is one alone: OpenID Connect Core 1.0, 10.1.
        named = [one for one in fitting if key_id in ("", one.get("kid", ""))]
        if len(named) != 1:
            raise FormatError("key", "one of the issuer's for signatures", "another")
        (one,) = named
        try:
            key = jwt.PyJWK(one, algorithm=algorithm).key
        except jwt.PyJWTError:
            raise FormatError("key", "sound", "damaged") from None
        if algorithm == "RS256" and key.key_size < _LEAST_RSA_BITS:
            raise FormatError("key", f"of {_LEAST_RSA_BITS} bits or more", key.key_size)
        return key

    def exchange(self, code: str, verifier: str) -> str:
        """Return the id token that a code stands for.

        Raises:
            QinjingError: the provider does not answer, or not with one.
        """
        form = {
            "grant_type": "authorization_code", "code": code, "code_verifier": verifier,
            "redirect_uri": self.config.callback,
        }  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        secret, client = _secret(self.config), self.config.client_id
        ways = self.said("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if secret and "client_secret_basic" in ways:
            pair = f"{quote(client, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": client, **({"client_secret": secret} if secret else {})}
        answer = self._json(
            self.endpoint("token_endpoint"), "", method="POST", again=False,
            headers=headers, content=urlencode(form).encode(),
        )  # fmt: skip
        token = answer.get("id_token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise FormatError("answer", "with an id token", "without")
        return token

    def _json(self, url: str, path: str, *, method: str = "GET", **more: Any) -> Any:
        headers = {"Accept": "application/json", **more.pop("headers", {})}
        ca = Path(self.config.ca) if self.config.ca else None
        with Caller(Peer(url, ca=ca)) as caller:
            return caller.json(method, path, headers=headers, **more)


@router.get("/start", **_OPEN)
def start(request: Request) -> RedirectResponse:
    """Send a browser to the provider."""
    provider: Provider = request.app.state.oidc
    config = provider.config
    try:
        place = provider.endpoint("authorization_endpoint")
        Peer(place.partition("?")[0])
    except QinjingError as error:
        LOG.error("the provider of identities could not be asked: %s", error)
        return _back(request, "unavailable")
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    digest = hashlib.sha256(verifier.encode()).digest()
    query = {
        "response_type": "code", "client_id": config.client_id, "redirect_uri": config.callback,
        "scope": " ".join(config.scopes), "state": state, "nonce": nonce,
        "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }  # fmt: skip
    response = RedirectResponse(f"{place}{'&' if '?' in place else '?'}{urlencode(query)}", 303)
    response.set_cookie(
        _cookie(request), f"{state}.{nonce}.{verifier}", max_age=_FLOW_S, httponly=True,
        samesite="lax", secure=request.app.state.config.tls, path="/",
    )  # fmt: skip
    return response


@router.get("/callback", **_OPEN)
def callback(
    request: Request, state: str = "", code: str = "", iss: str = "", error: str = ""
) -> RedirectResponse:
    """Take a browser back, and open its session."""
    provider: Provider = request.app.state.oidc
    kept = request.cookies.get(_cookie(request), "").split(".")
    if len(kept) != 3 or not hmac.compare_digest(kept[0].encode(), state.encode()):
        return _back(request, "expired")
    if error or not code or iss not in ("", provider.config.issuer):
        return _back(request, "refused")
    try:
        claims = verified(provider.exchange(code, kept[2]), provider, kept[1])
        person, role = identity(claims, provider.config)
    except QinjingError as fault:
        LOG.warning("somebody was not signed in: %s", fault)
        return _back(request, "refused")
    response = _back(request)
    sign_in(request, response, person, role)
    return response


def verified(token: str, provider: Provider, nonce: str) -> Mapping[str, Any]:
    """Return what an id token says, if it is for us, for this browser, and holds now.

    Args:
        token: as it came.
        provider: who must have signed it.
        nonce: that this browser was given.

    Raises:
        FormatError: it is not; why is said without its content.
        QinjingError: the provider does not answer.
    """
    config = provider.config
    try:
        head = jwt.get_unverified_header(token)
        algorithm, key_id = head.get("alg"), head.get("kid", "")
        if algorithm not in ALGORITHMS or not isinstance(key_id, str):
            raise FormatError("id token", f"signed by {' or '.join(ALGORITHMS)}", "otherwise")
        claims: Mapping[str, Any] = jwt.decode(
            token, provider.key(key_id, algorithm), algorithms=[algorithm],
            audience=config.client_id, issuer=config.issuer, leeway=_CLOCKS_S,
            options={"require": ["exp", "iat", "iss", "aud", "sub", "nonce"]},
        )  # fmt: skip
    except jwt.PyJWTError as error:
        raise FormatError("id token", "one that holds", type(error).__name__) from None
    if not hmac.compare_digest(str(claims["nonce"]).encode(), nonce.encode()):
        raise FormatError("id token", "for this browser", "for another")
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if (several or "azp" in claims) and claims.get("azp") != config.client_id:
        raise FormatError("id token", "for us", "for another")
    return claims


def identity(claims: Mapping[str, Any], config: OidcConfig) -> tuple[str, Role]:
    """Return a person's name and role.

    Behind the name that he goes by, which he may be free to change, stands a digest of what the
    provider knows him by: under another's name he is still himself.

    Raises:
        FormatError: the claims give none.

    Source: OpenID Connect Core 1.0, 5.7: only iss and sub together identify a person.
    """
    name = claims.get(config.name_claim)
    if not name and claims.get("email_verified") is True:
        name = claims.get("email")
    if not isinstance(name, str) or not name.strip():
        raise FormatError("id token", f"with {config.name_claim}, or an email verified", "neither")
    known = hashlib.sha256(f"{claims['iss']}{claims['sub']}".encode()).hexdigest()[:8]
    behind = f" ({known})"
    try:
        person = person_of(f"{name.strip()[: LONGEST_NAME - len(behind)]}{behind}")
    except ValueError as error:
        raise FormatError("name", str(error), "another") from None
    groups = _claim(claims, config.claim)
    groups = groups if isinstance(groups, list) else [groups]
    for group, role in config.roles.items():
        if group in groups:
            return person, next(one for one in ROLES if one == role)
    raise FormatError("person", "in a group with a role here", "in none")


def sign_in(request: Request, response: RedirectResponse, person: str, role: Role) -> Token:
    """Open a session for a person whom somebody vouched for.

    Args:
        request: that he came with; a session that it has ends.
        response: gets the cookie.
        person: his name.
        role: his role.
    """
    tokens: Tokens = request.app.state.tokens
    token = tokens.lend(role, person, request.app.state.config.longest_s)
    open_session(request, response, token)
    return token


def _fits(one: Mapping[str, Any], algorithm: str) -> bool:
    """Whether a key is for signatures of this kind."""
    wanted = {"RS256": ("RSA", None), "ES256": ("EC", "P-256")}[algorithm]
    kind = (one.get("kty"), one.get("crv")) == wanted
    return kind and one.get("use", "sig") == "sig" and one.get("alg", algorithm) == algorithm


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or by a path into objects: Keycloak's are in realm_access.roles."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _back(request: Request, why: str = "") -> RedirectResponse:
    """To our page, with a word where it did not come to a session."""
    response = RedirectResponse(f"/?sign_in={why or 'done'}", 303)
    response.delete_cookie(
        _cookie(request), httponly=True, samesite="lax", secure=request.app.state.config.tls,
        path="/",
    )  # fmt: skip
    return response


def _cookie(request: Request) -> str:
    return "__Host-qinjing-oidc" if request.app.state.config.tls else "qinjing-oidc"


def _secret(config: OidcConfig) -> str:
    if not config.client_secret_file:
        return ""
    try:
        secret = Path(config.client_secret_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        kind, place = type(error).__name__, config.client_secret_file
        raise ConfigError("client_secret_file", "readable", kind, where=place) from None
    if not secret or not secret.isprintable():
        raise ConfigError("client_secret_file", "of one line", "another")
    return secret

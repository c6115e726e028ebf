"""Signing in at a provider of identities: a peer's, and ones that lie."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
pytest.importorskip("jwt")
pytest.importorskip("sqlalchemy")
pytest.importorskip("joserfc")

import httpx2
from fastapi.testclient import TestClient
from joserfc import jwt as signing
from joserfc.jwk import ECKey, RSAKey

from qinjing.errors import ConfigError, FormatError
from qinjing.serve.auth import person_of
from qinjing.serve.oidc import OidcConfig, read_oidc
from tests.serve.answering import Answer, answering

ROLES = {"radiology": "reader", "it": "admin"}
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    WEAK = RSAKey.generate_key(1024, {"kid": "weak"})
P384 = ECKey.generate_key("P-384", {"kid": "p384"})


@dataclass
class Told:
    """A provider that says what a test wants."""

    issuer: str = ""
    keys: list[Any] = field(default_factory=lambda: [RSA, EC, WEAK, P384])
    document: dict[str, Any] = field(default_factory=dict)
    token: Callable[[], Any] = dict
    forms: list[tuple[dict[str, str], dict[str, list[str]]]] = field(default_factory=list)
    asked_keys: int = 0


def person(name: str, issuer: str, sub: str = "42") -> str:
    """As who goes by a name at a provider is known here."""
    return f"{name} ({hashlib.sha256((issuer + sub).encode()).hexdigest()[:8]})"


@pytest.fixture
def provider() -> Iterator[Told]:
    said = Told()

    def decide(method: str, path: str, body: bytes) -> Answer:
        if path.endswith("/.well-known/openid-configuration"):
            document = {
                "issuer": said.issuer,
                "authorization_endpoint": f"{said.issuer}/authorize?tenant=1",
                "token_endpoint": f"{said.issuer}/token", "jwks_uri": f"{said.issuer}/keys",
                **said.document,
            }  # fmt: skip
            return 200, {}, json.dumps(document).encode()
        if path.endswith("/keys"):
            said.asked_keys += 1
            keys = [{**key.as_dict(private=False)} for key in said.keys]
            return 200, {}, json.dumps({"keys": keys}).encode()
        assert (method, path) == ("POST", "/dicom-web/token")
        _, _, headers, _ = server.asked[-1]
        said.forms.append((headers, parse_qs(body.decode())))
        answer = said.token()
        return (200, {}, json.dumps(answer).encode()) if isinstance(answer, dict) else answer

    with answering(decide=decide) as server:
        said.issuer = server.url
        yield said


@pytest.fixture
def enter(provider: Told, make: Callable[..., Any]) -> Callable[..., tuple[TestClient, Any]]:
    """Goes the whole way with claims; the browser, and where it was sent in the end."""

    def go(
        key: Any = RSA, alg: str = "RS256", head: dict[str, Any] | None = None,
        change: Callable[[str], str] = lambda token: token, back: dict[str, str] | None = None,
        options: dict[str, Any] | None = None, **claims: Any,
    ) -> tuple[TestClient, Any]:  # fmt: skip
        config = OidcConfig(
            provider.issuer, "qinjing", "http://127.0.0.1", ROLES, **(options or {})
        )
        client = make(oidc=config).client()
        begun = client.get("/api/oidc/start", follow_redirects=False)
        assert begun.status_code == 303
        query = parse_qs(urlsplit(begun.headers["location"]).query)

        def token() -> Any:
            now = int(time.time())
            said = {
                "iss": provider.issuer, "aud": "qinjing", "sub": "42", "iat": now, "exp": now + 300,
                "nonce": query["nonce"][0], "preferred_username": "li.wei", "groups": ["radiology"],
                **claims,
            }  # fmt: skip
            for name in {"exp", "iat", "nbf"} & set(claims):  # seconds from now
                said[name] = now + claims[name] if claims[name] is not None else None
            said = {name: value for name, value in said.items() if value is not None}
            header = {"alg": alg, "kid": key.kid, **(head or {})}
            header = {name: value for name, value in header.items() if value is not None}
            made = signing.encode(
                header, said, key, algorithms=["RS256", "ES256", "ES384", "HS256"]
            )
            return {"id_token": change(made), "access_token": "x", "token_type": "Bearer"}

        if provider.token is dict:
            provider.token = token
        words = {"state": query["state"][0], "code": "c0de", **(back or {})}
        ended = client.get("/api/oidc/callback", params=words, follow_redirects=False)
        assert ended.status_code == 303
        return client, (ended.headers["location"], query)

    return go


def test_a_peer_s_provider_opens_a_session(make: Callable[..., Any], tmp_path: Path) -> None:
    mock = pytest.importorskip("oidc_provider_mock")
    user = mock.User(sub="li", claims={"preferred_username": "li.wei", "groups": ["staff", "it"]})
    with mock.run_server_in_thread(user_claims=[user], require_nonce=True) as server:
        issuer = f"http://localhost:{server.server_port}"
        secret = tmp_path / "secret"
        secret.write_text("of this client")
        options = {"client_secret_file": str(secret)}
        client = make(
            oidc=OidcConfig(issuer, "qinjing", "http://127.0.0.1", ROLES, **options)
        ).client()
        assert client.get("/api/session/ways").json() == {"token": True, "oidc": True}
        assert client.get("/api/session").status_code == 401
        begun = client.get("/api/oidc/start", follow_redirects=False)
        place = begun.headers["location"]
        assert place.startswith(f"{issuer}/oauth2/authorize?")
        with httpx2.Client(trust_env=False) as browser:
            assert "li" in browser.get(place).text
            agreed = browser.post(place, data={"sub": "li"})
        assert agreed.status_code in (302, 303)
        back = urlsplit(agreed.headers["location"])
        assert back.path == "/api/oidc/callback"
        ended = client.get(f"{back.path}?{back.query}", follow_redirects=False)
        assert (ended.status_code, ended.headers["location"]) == (303, "/?sign_in=done")
        said = client.get("/api/session").json()
        assert (said["person"], said["role"]) == (person("li.wei", issuer, "li"), "admin")
        # The code is spent, and so is the browser's own cookie.
        again = client.get(f"{back.path}?{back.query}", follow_redirects=False)
        assert again.headers["location"] == "/?sign_in=expired"
        assert client.delete("/api/session").status_code == 200
        assert client.get("/api/session").status_code == 401


@pytest.mark.parametrize(("key", "alg"), [(RSA, "RS256"), (EC, "ES256")], ids=["RSA", "EC"])
def test_both_kinds_of_signature_open(
    key: Any, alg: str, enter: Callable[..., Any], provider: Told
) -> None:
    client, (place, query) = enter(key, alg)
    assert place == "/?sign_in=done"
    assert client.get("/api/session").json()["person"] == person("li.wei", provider.issuer)
    assert query["scope"] == ["openid profile email"] and query["tenant"] == ["1"]


def test_the_code_is_exchanged_by_who_began_alone(
    provider: Told, enter: Callable[..., Any], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s:e/c r\n")
    _, (_, query) = enter(options={"client_secret_file": str(secret)})
    ((headers, form),) = provider.forms
    digest = hashlib.sha256(form["code_verifier"][0].encode()).digest()
    assert query["code_challenge"] == [base64.urlsafe_b64encode(digest).rstrip(b"=").decode()]
    assert query["code_challenge_method"] == ["S256"]
    assert form["redirect_uri"] == query["redirect_uri"] == ["http://127.0.0.1/api/oidc/callback"]
    assert "client_secret" not in form and form["code"] == ["c0de"]
    # RFC 6749, 2.3.1: both encoded first.
    shown = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()
    assert shown == "qinjing:s%3Ae%2Fc%20r"
    provider.document["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    provider.token = dict
    enter(options={"client_secret_file": str(secret)})
    headers, form = provider.forms[-1]
    assert form["client_secret"] == ["s:e/c r"] and "authorization" not in headers


def unsigned(token: str) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"rsa"}').rstrip(b"=").decode()
    return f"{head}.{token.split('.')[1]}."


def by_secret(token: str) -> str:
    """Signed with the public key's own text, as a verifier that believes the header would check."""
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa"}').rstrip(b"=").decode()
    said = f"{head}.{token.split('.')[1]}"
    sign = hmac.digest(RSA.as_pem(private=False), said.encode(), "sha256")
    return f"{said}.{base64.urlsafe_b64encode(sign).rstrip(b'=').decode()}"


def altered(token: str) -> str:
    head, body, sign = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["groups"] = ["it"]
    changed = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{head}.{changed}.{sign}"


LIES: dict[str, dict[str, Any]] = {
    "no signature": {"change": unsigned},
    "altered": {"change": altered},
    "no token": {"change": lambda _: "rubbish"},
    "the public key as a secret": {"change": by_secret},
    "another's key of the same name": {"key": RSAKey.generate_key(2048, {"kid": "rsa"})},
    "a key of nobody": {"key": RSAKey.generate_key(2048, {"kid": "who"})},
    "no key named": {"head": {"kid": None}},
    "a short key": {"key": WEAK},
    "another curve": {"key": P384, "alg": "ES384"},
    "an algorithm of another key": {"key": RSA, "head": {"kid": "ec"}},
    "expired": {"exp": -120},
    "without end": {"exp": None},
    "of the future": {"iat": 600},
    "not yet": {"nbf": 600},
    "of another issuer": {"iss": "https://evil.example"},
    "for another": {"aud": "other"},
    "for nobody": {"aud": None},
    "for two": {"aud": ["qinjing", "other"]},
    "for two, given to another": {"aud": ["qinjing", "other"], "azp": "other"},
    "given to another": {"azp": "other"},
    "of another browser": {"nonce": "x"},
    "without nonce": {"nonce": None},
    "nonce of another kind": {"nonce": 7},
    "in no group": {"groups": ["kitchen"]},
    "without groups": {"groups": None},
    "groups within groups": {"groups": [["it"], {"it": 1}]},
    "nameless": {"preferred_username": None},
    "a name of another kind": {"preferred_username": ["li"]},
    "a name with lines": {"preferred_username": "li\nwei"},
    "a name of several parts": {"preferred_username": "li^wei"},
    "a name of nothing": {"preferred_username": "  "},
    "an email that nobody verified": {"preferred_username": None, "email": "a@b.c"},
    "an email verified by word": {
        "preferred_username": None, "email": "a@b.c", "email_verified": "true",
    },
    "another issuer in the address": {"back": {"iss": "https://evil.example"}},
    "no code": {"back": {"code": ""}},
    "an error": {"back": {"error": "access_denied"}},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of the signer, who sees what he signs
@pytest.mark.parametrize("lie", LIES)
def test_who_lies_does_not_come_in(
    lie: str, enter: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, (place, _) = enter(**LIES[lie])
    assert place == "/?sign_in=refused"
    assert client.get("/api/session").status_code == 401
    for word in ("li.wei", "a@b.c", "kitchen", "evil", "c0de"):
        assert word not in caplog.text


@pytest.mark.parametrize(
    ("claims", "options", "name", "role"),
    [
        ({"aud": ["qinjing", "other"], "azp": "qinjing"}, {}, "li.wei", "reader"),
        ({"aud": ["qinjing"]}, {}, "li.wei", "reader"),
        ({"groups": "it"}, {}, "li.wei", "admin"),
        ({"groups": ["it", "radiology"]}, {}, "li.wei", "reader"),  # what stands first here
        ({"exp": -30, "iat": -400}, {}, "li.wei", "reader"),  # clocks differ
        ({"email": "a@b.c", "email_verified": True, "preferred_username": None}, {}, "a@b.c",
         "reader"),
        ({"groups": None, "realm_access": {"roles": ["it"]}}, {"claim": "realm_access.roles"},
         "li.wei", "admin"),
        ({"https://h.example/groups": ["it"]}, {"claim": "https://h.example/groups"}, "li.wei",
         "admin"),
        ({"name": "Li Wei"}, {"name_claim": "name"}, "Li Wei", "reader"),
    ],
)  # fmt: skip
def test_claims_make_a_person_and_a_role(
    claims: dict[str, Any], options: dict[str, Any], name: str, role: str,
    enter: Callable[..., Any], provider: Told,
) -> None:  # fmt: skip
    client, (place, _) = enter(options=options, **claims)
    assert place == "/?sign_in=done"
    said = client.get("/api/session").json()
    assert (said["person"], said["role"]) == (person(name, provider.issuer), role)


@pytest.mark.parametrize("name", ["li.wei", "  li.wei ", "Li\u0301", "x" * 300, "token 1a2b3c4d"])
def test_under_another_s_name_one_is_still_oneself(
    name: str, provider: Told, enter: Callable[..., Any]
) -> None:
    """OpenID Connect Core 1.0, 5.7: a preferred_username may change, and be another's."""
    persons = []
    for sub in ("42", "43", "42"):
        provider.token = dict
        client, (place, _) = enter(preferred_username=name, sub=sub)
        if name.startswith("token"):
            assert place == "/?sign_in=refused"
            return
        persons.append(client.get("/api/session").json()["person"])
    assert persons[0] == persons[2] != persons[1]
    assert persons[1].endswith(person("", provider.issuer, "43"))
    assert all(person_of(one) == one and len(one) <= 64 for one in persons)


def test_another_browser_s_way_back_leads_nowhere(
    provider: Told, enter: Callable[..., Any]
) -> None:
    """Else a stranger could sign somebody in as himself, and read what he writes."""
    client, (place, query) = enter()
    assert place == "/?sign_in=done"
    other = TestClient(client.app, base_url="http://127.0.0.1")
    words = {"state": query["state"][0], "code": "c0de"}
    for _ in range(2):
        ended = other.get("/api/oidc/callback", params=words, follow_redirects=False)
        assert ended.headers["location"] == "/?sign_in=expired"
        other.get("/api/oidc/start", follow_redirects=False)  # with a cookie, but of another state
    ended = other.get("/api/oidc/callback", follow_redirects=False)
    assert ended.headers["location"] == "/?sign_in=expired"
    assert len(provider.forms) == 1


def test_the_cookies_are_for_this_host_over_tls_alone(
    provider: Told, make: Callable[..., Any], certificate: tuple[Path, Path]
) -> None:
    config = OidcConfig(provider.issuer, "qinjing", "https://127.0.0.1", ROLES)
    cert, key = certificate
    client = make(oidc=config, tls_cert=cert, tls_key=key).client()
    cookie = client.get("/api/oidc/start", follow_redirects=False).headers["set-cookie"]
    assert re.match(r"__Host-qinjing-oidc=\S+;", cookie)
    for word in ("HttpOnly", "SameSite=lax", "Secure", "Path=/", "Max-Age=600"):
        assert word in cookie


def test_a_provider_that_is_away_or_another_is_said(
    provider: Told, make: Callable[..., Any], enter: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("qinjing.serve.peer.TRIES", 1)
    for document in (
        {"issuer": "https://evil.example"},
        {"authorization_endpoint": "http://evil/"},
    ):
        provider.document = document
        config = OidcConfig(provider.issuer, "qinjing", "http://127.0.0.1", ROLES)
        begun = make(oidc=config).client().get("/api/oidc/start", follow_redirects=False)
        assert begun.headers["location"] == "/?sign_in=unavailable"
        assert "set-cookie" in begun.headers and "Max-Age=0" in begun.headers["set-cookie"]
    provider.document = {}
    provider.token = lambda: (400, {}, b'{"error": "invalid_grant"}')
    client, (place, _) = enter()
    assert place == "/?sign_in=refused" and len(provider.forms) == 1  # a code is shown once
    assert client.get("/api/session").status_code == 401


def test_new_keys_are_asked_for_but_not_for_every_stranger(
    provider: Told, make: Callable[..., Any]
) -> None:
    from qinjing.serve.oidc import Provider

    moment = 0.0
    known = Provider(OidcConfig(provider.issuer, "q", "http://127.0.0.1", ROLES), lambda: moment)
    provider.keys = [RSA]
    known.key("rsa", "RS256")
    for _ in range(3):
        with pytest.raises(FormatError, match="one of the issuer"):
            known.key("ec", "ES256")
    assert provider.asked_keys == 1
    provider.keys = [RSA, EC]
    moment += 61
    known.key("ec", "ES256")
    assert provider.asked_keys == 2
    moment += 3601
    known.key("rsa", "RS256")
    assert provider.asked_keys == 3


def test_who_signs_in_again_and_again_signs_nobody_else_out(
    provider: Told, enter: Callable[..., Any]
) -> None:
    client, _ = enter()
    tokens = client.app.state.tokens
    first = tokens.lend("reader", "li.wei", 60)
    assert tokens.lend("reader", "li.wei", 600).token_id == first.token_id
    assert tokens.find(first.token_id).expires > first.expires
    assert tokens.lend("admin", "li.wei", 60).token_id != first.token_id
    assert tokens.check(f"qj_{first.token_id}_") is None
    gone = tokens.lend("reader", "wang", -1)
    assert tokens.find(gone.token_id) is None


def test_without_a_provider_there_is_no_such_way(make: Callable[..., Any]) -> None:
    client = make().client()
    assert client.get("/api/session/ways").json() == {"token": True, "oidc": False}
    assert client.get("/api/oidc/start", follow_redirects=False).status_code == 404


def test_the_configuration_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "oidc.json"
    said = {
        "issuer": "https://idp.example/realms/h", "client_id": "qinjing",
        "url": "https://qinjing.example", "roles": ROLES, "client_secret_file": "secret",
    }  # fmt: skip
    file.write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="client_secret_file must be readable"):
        read_oidc(file)
    (tmp_path / "secret").write_text("s3cret\n")
    config = read_oidc(file)
    assert config.callback == "https://qinjing.example/api/oidc/callback"
    assert config.client_secret_file == str(tmp_path / "secret")
    for change, rule in (
        ({"roles": {"a": "patient"}}, "ethics, reader, annotator, admin"),
        ({"roles": {}}, "given"),
        ({"roles": {"a": "king"}}, "ethics, reader"),
        ({"issuer": "http://idp.example"}, "of https"),
        ({"url": "qinjing"}, "https://HOST"),
        ({"scopes": ["profile"]}, "openid among scopes"),
        ({"colour": "red"}, "one of"),
        ({"client_secret_file": "oidc.json"}, "of one line"),
    ):
        file.write_text(json.dumps({**said, **change}, indent=1))
        with pytest.raises(ConfigError, match=rule):
            read_oidc(file)

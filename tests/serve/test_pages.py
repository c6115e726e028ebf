"""Which pages the service has, with and without what web/ is built into."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources

import pytest

from qinjing.serve import pages
from tests.serve.conftest import Service

BUILT = resources.files("qinjing.serve") / "static" / "clinic" / "clinic.html"
built = pytest.mark.skipif(not BUILT.is_file(), reason="web/ was not built here (npm, esbuild)")


def test_where_nothing_was_built_consents_remain(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "BUILT", "of-no-build")
    client = make().client()
    assert client.get("/").url.path == "/consent"
    for path in ("/study", "/annotate"):
        answer = client.get(path)
        assert (
            answer.status_code == 503 and "not built" in answer.text and "没有生成" in answer.text
        )


@built
def test_the_clinics_pages_are_one_page_of_this_service_alone(service: Service) -> None:
    client = service.client()
    for path in ("/", "/study", "/annotate"):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.url.path == path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "style=" not in answer.text and "<script>" not in answer.text
        places = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
        places.remove("/api/oidc/start")
        for place in places:
            assert place.startswith("/static/") and client.get(place).status_code == 200
    for name in ("clinic.html", "..%2fconsent.html", "main.ts", "package.json"):
        assert client.get(f"/static/clinic/{name}").status_code == 404


@built
def test_a_browser_may_keep_what_its_name_holds_for(service: Service) -> None:
    client, folder = service.client(), resources.files("qinjing.serve") / "static" / "clinic"
    chunks = [one.name for one in folder.iterdir() if one.name.startswith("chunk-")]
    for name in chunks:
        assert "immutable" in client.get(f"/static/clinic/{name}").headers["cache-control"]
    assert client.get("/static/clinic/main.js").headers["cache-control"] == "no-store"
    assert client.get("/").headers["cache-control"] == "no-store"

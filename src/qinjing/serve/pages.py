"""The pages and their parts: that of consents as it stands here, the clinic's as web/ was built."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

BUILT = "clinic"  # the folder into which hatch_build.py has web/ built

_HTML = "text/html; charset=utf-8"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpeg": "image/jpeg",
}
# A part whose name holds a digest of what is in it never changes, and holds no patient.
_FOREVER = "public, max-age=31536000, immutable"
_UNBUILT = (
    "<!doctype html><html lang='en'><meta charset='utf-8'><title>Qinjing</title>"
    "<p>The clinic's pages were not built when this was installed: install it again where npm's "
    "registry can be reached. The page of consents is at <a href='/consent'>/consent</a>.</p>"
    "<p lang='zh-Hans'>安装时没有生成临床页面：请在可以访问 npm 软件源的环境中重新安装。"
    "同意管理页面位于 <a href='/consent'>/consent</a>。</p></html>"
)


def add_pages(app: FastAPI) -> None:
    """Serve the pages: the worklist, the viewer, annotation, and consents.

    What is served is read once and named one by one, so nothing else of the package can be asked
    for. Where web/ was not built, the service runs and its clinic's pages say so.

    Args:
        app: the service's application.
    """
    folder = resources.files("qinjing.serve") / "static"
    consents = (folder / "consent.html").read_bytes()
    parts, built = _parts(folder), _parts(folder / BUILT)
    page = folder / BUILT / "clinic.html"
    clinic = page.read_bytes() if page.is_file() else None

    def shown(request: Request) -> Response:
        if clinic is not None:
            return Response(clinic, media_type=_HTML)
        if request.url.path == "/":
            return RedirectResponse("/consent")
        return Response(_UNBUILT, 503, media_type=_HTML)

    for path in ("/", "/study", "/annotate"):
        app.add_api_route(path, shown, include_in_schema=False)

    @app.get("/consent", include_in_schema=False)
    def consent() -> Response:
        return Response(consents, media_type=_HTML)

    @app.get("/static/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        return _sent(parts, name)

    @app.get(f"/static/{BUILT}/{{name}}", include_in_schema=False)
    def built_part(name: str) -> Response:
        answer = _sent(built, name)
        if name.startswith("chunk-"):
            answer.headers["cache-control"] = _FOREVER
        return answer


def _parts(folder: Traversable) -> dict[str, tuple[bytes, str]]:
    """What a folder holds for a browser: name → content and kind."""
    if not folder.is_dir():
        return {}
    return {
        one.name: (one.read_bytes(), _KINDS["." + one.name.rpartition(".")[2]])
        for one in folder.iterdir()
        if "." + one.name.rpartition(".")[2] in _KINDS
    }


def _sent(parts: dict[str, tuple[bytes, str]], name: str) -> Response:
    if name not in parts:
        raise HTTPException(404)
    content, kind = parts[name]
    return Response(content, headers={"content-type": kind})

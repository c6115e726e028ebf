"""Chromium over a pipe: enough of its DevTools protocol to use a page and to look at it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--no-first-run", "--disable-sync",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",  # WebGL without a graphics card
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
    "--ignore-certificate-errors", "--lang=en",
)  # fmt: skip


MISSING = "the page is not tested: no Chromium here (Debian: apt install chromium)"


def chromium() -> str | None:
    """Where the browser is, if it is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One page.

    Args:
        profile: an empty folder.
        dark: what the system is said to prefer.
    """

    def __init__(self, profile: Path, *, dark: bool = False, size: tuple[int, int] = (1280, 800)):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # Above 4, so that putting one in its place does not close the other.
        high = [os.dup(os.dup(os.dup(one))) for one in (to_read, to_write)]

        def place() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.log: list[str] = []
        self._process = subprocess.Popen(
            [chromium() or "chromium", *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for one in (to_read, to_write, *high):
            os.close(one)
        self._rest, self._count, self._session = b"", 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for name in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{name}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=size[0], height=size[1], deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for one thing and wait for its answer; what else comes in is kept in `log`."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._count:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return dict(told["result"])
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded") or (
                told.get("method") == "Runtime.consoleAPICalled"
                and told["params"]["type"] in ("error", "assert")
            ):
                self.log.append(json.dumps(told["params"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            if not more:
                raise RuntimeError("the browser went away")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def run(self, script: str) -> Any:
        """Return what a script in the page comes to."""
        told = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in told:
            raise RuntimeError(f"{script}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def until(self, script: str, seconds: float = 60.0) -> None:
        """Wait for a script in the page to be true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise AssertionError(f"not so after {seconds} s: {script}\n{self.log}")
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False, ctrl: bool = False) -> None:
        """Press a key: a letter, a space, or one that has a name, like Tab or ArrowUp."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40}.get(key)
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 and not ctrl else None)
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key,
                windowsVirtualKeyCode=code or ord(key[0].upper()),
                modifiers=8 * shift + 2 * ctrl, **more,
            )  # fmt: skip

    def drag(self, *places: tuple[float, float], shift: bool = False) -> None:
        """Press the mouse at the first place, go through the others, let go at the last."""
        held: dict[str, Any] = {"button": "left", "modifiers": 8 * shift}
        (x, y), *more = places
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.send(
            "Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, clickCount=1, buttons=1,
            **held,
        )  # fmt: skip
        for x, y in more:
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, **held)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, clickCount=1, **held)

    def click(self, selector: str) -> None:
        """Click into the middle of what a selector finds first."""
        place = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'nearest'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.drag((place[0], place[1]))

    def picture(self, path: Path) -> None:
        """Write what is to be seen as a PNG."""
        path.write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session = None
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

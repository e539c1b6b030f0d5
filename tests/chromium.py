"""A headless Chromium, driven over a pipe, for pages that have to be seen working; no further package is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
PATIENCE_S = 60
SETTLED = """new Promise((done) => requestAnimationFrame(() => {
  new IntersectionObserver((_, own) => { own.disconnect(); done(); }).observe(document.documentElement);
}))"""
"""Of the page's observers, which draw what comes into view, every one is told before one that is made later."""
KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Escape": 27}


class Chromium:
    """One tab; everything waits until it is done."""

    def __init__(self, width: int = 1400, height: int = 900, *flags: str) -> None:
        assert PROGRAM is not None, "ask PROGRAM first"
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # its helpers may still write
        asked, self.commands = os.pipe()
        self.answers, told = os.pipe()
        size = f"--window-size={width},{height}"
        options = [
            *FLAGS,
            size,
            *flags,
            f"--user-data-dir={self.folder.name}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        line = ["bash", "-c", f'exec "$@" 3<&{asked} 4>&{told}', "bash", PROGRAM, *options]
        self.process = subprocess.Popen(line, pass_fds=(asked, told), stderr=subprocess.DEVNULL)
        os.close(asked)
        os.close(told)
        self.number, self.rest, self.session = 0, b"", ""
        self.errors: list[str] = []
        """Exceptions of the page, and what its console says of errors, violations of its policy among them."""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session = ""
        self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        self.folder.cleanup()

    def call(self, method: str, **options: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": options}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, fragment: str = "") -> None:
        """A page of a file, until it has drawn itself (it says so by `data-opened-ms`)."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{path.resolve().as_uri()}#{fragment}")
        ready = "document.documentElement && document.documentElement.dataset.openedMs ? 1 : 0"
        until = time.monotonic() + PATIENCE_S
        while not self.value(ready):
            assert time.monotonic() < until, "the page has not drawn itself"
            assert not self.errors, self.errors
        self.settle()

    def settle(self) -> None:
        """Until the page has drawn what the last command changed: frames come when they come on a busy machine."""
        self.value(SETTLED)

    def value(self, expression: str) -> Any:
        """Of JavaScript, in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, shift: bool = False) -> None:
        code, text = KEY_CODES.get(key, 0), key if len(key) == 1 else ""
        options = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **options, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)
        self.settle()

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        self.settle()

    def move(self, x: float, y: float) -> None:
        """The mouse, with no button held."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.answers], [], [], PATIENCE_S)[0], f"no word of Chromium for {PATIENCE_S} s"
            read = os.read(self.answers, 1 << 20)
            assert read, "Chromium has ended"
            self.rest += read
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(event["params"]["exceptionDetails"]["exception"].get("description", ""))
        entry = event.get("params", {}).get("entry", {})
        if event.get("method") == "Log.entryAdded" and entry["level"] == "error":
            self.errors.append(entry["text"])

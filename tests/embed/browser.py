"""Drives a headless Chromium through the DevTools protocol, over a pair of pipes: messages in JSON, a zero byte after
each. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--remote-debugging-pipe",
)  # fmt: skip
#: the browser finds its ends of the pipes at 3 and 4
_START = "import os, sys; os.dup2({reads}, 3); os.dup2({writes}, 4); os.execv(sys.argv[1], sys.argv[1:])"


def find_browser() -> str | None:
    """The path of Chromium or Chrome, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A browser with one page. `folder`: an empty one for its profile."""

    def __init__(self, program: str, folder: Path, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._next, self._received, self._events = 0, b"", []
        # numbers above 4, lest one is closed when it becomes 3 or 4
        reads, self._writer = (self._high(end) for end in os.pipe())
        self._reader, writes = (self._high(end) for end in os.pipe())
        start = _START.format(reads=reads, writes=writes)
        self._log = folder / "log"
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", start, *command], pass_fds=(reads, writes), stdin=subprocess.DEVNULL, stderr=log
            )
        os.close(reads)
        os.close(writes)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")

    @staticmethod
    def _high(number: int) -> int:
        high = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(number)
        return high

    def call(self, method: str, **parameters):
        """The result of a command."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self._timeout
        while True:
            answer = self._message(until)
            if answer.get("id") == self._next:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def _message(self, until: float):
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser has not answered within {self._timeout} s"
            data = os.read(self._reader, 1 << 20)
            assert data, f"the browser has ended: {self._log.read_text(errors='replace')[-2000:]}"
            self._received += data
        text, _, self._received = self._received.partition(b"\0")
        return json.loads(text)

    def open(self, address: str) -> None:
        """Go to an address; what the page before complained about is forgotten."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str):
        """The value of a JavaScript expression in the page, awaited where it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, condition: str, timeout: float = 60.0) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + timeout
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < until, (
                f"not within {timeout} s: {condition}\n{self.value('document.body.innerText')}"
            )
            time.sleep(0.03)

    def drop(self, file: Path, x: int, y: int) -> None:
        """Drag a file to a place in the page and drop it there."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def click(self, selector: str) -> None:
        """Click on an element with the mouse."""
        found = f"const found = document.querySelector({json.dumps(selector)});"
        box = "const {x, y, width, height} = found.getBoundingClientRect(); return [x + width / 2, y + height / 2];"
        x, y = self.value(f"(() => {{ {found} found.scrollIntoView({{ block: 'center' }}); {box} }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def complaints(self) -> list[str]:
        """Exceptions, errors and warnings on the console of the page since it was opened."""
        found = []
        for event in self._events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(str(parameters["entry"]))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                found.append(str(parameters["args"]))
        return found

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in a file input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, dark: bool = False) -> bytes:
        """The page as a PNG file, its animations done."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        finite = "document.getAnimations().filter((a) => a.effect.getComputedTiming().endTime < 5000)"
        self.value(f"Promise.allSettled({finite}.map((a) => a.finished)).then(() => null)")
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End the browser."""
        os.close(self._writer)  # which tells it to end
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._reader)

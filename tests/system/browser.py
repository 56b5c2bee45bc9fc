"""Controls a headless Chromium through the DevTools protocol.

The window of a headless Chromium is at least 500 px wide. The device emulation of the protocol has
no such limit, and also selects the color scheme. The protocol uses two pipes, so the tests need no
library for WebSockets (https://chromedevtools.github.io/devtools-protocol/).
"""

import base64
import json
import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

OPTIONS = (
    "--headless",
    "--no-sandbox",  # Chromium needs this option when it runs as root.
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
TIMEOUT_SECONDS = 600
# Chromium reads requests from descriptor 3, and writes responses and events to descriptor 4.
START = 'exec chromium "$@" 3<"$REQUESTS" 4>"$RESPONSES" 2>"$LOG"'


class Browser:
    """A Chromium with one page of a given size and color scheme."""

    def __init__(self, folder: Path, *, width: int, height: int, scheme: str) -> None:
        """Start the browser. The folder receives its profile, its log and the pipes."""
        folder.mkdir(parents=True, exist_ok=True)
        requests, responses = folder / "requests", folder / "responses"
        os.mkfifo(requests)
        os.mkfifo(responses)
        options = [*OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
        self._process = subprocess.Popen(
            ["sh", "-c", START, "sh", *options],
            env={
                **os.environ,
                "REQUESTS": str(requests),
                "RESPONSES": str(responses),
                "LOG": str(folder / "log"),
            },
        )
        self._timer = threading.Timer(TIMEOUT_SECONDS, self._process.kill)
        self._timer.start()
        self._requests: BinaryIO = requests.open("wb")
        self._responses: BinaryIO = responses.open("rb")
        self._number = 0
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._timer.cancel()
        self._requests.close()
        self._responses.close()

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        self._requests.write(json.dumps(message).encode() + b"\0")
        self._requests.flush()
        response = self._receive("id", self._number)
        if "error" in response:
            raise RuntimeError(f"{method}: {response['error']}")
        result: dict[str, Any] = response["result"]
        return result

    def open(self, address: str) -> None:
        """Open an address, and wait until the page is loaded."""
        # Without this step, an address that differs only in its anchor causes no load event.
        self._load("about:blank")
        self._load(address)

    def _load(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self._receive("method", "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression or of its promise, as JSON can express it."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def picture(self) -> bytes:
        """Return the visible part of the page as a PNG file."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _receive(self, key: str, value: object) -> dict[str, Any]:
        """Return the next message with this value. Other messages are events, and are skipped."""
        while True:
            message: dict[str, Any] = json.loads(self._message())
            if message.get(key) == value:
                return message

    def _message(self) -> bytes:
        """Return the next message. A zero byte ends each message."""
        parts = []
        while (byte := self._responses.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium has closed the connection; its log has the reason")
            parts.append(byte)
        return b"".join(parts)

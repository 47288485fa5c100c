"""A headless Chromium for tests, driven by the DevTools protocol over a WebSocket of our own: no dependency."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
GIVE_UP = 120  # seconds; a slow machine is not a failure


def find_chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. `events` are all that it reported since it was opened: exceptions, console, log, requests."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=GIVE_UP)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._socket.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        while self._file.readline().strip():
            pass
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Open a tab and listen to it."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._send(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode())
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "result" in answer, answer
        return answer["result"]

    def open(self, file: Path, width: int, *, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of this width, and wait until it is loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def problems(self) -> list[str]:
        """What the page complained about since it was opened, and every request for something else than itself."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        found = [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]
        asked = [event["params"]["request"]["url"] for event in self.events if "request" in event.get("params", {})]
        return found + asked[1:]

    def _send(self, data: bytes) -> None:
        mask = os.urandom(4)
        size = struct.pack("!BH", 0xFE, len(data)) if 125 < len(data) < 65536 else struct.pack("!BQ", 0xFF, len(data))
        size = size if len(data) > 125 else bytes([0x80 | len(data)])
        repeated = mask * (len(data) // 4 + 1)
        self._socket.sendall(b"\x81" + size + mask + bytes(a ^ b for a, b in zip(data, repeated, strict=False)))

    def _receive(self) -> dict[str, Any]:
        data, last = b"", False
        while not last:
            first, size = self._file.read(2)
            last = bool(first & 0x80)
            if size > 125:
                (size,) = struct.unpack("!H" if size == 126 else "!Q", self._file.read(2 if size == 126 else 8))
            part = self._file.read(size)
            data += part if first & 0x0F < 8 else b""  # pings carry nothing
        return json.loads(data) if data else {}


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Page]:
    """Start a browser with a profile of its own; it ends with the block."""
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        told = profile / "DevToolsActivePort"  # where it writes the port that it chose
        deadline = time.monotonic() + GIVE_UP
        while not (told.is_file() and told.read_text().count("\n")):
            assert process.poll() is None, f"{program} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{program} does not answer"
            time.sleep(0.05)
        port, path = told.read_text().split("\n")[:2]
        page = Page(int(port), path)
        page.attach()
        yield page
        page._session = None
        page.ask("Browser.close")
        process.wait(GIVE_UP)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

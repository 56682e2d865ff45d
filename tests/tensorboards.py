"""A real TensorBoard with the Scaling tab in this process, and a browser to look at it."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",  # the browser's own questions, not the page's
)


class Server:
    """Serves TensorBoard's application on a free port."""

    def __init__(self, app: Any, flags: Any) -> None:
        from werkzeug import serving

        class Quiet(serving.WSGIRequestHandler):
            def log(self, *args: object) -> None:
                """Not a line a request."""

        self._server = serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        self._server.daemon_threads = True

    def serve_forever(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def get_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def print_serving_message(self) -> None:
        """Nobody reads it."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def tensorboard(logdir: Path | str, *options: str) -> Iterator[str]:
    """The address of a TensorBoard that shows a folder; `options` stand in place of --logdir."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the html5lib that TensorBoard 2.21 brings
        from tensorboard import default, program

    from isoflop.tab import ScalingPlugin

    servers: list[Server] = []

    def make(app: Any, flags: Any) -> Server:
        servers.append(Server(app, flags))
        return servers[-1]

    board = program.TensorBoard(plugins=[*default.get_static_plugins(), ScalingPlugin], server_class=make)
    # load_fast: its own reader in this process, not a data server beside
    board.configure(argv=["tensorboard", *(options or [f"--logdir={logdir}"]), "--load_fast=false"])
    url = board.launch()
    try:
        yield url
    finally:
        for server in servers:
            server.close()


def without_browser() -> str | None:
    """Why there is no browser; None: there is."""
    if _chromium() is None:
        return f"none of {', '.join(CHROMIUM)} is installed"
    return None if shutil.which("chromedriver") else "chromedriver is not installed"


def _chromium() -> str | None:
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A chromium of one's own, whose console and network are logged; skips the test where there is none."""
    why = without_browser()
    if why is not None:
        pytest.skip(f"the browser's tests need chromium and its driver: {why}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _chromium() or ""
    for flag in (*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    if dark:
        options.add_argument("--force-dark-mode")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # selenium's manager would look for a driver elsewhere
    service = Service(shutil.which("chromedriver"), log_output=os.devnull)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()

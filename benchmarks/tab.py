"""How long the Scaling tab takes: to its first figure in a browser, and for each of its answers.

    python benchmarks/tab.py                            # 100 runs of 100,000 points: 4.3 GB for a while, minutes
    python benchmarks/tab.py --runs 20 --points 8000    # what isoflop's own records hold after 10^7 steps

Cold: a TensorBoard that has just started and has read nothing (the files are in the system's cache, having just been
written). Without chromium and its driver the browser's part is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

BROWSER = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--window-size=1280,900",
)
TARGET = 2.0
"""Seconds to the first figure."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="a folder to write the records to, and to take them from again")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # TensorBoard's, of a folder without its own files
    folder = given.keep or Path(tempfile.mkdtemp())
    try:
        if not any(folder.glob("*/*.jsonl")):
            for i in range(given.runs):
                write_run(folder, i, given.points)
        size = sum(path.stat().st_size for path in folder.glob("*/*.jsonl"))
        print(f"{given.runs} runs of {given.points:,} points, {size / 1e9:.2f} GB; load {os.getloadavg()[0]:.1f}")
        in_browser(folder)
        by_route(folder)
    finally:
        if given.keep is None:
            shutil.rmtree(folder)


def write_run(folder: Path, index: int, points: int) -> None:
    """A record with lines as isoflop writes them, of a loss as Hoffmann et al.'s law has it."""
    rng = random.Random(index)
    N = int(1e6 * 300 ** ((index % 10) / 9))
    batch = 4096 * (1 + index // 10)
    path = folder / f"size-{N}" / f"isoflop-20261122-{index:06}-abcdef.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "event": "header",
        "isoflop": 1,
        "run_id": path.stem.removeprefix("isoflop-"),
        "created": "2026-11-22T00:00:00+00:00",
        "name": f"run {index}",
        "framework": "loop",
        "parameters": {"non_embedding": N, "non_embedding_with_head": N, "total": N},
        "planned": {"steps": points},
    }
    line = (
        '{"event":"point","attempt":1,"step":%d,"tokens":%d,"padding":0,"loss_tokens":null,"flops":%d,'
        '"flops_hardware":%d,"flops_6nd":%d,"losses":{"train":%.15f},"nonfinite":{},"lr":0.0035,"batch_tokens":%.1f,'
        '"interval_steps":1,"time":%.7f,"wall_time":%.13f,"training_time":%.13f,"extra":{"tokens_per_second_per_device":'
        '71550.0900933017,"tflops_per_device":0.017584150141329823}}\n'
    )
    with path.open("w") as stream:
        stream.write(json.dumps(header, separators=(",", ":")) + "\n")
        for step in range(1, points + 1):
            D = step * batch
            loss = 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658 + 0.02 * (rng.random() - 0.5)
            C = 6 * N * D
            stream.write(line % (step, D, C, C, C, loss, batch, 1.795e9 + step, 0.7 * step, 0.6 * step))
        end = {"event": "end", "step": points, "status": "completed"}
        stream.write(json.dumps(end, separators=(",", ":")) + "\n")


class Board:
    """A TensorBoard of this process."""

    def __init__(self, folder: Path) -> None:
        from tensorboard import default, program

        from isoflop.tab.plugin import ScalingPlugin

        board = program.TensorBoard(plugins=[*default.get_static_plugins(), ScalingPlugin])
        board.configure(argv=["tensorboard", f"--logdir={folder}", "--port=0", "--load_fast=false"])
        self.url = board.launch()

    def ask(self, route: str) -> Any:
        """An answer of the plugin."""
        with urllib.request.urlopen(f"{self.url}data/plugin/isoflop/{route}") as response:
            return json.loads(response.read())


def by_route(folder: Path) -> None:
    """Seconds of the server alone."""
    board = Board(folder)
    started = time.perf_counter()

    def until(done: Callable[[Any], bool]) -> float:
        while not done(board.ask("runs")):
            time.sleep(0.05)
        return time.perf_counter() - started

    print("\nserver, from its first question on                      seconds")
    with urllib.request.urlopen(f"{board.url}data/plugins_listing") as response:
        active = json.loads(response.read())["isoflop"]["enabled"]
    row(f"the tab is {'active' if active else 'NOT ACTIVE'}", time.perf_counter() - started)
    row("a part of every run was read", until(lambda told: told["listed"] and told["read"] == told["found"]))
    row("every run was read to its end", until(lambda told: told["whole"] == told["found"]))
    row("the runs are fitted", until(lambda told: told["state"] == "fitted"))
    print(f"\n{'answer':44}{'first':>10}{'again':>10}{'kB':>9}")
    keys = board.ask("runs")["figures"]
    routes = ["runs", "advice", "fit", "plan?budget=1e22", *(f"figure?key={key}" for key in keys)]
    for route in routes:
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            answer = board.ask(route)
            times.append(time.perf_counter() - begun)
        print(f"{route:44}{times[0]:>10.3f}{times[1]:>10.3f}{len(json.dumps(answer)) / 1e3:>9.0f}")


def in_browser(folder: Path) -> None:
    """Seconds to the first figure, as the page itself tells them."""
    chromium = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    if chromium is None or shutil.which("chromedriver") is None:
        print("\nno chromium, or no chromedriver: the browser's part is left out")
        return
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in BROWSER:
        options.add_argument(flag)
    print(f"\nbrowser, from the page's start to its first figure      seconds (at most {TARGET:g} is wanted)")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"), log_output=os.devnull))
    driver.set_script_timeout(120)
    try:
        board = Board(folder)
        for label in ("cold", "warm"):
            driver.get(f"{board.url}data/plugin_entry.html?name=isoflop")
            row(f"the tab alone, {label}", driver.execute_async_script(FIRST_FIGURE) / 1e3)
            print(f"    it showed {driver.execute_script(SHOWN)}")
        board = Board(folder)
        begun = time.perf_counter()
        driver.get(f"{board.url}#isoflop")
        while not driver.find_elements("css selector", "iframe"):
            time.sleep(0.02)
        framed = time.perf_counter() - begun
        driver.switch_to.frame(driver.find_element("css selector", "iframe"))
        row("within TensorBoard, cold", driver.execute_async_script(FIRST_FIGURE) / 1e3)
        print(f"    (and {framed:.2f} s until TensorBoard's own page opened the tab)")
    finally:
        driver.quit()


FIRST_FIGURE = """
const done = arguments[0];
const look = () => {
  const [mark] = performance.getEntriesByName('isoflop first figure');
  if (mark) done(mark.startTime); else setTimeout(look, 10);
};
look();
"""
SHOWN = """
return document.querySelector('.figure').querySelectorAll('.scatterlayer path.js-line').length + ' curves, “'
  + document.querySelector('.said').textContent + '”';
"""


def row(label: str, seconds: float) -> None:
    """One line of a table."""
    assert math.isfinite(seconds)
    print(f"{label:56}{seconds:.2f}")


if __name__ == "__main__":
    main()

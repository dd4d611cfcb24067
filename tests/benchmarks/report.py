"""How long ``asyncflow report`` takes for a run of many samples, how much memory, and how large its page is.

    a run on a broker of its own ──► asyncflow report, in a process of its own ──► seconds, memory, bytes
                                                     page ──► headless Chromium ──► seconds until it answers a search

    make -s bench BENCH=report BENCH_ARGS="--samples 100000"

Prints one JSON object, with code 1 if a figure misses its bar. Without a browser the page is not opened.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.local.broker import Broker
from pipelines.local.stack import asyncflow_command
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, RunConfig
from tests.support.browser import find_browser, open_browser
from tests.support.report import WrittenRun

BARS = {"seconds_of_processor": 60.0, "page_bytes": 15_000_000, "peak_memory_mb": 1000.0}
"""Most of each. One process does it all, so on a machine that is free it takes as long as it uses a processor."""
_GROUP = 8


def main():
    options = parse()
    with tempfile.TemporaryDirectory() as directory, Broker(Path(directory) / "kafka") as broker:
        config = RunConfig(name="large", kafka=KafkaConfig(bootstrap=broker.bootstrap))
        create_topics(config)
        WrittenRun(config, options.samples // _GROUP, size=_GROUP, words=options.words, groups_per_step=16).write()
        page = options.keep or Path(directory) / "report.html"
        figures = {"samples": options.samples, "words": options.words, **measure(config, page)}
        figures |= opened(page) if find_browser() else {}
    figures["passed"] = all(figures.get(name, 0) <= most for name, most in BARS.items())
    sys.stdout.write(json.dumps({**figures, "bars": BARS}, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=60, help="of an answer, in the mean")
    parser.add_argument("--keep", type=Path, help="where the page is left")
    return parser.parse_args()


def measure(config, page):
    """The command as a person would run it."""
    command = [*asyncflow_command(), "report", config.name, "--bootstrap", config.kafka.bootstrap, "--out", str(page)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    return {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_of_processor": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
        "page_bytes": page.stat().st_size,
        "said": said.strip().rpartition(": ")[2],
    }


def opened(page):
    """The page in a browser: until curves and answers are there, and until a search has found something."""
    with open_browser() as browser:
        tab = browser.new_page(viewport={"width": 400, "height": 800})
        started = time.monotonic()
        tab.goto(page.resolve().as_uri())
        tab.locator("body[data-answers=ready][data-curves=ready]").wait_for(timeout=120_000)
        open_s, started = time.monotonic() - started, time.monotonic()
        tab.locator("#query").fill("reward>0.5 quista")
        tab.locator("#count[data-query='reward>0.5 quista']").wait_for()
        return {
            "seconds_to_open": round(open_s, 1),
            "seconds_to_search": round(time.monotonic() - started, 2),
            "found": tab.locator("#count").inner_text(),
            "cut_characters": tab.evaluate("data.cut"),
        }


if __name__ == "__main__":
    raise SystemExit(main())

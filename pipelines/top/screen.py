"""From a run's name to a screen that lives: ``asyncflow top``.

find the run ─► Watch ─► every half second: Snapshot ─► explain ─► live screen
                                                          └─► a line every 10 s, or JSON
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from pipelines.runs import NAME, find_place, served
from pipelines.top.draw import render
from pipelines.top.endpoints import endpoints_of
from pipelines.top.explain import explain
from pipelines.top.lines import plain
from pipelines.top.state import Process, Snapshot
from pipelines.top.watch import PAUSE_S, Watch, Watched
from schemas.errors import ConfigError

REFRESH_S: Final = 0.5
LINE_S: Final = 10.0


Given = tuple[str | None, str | None, Path | None]
"""How a user names a run: its name or directory, where its log is served, a file with its configuration."""


def run(given: Given, metrics: Sequence[str], *, once: bool, as_json: bool) -> int:
    """Shows a run until Ctrl-C; of one that has ended, without a screen, only how it stands.

    Args:
        given: which run.
        metrics: further Prometheus pages.
        once: look twice, so that rates can be told, and end.
        as_json: print snapshots instead of drawing them.

    Raises:
        RunError: there is no such run.
        BrokerError: its log can be read nowhere.
    """
    with find(given, metrics) as watched, Watch(watched) as watch:
        drawn = not as_json and can_draw(Console())
        if once or not (drawn or watched.is_live):  # a log that nobody writes any more says nothing new
            time.sleep(2 * PAUSE_S)
            _print(watch, as_json=as_json)
        elif drawn:
            follow_on_screen(watch)
        else:
            follow_in_lines(watch, as_json=as_json)
    return 0


def can_draw(console: Console) -> bool:
    """Whether a live screen has a place: a terminal with a cursor and all of Unicode, whatever FORCE_COLOR says."""
    return console.file.isatty() and not console.is_dumb_terminal and console.encoding.startswith("utf")


@contextmanager
def find(given: Given, metrics: Sequence[str]) -> Iterator[Watched]:
    """The run, its log and its endpoints; the log of a finished run is served meanwhile."""
    named: dict[str, Process] = dict.fromkeys((page_of(url) for url in metrics), "unknown")
    name, bootstrap, file = given
    own, directory = find_place(name, file, bootstrap, flag=NAME)
    with served(name, bootstrap, file) as config:
        is_live = config.kafka.bootstrap == own.kafka.bootstrap
        known = endpoints_of(config) if directory and is_live else {}
        yield Watched(config, known | named, is_here=directory is not None, is_live=is_live)


def follow_on_screen(watch: Watch) -> None:
    """A live screen, until Ctrl-C."""
    with Live(console=Console(), auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            now = watch.snapshot()
            live.update(render(now, explain(watch.history), title(now)), refresh=True)
            time.sleep(REFRESH_S)


def follow_in_lines(watch: Watch, *, as_json: bool) -> None:
    """A line every 10 seconds, until Ctrl-C."""
    while True:
        _print(watch, as_json=as_json)
        next_line = time.monotonic() + LINE_S
        while time.monotonic() < next_line:
            time.sleep(REFRESH_S)
            watch.snapshot()  # for how long something has lasted


def title(now: Snapshot) -> str:
    """Of the screen. Example: ``demo at 127.0.0.1:9092, 12:00:00``."""
    return f"{now.run} at {now.broker}, {time.strftime('%H:%M:%S', time.localtime(now.at))}"


def as_tree(watch: Watch) -> dict[str, Any]:
    """The newest snapshot with its sentences, as JSON has it: see docs/watching.md."""
    sentences = explain(watch.history)
    return {"sentences": [asdict(sentence) for sentence in sentences], **asdict(watch.history[-1])}


def _print(watch: Watch, *, as_json: bool) -> None:
    now = watch.snapshot()
    line = json.dumps(as_tree(watch)) if as_json else plain(now, explain(watch.history))
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def page_of(url: str) -> str:
    """The page of figures that a user means: ``learner:9101`` is ``http://learner:9101/metrics``.

    Raises:
        ConfigError: it is no address of a server.
    """
    full = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", full):
        raise ConfigError(f"--metrics {url!r}: expected an address such as http://learner:9101")
    return full if full.endswith("/metrics") else f"{full}/metrics"

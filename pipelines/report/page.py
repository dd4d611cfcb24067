"""The page itself: facts in, one HTML file out, at most 15 MB and without a single address to load from.

Facts ──► template with style, script, plotly.js and samples inside (the last two deflated) ──► report.html
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, Final

from pipelines.local.paths import make_directory
from pipelines.report.embed import embed, packed
from pipelines.report.facts import Facts, facts_of
from pipelines.report.figures import figure
from pipelines.report.gather import gather
from schemas.config import RunConfig
from schemas.errors import DiskError

MAX_PAGE_BYTES: Final = 15_000_000
REPORT_NAME: Final = "report.html"
_STATIC: Final = Path(__file__).parent / "static"


def write_report(config: RunConfig, directory: Path | None, out: Path) -> Facts:
    """Reads a run from its topics and writes its page.

    Args:
        config: of the run: where its log is served.
        directory: of the run, if it has one on this machine.
        out: the page; replaced whole or not at all.

    Raises:
        BrokerError: the topics cannot be read.
        DiskError: the page cannot be written there.
    """
    if out.is_dir():
        raise DiskError(f"{out} is a directory; name the page in it, such as {out / REPORT_NAME}")
    facts = facts_of(gather(config, directory))
    write_page(facts, out)
    return facts


def write_page(facts: Facts, out: Path) -> None:
    """Renders the page beside its place and then gives it its name."""
    page = render(facts).encode("utf-8", "replace")
    beside = make_directory(out.absolute().parent) / f".{out.name}.{os.getpid()}"
    try:
        beside.write_bytes(page)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def render(facts: Facts, max_bytes: int = MAX_PAGE_BYTES) -> str:
    """The page; answers are cut so that it is not longer than ``max_bytes``."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("pipelines.report"),
        autoescape=select_autoescape(["html", "j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    inside = {
        "facts": facts,
        "style": (_STATIC / "report.css").read_text(),
        "script": (_STATIC / "report.js").read_text(),
        "plotly": _plotly(),
        "figures": _json([figure(curve, facts.marks) for curve in facts.figures]),
        "others": _json([figure(curve, facts.marks) for curve in facts.others]),
    }
    bare = len(template.render(inside, samples="", cut=0).encode("utf-8", "replace"))
    samples, cut = embed(facts.book, facts.lineage, max_bytes - bare)
    return template.render(inside, samples=samples, cut=cut)


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs().encode())


def _json(value: Any) -> str:
    """JSON that no markup can end, for a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")

"""The tables of docs/tracing.md are what the code records."""

import re

from schemas.traces import SPANS
from tests.support.pages import DOCS

ROW = re.compile(r"^\| `(\w+)` \| ([a-z, -]+) \| ((?:`\w+`(?:, )?)*) ?\| (.+) \|$", re.MULTILINE)


def test_the_page_has_the_spans_that_there_are():
    rows = ROW.findall((DOCS / "tracing.md").read_text())
    written = {name: (process, tuple(re.findall(r"\w+", listed)), meaning) for name, process, listed, meaning in rows}
    assert written == {name: (form.process, form.attributes, form.meaning) for name, form in SPANS.items()}

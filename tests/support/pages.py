"""Code that stands in pages of docs/, to be run as it stands there.

A block is named by a comment above it, which readers do not see:

    <!-- run: totals -->
    ```python
    …
    ```
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = r"<!-- run: (?P<name>[\w-]+) -->\n```{language}\n(?P<code>.*?)^```$"


def blocks(page, language="python"):
    """The blocks of a page that are run, by their names."""
    block = re.compile(_BLOCK.format(language=language), re.DOTALL | re.MULTILINE)
    found = {match["name"]: match["code"] for match in block.finditer((DOCS / page).read_text())}
    assert found, f"no block of {page} is marked to be run"
    return found


def execute(page, name, replaced=None):
    """Runs a block of Python and returns what it defined.

    Args:
        page: below docs/.
        name: of the block.
        replaced: words of the page that are others in a test, such as an address; each has to occur.
    """
    code = blocks(page)[name]
    for old, new in (replaced or {}).items():
        assert old in code, f"{old} is not in block {name} of {page}"
        code = code.replace(old, new)
    defined = {"__name__": f"page_{name.replace('-', '_')}"}
    exec(compile(code, f"{page}, block {name}", "exec"), defined)
    return defined

"""Renders the chart with each file of examples/ into tests/golden/helm/, where tests look at what would be installed.

    python deploy/helm/render.py HELM      (make charts, which builds helm if there is none)

The first line of a rendering says of which chart and values it is, so that a test sees when it is old.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

HELM_DIRECTORY: Final = Path(__file__).parent
CHART: Final = HELM_DIRECTORY / "asyncflow"
EXAMPLES: Final = sorted((HELM_DIRECTORY / "examples").glob("*.yaml"))
GOLDEN: Final = HELM_DIRECTORY.parents[1] / "tests" / "golden" / "helm"
_RELEASE: Final = ("demo", "--namespace", "team", "--kube-version", "1.34.0")


def main(helm: str) -> None:
    """Writes all renderings."""
    GOLDEN.mkdir(exist_ok=True)
    for example in EXAMPLES:
        target = GOLDEN / example.name
        target.write_text(f"{head(example)}\n{render(helm, example)}")
        sys.stdout.write(f"{target}\n")


def head(example: Path) -> str:
    """The line that says what a rendering is of."""
    return f"# of {fingerprint(example)}; make charts writes it"


def fingerprint(example: Path) -> str:
    """The sha256 of the chart's files and of the values, names included."""
    digest = hashlib.sha256()
    for file in [*sorted(path for path in CHART.rglob("*") if path.is_file()), example]:
        digest.update(f"{file.relative_to(HELM_DIRECTORY)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def render(helm: str, example: Path) -> str:
    """What ``helm template`` prints.

    Raises:
        subprocess.CalledProcessError: the chart refuses the values, or is wrong.
    """
    command = [helm, "template", *_RELEASE[:1], str(CHART), *_RELEASE[1:], "--values", str(example)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(sys.argv[1])

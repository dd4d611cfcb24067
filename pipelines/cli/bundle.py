"""``asyncflow bundle``."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipelines.cli.options import parse
from schemas.errors import ConfigError

_DESCRIPTION = """Writes all that a machine without a network needs, in parts, with a script that installs it there.

That is: wheels of the locked requirements for one Python and platform, a Java runtime and the demo's model among them;
Kafka's jars; Prism; and this checkout. Carry the directory over, compare the two hashes that are printed here with what
sha256sum says of them there, and run install.py, which compares all the others and needs nothing but Python. Examples:

  asyncflow bundle asyncflow-cpu
  asyncflow bundle asyncflow-cuda --platform cuda --python 3.12 --part-bytes 4000000000 --model models/mine
  python3.12 asyncflow-cpu/install.py --to /opt/asyncflow
"""
_PYTHON = re.compile(r"3\.1[123]")


@dataclass(frozen=True)
class BundleOptions:
    """Arguments of the verb."""

    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Where the bundle goes: a directory that does not exist, or is empty."""
    python: Annotated[str, tyro.conf.arg(metavar="3.N")] = "3.12"
    """Python of the machine that is installed on: 3.11, 3.12 or 3.13."""
    platform: Literal["cpu", "cuda"] = "cpu"
    """Which vLLM, and which locked requirements with it."""
    glibc: Annotated[str, tyro.conf.arg(metavar="2.N")] = "2.35"
    """C library of the oldest system that is installed on; ldd --version tells it."""
    part_bytes: int = 2_000_000_000
    """Most bytes of a part."""
    requirements: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Locked requirements with hashes, instead of deploy/requirements of this checkout."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A model's directory to take along; it is installed below models/."""
    json: bool = False
    """Print a JSON object instead of sentences."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(BundleOptions, "bundle", arguments, _DESCRIPTION)
    if not _PYTHON.fullmatch(options.python):
        raise ConfigError(f"--python {options.python}: expected 3.11, 3.12 or 3.13")
    from pipelines.bundle.make import Wanted, make_bundle

    made = make_bundle(
        Wanted(
            options.target, options.python, options.platform, options.glibc, options.part_bytes,
            options.requirements, options.model,
        )
    )  # fmt: skip
    if options.json:
        sys.stdout.write(f"{json.dumps(asdict(made))}\n")
        return 0
    sys.stdout.write(
        f"{options.target}: {made.packages} packages, {made.size_bytes:,} bytes in {made.parts} parts\n"
        f"{made.install_sha256}  install.py\n"
        f"{made.manifest_sha256}  manifest.json\n"
        "there, before anything of it is run, see that these are the same: sha256sum install.py manifest.json\n"
        f"then: python{options.python} install.py --to DIR --manifest-sha256 {made.manifest_sha256}\n"
    )
    return 0

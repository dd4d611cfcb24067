"""What Dataflow's launcher starts in the image of the Flex Template: parameters become a configuration and a verb.

--pipeline=rollout --name=prod --kafka__bootstrap=… ──► TOML over config_file ──► asyncflow rollout --config …
--runner=DataflowRunner --project=… ──────────────────────────────────────────► as they are
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import tomli_w

_METADATA: Final = Path(__file__).with_name("metadata.json")


def main(given: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    from pipelines.cli.main import main as asyncflow

    parameters, beam_arguments = divide(given)
    with tempfile.TemporaryDirectory() as room:
        file = Path(room) / "template.toml"
        file.write_text(to_toml(parameters, Path(room)))
        return asyncflow([parameters["pipeline"], "--config", str(file), *beam_arguments])


def divide(given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The template's own parameters by name, and what is Beam's."""
    known = {each["name"] for each in json.loads(_METADATA.read_text())["parameters"]}
    parameters, rest = {}, []
    for argument in given:
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in known:
            parameters[name] = value
        else:
            rest.append(argument)
    return parameters, rest


def to_toml(parameters: dict[str, str], room: Path) -> str:
    """The configuration file that parameters stand for. What they say is over what ``config_file`` says."""
    tree: dict[str, Any] = {}
    if parameters.get("config_file"):
        tree["include"] = [str(_local(parameters["config_file"], room))]
    patterns = {each["name"]: each.get("regexes", [""])[0] for each in json.loads(_METADATA.read_text())["parameters"]}
    for name, value in parameters.items():
        if name in ("pipeline", "config_file"):
            continue
        *sections, key = name.split("__")
        within = tree
        for section in sections:
            within = within.setdefault(section, {})
        within[key] = _typed(value, patterns[name])
    return tomli_w.dumps(tree)


def _typed(value: str, pattern: str) -> Any:
    """Numbers and truth are written as such; a text stays one, though it be all digits."""
    if pattern == "^(true|false)$":
        return value == "true"
    if pattern.startswith("^-?[0-9"):
        return float(value) if "." in pattern else int(value)
    return value


def _local(file: str, room: Path) -> Path:
    """A file of a bucket as one of this machine."""
    if "://" not in file:
        return Path(file)
    import fsspec

    target = room / "run.toml"
    with fsspec.open(file) as opened:
        target.write_bytes(opened.read())
    return target


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

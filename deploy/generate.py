"""Writes from the code what files of deploy/ have to agree with.

    schemas.topics.Topics ────► helm/asyncflow/files/topics.json
    schemas.roles.ROLES ──────► helm/asyncflow/files/acls.json
    schemas.config.RunConfig ─► dataflow/metadata.json               python deploy/generate.py      (make docs)

A test compares the committed files with what this writes.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from schemas.config import RunConfig
from schemas.roles import ROLES, grants
from schemas.sections import Section
from schemas.topics import Topics

DEPLOY: Final = Path(__file__).parent


def main() -> None:
    """Writes all files."""
    for name, text in files().items():
        (DEPLOY / name).parent.mkdir(parents=True, exist_ok=True)
        (DEPLOY / name).write_text(text)
        sys.stdout.write(f"{DEPLOY / name}\n")


def files() -> dict[str, str]:
    """The text of each generated file, by its path below deploy/."""
    return {
        "helm/asyncflow/files/topics.json": _json(topics()),
        "helm/asyncflow/files/acls.json": _json(acls()),
        "dataflow/metadata.json": _json(metadata()),
    }


def topics() -> dict[str, Any]:
    """Every topic without its run's prefix: its settings, and whether it has ``kafka.partitions`` or one partition."""
    one, two = (Topics("run").specs(partitions) for partitions in (1, 2))
    return {
        spec.name.removeprefix("run."): {
            "divided": more.partitions > spec.partitions,
            "settings": _all_of(spec.settings),
        }
        for spec, more in zip(one, two, strict=True)
    }


def acls() -> dict[str, Any]:
    """What each role may do, in the form of Strimzi's KafkaUser; ``{run}`` and ``{share}`` are the chart's to fill."""
    topics = Topics("{run}")
    found: dict[str, list[dict[str, Any]]] = {role: [] for role in ROLES}
    for each in grants(topics, shares=1):
        name = "{run}.rollout.{share}" if each.name == topics.rollout_id(0) else each.name
        resource = {"type": each.kind, "name": name, "patternType": "literal"}
        found[each.role].append({"resource": resource, "operations": list(each.operations)})
    return found


def _all_of(settings: dict[str, str]) -> dict[str, str]:
    """With what every topic has, whatever the broker's defaults are."""
    return {"cleanup.policy": "delete", **settings}


# ----------------------------------------------------------------------- Dataflow


def metadata() -> dict[str, Any]:
    """What Dataflow shows and checks of a Flex Template: the keys that pipelines read, as parameters."""
    return {
        "name": "AsyncFlow",
        "description": "The rollout or the feedback pipeline of a run, streaming, with exactly-once writes of its own.",
        "streaming": True,
        "supportsExactlyOnce": True,
        "defaultStreamingMode": "EXACTLY_ONCE",
        "parameters": [*_OWN, *_parameters((), RunConfig)],
    }


_OWN: Final = (
    {
        "name": "pipeline",
        "label": "pipeline",
        "helpText": "Which one: rollout or join-feedback.",
        "isOptional": False,
        "regexes": ["^(rollout|join-feedback)$"],
        "paramType": "TEXT",
    },
    {
        "name": "config_file",
        "label": "config_file",
        "helpText": "TOML file with the configuration, of this image or of a bucket; parameters are laid over it.",
        "isOptional": True,
        "paramType": "TEXT",
    },
)
_SECTIONS: Final = ("kafka", "model", "rollout", "rewards", "feedback")
_REQUIRED: Final = ("name", "kafka.bootstrap", "model.path")
_PATTERNS: Final = {int: "^-?[0-9]+$", float: "^-?[0-9.]+(e-?[0-9]+)?$", bool: "^(true|false)$"}


def _parameters(path: tuple[str, ...], section: type[Section]) -> Iterator[dict[str, Any]]:
    """Plain values of the sections that pipelines read; lists and tables are for the file."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            if path or name in _SECTIONS:
                yield from _parameters((*path, name), kind)
        elif (patterns := _patterns(kind)) is not None:
            yield _parameter(".".join((*path, name)), " ".join((field.description or "").split()), patterns)


def _patterns(kind: Any) -> list[str] | None:
    """Regular expressions that a value fits, none for any text; null for what is no plain value."""
    if get_origin(kind) is Literal:
        return [f"^({'|'.join(re.escape(str(each)) for each in get_args(kind))})$"]
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
        return _patterns(kind)
    if get_origin(kind) is Annotated:
        return _patterns(get_args(kind)[0])
    if kind in _PATTERNS:
        return [_PATTERNS[kind]]
    return [] if kind is str else None


def _parameter(key: str, told: str, patterns: list[str]) -> dict[str, Any]:
    """A name of Dataflow's has no dots: two underscores stand for one."""
    return {
        "name": key.replace(".", "__"),
        "label": key,
        "helpText": told.replace("``", ""),
        "isOptional": key not in _REQUIRED,
        **({"regexes": patterns} if patterns else {}),
        "paramType": "TEXT",
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


if __name__ == "__main__":
    main()

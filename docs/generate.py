"""Writes docs/reference/ from the code: the keys of the configurations, the records of the topics, and who may do what.

    schemas.config.RunConfig ──► configuration.md
    schemas.federating.FederationConfig ──► coordinator.md
    the classes of schemas/  ──► records.md          python docs/generate.py      (make docs)
    schemas.roles.ROLES      ──► access.md

Meanings are the docstrings under the fields. A test compares the committed pages with what this writes.
"""

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from schemas import (
    admission,
    dead_letters,
    evals,
    exchanges,
    federation,
    feedback,
    ledger,
    outcomes,
    prompts,
    trajectories,
    weights,
    workers,
)
from schemas.config import RunConfig
from schemas.federating import FederationConfig
from schemas.identity import GroupId
from schemas.records import Record, now
from schemas.roles import EVERY, EVERY_FEDERATED, FEDERATION_ROLES, ROLES, FederationTopicName, Role, TopicName
from schemas.sections import Section

REFERENCE: Final = Path(__file__).parent / "reference"
_WORDS: Final = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path", NoneType: "null",
                 AwareDatetime: "time (ISO 8601, with a zone)", Any: "anything"}  # fmt: skip
_TOPICS: Final = (
    ("prompts", prompts), ("trajectories", trajectories), ("feedback", feedback), ("exchanges", exchanges),
    ("outcomes", outcomes), ("weights", weights), ("admission", admission), ("ledger", ledger), ("workers", workers),
    ("evals", evals), ("dead-letters", dead_letters), ("Of a federation", federation),
)  # fmt: skip

_EXAMPLE: Final = re.compile(r"Example: ``(?P<inline>.*?)``\.?|Example::\n(?P<block>(?:\n|    .*\n?)+)", re.DOTALL)


def main() -> None:
    """Writes all pages."""
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)
        sys.stdout.write(f"{REFERENCE / name}\n")


def pages() -> dict[str, str]:
    """The text of each page of the reference, by its file's name."""
    return {
        "access.md": access(),
        "configuration.md": configuration(),
        "coordinator.md": coordinator(),
        "records.md": records(),
    }


# ----------------------------------------------------------------------- configuration


def configuration() -> str:
    """The keys of the configuration, one table a section."""
    head = """# Configuration

*Generated from `schemas/config.py` by `docs/generate.py`: change the docstrings there.*

A run reads one TOML file (`--config FILE`); flags with the same names, dotted, are laid over it
(`--learner.steps 10`). Unknown keys are refused, with the nearest known one. Units are in the names: `_s` seconds,
`_bytes`, `_tokens`. *null* means that the key is left out. What the processes of a run read, ports and absolute paths
filled in, is `runs/NAME/config.toml`. Secrets are in no key: keys name environment variables or files that hold them.
"""
    return head + "".join(_section((), RunConfig))


def coordinator() -> str:
    """The keys of a federation's coordinator, one table a section."""
    head = """# Configuration of a coordinator

*Generated from `schemas/federating.py` by `docs/generate.py`: change the docstrings there.*

`asyncflow federate --config FILE` reads one TOML file of its own; [federation](../federation.md) shows one. Flags with
the same names are laid over it (`--deadline-s 60`). What the sites read is the section
[federation](configuration.md#federation) of their runs.
"""
    return head + "".join(_section((), FederationConfig))


def _section(path: tuple[str, ...], section: type[Section]) -> Iterator[str]:
    parts = {name: found for name in section.model_fields if (found := _part_of(section, name))}
    title = ".".join(path) or ("The run" if section is RunConfig else "The federation")
    yield f"\n{'#' * min(4, 2 + max(0, len(path) - 1))} {title}\n\n{_prose(section.__doc__)}\n\n"
    rows = [name for name in section.model_fields if name not in parts]
    if rows:
        yield "| key | values | default | meaning |\n| --- | --- | --- | --- |\n"
        yield from (_key(path, section, name) for name in rows)
    for name, (part, below) in parts.items():
        yield from _section((*path, name, *below), part)


def _part_of(section: type[Section], name: str) -> tuple[type[Section], tuple[str, ...]] | None:
    """The section that a field holds, or a table of, and what stands for a name of that table."""
    kind = section.model_fields[name].annotation
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind, ()
    table = get_args(kind)
    if get_origin(kind) is dict and isinstance(table[1], type) and issubclass(table[1], Section):
        return table[1], ("NAME",)
    return None


def _key(path: tuple[str, ...], section: type[Section], name: str) -> str:
    field = section.model_fields[name]
    default = "required" if field.is_required() else f"`{_toml(field.get_default(call_default_factory=True))}`"
    default = "null" if default == "`null`" else default
    key = ".".join((*path, name))
    kind, told = _kind(field.annotation, field.metadata), _prose(field.description)
    return f"| `{key}` | {_cell(kind)} | {default} | {_cell(told)} |\n"


def _toml(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{…}"
    return json.dumps(value, default=str, ensure_ascii=False)


# ----------------------------------------------------------------------- records


def records() -> str:
    """The records of every topic, one table a class."""
    head = """# Records

*Generated from `schemas/` by `docs/generate.py`: change the docstrings there.*

Every topic is prefixed with the run's name: `demo.prompts`. Values are JSON objects but for those of `trajectories` and
`pending`. `schema` is the version of a record's form, always 1 so far; fields without a default have to be given.
Unknown keys are ignored, so that a newer writer may add some, but in what people write: there they are refused. Read
with `isolation_level=read_committed`. Files of each record as version 1 wrote them are in `tests/golden/v1/`; every
later version reads them.
"""
    return head + "".join(text for topic, module in _TOPICS for text in _topic(topic, module))


def _topic(topic: str, module: Any) -> Iterator[str]:
    yield f"\n## {topic}\n\n{_prose(module.__doc__)}\n"
    if module is trajectories:
        yield _sample()
        return
    own = [each for each in vars(module).values() if _is_of(each, module)]
    for kind in sorted(own, key=lambda each: not issubclass(each, Record)):
        if kind.model_fields and not kind.__name__.startswith("_"):
            yield _model(kind)


def _is_of(thing: Any, module: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel) and thing.__module__ == module.__name__


def _model(kind: type[BaseModel]) -> str:
    told, own = _told_below(kind), kind.model_fields
    rows = [_field(name, _typed(own[name]), told.get(name, "")) for name in own if name != "schema_version"]
    return f"\n### {kind.__name__}\n\n{_with_example(kind.__doc__)}\n\n{_fields(rows)}"


def _typed(field: FieldInfo) -> str:
    """A field's type in words, and its default; those without one have to be given."""
    kind = _kind(field.annotation, field.metadata)
    if field.is_required():
        return kind
    if field.default_factory is now:
        return f"{kind}; the present moment by default"
    return f"{kind}; `{_toml(field.get_default(call_default_factory=True))}` by default"


def _sample() -> str:
    """The columns of a trajectories record, from the Arrow schema and the class of a row."""
    told = _told_below(trajectories.Sample)
    rows = []
    for column in trajectories.SCHEMA:
        null = ", nullable" if column.nullable else ""
        kind = re.sub(r"item: (\w+) not null|item: ", r"\1", str(column.type)).replace(" not null", "")
        rows.append(_field(column.name, f"`{kind}`{null}", told.get(column.name, "")))
    assert dataclasses.is_dataclass(trajectories.Sample)
    return (
        f"\n### Sample\n\n{_prose(trajectories.Sample.__doc__)}\n\n{_fields(rows)}\n"
        f"Headers of the record: `schema` (`{trajectories.SCHEMA_VERSION}`), `fingerprint` of the columns "
        f"(`{trajectories.FINGERPRINT}`), `rows`, `groups` (JSON, a list of `[partition, offset]`), `sha256` (of the "
        "value), and of rated groups `raters` (JSON, a list of `[group, [pseudonym, …]]`).\n"
    )


def _fields(rows: list[str]) -> str:
    return f"| field | type | meaning |\n| --- | --- | --- |\n{''.join(rows)}"


def _field(name: str, kind: str, told: str) -> str:
    return f"| `{name}` | {_cell(kind)} | {_cell(_prose(told))} |\n"


def _told_below(kind: type) -> dict[str, str]:
    """The docstrings under the fields of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not each.__module__.startswith("schemas."):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = str(ast.literal_eval(below.value))
    return found


# ----------------------------------------------------------------------- access


def access() -> str:
    """What each role may do at the broker, one row a role."""
    head = """# Access

*Generated from `schemas/roles.py` by `docs/generate.py`: change what stands there.*

What each kind of process may do at a broker with an authorizer, and nothing else. `RUN` is the name of the run; topics
are named without it. To read or to write a topic brings seeing where it begins and ends. *Compares* is reading the
settings of all topics of the run, as a pipeline does when it starts. Every name is literal: nothing is granted by a
prefix, so runs at one broker do not see each other. With `evaluation.worker_run` the `evaluator` may also create and
compare the topics of that run, read its `weights`, `workers` and `ledger`, and write its `weights`.

`asyncflow topics --acls create` writes this to a broker, and `--acls json` and `--acls commands` print it for other
tools; [security](../security.md#locked-doors) says how it is used and tested. A role's principal is `User:RUN-ROLE`
unless `kafka.principals` names another.
"""
    rows = "".join(_role(name, role) for name, role in ROLES.items())
    columns = f"\n| role | reads | writes | all topics | group | transactional ids |\n{'| --- ' * 6}|\n"
    federated = """
## At a federation's broker

`RUN` is the name of the federation. Each site has a principal of its own, `User:FEDERATION-SITE` unless `sites` of the
coordinator's configuration says otherwise; `asyncflow federate --acls` writes or prints all of it.
"""
    more = "".join(_role(name, role) for name, role in FEDERATION_ROLES.items())
    return f"{head}{columns}{rows}{federated}{columns}{more}"


def _role(name: str, role: Role) -> str:
    every = ["creates"] * role.creates + ["compares"] * role.compares
    group = "`RUN." + (role.group or role.sees_group or "").removesuffix("_group") + "`"
    how = "commits" if role.group else "sees"
    ids = {"rollout": "`RUN.rollout.0`, one a share"}.get(role.transactions or "", f"`RUN.{role.transactions}`")
    cells = (f"`{name}`: {role.about}", _names(role.reads), _names(role.writes), ", ".join(every),
             f"{how} {group}" if role.group or role.sees_group else "",
             ids.replace("_id", "") if role.transactions else "")  # fmt: skip
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |")


def _names(topics: tuple[TopicName | FederationTopicName, ...]) -> str:
    return "all" if topics in (EVERY, EVERY_FEDERATED) else ", ".join(each.replace("_", "-") for each in topics)


# ----------------------------------------------------------------------- words


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """A type in words. Example: ``integer ≥ 1 or null``."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inside[0], [*_constraints(inside[1:]), *metadata])
    if annotation is GroupId:
        return "[partition, offset]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (
            f"[{annotation.__name__}](#{annotation.__name__.lower()})"
            if not issubclass(annotation, Section)
            else "table"
        )
    if origin in (Union, UnionType):
        return " or ".join(_kind(each, () if each is NoneType else metadata) for each in inside)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(each)}`" for each in inside)
    if origin in (tuple, list):
        return _list(inside) + _bounds(metadata, " of them")
    if origin in (dict, Mapping):
        return f"table of {_kind(inside[1])}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation))) + _bounds(metadata)


def _constraints(metadata: tuple[Any, ...]) -> list[Any]:
    """What Field() inside of Annotated says."""
    return [each for one in metadata for each in (getattr(one, "metadata", None) or [one])]


def _list(inside: tuple[Any, ...]) -> str:
    if len(inside) == 1 or inside[-1] is Ellipsis:
        return f"list of {_kind(inside[0])}"
    return f"[{', '.join(_kind(each) for each in inside)}]"


def _bounds(metadata: Any, unit: str = "") -> str:
    signs = ((annotated_types.Ge, "ge", "≥"), (annotated_types.Gt, "gt", ">"), (annotated_types.Le, "le", "≤"),
             (annotated_types.Lt, "lt", "<"), (annotated_types.MinLen, "min_length", "at least"),
             (annotated_types.MaxLen, "max_length", "at most"))  # fmt: skip
    told = [f"{sign} {_number(getattr(each, name))}" for each in metadata for kind, name, sign in signs
            if isinstance(each, kind)]  # fmt: skip
    lengths = any(isinstance(each, (annotated_types.MinLen, annotated_types.MaxLen)) for each in metadata)
    patterns = [f"like `{each.pattern}`" for each in metadata if getattr(each, "pattern", None)]
    return "".join(
        f" {each}" for each in (", ".join(told) + ((unit or " characters") if lengths else ""), *patterns) if each
    )


def _number(value: float) -> str:
    """Powers of two that nobody can read are written as such."""
    exponent = value.bit_length() - 1 if isinstance(value, int) and value > 0 else 0
    return f"2^{exponent}" if exponent > 16 and value == 1 << exponent else f"{value:,}"


def _prose(text: str | None) -> str:
    """A docstring as Markdown of one paragraph a block; roles and double quotes of reStructuredText become code."""
    told = inspect.cleandoc(text or "")
    told = re.sub(r":(?:func|class|mod|attr|meth|data):`~?([^`]+)`", r"`\1`", told)
    return re.sub(r"``([^`]+)``", r"`\1`", told).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _with_example(text: str | None) -> str:
    """A docstring whose example is a block of its own, at its end."""
    told = inspect.cleandoc(text or "")
    match = _EXAMPLE.search(told)
    if not match:
        return _prose(told)
    example = textwrap.dedent(match["inline"] or match["block"]).strip()
    rest = "\n".join(line.rstrip() for line in told.replace(match[0], "").splitlines())
    return f"{_prose(rest)}\n\n```json\n{example}\n```"


if __name__ == "__main__":
    main()

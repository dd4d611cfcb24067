"""What a pipeline is made of, as its portable proto says.

    build(pipeline, config) ──► to_runner_api() ──► read ──► Graph (steps, edges, what it uses)

Nothing is started or connected: building only wires; readers, pools and producers open what they need when a runner
calls them.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext

from pipelines import join_feedback, rollout
from pipelines.graph.features import features_of, of_requirements
from schemas.config import RunConfig

_BUILDS: Final[dict[str, Callable[[beam.Pipeline, RunConfig], None]]] = {
    "rollout": rollout.build,
    "join-feedback": join_feedback.build,
}
_COMPOSITE: Final = "beam:transform:generic_composite:v1"
"""What has a meaning only by its parts. Composites of Beam, such as Create, have URNs of their own."""
_MODULE: Final = re.compile(r"<class '([^']*)'>|(?:\w+\.)+(?=\w)")


class Step(NamedTuple):
    """One transform. Example: ``Step("Generate/Read", "pardo", ("unbounded source", "bundle finalization"))``."""

    name: str
    kind: str
    """The last word of its URN, such as ``pardo`` or ``group_by_key``."""
    uses: tuple[str, ...]


class Edge(NamedTuple):
    """One PCollection, for each step that reads it."""

    source: str
    target: str | None
    """Null if nobody reads it."""
    element: str
    """Type of its elements, such as ``Settled``; ``Any`` where none was said."""
    is_unbounded: bool


class Graph(NamedTuple):
    """A pipeline. Steps come in an order in which each follows those that it reads."""

    pipeline: str
    run: str
    steps: tuple[Step, ...]
    edges: tuple[Edge, ...]
    windows: tuple[str, ...]
    """Windowing strategies, such as ``global_windows, trigger default, discarding``."""
    environments: tuple[str, ...]
    requirements: tuple[str, ...]
    """URNs that the proto itself lists."""
    uses: dict[str, tuple[str, ...]]
    """What a runner must be able to do, and the steps that want it."""


def graph_of(name: str, config: RunConfig) -> Graph:
    """Builds a pipeline, ``rollout`` or ``join-feedback``, and reads its proto."""
    pipeline = beam.Pipeline(options=PipelineOptions([], streaming=True))
    _BUILDS[name](pipeline, config)
    proto, context = pipeline.to_runner_api(return_context=True)
    return read(name, config.name, proto, context)


def read(name: str, run: str, proto: beam_runner_api_pb2.Pipeline, context: PipelineContext) -> Graph:
    """What a proto says; the context knows the types of elements, which the proto has only as coders."""
    parts = proto.components
    found = dict(_steps(parts, proto.root_transform_ids))
    features = {key: features_of(parts, _leaves(parts, key)) for key in found}
    steps = tuple(Step(step, _kind(parts.transforms[key]), features[key]) for key, step in found.items())
    uses: dict[str, tuple[str, ...]] = {}
    for step in steps:
        for feature in step.uses:
            uses[feature] = (*uses.get(feature, ()), step.name)
    return Graph(
        pipeline=name,
        run=run,
        steps=steps,
        edges=tuple(_edges(parts, found, lambda key: context.pcollections.get_by_id(key).element_type)),
        windows=tuple(_window(each) for _, each in sorted(parts.windowing_strategies.items())),
        environments=tuple(each.urn for _, each in sorted(parts.environments.items())),
        requirements=tuple(sorted(proto.requirements)),
        uses={**uses, **of_requirements(proto.requirements)},
    )


def _steps(parts: Any, keys: Any) -> Iterator[tuple[str, str]]:
    """Ids and names of what a person would call a step; one that is all there is of its composite has its name."""
    for key in keys:
        transform = parts.transforms[key]
        inner = list(transform.subtransforms)
        if len(inner) == 1 and not parts.transforms[inner[0]].subtransforms and transform.spec.urn:
            yield inner[0], transform.unique_name
        elif inner and transform.spec.urn in ("", _COMPOSITE):
            yield from _steps(parts, inner)
        else:
            yield key, transform.unique_name


def _leaves(parts: Any, key: str) -> list[Any]:
    inner = parts.transforms[key].subtransforms
    return [leaf for each in inner for leaf in _leaves(parts, each)] or [parts.transforms[key]]


def _kind(transform: Any) -> str:
    words = transform.spec.urn.split(":")
    return "create" if transform.subtransforms else words[-2]


def _edges(parts: Any, steps: dict[str, str], type_of: Callable[[str], Any]) -> Iterator[Edge]:
    for key, source in steps.items():
        for _, collection in sorted(parts.transforms[key].outputs.items()):
            readers: list[str | None] = [
                name for other, name in steps.items() if collection in parts.transforms[other].inputs.values()
            ]
            unbounded = parts.pcollections[collection].is_bounded == beam_runner_api_pb2.IsBounded.UNBOUNDED
            element = _name_of(type_of(collection))
            yield from (Edge(source, target, element, unbounded) for target in readers or [None])


def _name_of(kind: Any) -> str:
    """``Tuple[int, Settled]``: a type without its modules."""
    return _MODULE.sub(lambda found: (found[1] or "").rpartition(".")[2], str(kind))


def _window(strategy: Any) -> str:
    window = strategy.window_fn.urn.split(":")[-2]
    trigger = strategy.trigger.WhichOneof("trigger")
    mode = beam_runner_api_pb2.AccumulationMode.Enum.Name(strategy.accumulation_mode)
    return f"{window}, trigger {trigger}, {mode.lower()}"

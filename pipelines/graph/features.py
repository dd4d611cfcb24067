"""What a transform asks of a runner, as its payload says.

PTransform (URN, ParDoPayload, PCollections, windowing) ──► names of features
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2

UNBOUNDED_SOURCE: Final = "unbounded source"
"""A splittable DoFn whose output has no end."""
BOUNDED_SOURCE: Final = "bounded source"
FINALIZATION: Final = "bundle finalization"
STATE: Final = "keyed state"
WATERMARK_TIMERS: Final = "timers by the watermark"
CLOCK_TIMERS: Final = "timers by the clock"
SIDE_INPUTS: Final = "side inputs"
SHUFFLE: Final = "shuffle of what has no end"
"""A GroupByKey whose output a step reads."""
LAST_SHUFFLE: Final = "shuffle that nobody reads"
"""A GroupByKey at the end, for the sake of the stage before it."""
MERGE: Final = "merge of what has no end"
TRIGGERS: Final = "trigger that is not the default"
WINDOWS: Final = "windows that are not global"

_PARDO: Final = common_urns.primitives.PAR_DO.urn
_GROUP: Final = common_urns.primitives.GROUP_BY_KEY.urn
_FLATTEN: Final = common_urns.primitives.FLATTEN.urn
_GLOBAL: Final = common_urns.global_windows.urn
_READ_FROM_PAYLOADS: Final = {
    common_urns.requirements.REQUIRES_SPLITTABLE_DOFN.urn,
    common_urns.requirements.REQUIRES_BUNDLE_FINALIZATION.urn,
    common_urns.requirements.REQUIRES_STATEFUL_PROCESSING.urn,
}


def features_of(parts: Any, transforms: Iterable[Any]) -> tuple[str, ...]:
    """The features that transforms use, each once.

    Args:
        parts: components of the pipeline's proto.
        transforms: without parts of their own.
    """
    return tuple(dict.fromkeys(feature for transform in transforms for feature in _features(parts, transform)))


def of_requirements(urns: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Requirements of the proto that are not among what payloads say, each by its URN: nobody has looked at them."""
    return {urn: () for urn in urns if urn not in _READ_FROM_PAYLOADS}


def _features(parts: Any, transform: Any) -> Iterator[str]:
    if transform.spec.urn == _PARDO:
        payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
        yield from _of_pardo(payload, has_end=not _endless(parts, transform.outputs))
    elif transform.spec.urn == _GROUP and _endless(parts, transform.inputs):
        yield SHUFFLE if _is_read(parts, transform) else LAST_SHUFFLE
    elif transform.spec.urn == _FLATTEN and _endless(parts, transform.inputs):
        yield MERGE
    yield from _of_windows(parts, transform)


def _of_pardo(payload: Any, *, has_end: bool) -> Iterator[str]:
    if payload.restriction_coder_id:
        yield BOUNDED_SOURCE if has_end else UNBOUNDED_SOURCE
    if payload.requests_finalization:
        yield FINALIZATION
    if payload.state_specs:
        yield STATE
    domains = {spec.time_domain for spec in payload.timer_family_specs.values()}
    if beam_runner_api_pb2.TimeDomain.EVENT_TIME in domains:
        yield WATERMARK_TIMERS
    if beam_runner_api_pb2.TimeDomain.PROCESSING_TIME in domains:
        yield CLOCK_TIMERS
    if payload.side_inputs:
        yield SIDE_INPUTS


def _of_windows(parts: Any, transform: Any) -> Iterator[str]:
    for key in transform.outputs.values():
        strategy = parts.windowing_strategies[parts.pcollections[key].windowing_strategy_id]
        if strategy.window_fn.urn != _GLOBAL:
            yield WINDOWS
        if strategy.trigger.WhichOneof("trigger") != "default":
            yield TRIGGERS


def _endless(parts: Any, collections: Any) -> bool:
    unbounded = beam_runner_api_pb2.IsBounded.UNBOUNDED
    return any(parts.pcollections[key].is_bounded == unbounded for key in collections.values())


def _is_read(parts: Any, transform: Any) -> bool:
    """Whether a primitive transform reads it: composites list what their parts do."""
    made = set(transform.outputs.values())
    others = (each for each in parts.transforms.values() if not each.subtransforms)
    return any(made & set(each.inputs.values()) for each in others)

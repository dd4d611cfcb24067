"""What Beam sees of the pools."""

from dataclasses import replace

import pytest
from apache_beam import Pipeline
from apache_beam.coders import registry
from apache_beam.coders.coders import _MemoizingPickleCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.pipeline_context import PipelineContext

from pipelines.rollout import build
from schemas.config import KafkaConfig, RolloutConfig, RunConfig
from transforms.assemble import Assemble
from transforms.carried import Carried
from transforms.feedback import source as feedback
from transforms.generation.generate import Generate
from transforms.generation.source import Batch, BatchCoder, BatchSource, Nothing, pause_s
from transforms.kafka import Write

CONFIG = RunConfig(rollout=RolloutConfig(shares=3), kafka=KafkaConfig(partitions=3))


SOURCE = BatchSource(CONFIG, 2, Carried((("mine.py", b"x = 1\n"),)))


def test_there_is_one_restriction_a_share_and_no_further_split():
    assert list(SOURCE.split(20)) == [SOURCE]


@pytest.mark.parametrize("source", [SOURCE, feedback.BatchSource(RunConfig())], ids=["rollout", "feedback"])
def test_a_source_has_the_same_bytes_after_any_number_of_journeys(source):
    coder = registry.get_coder(type(source))
    assert coder.is_deterministic()
    journeys = [encoded := coder.encode(source)]
    for _ in range(3):
        assert coder.decode(encoded) == source
        journeys.append(encoded := coder.encode(coder.decode(encoded)))
    assert len(set(journeys)) == 1


def test_all_checkpoint_marks_have_the_same_bytes():
    coder = SOURCE.get_checkpoint_mark_coder()
    assert coder.encode(Nothing()) == coder.encode(coder.decode(coder.encode(Nothing())))


@pytest.mark.parametrize(("idle_s", "expected_s"), [(0.0, 0.02), (0.04, 0.02), (0.2, 0.1), (60.0, 0.2)])
def test_the_pause_between_looks_grows_in_a_lull_up_to_ten_times(idle_s, expected_s):
    assert pause_s(0.02, idle_s, 0.0) == pytest.approx(expected_s)


@pytest.mark.parametrize(("bundle_s", "expected_s"), [(0.005, 0.02), (0.03, 0.06), (1.0, 0.2)])
def test_the_pause_grows_with_the_time_that_a_bundle_takes(bundle_s, expected_s):
    assert pause_s(0.02, 0.0, bundle_s) == pytest.approx(expected_s)


def test_the_pipeline_is_put_together_and_its_types_fit():
    build(Pipeline(options=PipelineOptions(["--runner=PrismRunner"])), CONFIG)


def test_a_transform_in_the_wrong_place_is_refused_while_the_graph_is_built():
    pipeline = Pipeline(options=PipelineOptions(["--runner=PrismRunner"]))
    with pytest.raises(Exception, match="type hint violation"):
        pipeline | Generate(CONFIG) | Write(CONFIG) | Assemble(CONFIG)


def test_how_large_a_batch_is_is_told_without_pickling_it():
    coder = registry.get_coder(Batch)
    unpicklable = Batch([lambda: None, lambda: None])
    assert coder.get_impl().estimate_size(unpicklable) > 2 * 1024
    travelled = coder.decode(coder.encode(Batch(["a", "b"])))
    assert (travelled, type(travelled)) == (("a", "b"), Batch)


def test_the_graph_has_that_coder():
    pipeline = Pipeline(options=PipelineOptions(["--runner=PrismRunner"]))
    build(pipeline, CONFIG)
    components = pipeline.to_runner_api().components
    known = PipelineContext(components).coders
    assert any(isinstance(known.get_by_id(name), BatchCoder) for name in components.coders)


@pytest.mark.parametrize("source", [SOURCE, feedback.BatchSource(RunConfig())], ids=["rollout", "feedback"])
def test_a_source_is_pickled_once_for_all_bundles_and_read_once(source):
    again = replace(source, config=source.config.model_copy())
    assert (again, hash(again)) == (source, hash(source))
    coder = _MemoizingPickleCoder()
    assert coder.encode(source) is coder.encode(again)
    travelled = coder.decode(coder.encode(source))
    assert travelled == source
    assert coder.decode(_MemoizingPickleCoder().encode(again)) is travelled

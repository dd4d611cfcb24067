"""Updates in bfloat16 at stage 0 in few kernels: the bits of DeepSpeed's own step."""

import math

import pytest
import torch

from tests.unit.trainers.test_engine import draw_examples, make_engine, model_dir, work  # noqa: F401 - a fixture


def bits(engine):
    """The weights, those in float32 beside them, and the moments."""
    halves = [tensor.clone() for tensor in engine.state_dict().values()]
    wholes = [full.clone() for group in engine._engine.optimizer.fp32_groups for full in group]
    moments = [
        tensor.clone() for state in engine._optimizer.state.values() for tensor in state.values() if tensor.dim() > 0
    ]
    return halves + wholes + moments


def equal(found, expected):
    return len(found) == len(expected) > 0 and all(map(torch.equal, found, expected))


def test_the_bits_are_those_of_deepspeed(model_dir, monkeypatch):  # noqa: F811
    examples = draw_examples(9)
    ours = make_engine(model_dir, dtype="bfloat16")
    monkeypatch.setattr("trainers.engine.shorten", lambda *_: None)
    theirs = make_engine(model_dir, dtype="bfloat16")
    assert ours._engine.optimizer.step.__qualname__ != theirs._engine.optimizer.step.__qualname__
    before = bits(ours)
    for _ in range(3):
        norms = [engine.train(work(examples)).grad_norm for engine in (ours, theirs)]
        assert norms[0] == norms[1] > 0
    assert equal(bits(ours), bits(theirs))
    assert not equal(bits(ours)[: len(before)], before)


def test_a_gradient_that_is_not_finite_changes_nothing_and_the_next_step_does(model_dir):  # noqa: F811
    engine = make_engine(model_dir, dtype="bfloat16")
    engine.train(work(draw_examples(9)))
    before = bits(engine)
    weight = next(iter(engine._trained.by_name().values()))
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    assert not engine.train(work(draw_examples(9))).applied
    hook.remove()
    assert equal(bits(engine), before)
    assert engine.train(work(draw_examples(9))).applied
    assert not equal(bits(engine), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_can_be_asked_beside_a_gradient(model_dir, dtype):  # noqa: F811
    from concurrent.futures import ThreadPoolExecutor

    engine, tokens = make_engine(model_dir, dtype=dtype), list(range(6, 38))
    engine.train(work(draw_examples(9)))
    alone, seen = engine.probe(tokens), []
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(lambda: [engine.probe(tokens) for _ in range(20)])
        engine.train(work(draw_examples(9)), before_update=lambda: seen.extend(asked.result()))
    assert seen == [alone] * 20
    assert engine.probe(tokens) != alone

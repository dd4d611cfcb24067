"""The arithmetic between fields: what each relation comes to, and what is said of one that does not work."""

import pytest

from schemas.checks import check, problems
from schemas.config import RunConfig, validate

CASES = [
    ({}, 1, "samples", "8 × rollout.group_size 8 = 64 samples a step; ÷ minibatches 1 ÷ ranks 1 = 64", "ok", ""),
    ({}, 128, "samples", "÷ ranks 128 = 0.5 samples", "warning", "start fewer ranks"),
    ({"learner": {"minibatches": 3}}, 1, "minibatches", "8 ÷ learner.minibatches 3 = 2.66", "warning", "multiple"),
    ({"rollout": {"group_size": 1}}, 1, "group size", "group_normalised needs 2", "problem", "zero_variance"),
    (
        {"rollout": {"group_size": 1}, "learner": {"objective": {"advantage": "running_baseline"}}},
        1, "group size", "needs 1", "ok", "",
    ),
    ({"worker": {"max_model_len_tokens": 256}}, 1, "context", "max_tokens 256 = 0", "problem", "no"),
    ({"worker": {"max_model_len_tokens": 300}}, 1, "context", "= 44 tokens", "warning", "seldom so short"),
    ({"evaluation": {"max_tokens": 4096}}, 1, "context of evaluations", "= -2048 tokens", "problem", "lower"),
    ({"rollout": {"max_in_flight": 4}}, 1, "engine occupancy", "max_in_flight 4, 16 admitted", "warning", "whole"),
    ({"worker": {"max_num_seqs": 1024}}, 1, "engine occupancy", "= 1024 at once: 12%", "warning", "mostly empty"),
    (
        {"rollout": {"group_size": 1024, "sampling": {"max_tokens": 8192}}, "worker": {
            "max_model_len_tokens": 9000, "max_num_seqs": 1024}},
        1, "record size", "= 112,623,616 bytes", "problem", "dead letters",
    ),
    ({"learner": {"temperature": 0.5}}, 1, "sampling distribution", "learner.temperature 0.5", "warning", "another"),
    ({"rollout": {"sampling": {"top_p": 0.9}}}, 1, "sampling distribution", "top_p 0.9", "warning", "another"),
    ({"learner": {"warmup_steps": 24}}, 1, "schedule", "24 of learner.steps 24", "warning", "never reached"),
    ({"learner": {"checkpoint_every": 100}}, 1, "checkpoints", "= 0 checkpoints, 2 kept", "ok", ""),
    ({"learner": {"max_rater_share": 0.1}}, 1, "raters", "= 0.8 groups", "warning", "raise learner.max_rater_share"),
    ({"kafka": {"transaction_timeout_s": 1000}}, 1, "transactions", "1000 ≤ 900", "warning", "lower"),
    ({"worker": {"max_wait_for_version_s": 700}}, 1, "waiting for weights", "700 < ", "warning", "given up"),
    ({"kafka": {"partitions": 3}, "rollout": {"shares": 2}}, 1, "shares", "= 1.5 prompts", "warning", "multiple"),
    ({"evaluation": {"samples": 8, "pass_at": [1, 8]}}, 1, "pass@k", "pass_at 8 ≤ evaluation.samples 8", "ok", ""),
    ({"gateway": {"port": 8000}}, 1, "ports", "gateway.port 8000", "warning", "gateway.port and worker.port"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[2]}-{case[4]}")
def test_formulas_hold_the_numbers_and_verdicts_say_what_to_do(case):
    tree, ranks, name, part, verdict, remedy = case
    (found,) = [each for each in check(validate(tree, "of the test"), ranks) if each.name == name]
    assert part in found.formula
    assert found.verdict == verdict
    assert remedy in found.remedy
    assert bool(found.remedy) == (verdict != "ok")


def test_the_defaults_have_nothing_to_complain_of():
    assert {each.verdict for each in check(RunConfig())} == {"ok"}
    assert not problems(check(RunConfig()))
    assert len({each.name for each in check(RunConfig())}) == len(check(RunConfig()))

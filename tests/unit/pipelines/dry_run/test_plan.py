"""What a plan says is wrong: each case spoils one fact or one setting of a plan with which nothing is."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.dry_run.facts import Facts
from pipelines.dry_run.plan import Start, plan, wrong
from pipelines.dry_run.show import render
from pipelines.dry_run.verbs import VERBS
from pipelines.local.machine import Gpu, Memory
from pipelines.model_facts import ModelFacts
from schemas.config import validate

GIB = 1 << 30
MODEL = ModelFacts("LlamaForCausalLM", {"model.x.up_proj.weight": (1 << 15, 1 << 12)}, ("F32",), GIB // 2, 11520, 8192)
H200 = Gpu("NVIDIA H200", 139 * GIB, 138 * GIB, "580.1")
FINE = Facts(
    cores=2, memory=Memory(16 * GIB, 12 * GIB), gpus=(), visible_gpus=(), ranks=1, dtype="float32", model=MODEL,
    topics={}, busy_ports=frozenset(), prism=Path("/cache/prism"), jars=Path("/cache/kafka"), exists=False,
    is_locked=False, one_disk=True, missing={},
    free_bytes={"weights.root": 50 * GIB, "learner.checkpoint_root": 50 * GIB},
)  # fmt: skip
BILLION = replace(MODEL, shapes={"w.up_proj.weight": (1 << 15, 1 << 15)})


def config(**sections):
    return validate({"name": "t", "model": {"path": "m"}, **sections}, "of the test")


def stack(**options):
    return Start("up", config(), Path("runs/t"), **options)


def faults(start, facts):
    return {each.name: each.remedy for each in wrong(plan(start, facts))}


def with_topics(start):
    return {spec.name: [] for spec in start.config.topics.specs(start.config.kafka.partitions)}


def test_a_whole_stack_has_nothing_wrong_and_says_what_it_starts():
    page = render("up", plan(stack(gateway=True, evaluates=True), FINE))
    for part in ("vLLM on", "join-feedback: ", "gateway: ", "evaluate: ", "t.ledger: ", "nothing is wrong\n"):
        assert part in page
    assert "(weights.keep 3 + 1 + 2 held by the evaluator) × 0.50 GiB = 3.00 GiB" in page
    assert "(1 + learner.max_staleness 1) × learner.groups_per_step 8 = 16" in page


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"up"}))
def test_a_verb_alone_has_nothing_wrong_where_its_topics_are(verb):
    start = Start(verb, config())
    assert not faults(start, replace(FINE, topics=with_topics(start)))


@pytest.mark.parametrize(
    ("start", "changes", "name", "remedy"),
    [
        (stack(), {"exists": True}, "run", "asyncflow up --name t --resume"),
        (stack(resume=True), {}, "run", "nothing to resume"),
        (stack(resume=True), {"exists": True, "is_locked": True}, "run", "end that one first"),
        (Start("up", config(kafka={"bootstrap": "elsewhere"})), {}, "kafka", "a broker of its own"),
        (stack(), {"prism": "ASYNCFLOW_PRISM is wrong"}, "prism", "ASYNCFLOW_PRISM"),
        (stack(), {"model": "model.path lacks config.json"}, "model", "lacks config.json"),
        (stack(), {"model": BILLION}, "together", "smaller model"),
        (stack(), {"model": BILLION, "memory": Memory(GIB, GIB)}, "engine", "smaller model"),
        (stack(), {"model": replace(MODEL, max_tokens=1024)}, "positions", "to 1024"),
        (stack(), {"model": replace(MODEL, kv_numbers_per_token=1 << 20)}, "keys and values", "not even one fits"),
        (stack(), {"free_bytes": {"weights.root": GIB, "learner.checkpoint_root": 50 * GIB}}, "weights.root", "keep"),
        (stack(), {"free_bytes": {"weights.root": 6 * GIB, "learner.checkpoint_root": 6 * GIB}}, "disk", "make room"),
        (stack(), {"missing": {"rewards.modules": "nope cannot be imported here"}}, "rewards.modules", "correct"),
        (Start("worker", config()), {"busy_ports": frozenset({8000})}, "worker.port", "another port"),
        (Start("worker", config()), {"topics": "Kafka cannot be reached"}, "broker", "cannot be reached"),
        (Start("learn", config()), {"topics": {}}, "t.ledger", "asyncflow topics"),
        (Start("learn", config()), {"topics": {"t.ledger": ["2 partitions, expected 1"]}}, "t.ledger", "expected 1"),
        (
            Start("learn", config(learner={"lora": {"rank": 4, "target_modules": ["nope"]}})),
            {}, "adapter", "the model has no nope",
        ),
        (Start("rollout", config(worker={"max_model_len_tokens": 256})), {}, "context", "no prompt fits"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_to_do(start, changes, name, remedy):
    found = faults(start, replace(FINE, **{"topics": with_topics(start), **changes}))
    assert remedy in found[name]


def test_a_topic_that_a_verb_does_not_need_is_only_told():
    start = Start("submit", config())
    topics = with_topics(start)
    del topics["t.evals"]
    assert not faults(start, replace(FINE, topics=topics))
    assert "warning  t.evals: " in render("submit", plan(start, replace(FINE, topics=topics)))


def test_defaults_of_a_stack_are_replaced_by_free_ports_and_what_was_asked_for_is_not():
    busy = replace(FINE, busy_ports=frozenset({8000, 8001, 8080}))
    assert not faults(stack(), busy)
    assert "worker.port" in faults(Start("up", config(worker={"port": 8001}), Path("runs/t")), busy)


def test_on_a_gpu_engine_and_learner_share_its_memory():
    facts = replace(FINE, gpus=(H200,), visible_gpus=("0",), dtype="bfloat16", model=BILLION)
    assert not faults(stack(), facts)
    greedy = Start("up", config(worker={"gpu_memory_utilization": 0.95}), Path("runs/t"))
    assert set(faults(greedy, facts)) == {"together"}
    tight = Start("worker", config(worker={"gpu_memory_utilization": 0.01}))
    assert "no room for keys" in faults(tight, replace(facts, topics=with_topics(tight)))["engine"]
    used = replace(facts, gpus=(replace(H200, free_bytes=GIB),), topics=with_topics(tight))
    assert {"engine", "learner", "together"} & set(faults(stack(), used)) == {"engine", "learner"}


def test_what_a_deepspeed_file_may_offload_is_no_fault():
    start = Start("learn", config(learner={"deepspeed": "offload.json"}))
    roomy = {"weights.root": 99 * GIB, "learner.checkpoint_root": 99 * GIB}
    facts = replace(FINE, model=BILLION, topics=with_topics(start), free_bytes=roomy)
    assert not faults(start, facts)
    assert "only if learner.deepspeed offloads" in render("learn", plan(start, facts))


def test_a_worker_that_follows_nobody_asks_no_broker():
    start = Start("worker", config(worker={"alone": True}))
    assert not any(section.title == "Kafka" for section in plan(start, replace(FINE, topics=None)))


def test_a_model_that_is_converted_at_the_first_start_is_no_fault():
    assert not faults(stack(), replace(FINE, model=None))


def several(workers, ranks, **sections):
    given = config(local={"workers": workers, "ranks": ranks}, **sections)
    return Start("up", given, Path("runs/t"))


def on_gpus(number):
    return replace(
        FINE, gpus=(H200,) * number, visible_gpus=tuple(str(each) for each in range(number)), dtype="bfloat16"
    )


def test_what_starts_several_times_is_listed_with_its_gpus():
    page = render("up", plan(several(2, 2), on_gpus(4)))
    assert "worker: vLLM on http://127.0.0.1:a free port, GPU 2\n" in page
    assert "worker-2: vLLM on http://127.0.0.1:a free port, GPU 3\n" in page
    assert "steps by 2 ranks, GPU 0,1; its metrics" in page
    assert "nothing is wrong\n" in page


def test_all_that_share_a_gpu_have_to_fit_on_it_together():
    third = {"gpu_memory_utilization": 0.4}
    assert not faults(several(2, 1, worker=third), on_gpus(2)), (
        "both engines are on the second, the learner on the first"
    )
    assert "together" in faults(several(3, 1, worker=third), on_gpus(1))
    page = render("up", plan(several(2, 1, worker=third), on_gpus(1)))
    assert "2 × engine 55.60 GiB + learner" in page


def test_too_few_gpus_for_the_ranks_are_told():
    assert "exceeds the 1 GPUs here" in faults(several(1, 2), on_gpus(1))["GPUs"]


def test_several_on_a_cpu_share_its_memory():
    page = render("up", plan(several(2, 2), FINE))
    assert "2 × engine" in page
    assert "2 × learner" in page

"""What is said of a run: each case is a literal history, two snapshots of it ten seconds apart."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipelines.top.draw import render, sparkline
from pipelines.top.explain import Sentence, explain
from pipelines.top.lines import plain
from pipelines.top.screen import can_draw
from pipelines.top.state import Endpoint, Engine, Learner, ShownSample, Snapshot, Stage, Worker

STAGES = (
    Stage("prompts", 64, 0.0, 40),
    Stage("in flight", 24, 1.0, 6, 20.0),
    Stage("trajectories", 18, 1.0, 5, 3.0, 7),
    Stage("trained", 12, 0.5),
    Stage("dropped", 1, 0.0),
    Stage("dead letters", 0, 0.0),
)
LEARNER = Learner(
    generation=1, started_at=900.0, step=4, step_at=988.0, steps=24, have=5, need=8, version=5, version_at=988.0,
    metrics={"staleness_max": 1.0}, rewards=(0.25, 0.5), dropped={"zero_variance": 1},
)  # fmt: skip
WORKER = Worker("http://w:8000", "up", 5, 1.0, 64)
NOW = Snapshot("demo", 1000.0, "k:9092", stages=STAGES, learner=LEARNER, workers=(WORKER,),
               engine=Engine(0.41, {"admission": 0.1, "no_prompts": 0.49}, 120.0, 1))  # fmt: skip


def learner(**changes):
    return replace(NOW, learner=replace(LEARNER, **changes))


def engine(**changes):
    return replace(NOW, engine=replace(NOW.engine, **changes))


def endpoint(process, silent_s):
    return replace(NOW, endpoints=(Endpoint(process, "http://x/metrics", silent_s),))


def stages(**waiting):
    names = {name.replace("_", " "): number for name, number in waiting.items()}
    return tuple(replace(stage, waiting=names.get(stage.name, stage.waiting)) for stage in STAGES)


WAITS = "learner waits for 3 groups since 12 s: "
OPEN = WAITS + "admission is open, engine is at 41% (there are no further prompts), 6 prompts in flight"


@pytest.mark.parametrize(
    ("now", "before", "texts"),
    [
        (NOW, NOW, [OPEN]),
        (learner(step_at=None), NOW, [OPEN.replace("12 s", "100 s")]),
        (engine(occupancy=None), NOW, [WAITS + "admission is open, 6 prompts in flight"]),
        (learner(have=8), NOW, ["learner trains step 5 since 10 s"]),
        (learner(state="training"), learner(state="waiting"), ["learner trains step 5 since 10 s"]),
        (learner(state="starting"), learner(state="starting"),
         ["learner starts since 10 s: it reads model, checkpoint and log"]),
        (learner(have=9, state="waiting"), learner(state="training"),
         [OPEN.replace("3 groups since 12", "1 group since 10")]),
        (learner(step=24), NOW, ["all 24 steps are done"]),
        (learner(generation=0), NOW, ["no learner has started yet, so no prompt is admitted"]),
        (replace(NOW, stages=stages(in_flight=0)), NOW,
         [WAITS + "nothing is in flight and 40 prompts are not admitted"]),
        (replace(NOW, stages=stages(in_flight=0, prompts=0)), NOW, [WAITS + "no prompts are left, submit more"]),
        (replace(learner(metrics={"prompts_parked": 3.0}), stages=stages(in_flight=0, prompts=0)), NOW,
         [WAITS + "3 groups wait for feedback"]),
        (replace(NOW, is_live=False), NOW, ["the run has ended after 4 steps; this is its log"]),
        (replace(NOW, broker_silent_s=5.0), NOW,
         ["broker k:9092 away since 5 s: what is shown of the topics is from before"]),
        (engine(workers_up=0), engine(workers_up=0),
         ["no worker answers since 10 s: prompts pause", WAITS + "no worker is up"]),
        (replace(engine(workers_up=0), workers=(replace(WORKER, state="silent", heard_s=18.0),)), NOW,
         ["no worker answers since 18 s: prompts pause", WAITS + "no worker is up"]),
        (replace(engine(workers_up=None), workers=()), NOW,
         ["no worker has announced itself yet: prompts pause", WAITS + "no worker is up"]),
        (replace(NOW, stages=(Stage("prompts", 0, 0.0, 0),)), NOW, [WAITS + "there are no prompts, submit some"]),
        (replace(NOW, workers=(WORKER, replace(WORKER, url="http://v:8000", state="silent", heard_s=30.0))), NOW,
         ["worker http://v:8000 is gone: not heard of since 30 s", OPEN]),
        (replace(NOW, workers=(WORKER, replace(WORKER, url="http://v:8000", state="leaving", heard_s=3.0))), NOW,
         [OPEN, "worker http://v:8000 left 3 s ago"]),
        (replace(NOW, workers=(replace(WORKER, version=3),)), NOW,
         ["worker http://w:8000 serves version 3, 5 was announced 12 s ago", OPEN]),
        (replace(learner(version_at=995.0), workers=(replace(WORKER, version=3),)), NOW, [OPEN]),
        (replace(NOW, workers=(replace(WORKER, refused=3),)), replace(NOW, workers=(replace(WORKER, refused=1),)),
         ["worker http://w:8000 refused 2 weight versions: its log says why", OPEN]),
        (learner(generation=3, started_at=990.0, continues=3, lost_steps=1), NOW,
         ["learner died and was started again 10 s ago (generation 3): goes on from step 3, 1 step to do again",
          OPEN.replace("12 s", "10 s")]),
        (learner(generation=3, started_at=990.0, continues=4, lost_steps=2), NOW,
         ["learner died and was started again 10 s ago (generation 3): goes on from step 4, 2 steps to do again",
          "learner does step 5 again, as the ledger has it"]),
        (learner(generation=2, started_at=990.0, continues=4), NOW,
         [OPEN.replace("12 s", "10 s"), "learner was started again 10 s ago (generation 2): goes on from step 4"]),
        (endpoint("learner", 8.0), NOW, ["learner does not answer at http://x/metrics since 8 s"]),
        (endpoint("learner", None), NOW, ["learner has not answered yet at http://x/metrics", OPEN]),
        (endpoint("gateway", None), NOW, [OPEN]),
        (endpoint("unknown", None), NOW, ["nothing has answered yet at http://x/metrics", OPEN]),
        (endpoint("rollout", 0.0), NOW, [OPEN]),
        (replace(endpoint("learner", 8.0), learner=replace(LEARNER, step=24)), NOW, ["all 24 steps are done"]),
        (engine(left_alone=("judge",)), engine(left_alone=("judge",)),
         ["judge is not asked since 10 s: it failed, and groups wait for it", OPEN]),
        (learner(dropped={"nonfinite": 8}), learner(dropped={}),
         ["the gradient was not finite: 8 groups dropped, no update made", OPEN]),
        (replace(NOW, dead_letters={"reward_timeout": 12}), replace(NOW, dead_letters={"reward_timeout": 12}),
         [OPEN, "dead letters: 12 reward_timeout"]),
        (replace(NOW, dead_letters={"not_json": 1, "reward\x1b[2J": 12}), NOW,
         ["dead letters: 12 reward [2J, 1 not_json", OPEN]),
        (learner(dropped={"zero_variance": 14, "stale": 2}), NOW,
         [OPEN, "more groups are dropped than trained: 14 zero_variance, 2 stale"]),
    ],
)  # fmt: skip
def test_what_is_said(now, before, texts):
    assert [sentence.text for sentence in explain([replace(before, at=990.0), now])] == texts


def test_faults_come_first_and_a_single_look_says_as_much():
    found = explain([endpoint("rollout", 8.0)])
    assert [sentence.level for sentence in found] == ["fault", "wait"]


def test_one_line_has_the_figures_and_what_presses():
    line = plain(NOW, (Sentence("fault", "a fault"), Sentence("wait", "it waits"), Sentence("note", "by the way")))
    assert line == (
        "step 4/24  reward 0.50  version 5  staleness 1  waiting 5  in flight 6 (oldest 20 s)  engine 41%  120 tokens/s"
        "  trained 12  dropped 1  dead 0  | a fault  | it waits"
    )
    assert "step 0  reward none yet" in plain(Snapshot("x", 0.0, "k"), ())


def test_a_screen_holds_all_of_it_at_any_width():
    samples = (ShownSample("0/1", "What is\n1+1?", "[bold]two[/bold]\x1b[2J", None, (1, 2), 3),)
    now = replace(NOW, samples=samples, dead_letters={"not_json": 1}, learner=replace(LEARNER, staleness={0: 3, 1: 9}))
    console = Console(record=True, width=118, file=io.StringIO())
    console.print(render(now, explain([now])))
    text = console.export_text()
    for part in ("→ learner waits for 3 groups", "5 of 8 groups", "41%", "http://w:8000", "dead letters   1 not_json",
                 "dropped   1 zero_variance", "What is 1+1?", "[bold]two[/bold]", "null", "1→2"):  # fmt: skip
        assert part in text
    assert "\x1b" not in text
    narrow = Console(record=True, width=40, file=io.StringIO())
    narrow.print(render(now, explain([now])))
    assert {len(line) for line in narrow.export_text().splitlines()} == {40}


def test_a_run_that_has_ended_has_no_engine():
    console = Console(record=True, width=118, file=io.StringIO())
    console.print(render(Snapshot("x", 0.0, "k", is_live=False), ()))
    assert "engine" not in console.export_text()


def test_rewards_are_drawn_from_0_to_1_or_as_far_as_they_go():
    assert sparkline([0, 0.5, 1]) == " ▄█"
    assert sparkline([-1, 0, 3]) == " ▂█"
    assert sparkline([]) == ""


class Terminal(io.TextIOWrapper):
    """A terminal, or a pipe."""

    def __init__(self, encoding, *, is_terminal=True):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.isatty = lambda: is_terminal


@pytest.mark.parametrize(
    ("terminal", "term", "drawn"),
    [
        (Terminal("utf-8"), "xterm", True),
        (Terminal("utf-8"), "dumb", False),
        (Terminal("iso-8859-1"), "xterm", False),
        (Terminal("utf-8", is_terminal=False), "xterm", False),
    ],
)
def test_a_screen_needs_a_terminal_that_can_show_it(monkeypatch, terminal, term, drawn):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert can_draw(Console(file=terminal)) == drawn

"""What the page carries: samples and lineage within a budget, curves as JSON, and no markup that a model wrote."""

import base64
import gzip
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.log import RunLog
from pipelines.report.curves import Curve, Trace, by_step, occupancy, staleness
from pipelines.report.embed import embed, tree
from pipelines.report.facts import facts_of
from pipelines.report.figures import figure
from pipelines.report.flow import Flow, Timeline
from pipelines.report.gather import Gathered, keep
from pipelines.report.lineage import trace
from pipelines.report.logs import said_in
from pipelines.report.page import render
from pipelines.report.samples import SampleBook
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.ledger import CheckpointEntry, DroppedGroup, Position, StartEntry, StepEntry, TrainedGroup
from schemas.weights import WeightVersion
from tests.support.samples import group

EVIL = '</script><img src="x" onerror="alert(1)"><script>alert(2)</script>'
BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)
OUTSIDE = re.compile(
    r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?\s*(?:https?:)?//|@import""", re.I
)


def trained(offset, version=1):
    return TrainedGroup(group=(0, offset), at=(0, offset), attempt="a1", samples=2, versions=(version, version))


def step(number, generation, version, *groups, dropped=()):
    return StepEntry(generation=generation, step=number, version=version, trained=groups, dropped=dropped,
                     metrics={"reward_mean": number / 10}, at=BEGAN + timedelta(seconds=number))  # fmt: skip


DROP = DroppedGroup(group=(0, 2), at=(0, 2), reason="stale")
LEDGER = [
    StartEntry(generation=1, at=BEGAN),
    step(1, 1, 2, trained(0)),
    CheckpointEntry(generation=1, step=1, manifest_sha256="c" * 64),
    step(2, 1, 3, trained(1)),
    StartEntry(generation=2, continues=Position(generation=1, step=1), at=BEGAN),
    step(2, 2, 5, trained(1), dropped=(DROP,)),
]
WEIGHTS = [
    WeightVersion(version=v, step=s, generation=g, manifest_sha256=f"{v:064x}", dtype="float32", base_model="m")
    for v, s, g in ((1, 0, 1), (2, 1, 1), (3, 2, 1), (4, 1, 2), (5, 2, 2))
]


def book_of(texts):
    book = SampleBook()
    for offset, text in enumerate(texts):
        book.add(keep([replace(one, response_text=text) for one in group(offset=offset)], (0, offset), None))
    return book


def test_lineage_leads_from_a_group_to_its_checkpoint_and_tells_what_did_not_survive():
    lineage = trace(LEDGER, WEIGHTS)
    fate, before = lineage.of(GroupId(0, 0), (0, 0))
    assert (fate.word, before) == ("trained", [])
    assert lineage.steps[fate.step].checkpoint.step == 1
    fate, before = lineage.of(GroupId(0, 1), (0, 1))
    assert (lineage.steps[fate.step].entry.generation, lineage.steps[fate.step].checkpoint) == (2, None)
    assert [lineage.steps[each.step].entry.generation for each in before] == [1]
    assert lineage.of(GroupId(0, 2), (0, 2))[0].word == "stale"
    assert (
        lineage.of(GroupId(0, 3), (0, 3))[0] == lineage.of(GroupId(0, 0), (7, 7))[0]
    )  # waiting: a copy is another record


def test_what_is_embedded_can_be_read_back():
    book, lineage = book_of(["five", "six", "seven", "ünsinn 😀"]), trace(LEDGER, WEIGHTS)
    text, cut = embed(book, lineage, 1 << 20)
    told = json.loads(gzip.decompress(base64.b64decode(text)))
    assert cut == book.cut == told["cut"]
    assert told["samples"]["answer"] == ["five"] * 2 + ["six"] * 2 + ["seven"] * 2 + ["ünsinn 😀"] * 2
    assert told["samples"]["spans"][0] == [11, 0, 12, 3]
    words = told["words"]
    assert [words[fate] for fate in told["groups"]["fate"]] == ["trained", "trained", "stale", "waiting"]
    assert told["groups"]["before"] == [0, [1], 0, 0]
    assert told["steps"]["survives"] == [1, 0, 1]
    assert {len(column) for column in told["groups"].values()} == {4}
    assert {len(column) for column in told["samples"].values()} == {8}


def test_answers_are_cut_until_the_page_fits():
    letters = [chr(97 + (number * number) % 26) for number in range(4000)]
    book = book_of(["".join(letters[offset:] + letters[:offset]) + str(offset) for offset in range(40)])
    whole, _ = embed(book, trace([], []), 1 << 30)
    text, cut = embed(book, trace([], []), len(whole) // 2)
    assert len(text) <= len(whole) // 2
    assert cut < 4000
    assert all(len(answer) <= cut for answer in tree(book, trace([], []), cut)["samples"]["answer"])


@pytest.fixture(scope="module")
def page():
    book = book_of([EVIL, "five"])
    letter = DeadLetter.of("generate", "not_json", EVIL, ("x.prompts", 0, 9), b"x")
    log = RunLog(ledger=list(LEDGER), weights=WEIGHTS, dead_letters=[letter])
    return render(facts_of(Gathered("x", log, book, Flow(), config_text=f'name = "{EVIL}"')))


def test_the_page_loads_nothing_and_escapes_what_others_wrote(page):
    assert EVIL not in page
    assert "&lt;/script&gt;&lt;img" in page
    assert OUTSIDE.search(page) is None
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert page.count("<script") == 5
    assert OUTSIDE.search('<script src="https://cdn.example/x.js">')


def test_the_page_names_the_restart(page):
    assert "generation 2 went on from step 1" in page


def test_figures_are_thinned_and_marked():
    steps = list(range(1, 4001))
    drawn = figure(Curve("Reward", "", [Trace("r", steps, [float(n) for n in steps])]), [(10, 0.0, "generation 2")])
    assert len(drawn["data"][0]["x"]) <= 1500
    assert drawn["data"][0]["y"][0] == 2.0  # the mean of the first three
    assert drawn["layout"]["shapes"][0]["x0"] == 10.5
    json.dumps(drawn, allow_nan=False)


def test_a_figure_that_some_steps_lack_has_gaps():
    line = [LEDGER[1], LEDGER[-1].model_copy(update={"metrics": {**LEDGER[-1].metrics, "kl": 0.5}})]
    curves = {curve.title: curve for curve in by_step(line)}
    assert curves["KL to the reference"].traces[0].y == [None, 0.5]
    assert curves["Reward"].traces[0].y == [0.1, 0.2]


def test_staleness_is_counted_in_updates_between_the_oldest_token_and_the_step():
    log = RunLog(ledger=list(LEDGER), weights=WEIGHTS)
    curve = staleness(log, [step(1, 1, 2, trained(0)), step(2, 1, 3, trained(1), trained(3, 2))])
    assert (curve.traces[0].x, curve.traces[0].y) == ([0, 1], [4, 2])


def test_a_timeline_keeps_its_sums_however_long_the_run():
    timeline = Timeline()
    for hours in (300, 0, 1, 5, 12):
        timeline.add("answered", BEGAN + timedelta(hours=hours), 2)
    assert len(timeline.starts()) <= 120
    assert sum(timeline.rates("answered")) * timeline.width_s == pytest.approx(timeline.total("answered")) == 10
    assert timeline.between("answered", BEGAN - timedelta(days=1), BEGAN + timedelta(days=99)) == 10
    assert timeline.rates("dropped") == [0] * len(timeline.starts())


def test_what_others_write_cannot_make_a_report_grow_or_fail():
    flow = Flow()
    for number in range(300):
        flow.add(group(worker=f"w{number}", generated_at=datetime(1, 1, 1, tzinfo=UTC)))
    assert len(flow.workers) == 201
    assert flow.workers["others"].answers == 200
    assert flow.timeline.starts() == []


def test_work_for_the_engines_is_what_was_admitted_and_is_not_finished():
    flow = Flow(admitted=[(BEGAN, 4), (BEGAN + timedelta(seconds=2), 6)])
    for seconds in (0, 1, 2, 3):
        flow.timeline.add("answered", BEGAN + timedelta(seconds=seconds))
    curve = occupancy(flow, RunLog(), slots=8, group_size=2)
    assert curve.traces[0].y == [6, 4, 6, 4]
    assert curve.traces[1].y == [8] * 4


def test_logs_tell_warnings_errors_and_last_words():
    lines = [
        "2026-01-31T12:00:00Z [warning  ] worker_down                    reason=\"gone\" worker=w\n",
        "2026-01-31T12:00:09Z [warning  ] worker_down                    reason=\"gone again\" worker=w\n",
        "2026-01-31T12:00:01Z [error    ] no_worker_up                   workers=['w']\n",
        "2026-01-31T12:00:02Z [info     ] worker_up                      worker=w\n",
        "(EngineCore pid=7) INFO 01-31 12:00:02 something\n",
        "asyncflow learn: FencedError: a newer process\n",
        "asyncflow evaluate: ended by SIGTERM\n",
    ]  # fmt: skip
    told = list(said_in("rollout", lines))
    assert [(each.level, each.event, each.times, each.rest) for each in told] == [
        ("warning", "worker_down", 2, 'reason="gone" worker=w'),
        ("error", "no_worker_up", 1, "workers=['w']"),
        ("ended", "learn", 1, "FencedError: a newer process"),
    ]
    assert told[0].first == BEGAN

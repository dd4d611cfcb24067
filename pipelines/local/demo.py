"""From prompts to a rising reward on one machine, and what it achieved.

    prepare ─► serve ─► held-out before ─► train ─► held-out after ─► audit ─► summary.json, report.html

The stack is the real one: broker, Prism, vLLM worker, rollout pipeline, learner, each a process of
its own. Everything shown is read from the topics.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.live import Live

from pipelines.dry_run.plan import Start
from pipelines.dry_run.show import rehearse
from pipelines.evaluation.measure import Measure, write_results
from pipelines.evaluation.prompts import HeldOut
from pipelines.local.broker import kafka_jars
from pipelines.local.demo_model import demo_model, known_demo_model
from pipelines.local.demo_options import DemoOptions
from pipelines.local.demo_prompts import DemoPrompts, from_file, sums
from pipelines.local.paths import DEFAULT_RUNS
from pipelines.local.prism import find_prism
from pipelines.local.stack import Stack
from pipelines.local.summary import Summary, summarise
from pipelines.presets import load_preset
from pipelines.report.facts import facts_of
from pipelines.report.gather import gather
from pipelines.report.page import REPORT_NAME, write_page
from pipelines.runs import CONFIG_NAME
from pipelines.submit import submit
from pipelines.top.draw import render
from pipelines.top.endpoints import endpoints_of
from pipelines.top.explain import explain
from pipelines.top.lines import plain
from pipelines.top.screen import LINE_S, REFRESH_S, can_draw
from pipelines.top.watch import Watch, Watched
from schemas.checks import Check
from schemas.config import RunConfig, validate
from schemas.evals import EvalResult

_EPOCH_FACTOR = 8
"""Prompts written for each group that contributes to a step: the others replace dropped groups."""


def run(options: DemoOptions) -> int:
    """Runs the demo; 0 if the audit passed. What is downloaded, built or converted is so before the clock starts."""
    console = Console()
    prompts = from_file(options.prompts) if options.prompts else sums(options.seed)
    if options.dry_run:
        return _rehearse(options, prompts)
    config = demo_config(options, options.model or demo_model())
    find_prism()
    kafka_jars()
    with Stack(config, restarts=0) as stack:
        summary = _run_stack(console, stack, prompts)
    console.print(f"\n[bold]{_verdict(summary)}[/bold]\n{stack.directory / REPORT_NAME}", soft_wrap=True)
    return 0 if summary.audit.ok else 1


def _rehearse(options: DemoOptions, prompts: DemoPrompts) -> int:
    config = demo_config(options, options.model or known_demo_model())
    said = Check(
        "prompts", f"{len(prompts.train)} to train on, {len(prompts.held_out)} held out, repeated as needed", "ok", ""
    )
    return rehearse(Start("demo", config, DEFAULT_RUNS / config.name, said=(said,)))


def demo_config(options: DemoOptions, model: Path | None) -> RunConfig:
    """The preset with the command's options over it; a model that is not known yet has no path."""
    tree = load_preset("demo")
    tree |= {"name": options.name or _free_name(), "seed": options.seed, "model": {"path": str(model or "")}}
    given = {"steps": options.steps, "max_staleness": options.max_staleness}
    tree["learner"] |= {key: value for key, value in given.items() if value is not None}
    return validate(tree, "of the demo")


def _free_name() -> str:
    """``demo``, or ``demo-2`` and so on if runs of these names exist."""
    names = ("demo" if number == 1 else f"demo-{number}" for number in count(1))
    return next(name for name in names if not (DEFAULT_RUNS / name / CONFIG_NAME).exists())


@dataclass
class _Clock:
    """When things happened, in seconds since the start."""

    started: float
    first_step_s: float = 0.0

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


def _run_stack(console: Console, stack: Stack, prompts: DemoPrompts) -> Summary:
    clock = _Clock(time.monotonic())
    console.print(f"run [bold]{stack.config.name}[/bold] in {stack.directory}")
    stack.start_serving()
    _submit(stack.config, prompts)
    held_out = Measure(stack.config, HeldOut(prompts.held_out))
    before = held_out.of(version=1)[0].marked(None)
    console.print(f"held-out accuracy before: {before.value:.2f} of {before.samples} ({clock.elapsed_s():.0f} s)")
    stack.start_rollout()
    version = _train(console, stack, clock)
    after = held_out.of(version)[0].marked(before)
    console.print(f"held-out accuracy after:  {after.value:.2f} of {after.samples} ({clock.elapsed_s():.0f} s)")
    return _conclude(stack, clock, before, after)


def _submit(config: RunConfig, prompts: DemoPrompts) -> None:
    wanted = config.learner.steps * config.learner.groups_per_step * _EPOCH_FACTOR
    lines = [*prompts.rejected, *(prompt.encode() for prompt in prompts.stream(wanted, config.seed))]
    submit(config, lines)


def _train(console: Console, stack: Stack, clock: _Clock) -> int:
    """Shows the run until the learner has done its steps; returns the last weight version."""
    with Watch(Watched(stack.config, endpoints_of(stack.config))) as watch, _screen(console, watch) as show:
        next_look = 0.0

        def on_tick() -> None:
            nonlocal next_look
            if time.monotonic() < next_look:
                return
            if watch.snapshot().learner.step and not clock.first_step_s:
                clock.first_step_s = clock.elapsed_s()
            show()
            next_look = time.monotonic() + REFRESH_S

        stack.wait(on_tick)
        version = watch.look().learner.version
        show()
        return version


@contextmanager
def _screen(console: Console, watch: Watch) -> Iterator[Callable[[], None]]:
    """The screen of ``asyncflow top`` on a terminal, else its line every ten seconds and at the end."""
    if not can_draw(console):
        yield _plain_printer(console, watch)
        return
    with Live(console=console, auto_refresh=False) as live:

        def show() -> None:
            now = watch.history[-1]
            live.update(render(now, explain(watch.history), f"{now.run}: training"), refresh=True)

        yield show


def _plain_printer(console: Console, watch: Watch) -> Callable[[], None]:
    next_line, last = 0.0, -1

    def show() -> None:
        nonlocal next_line, last
        now = watch.history[-1]
        step, steps = now.learner.step, now.learner.steps
        if (time.monotonic() < next_line and step != steps) or step == last == steps:
            return
        console.print(plain(now, explain(watch.history)), highlight=False, soft_wrap=True, markup=False)
        next_line, last = time.monotonic() + LINE_S, step

    return show


def _conclude(stack: Stack, clock: _Clock, before: EvalResult, after: EvalResult) -> Summary:
    seconds_total = clock.elapsed_s()
    write_results(stack.config, [before, after])
    gathered = gather(stack.config, stack.directory)
    facts = facts_of(gathered)
    summary = summarise(
        gathered.log,
        facts.verdict,
        held_out=(before.value, after.value),
        updates_in_flight=len(gathered.flow.taken_in_flight),
        tokens_generated=gathered.flow.tokens,
        seconds_to_first_step=clock.first_step_s,
        seconds_total=seconds_total,
    )
    (stack.directory / "summary.json").write_text(json.dumps(summary.model_dump(mode="json"), indent=1) + "\n")
    write_page(facts, stack.directory / REPORT_NAME)
    return summary


def _verdict(summary: Summary) -> str:
    promises = "audit passed" if summary.audit.ok else f"audit FAILED: {'; '.join(summary.audit.faults)}"
    return (
        f"held-out accuracy {summary.heldout_before:.2f} → {summary.heldout_after:.2f}, "
        f"training reward {summary.reward_first3:.2f} → {summary.reward_last3:.2f} "
        f"in {summary.steps} steps and {summary.seconds_total:.0f} s; {promises}"
    )

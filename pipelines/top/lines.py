"""A snapshot as one line, for a screen that is no terminal."""

from pipelines.top.explain import Sentence
from pipelines.top.state import Learner, Snapshot
from pipelines.words import duration


def plain(now: Snapshot, sentences: tuple[Sentence, ...]) -> str:
    """Figures, then the most pressing sentences."""
    learner, engine = now.learner, now.engine
    steps = f"{learner.step}/{learner.steps}" if learner.steps else str(learner.step)
    figures = [
        f"step {steps}",
        f"reward {_reward(learner)}",
        f"version {learner.version}",
        f"staleness {learner.metrics.get('staleness_max', 0):.0f}",
        f"waiting {now.stage('trajectories').waiting or 0}",
        f"in flight {now.stage('in flight').waiting or 0}{_oldest(now.stage('in flight').oldest_s)}",
        *([f"engine {engine.occupancy:.0%}"] if engine.occupancy is not None else []),
        *([f"{engine.tokens_per_s:.0f} tokens/s"] if engine.tokens_per_s is not None else []),
        f"trained {now.stage('trained').total}",
        f"dropped {now.stage('dropped').total}",
        f"dead {now.stage('dead letters').total}",
    ]
    told = [sentence.text for sentence in sentences if sentence.level != "note"]
    return "  ".join(figures) + ("".join(f"  | {text}" for text in told))


def _reward(learner: Learner) -> str:
    return f"{learner.rewards[-1]:.2f}" if learner.rewards else "none yet"


def _oldest(age_s: float | None) -> str:
    return "" if age_s is None else f" (oldest {duration(age_s)})"

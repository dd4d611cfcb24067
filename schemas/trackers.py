"""Names of what the figures of steps can be written to: ``learner.trackers``."""

from typing import Literal

TrackerName = Literal["jsonl", "tensorboard", "wandb", "trackio", "mlflow"]

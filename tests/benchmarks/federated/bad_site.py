"""One bad site of four: what plain averaging, trimmed mean and median make of it.

    digits drawn in several faces, turned and with noise ──► four sites, each mostly of other digits
    a classifier of 4,970 numbers ──SGD at each site──► update ──► the real coordinator ──► held-out accuracy

The bad site sends a hundred times its update, the other way round, or random numbers as large. The coordinator's own
checks are off, so that the strategies are seen alone; one more line is of plain averaging with them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import structlog
from safetensors.numpy import save_file

from pipelines.federation.audit import audit
from pipelines.local.broker import Broker
from pipelines.local.topics import create_topics
from schemas.federating import FederationConfig
from tests.support.simulated_sites import SimulatedSites
from trainers.federation.coordinator import run

SIDE, HIDDEN, CLASSES = 12, 32, 10
NAMES = ("east", "north", "south", "west")
BAD = "west"
TIMES = 100.0
STEPS, RATE = 40, 0.3
HOLDS, BREAKS = 0.9, 0.5
"""Of the accuracy of plain averaging without a bad site: at least, and at most."""
_numbers = count()


def main(arguments):
    options = parse(arguments)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with tempfile.TemporaryDirectory() as room, Broker(Path(room) / "kafka") as broker:
        results = [play(broker, Path(room), seed, case, options.rounds) for seed in options.seeds for case in cases()]
    figures = {"seeds": options.seeds, "rounds": options.rounds, "runs": results, "accuracy": table(results)}
    figures["holds"] = holds(figures["accuracy"]) and all(result["audit"] for result in results)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["holds"] else 1


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args(arguments)


def cases():
    """Strategy, what the bad site does, and whether the coordinator checks norms."""
    for strategy in ("fedavg", "trimmed_mean", "median"):
        for attack in ("none", "scaled", "random"):
            yield strategy, attack, False
    yield from (("fedavg", attack, True) for attack in ("scaled", "random"))


def label(strategy, checked):
    return f"{strategy} with checks" if checked else strategy


def table(results):
    """Mean held-out accuracy over the seeds, by strategy and attack."""
    found = {}
    for result in results:
        row = found.setdefault(label(result["strategy"], result["checked"]), {})
        row.setdefault(result["attack"], []).append(result["accuracy"])
    return {name: {attack: statistics.mean(values) for attack, values in row.items()} for name, row in found.items()}


def holds(accuracy):
    usual = accuracy["fedavg"]["none"]
    broken = [accuracy["fedavg"][attack] for attack in ("scaled", "random")]
    held = [accuracy[name][attack] for name in ("trimmed_mean", "median", "fedavg with checks")
            for attack in ("scaled", "random")]  # fmt: skip
    return max(broken) <= BREAKS * usual and min(held) >= HOLDS * usual


# ----------------------------------------------------------------------- one federation


def play(broker, room, seed, case, rounds):
    """One federation from its first version to its last."""
    strategy, attack, checked = case
    directory = room / f"run-{next(_numbers)}"
    (directory / "model").mkdir(parents=True)
    save_file(first_weights(seed), directory / "model" / "model.safetensors")
    told = {"name": directory.name, "kafka": {"bootstrap": broker.bootstrap}, "store": str(directory / "store"),
            "model": str(directory / "model"), "quorum": 3, "rounds": rounds, "deadline_s": 60.0,
            "selection": {"steps": STEPS},
            "strategy": {"name": strategy, "weigh_by": "equal"},
            "checks": {"max_times_median": 10.0 if checked else None}}  # fmt: skip
    config = FederationConfig.model_validate(told)
    create_topics(config)
    learner = Learner(seed, attack)
    sites = SimulatedSites(config, NAMES, learn=learner)
    learner.sites = sites
    sites.beat()
    leading = threading.Thread(target=run, args=(config,), daemon=True)
    leading.start()
    sites.play(lambda _: not leading.is_alive(), beat_s=1.0)
    sites.await_version(sites.announced.version)
    verdict = audit(config)
    accuracy = learner.accuracy(sites.layout.unflatten(sites.row))
    sites.close()
    return {"seed": seed, "strategy": strategy, "attack": attack, "checked": checked, "accuracy": accuracy,
            "audit": verdict.holds, **{key: verdict.counts[key] for key in ("merges", "left_out")}}  # fmt: skip


class Learner:
    """Trains at each site on its own digits; the bad site then spoils what it learned."""

    def __init__(self, seed, attack):
        self.attack, self.sites = attack, None
        self._chance = np.random.default_rng(seed)
        self._data, self._held_out = drawings(seed)

    def __call__(self, name, row, steps):
        weights = {key: tensor.copy() for key, tensor in self.sites.layout.unflatten(row).items()}
        images, digits = self._data[name]
        for _ in range(steps):
            picked = self._chance.integers(len(digits), size=32)
            descend(weights, images[picked], digits[picked])
        learned = self.sites.layout.flatten(weights) - row
        if not np.isfinite(learned).all():  # from weights that are spoilt for good: there is nothing to learn
            return np.zeros_like(row)
        return self._spoilt(learned) if name == BAD else learned

    def _spoilt(self, learned):
        if self.attack == "scaled":
            return np.float32(-TIMES) * learned
        if self.attack == "random":
            noise = self._chance.standard_normal(learned.size).astype(np.float32)
            return noise * np.float32(TIMES * np.linalg.norm(learned.astype(float)) / np.linalg.norm(noise))
        return learned

    def accuracy(self, weights):
        images, digits = self._held_out
        with np.errstate(all="ignore"):
            return float((forward(weights, images)[1].argmax(axis=1) == digits).mean())


def shares(number):
    """Each site has all digits, and more of some: those of the next two or three."""
    own = [digit for digit in range(CLASSES) if digit % len(NAMES) == number]
    found = np.full(CLASSES, 0.5 / CLASSES)
    found[own] += 0.5 / len(own)
    return found


# ----------------------------------------------------------------------- classifier


def first_weights(seed):
    chance = np.random.default_rng(seed)
    return {
        "in.weight": (chance.standard_normal((SIDE * SIDE, HIDDEN)) / SIDE).astype(np.float32),
        "in.bias": np.zeros(HIDDEN, dtype=np.float32),
        "out.weight": (chance.standard_normal((HIDDEN, CLASSES)) / np.sqrt(HIDDEN)).astype(np.float32),
        "out.bias": np.zeros(CLASSES, dtype=np.float32),
    }


def forward(weights, images):
    hidden = np.maximum(0, images @ weights["in.weight"] + weights["in.bias"])
    return hidden, hidden @ weights["out.weight"] + weights["out.bias"]


def descend(weights, images, digits, rate=RATE):
    """One step of SGD on the cross entropy."""
    with np.errstate(all="ignore"):
        hidden, logits = forward(weights, images)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        gradient = odds / odds.sum(axis=1, keepdims=True)
        gradient[np.arange(len(digits)), digits] -= 1
        gradient /= len(digits)
        back = (gradient @ weights["out.weight"].T) * (hidden > 0)
        weights["out.weight"] -= rate * (hidden.T @ gradient)
        weights["out.bias"] -= rate * gradient.sum(axis=0)
        weights["in.weight"] -= rate * (images.T @ back)
        weights["in.bias"] -= rate * back.sum(axis=0)


# ----------------------------------------------------------------------- digits


@cache
def drawings(seed, number=600, held_out=1000):
    """What each site has, and what all are held against."""
    chance = np.random.default_rng(seed + 1000)
    own = {name: draw(chance, shares(place), number) for place, name in enumerate(NAMES)}
    return own, draw(chance, np.full(CLASSES, 1 / CLASSES), held_out)


def draw(chance, mix, number):
    """Images (number, 144) in 0 to 1, and what they show."""
    digits = chance.choice(CLASSES, size=number, p=mix)
    return np.stack([drawn(chance, digit) for digit in digits]).astype(np.float32), digits


def drawn(chance, digit):
    """A digit in one of several faces, turned, moved, with noise."""
    from PIL import Image

    angle, moves = chance.uniform(-20, 20), chance.uniform(-3, 3, size=2)
    face = faces()[chance.integers(len(faces()))][digit]
    turned = face.rotate(angle, resample=Image.Resampling.BILINEAR, translate=tuple(moves))
    small = np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32) / 255
    return np.clip(small + chance.normal(0, 0.1, small.shape), 0, 1).reshape(-1)


_FACES = []


def faces():
    """Each face's ten digits, 36 pixels high and wide."""
    if not _FACES:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont

        directory = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono-Oblique", "STIXGeneral"):
            font = ImageFont.truetype(str(directory / f"{name}.ttf"), 32)
            images = []
            for digit in range(CLASSES):
                image = Image.new("L", (36, 36))
                ImageDraw.Draw(image).text((18, 18), str(digit), fill=255, font=font, anchor="mm")
                images.append(image)
            _FACES.append(images)
    return _FACES

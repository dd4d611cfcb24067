"""``asyncflow eval`` as a person calls it: real workers, tiny models, answers computed again by transformers."""

import json

import psutil
import pytest
import tomli_w

from pipelines.cli.main import main
from pipelines.evaluation.choices import choices_of
from pipelines.local.tiny_model import build_tiny_model
from pipelines.tasks.registry import find
from schemas.config import validate
from tests.support.tasks import write_data
from tests.support.weights import publish_version
from transforms.generation.tokenizer import Tokenizer

FLAGS = ("--model.dtype", "float32", "--worker.kv-cache-gib", "0.25", "--worker.max-num-seqs", "8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two of one architecture that answer differently."""
    return [build_tiny_model(tmp_path_factory.mktemp(f"model-{seed}"), seed=seed) for seed in (0, 3)]


def evaluate(*arguments, out):
    """The report of a call that went well; no process of it is left."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert main(["eval", *map(str, arguments), *FLAGS, "--out", str(out)]) == 0
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child.name() for child in left if "VLLM" in child.name() or "asyncflow" in child.name()] == []
    return json.loads(out.read_text())


def value_of(report, task, metric, temperature=0.0):
    (found,) = [each for each in report["tasks"] if each["task"] == task]
    (score,) = [each for each in found["scores"] if (each["metric"], each["temperature"]) == (metric, temperature)]
    return score["value"]


class Held:
    """What a model says that may say one of a few texts: of the tokens that go on with one of them the likeliest."""

    def __init__(self, directory):
        from transformers import LlamaForCausalLM

        self._model, self._tokenizer = LlamaForCausalLM.from_pretrained(directory), Tokenizer.load(str(directory))
        self._end = self._model.config.eos_token_id

    def answer(self, prompt):
        import torch

        asked, said = self._tokenizer.encode(prompt), ()
        whole = {(*self._tokenizer.encode_answer(text)[:-1], self._end): text for text in choices_of(prompt)}
        while said not in whole:
            with torch.no_grad():
                logits = self._model(torch.tensor([[*asked, *said]])).logits[0, -1]
            going_on = {ids[len(said)] for ids in whole if ids[: len(said)] == said}
            said = (*said, max(going_on, key=lambda token: float(logits[token])))
        return whole[said]

    def accuracy(self, prompts):
        return sum(self.answer(prompt) == prompt.reward.args["answer"] for prompt in prompts) / len(prompts)


def test_a_model_is_served_asked_and_measured_and_its_worker_ends(data, models, tmp_path, capsys):
    report = evaluate(
        "--tasks", "superglue", "qnli", "gsm8k", "--data", data, "--split", "train", "--model", models[0],
        "--constrained", "--samples", 2, "--evaluation.max-tokens", 6, out=tmp_path / "report.json",
    )  # fmt: skip
    held = Held(models[0])
    for task in ("qnli", "boolq"):
        prompts = list(find(task).prompts(data, "train"))
        assert len(prompts) > 2
        assert value_of(report, task, "accuracy") == pytest.approx(held.accuracy(prompts))
    by_task = {task["task"]: task for task in report["tasks"]}
    assert {name: task["held"] / task["rows"] for name, task in by_task.items() if task["held"] < task["rows"]} == {
        "record": 0, "gsm8k": 0,
    }  # fmt: skip
    assert all((task["unanswered"], task["null_rewards"]) == (0, 0) for task in by_task.values())
    assert value_of(report, "gsm8k", "pass@2", 1.0) == 0
    ((name, tasks),) = [(family["family"], family["tasks"]) for family in report["families"]]
    assert (name, len(tasks)) == ("superglue", 8)
    assert (report["run"], report["version"], report["dtype"], report["split"]) == (None, None, "float32", "train")
    shown = " ".join(capsys.readouterr().out.split())
    assert f"qnli accuracy {value_of(report, 'qnli', 'accuracy'):.3f}" in shown
    assert "superglue mean of 8 tasks" in shown


def test_a_version_of_a_run_is_exported_and_asked_as_it_was(run_config, data, models, tmp_path):
    from transformers import LlamaForCausalLM

    tree = run_config.model_dump(mode="json", exclude_none=True)
    tree["model"] = {"path": str(models[0]), "dtype": "float32"}
    tree["weights"]["root"] = str(tmp_path / "weights")
    config = validate(tree, "test")
    trained = LlamaForCausalLM.from_pretrained(models[1])
    publish_version(config.weights.root, 1, trained, bootstrap=config.kafka.bootstrap, topic=config.topics.weights)
    (tmp_path / "config.toml").write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    report = evaluate(
        "--tasks", "qnli", "mnli", "boolq", "--data", data, "--split", "train", "--config", tmp_path / "config.toml",
        "--version", "newest", "--constrained", out=tmp_path / "report.json",
    )  # fmt: skip
    assert (report["run"], report["version"], report["version_max"]) == (config.name, 1, 1)
    prompts = {task: list(find(task).prompts(data, "train")) for task in ("qnli", "mnli", "boolq")}
    ours, others = ({task: Held(model).accuracy(prompts[task]) for task in prompts} for model in models[::-1])
    assert {task: value_of(report, task, "accuracy") for task in prompts} == pytest.approx(ours)
    assert ours != others, "the two models can be told apart by these figures"

"""The pages of docs/: what they link to is there, what is generated is as committed, what they show runs."""

import contextlib
import json
import re
import runpy
import shutil
import tomllib
from dataclasses import replace
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines.cli.main import VERBS, main
from pipelines.evaluation.prompts import read_held_out
from pipelines.tasks.registry import find
from schemas.config import RunConfig, load, section_of, validate
from schemas.federating import FederationConfig
from schemas.layers import INCLUDE, layer_of
from schemas.prompts import Prompt
from tests.support.pages import DOCS, ROOT, blocks
from tests.support.samples import SAMPLE
from trainers.federation import strategies
from transforms.modules import load_module
from transforms.rewards import registry as rewards

_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page):
    return str(page.relative_to(ROOT))


def without_code(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page):
    """The places of a page that a link may name, as GitHub makes them of its headings."""
    found, seen = set(), {}
    for heading in re.findall(r"^#{1,6} (.+)$", without_code(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = seen[anchor] = seen.get(anchor, -1) + 1
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


@pytest.mark.parametrize("page", _PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for path, anchor in _LINK.findall(without_code(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {path}, which does not exist"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)} links to {path}#{anchor}; there are {anchors(target)}"


def test_every_page_is_in_the_index():
    linked = {(DOCS / path).resolve() for path, _ in _LINK.findall((DOCS / "index.md").read_text()) if path}
    pages = {page for page in DOCS.rglob("*.md") if page.name != "index.md"}
    assert pages <= linked, sorted(map(name_of, pages - linked))


@pytest.fixture(scope="module")
def generate():
    return runpy.run_path(str(DOCS / "generate.py"))


def test_the_reference_is_what_the_code_says(generate):
    for name, text in generate["pages"]().items():
        committed = (DOCS / "reference" / name).read_text()
        assert committed == text, f"docs/reference/{name} is old: python docs/generate.py writes it"


def test_every_key_of_the_configuration_is_in_the_reference(generate):
    def keys(tree, path=()):
        for name, value in tree.items():
            yield from keys(value, (*path, name)) if isinstance(value, dict) and value else [".".join((*path, name))]

    tables = {"rewards.judges", "rewards.reward_models"}
    text = generate["configuration"]()
    missing = [key for key in keys(RunConfig().model_dump()) if f"| `{key}` |" not in text and key not in tables]
    assert not missing


def test_every_example_of_a_record_is_json():
    examples = re.findall(r"^```json\n(.*?)^```", (DOCS / "reference/records.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) > 15
    for example in examples:
        assert json.loads(example)


@pytest.mark.parametrize("page", _PAGES, ids=name_of)
def test_toml_of_pages_is_configuration(page):
    block = r"^(<!-- coordinator -->\n)?```toml\n(.*?)^```"
    for coordinates, text in re.findall(block, page.read_text(), re.DOTALL | re.MULTILINE):
        tree = tomllib.loads(text)
        tree.pop(INCLUDE, None)  # files that a page only imagines
        if coordinates:
            section_of(FederationConfig, [layer_of(name_of(page), text)], name_of(page))
        else:
            validate(tree, name_of(page))


def test_verbs_that_pages_name_exist():
    for page in _PAGES:
        named = re.findall(r"(?:^|[`$] ?|bin/)asyncflow ([a-z][a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= set(VERBS), f"{name_of(page)} names {set(named) - set(VERBS)}"


# ----------------------------------------------------------------------- examples that run


def test_the_reward_of_ten_lines(tmp_path):
    file = tmp_path / "my_rewards.py"
    file.write_text(blocks("adding-a-reward.md")["reward"])
    assert "starts_with" in rewards.load([str(file)])
    prompt = json.loads(blocks("adding-a-reward.md", "json")["prompt"])
    entry = rewards.find("starts_with")
    arguments = rewards.parse_arguments(entry, Prompt.model_validate(prompt).reward)
    values = [entry.thing(answering(text), arguments).value for text in ("Hello there", "Bye")]
    assert values == [1.0, 0.0]


def answering(text):
    return replace(SAMPLE, response_text=text)


def test_the_strategy_of_ten_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "_STRATEGIES", dict(strategies._STRATEGIES))
    file = tmp_path / "my_strategies.py"
    file.write_text(blocks("federation.md")["strategy"])
    load_module(str(file), "strategy.modules")
    chosen = strategies.find("geometric_signs", {"step": 0.5})
    step = chosen(np.array([[1.0, -1.0], [9.0, 9.0], [-9.0, -9.0]]), np.array([0.4, 0.3, 0.3]), {})
    assert step.tolist() == [0.5, -0.5]
    assert len(blocks("federation.md")["strategy"].split("@strategy")[1].splitlines()) <= 10


def test_the_task_of_its_page(tmp_path):
    (tmp_path / "capitals.py").write_text(blocks("adding-a-task.md")["task"])
    (tmp_path / "capitals" / "africa").mkdir(parents=True)
    (tmp_path / "capitals" / "africa" / "test.tsv").write_text("Kenya\tNairobi\nEgypt\tCairo\n")
    task = find(str(tmp_path / "capitals.py"), ["continent=africa"])
    prompts = list(task.prompts(tmp_path, "held_out"))
    assert [prompt.prompt_id for prompt in prompts] == ["capitals/held_out/0", "capitals/held_out/1"]
    assert prompts[1].messages[0].content == "What is the capital of Egypt?"
    assert prompts[1].reward.args == {"answer": "Cairo"}
    rewards.load()
    rewards.check(prompts[1].reward)


def test_the_first_task_becomes_prompts_that_its_own_reward_scores(tmp_path):
    shutil.copytree(DOCS / "examples" / "first-task", tmp_path, dirs_exist_ok=True)
    with contextlib.chdir(tmp_path):
        assert main(["submit", "opposites.py", "--epochs", "2", "--out", "train.jsonl"]) == 0
        assert main(["submit", "opposites.py", "--split", "held_out", "--out", "held-out.jsonl"]) == 0
        config = load(tmp_path / "run.toml")
        rewards.load(config.rewards.modules)
        train = [Prompt.decode(line) for line in (tmp_path / "train.jsonl").read_bytes().splitlines()]
        held_out = read_held_out(tmp_path / "held-out.jsonl").prompts
    assert len(train) == 2 * 48
    assert len(held_out) == 12
    assert not {prompt.prompt_id for prompt in train} & {prompt.prompt_id for prompt in held_out}
    first = next(prompt for prompt in train if prompt.prompt_id == "opposites/train/0")
    entry = rewards.find(first.reward.name)
    arguments = rewards.parse_arguments(entry, first.reward)
    values = [entry.thing(answering(text), arguments).value for text in ("Cold.", "It is cold.", "warm")]
    assert values == [1.0, 0.5, 0.0]


def test_the_files_of_the_first_task_are_shown_as_they_are():
    shown = (DOCS / "first-task.md").read_text()
    for name in ("opposites.py", "run.toml"):
        assert (DOCS / "examples" / "first-task" / name).read_text() in shown, f"first-task.md shows another {name}"


def test_pictures_are_well_formed():
    for picture in DOCS.rglob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")

"""Anybody may read a run: what is exported, and the programs of docs/readers.md, on one run of the tiny model."""

import contextlib
import json
import re
import runpy
from collections import Counter
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
import tomli_w
import yaml

from pipelines import export_samples
from pipelines.append import Entry, append
from pipelines.cli.main import main
from pipelines.export_samples import SCHEMA
from pipelines.local.progress import Progress
from pipelines.local.topics import create_topics
from pipelines.submit import submit
from schemas.config import KafkaConfig, RunConfig
from schemas.errors import RunError
from schemas.exchanges import Exchange
from schemas.identity import EXCHANGES
from schemas.manifests import MANIFEST_NAME, Manifest
from schemas.prompts import Message, Prompt, RewardSpec
from schemas.trajectories import encode
from tests.support.learners import learner_config
from tests.support.pages import DOCS, execute
from tests.support.samples import group
from tests.support.trajectories import Rollouts, learn, read_all, shared_ranks, steps_of, write_prompts, write_records
from trainers.advantages import Advantages


@pytest.fixture(scope="module")
def finished(broker, model_dir, tmp_path_factory):
    """A directory with ``runs/demo`` of a run of four steps, one group of which is never read, and what was trained."""
    directory = tmp_path_factory.mktemp("readers")
    base = RunConfig(name=f"test-{uuid4().hex[:12]}", kafka=KafkaConfig(bootstrap=broker))
    create_topics(base)
    (directory / "runs" / "demo").mkdir(parents=True)
    config = learner_config(base, directory / "runs" / "demo", model_dir, steps=4)
    (directory / "runs/demo/config.toml").write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    noted, of_step = {}, Advantages.of_step

    def note(self, groups):
        found = of_step(self, groups)
        noted.update({samples[0].group: values for samples, values in zip(groups, found, strict=True)})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Advantages, "of_step", note)
        write_prompts(config, 40)
        with Rollouts(config, model_dir, reward=reward):
            learn(config)
    return directory, config, noted


def reward(group, index):
    """Every third group teaches nothing, one sample of the others has no reward."""
    return 1.0 if group.offset % 3 == 0 else (None if index == 3 else float(index % 2))


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """``data/demo`` of that run, by the command."""
    directory, *_ = finished
    with contextlib.chdir(directory):
        assert main(["export", "--run", "demo", "--samples", "--to", "data/demo"]) == 0
    return directory / "data" / "demo"


def rows_of(directory):
    return pq.read_table(directory / "data").to_pylist()


def test_every_sample_is_exported_with_what_the_ledger_says_became_of_it(finished, exported):
    _, config, _ = finished
    rows, steps = rows_of(exported), steps_of(config)
    assert len({row["rollout_id"] for row in rows}) == len(rows)
    assert {row["rollout_id"].split("/")[0] for row in rows} == {config.name}
    places = {(row["prompt_partition"], row["prompt_offset"]): row for row in rows}
    for entry in steps:
        for ended in (*entry.trained, *entry.dropped):
            row = places[ended.group]
            assert (row["step"], row["step_version"]) == (entry.step, entry.version)
            assert (row["record_partition"], row["record_offset"]) == ended.at
            assert (row["fate"], row["fate_reason"]) == (
                ("trained", None) if ended in entry.trained else ("dropped", ended.reason)
            )
    counts = Counter(row["fate"] for row in rows)
    assert counts["trained"] == sum(group.samples for entry in steps for group in entry.trained)
    assert counts["dropped"]
    named = {group.group for entry in steps for group in (*entry.trained, *entry.dropped)}
    assert all((row["fate"] == "waiting") == (group not in named) for group, row in places.items())


def test_advantages_are_those_that_the_learner_had(finished, exported):
    _, _, noted = finished
    trained = [row for row in rows_of(exported) if row["fate"] == "trained"]
    assert len({row["advantage"] for row in trained}) > 2
    for row in trained:
        expected = noted[row["prompt_partition"], row["prompt_offset"]][row["sample_index"]]
        assert row["advantage"] == (None if expected is None else pytest.approx(expected, abs=1e-6))
    assert all(row["advantage"] is None for row in rows_of(exported) if row["fate"] != "trained")


def test_files_are_compressed_bounded_and_vouched_for(finished, tmp_path, monkeypatch):
    _, config, _ = finished
    monkeypatch.setattr(export_samples, "ROW_GROUP_ROWS", 8)
    monkeypatch.setattr(export_samples, "FILE_ROWS", 16)
    done = export_samples.export_samples(config, tmp_path / "out")
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [file.name for file in files] == [f"train-{number:05d}.parquet" for number in range(len(files))]
    assert len(files) > 2
    for file in files:
        read = pq.ParquetFile(file)
        assert read.schema_arrow.equals(SCHEMA)
        groups = [read.metadata.row_group(number) for number in range(read.num_row_groups)]
        assert all(group.num_rows <= 8 and group.column(0).compression == "ZSTD" for group in groups)
    rows = [pq.read_metadata(file).num_rows for file in files]
    assert sum(rows) == done.rows
    assert max(rows) <= 16
    assert done.rows == sum(done.fates.values())
    assert done.groups * 4 == done.rows
    manifest = Manifest.decode((tmp_path / "out" / MANIFEST_NAME).read_bytes(), done.manifest_sha256)
    assert {each.name for each in manifest.files} == {"README.md", *(f"data/{file.name}" for file in files)}


def test_the_card_names_the_files_and_every_column(exported):
    _, head, text = (exported / "README.md").read_text().split("---\n", 2)
    (only,) = yaml.safe_load(head)["configs"]
    assert [list(exported.glob(each["path"])) for each in only["data_files"]] == [list(exported.glob("data/*"))]
    assert all(f"| `{name}` |" in text for name in SCHEMA.names)


def test_a_live_run_is_exported_as_far_as_it_is_and_a_torn_record_is_counted(make_config, tmp_path):
    config = make_config()
    with pytest.raises(RunError, match="has written no samples yet"):
        export_samples.export_samples(config, tmp_path / "out")

    said = Prompt(messages=(Message(role="user", content="2+3?"),), reward=RewardSpec(name="exact_match"))
    submit(config, [said.encode()])
    asked = Exchange(user="ann", messages=(Message(role="user", content="Hello."),))
    append(config.kafka, config.topics.exchanges, [Entry(asked.encode(), None, 1)], "a question")
    value, headers = encode([*group(0, 0, size=2, run=config.name), *group(EXCHANGES + 1, 0, 1, purpose="feedback")])
    write_records(config, [(value, headers), (value[:-1] + b"x", headers)])
    done = export_samples.export_samples(config, tmp_path / "out")
    assert (done.rows, done.groups, done.fates, done.steps, done.unreadable) == (3, 2, {"waiting": 3}, 0, 1)
    first, _, chat = rows_of(tmp_path / "out")
    assert chat["messages"] == [{"role": "user", "content": "Hello."}]
    assert first["messages"] == [{"role": "user", "content": "2+3?"}]
    assert first["reward_parts"] == [{"name": "last_number", "value": 1.0}]
    assert (first["fate"], first["step"], first["advantage"]) == ("waiting", None, None)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_about_weights_is_refused_with_samples(capsys):
    assert main(["export", "--run", "demo", "--samples", "--version", "best", "--to", "new"]) == 2
    assert "are about weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["duckdb", "polars"])
def test_programs_over_the_export_count_what_the_ledger_counts(finished, exported, name):
    directory, config, _ = finished
    pytest.importorskip(name)
    with contextlib.chdir(directory):
        defined = execute("readers.md", name)
        behind = [row[3] for row in defined["by_step"].fetchall()] if name == "duckdb" else []
    trained = sum(group.samples for entry in steps_of(config) for group in entry.trained)
    assert dict(defined["found"])["trained"] == trained
    if name == "duckdb":
        assert behind == [entry.metrics["staleness_max"] for entry in steps_of(config)]
    else:
        easy = {(row["prompt_partition"], row["prompt_offset"]) for row in defined["easy"].to_dicts()}
        places = {(row["prompt_partition"], row["prompt_offset"]) for row in rows_of(exported)}
        assert easy == {place for place in places if place[1] % 3 == 0}


def test_a_program_over_the_topic_needs_nothing_of_ours(finished):
    _, config, _ = finished
    replaced = {'"127.0.0.1:9092"': f'"{config.kafka.bootstrap}"', '"demo"': f'"{config.name}"'}
    rows = execute("readers.md", "topic", replaced)["rows"]
    assert rows == sum(int(dict(record.headers)["rows"]) for record in read_all(config, config.topics.trajectories))


def test_a_program_with_our_reader_follows_a_live_run(finished):
    directory, config, _ = finished
    with contextlib.chdir(directory):
        rewards = execute("readers.md", "follow")["rewards"]
    assert len(rewards) == sum(len(record.value) > 0 for record in read_all(config, config.topics.trajectories))


def test_a_shadow_learner_trains_the_same_groups_and_leaves_the_run_alone(finished, tmp_path):
    _, config, _ = finished
    topics = [spec.name for spec in config.topics.specs(1)]
    before = {name: len(read_all(config, name)) for name in topics}
    program = runpy.run_path(str(DOCS / "examples" / "shadow_learner.py"))
    other = program["with_objective"](config, "dr_grpo", "none")
    program["shadow"](other, shared_ranks(), tmp_path / "shadow")
    lines = [json.loads(line) for line in (tmp_path / "shadow" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [entry.step for entry in steps_of(config)]
    assert any(line["loss"] != line["loss_of_the_run"] for line in lines)
    assert list((tmp_path / "shadow" / "weights").glob("*/model.safetensors"))
    assert {name: len(read_all(config, name)) for name in topics} == before


def test_every_step_is_told_in_a_line_as_the_ledger_grows(finished):
    _, config, _ = finished
    lines, steps = [], steps_of(config)
    with Progress(config, lines.append, since_start=True):
        pass
    assert [line.split(":")[0] for line in lines] == [f"step {entry.step} of 4" for entry in steps]
    for line, entry in zip(lines, steps, strict=True):
        assert f"reward {entry.metrics['reward_mean']:.2f}, {len(entry.trained)} groups trained" in line
    assert any(re.search(r"\d dropped \(.*\d zero_variance", line) for line in lines)
    with Progress(config, lines.append):
        pass
    assert len(lines) == len(steps), "what it did before is not told again"

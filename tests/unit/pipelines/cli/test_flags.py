"""Flags read from the classes of arguments: what is missing or misspelt, what was given, and how shells complete it."""

import subprocess
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro

from pipelines.cli.completion import flags_by_verb, main
from pipelines.cli.flags import Flag, flags_of, given_flags, refuse_unknown
from pipelines.cli.main import VERBS
from pipelines.cli.options import ProcessOptions
from schemas.config import RunConfig, SamplingConfig
from schemas.errors import ConfigError


@dataclass(frozen=True)
class AnyOptions:
    """Arguments."""

    what: tyro.conf.Positional[str]
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)
    of: Annotated[str | None, tyro.conf.arg(name="run")] = None
    kind: Literal["soft", "hard"] | None = None
    faults: tuple[str, ...] = ()
    dry: bool = False


def test_flags_are_those_that_tyro_makes():
    assert flags_of(AnyOptions) == [
        Flag("--temperature", True, number=float), Flag("--top-p", True, number=float),
        Flag("--top-k", True, number=int), Flag("--max-tokens", True, number=int), Flag("--run", True),
        Flag("--kind", True, ("soft", "hard")), Flag("--faults", True, many=True), Flag("--dry", False),
        Flag("--no-dry", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-token", "3"], "unknown flag --max-token; did you mean --max-tokens?"),
        (["--kind", "sofft"], "--kind 'sofft': expected one of soft, hard; did you mean soft?"),
        (["--kind=hrad"], "did you mean hard?"),
        (["--top-k", "many"], "--top-k 'many': expected a whole number"),
        (["--top_p=x"], "--top-p 'x': expected a number"),
        (["--run", "--dry"], "--run is given without a value"),
        (["--zzz"], "unknown flag --zzz; --help tells which are"),
    ],
)
def test_what_is_misspelt_is_named_with_what_may_be_meant(arguments, words):
    with pytest.raises(ConfigError) as caught:
        refuse_unknown(AnyOptions, ["x", *arguments])
    assert words in str(caught.value)


def test_what_is_right_or_somebody_elses_is_left_alone():
    refuse_unknown(AnyOptions, ["x", "--top_k", "3", "--faults", "--dry", "--run=--odd", "--kind", "None"])
    refuse_unknown(ProcessOptions, ["--rewards.judges.a.url", "x", "--runner=X"], others=True)
    refuse_unknown(ProcessOptions, [])
    refuse_unknown(ProcessOptions, ["--rewards.judges.a.url", "x"])


@pytest.mark.parametrize(("flag", "hint"), [
    ("--steps", "--learner.steps or --scorer.steps"), ("--group-size", "--rollout.group-size"),
    ("--learner.step", "--learner.steps"), ("--rollout.max_tokens", "--rollout.sampling.max-tokens"),
])  # fmt: skip
def test_a_flag_of_another_section_is_found(flag, hint):
    with pytest.raises(ConfigError) as caught:
        refuse_unknown(ProcessOptions, [flag, "3"])
    assert hint in str(caught.value)


def test_given_flags_are_told_from_the_others():
    arguments = ["--learner.steps", "3", "--weights.no_delta", "--kafka.bootstrap=h:1", "--odd"]
    assert given_flags(RunConfig, arguments) == ["--learner.steps", "--weights.no-delta", "--kafka.bootstrap"]


def test_every_verb_is_in_the_table():
    table = flags_by_verb(VERBS)
    assert {words.split()[0] for words in table} == set(VERBS)
    assert {"config show", "config diff", "config check"} <= set(table)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The three scripts."""
    from contextlib import redirect_stdout

    directory = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        with (directory / shell).open("w") as script, redirect_stdout(script):
            assert main([shell]) == 0
    return directory


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("le", "learn learn-scorer"),
        ("learn --learner.st", "--learner.steps"),
        ("learn --model.dtype ", "auto float32 bfloat16 float16"),
        ("up --preset gpu", "gpu-1 gpu-8"),
        ("config sh", "show"),
        ("config show --ke", "--keys"),
        ("completion ", "bash zsh fish"),
        ("audit --learner", ""),
        ("submit ", ""),
    ],
)
def test_bash_completes(scripts, line, expected):
    words = ["asyncflow", *line.split(" ")]
    code = f'source {scripts / "bash"}; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _asyncflow; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code, "bash", *words], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_zsh_and_fish_name_every_verb_and_flag(scripts):
    zsh, fish = (scripts / "zsh").read_text(), (scripts / "fish").read_text()
    for words, flags in flags_by_verb(VERBS).items():
        assert f"'{words.split()[0]}:" in zsh
        assert f" -a {words.split()[0]} -d " in fish
        for flag in flags:
            assert flag.name in zsh
            assert f" -l {flag.name.removeprefix('--')}" in fish

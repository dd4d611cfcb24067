"""``asyncflow completion``: a script for a shell, with every verb and flag in it, so that a tab key starts no Python.

verbs ──► their classes of arguments ──► flags ──► bash, zsh or fish
"""

import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Final, Literal, get_args

import tyro

from pipelines.cli.flags import Flag, flags_of
from pipelines.cli.options import ProcessOptions, parse
from pipelines.presets import preset_names

Shell = Literal["bash", "zsh", "fish"]
Table = dict[str, list[Flag]]
"""The flags of each verb, and of ``config show`` and its like."""

_DESCRIPTION = """Prints a script that makes a shell complete verbs, flags and their choices.

Everything is in it: a tab key starts no Python. Make it again after an update. Examples:

  asyncflow completion bash > ~/.local/share/bash-completion/completions/asyncflow
  asyncflow completion zsh > "${fpath[1]}/_asyncflow"
  asyncflow completion fish > ~/.config/fish/completions/asyncflow.fish
"""


@dataclass(frozen=True)
class CompletionOptions:
    """Arguments of the verb."""

    shell: tyro.conf.Positional[Shell]
    """For which shell."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(CompletionOptions, "completion", arguments, _DESCRIPTION)
    from pipelines.cli.main import VERBS

    sys.stdout.write(_WRITERS[options.shell](VERBS, flags_by_verb(VERBS)))
    return 0


def flags_by_verb(verbs: Sequence[str] | dict[str, str]) -> Table:
    """The flags of every verb. One whose module has several classes of arguments, ``config``, has a row for each."""
    table: Table = {}
    for verb in verbs:
        kinds = _kinds(verb)
        for kind in kinds:
            words = verb if len(kinds) == 1 else _words(kind)
            table[words] = [*flags_of(kind), Flag("--help", False)]
    return table


def _kinds(verb: str) -> list[type]:
    """A verb's classes of arguments end with ``Options``; a process without any of its own has those of all."""
    module = importlib.import_module(f"pipelines.cli.{verb.replace('-', '_')}")
    named: list[type] = [each for name, each in vars(module).items() if name.endswith("Options")]
    return [kind for kind in named if is_dataclass(kind) and kind is not ProcessOptions] or [ProcessOptions]


def _words(kind: type) -> str:
    """``config show`` of ``ConfigShowOptions``."""
    name = kind.__name__.removesuffix("Options")
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _choices(table: Table) -> dict[str, list[str]]:
    """What each flag that has choices takes, by its name."""
    found: dict[str, list[str]] = {"--preset": preset_names()}
    for flag in (flag for flags in table.values() for flag in flags if flag.choices):
        known = found.setdefault(flag.name, [])
        known += [choice for choice in flag.choices if choice not in known]
    return found


def _subverbs(table: Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"completion": list(get_args(Shell))}
    for words in (words.split() for words in table if " " in words):
        found.setdefault(words[0], []).append(words[1])
    return found


def _bash(verbs: dict[str, str], table: Table) -> str:
    shared = {flag.name for flag in flags_of(ProcessOptions)}
    rows = "".join(
        f'    "{words}"|"{words} "*) words="{_joined(flags, shared)}" ;;\n'
        for words, flags in sorted(table.items(), reverse=True)
    )
    choices = "".join(f'    {name}) words="{" ".join(values)}" ;;\n' for name, values in _choices(table).items())
    subverbs = "".join(f'    {verb}) words="{" ".join(words)}" ;;\n' for verb, words in _subverbs(table).items())
    return f"""\
# asyncflow completion bash
_asyncflow() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  local process="{" ".join(sorted(shared))}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(verbs)}" -- "$word"))
    return
  fi
  case "$before" in
{choices}  esac
  if [ -z "$words" ] && [ "$COMP_CWORD" -eq 2 ] && [ "${{word#-}}" = "$word" ]; then
    case "$before" in
{subverbs}    esac
  fi
  if [ -z "$words" ] && [ "${{word#-}}" != "$word" ]; then
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{rows}    esac
  fi
  if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$word")); fi
}}
complete -o bashdefault -o default -F _asyncflow asyncflow
"""


def _joined(flags: list[Flag], shared: set[str]) -> str:
    names = {flag.name for flag in flags}
    return " ".join(["$process", *sorted(names - shared)] if shared <= names else sorted(names))


def _zsh(verbs: dict[str, str], table: Table) -> str:
    shared = {flag.name for flag in flags_of(ProcessOptions)}
    described = " ".join(shlex.quote(f"{verb}:{summary}") for verb, summary in verbs.items())
    rows = "".join(
        f'    "{words}"|"{words} "*) flags=({_joined(flags, shared)}) ;;\n'
        for words, flags in sorted(table.items(), reverse=True)
    )
    choices = "".join(
        f"    {name}) compadd {' '.join(values)}; return ;;\n" for name, values in _choices(table).items()
    )
    subverbs = "".join(f"    {verb}) compadd {' '.join(words)} ;;\n" for verb, words in _subverbs(table).items())
    return f"""\
#compdef asyncflow
_asyncflow() {{
  local -a verbs flags process
  verbs=({described})
  process=({" ".join(sorted(shared))})
  if (( CURRENT == 2 )); then
    _describe verb verbs
    return
  fi
  case "$words[CURRENT-1]" in
{choices}  esac
  if (( CURRENT == 3 )); then
    case "$words[2]" in
{subverbs}    esac
  fi
  case "$words[2] $words[3]" in
{rows}  esac
  if [[ "$words[CURRENT]" == -* ]]; then compadd -- $flags; else _files; fi
}}
if [ "$funcstack[1]" = "_asyncflow" ]; then _asyncflow "$@"; else compdef _asyncflow asyncflow; fi
"""


def _fish(verbs: dict[str, str], table: Table) -> str:
    first = "__fish_use_subcommand"
    lines = ["# asyncflow completion fish"]
    lines += [f"complete -c asyncflow -n {first} -f -a {verb} -d {shlex.quote(text)}" for verb, text in verbs.items()]
    for verb, words in _subverbs(table).items():
        lines.append(f'complete -c asyncflow -n "__fish_seen_subcommand_from {verb}" -a "{" ".join(words)}"')
    choices, takers = _choices(table), _takers(table)
    for name, (flag, verbs_of) in takers.items():
        values = f' -x -a "{" ".join(choices[name])}"' if name in choices else " -r" if flag.takes_value else ""
        seen = f'"__fish_seen_subcommand_from {" ".join(verbs_of)}"'
        lines.append(f"complete -c asyncflow -n {seen} -l {name.removeprefix('--')}{values}")
    return "\n".join(lines) + "\n"


def _takers(table: Table) -> dict[str, tuple[Flag, list[str]]]:
    """For each flag the verbs that take it."""
    found: dict[str, tuple[Flag, list[str]]] = {}
    for words, flags in table.items():
        for flag in flags:
            takers = found.setdefault(flag.name, (flag, []))[1]
            if (verb := words.split()[0]) not in takers:
                takers.append(verb)
    return found


_WRITERS: Final[dict[Shell, Callable[[dict[str, str], Table], str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}

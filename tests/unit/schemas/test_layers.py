"""Files that include each other: what wins, where it was written, and what is refused."""

import pytest

from schemas.config import load
from schemas.errors import ConfigError
from schemas.layers import layer_of, lines_of, merge, origins, read_layers


def write(directory, **files):
    for name, text in files.items():
        (directory / f"{name}.toml").write_text(text)
    return directory / f"{next(iter(files))}.toml"


def test_what_comes_later_wins_and_tables_are_merged(tmp_path):
    last = write(
        tmp_path,
        run='include = ["base.toml", "more.toml"]\nname = "mine"\n[learner]\nsteps = 7\n[kafka.client]\nretries = 3\n',
        base='name = "base"\n[learner]\nsteps = 5\ngroups_per_step = 16\n[kafka.client]\nclient_id = "x"\n',
        more="[learner]\nsteps = 6\nmax_staleness = 0\n",
    )
    config = load(last)
    assert (config.name, config.learner.steps) == ("mine", 7)
    assert (config.learner.groups_per_step, config.learner.max_staleness) == (16, 0)
    assert config.kafka.client == {"client_id": "x", "retries": 3}
    written = origins(read_layers(last))
    assert written["learner.steps"] == f"{last}:4"
    assert written["learner.max_staleness"] == f"{tmp_path / 'more.toml'}:3"
    assert written["learner.groups_per_step"] == f"{tmp_path / 'base.toml'}:4"


def test_lists_are_replaced_and_no_layer_is_changed():
    layers = [layer_of("a", "[x]\ny = [1, 2]\nz = {p = 1}"), layer_of("b", "[x]\ny = [3]\nz = {q = 2}")]
    assert merge(layers) == {"x": {"y": [3], "z": {"p": 1, "q": 2}}}
    assert layers[0].tree == {"x": {"y": [1, 2], "z": {"p": 1}}}


def test_paths_are_seen_from_the_file_that_names_them(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", middle='include = ["low.toml"]', low="[learner]\nsteps = 9")
    assert load(write(tmp_path, top='include = ["deep/middle.toml"]')).learner.steps == 9


def test_one_file_may_be_included_twice(tmp_path):
    assert load(write(tmp_path, a='include = ["b.toml", "b.toml"]', b="seed = 3")).seed == 3


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": 'include = ["a.toml"]'}, "includes itself: a.toml → a.toml"),
        (
            {"a": 'include = ["b.toml"]', "b": 'include = ["c.toml"]', "c": 'include = ["b.toml"]'},
            "includes itself: b.toml → c.toml → b.toml",
        ),
        ({"a": 'include = ["none.toml"]'}, "none.toml: No such file"),
        ({"a": 'include = "b.toml"'}, "expected files, as in include = ["),
        ({"a": 'include = ["b.toml"]', "b": "x ="}, "b.toml: not TOML"),
        ({"a": 'include = ["b.toml"]', "b": "[learner]\n\nstep = 3"}, "unknown key learner.step; did you mean steps?"),
        ({"a": 'include = ["b.toml"]', "b": "[learner]\n\nstep = 3"}, "b.toml:3)"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, files, words):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, **files))
    assert words in str(caught.value)


def test_the_line_of_every_key_is_found():
    text = (
        '# first\nname = "a" # b = 1\n\n[x]\n# two\nlong = [\n  1, # c\n  2,\n]\n\n"quoted key" = """\ny = 3\n"""\n'
        "a.b = 1\n[x.y]\nz = { w = 1, v = 2 }\n[e]\n"
    )
    assert lines_of(text) == {
        "name": 2, "x.long": 6, "x.quoted key": 11, "x.a.b": 14, "x.y.z.w": 16, "x.y.z.v": 16, "x.y": 15, "e": 17,
        "x": 4,
    }  # fmt: skip

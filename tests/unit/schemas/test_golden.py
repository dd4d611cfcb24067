"""Files that version 1 wrote; every future version must still read them."""

import json
from pathlib import Path

import pytest

from schemas.identity import GroupId
from schemas.trajectories import decode
from tests.support.decoders import DECODERS

GOLDEN = Path(__file__).parents[2] / "golden" / "v1"


@pytest.mark.parametrize("name", DECODERS)
def test_a_golden_json_record_keeps_all_that_it_says(name):
    value = (GOLDEN / f"{name}.json").read_bytes()
    written_again = json.loads(DECODERS[name](value).encode())
    assert json.loads(value).items() <= written_again.items()


def test_no_golden_file_is_left_out():
    assert {path.stem for path in GOLDEN.glob("*.json")} == {*DECODERS, "trajectories.headers"}


def test_the_golden_trajectories_are_read():
    headers = {
        key: text.encode() for key, text in json.loads((GOLDEN / "trajectories.headers.json").read_text()).items()
    }
    first, second = decode((GOLDEN / "trajectories.arrow").read_bytes(), headers)
    assert [sample.rollout_id.index for sample in first] == [0, 1]
    assert first[0].response_logprobs == [-0.5, -1.25, -0.125]
    assert first[0].reward_parts == {"last_number": 1.0}
    assert second[0].group == GroupId(1, 7)
    assert (second[0].reward, second[0].reward_error) == (None, "timeout")

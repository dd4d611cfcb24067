"""Programs of our own making, in the files of HumanEval and MBPP."""

import gzip
import json

HUMANEVAL = (
    {
        "task_id": "HumanEval/0",
        "prompt": "from typing import List\n\n\ndef double(x):\n    return 2 * x\n\n\n"
        "def doubled(xs: List[int]) -> List[int]:\n"
        '    """ Twice each.\n    >>> doubled([1])\n    [2]\n    """\n',
        "entry_point": "doubled",
        "canonical_solution": "    return [double(x) for x in xs]\n",
        "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([]) == []\n"
        "    assert candidate([1, 2]) == [double(1), 4]\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": "def last(xs):\n    'The last.'\n",
        "entry_point": "last",
        "canonical_solution": "    return xs[-1]\n",
        "test": "def check(candidate):\n    assert candidate('ab') == 'b'\n",
    },
)  # fmt: skip


def _program(task_id, code, tests, setup=""):
    return {
        "text": f"Write program {task_id}.",
        "code": code,
        "task_id": task_id,
        "test_setup_code": setup,
        "test_list": tests,
        "challenge_test_list": [],
    }


ADD = "def add(a, b):\r\n    return a + b"
NODE = "class Node:\r\n  def __init__(self, data):\r\n    self.data = data\r\ndef data_of(node):\r\n  return node.data"
MBPP = (
    _program(10, ADD, ["assert add(9, 9) == 18"]),
    _program(11, ADD, ["assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert add('a', 'b') == 'ab'"]),
    _program(510, NODE, ["assert data_of(root) == 1"], "root = Node(1) \r\nother = Node(2)"),
    _program(511, ADD, ["assert add(5, 5) == 10"]),
    _program(601, "import sys\ndef size(x):\n  return sys.getsizeof(x)", ["assert size(()) == sys.getsizeof(())"]),
    _program(974, "def sum(a, b): return a + b", ["assert set([sum(2, 2)]) == set([4])"]),
)


def write_programs(directory):
    """All of them."""
    (directory / "humaneval").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in HUMANEVAL)
    (directory / "humaneval" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (directory / "mbpp").mkdir()
    (directory / "mbpp" / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    return directory

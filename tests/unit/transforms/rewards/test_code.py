"""The reward of code: right and wrong programs, and hostile ones, of which nothing scores, hangs or gets out."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import cache

import psutil
import pytest

from pipelines.evaluation.prompts import check_sandbox
from pipelines.rollout import check as check_pipeline
from schemas.config import RewardsConfig, RunConfig
from schemas.errors import ConfigError, RecordError, RewardFault
from schemas.prompts import Prompt, RewardSpec
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.code import UnitTests, code, find_code
from transforms.rewards.processes import RewardProcesses
from transforms.rewards.sandbox import launch, root
from transforms.rewards.sandbox.launch import Job, Sandbox, check, failures
from transforms.rewards.sandbox.limits import call_filter
from transforms.rewards.scoring import score_samples

registry.load()
SQUARES = {"tests": ["assert f(2) == 4", "assert f(3) == 9"], "names": ["f"], "seconds": 1.0}
CONTEXT = 'from typing import List\n\ndef half(x):\n    return x / 2\n\ndef f(x: int) -> int:\n    """The square."""\n'


@cache
def lack():
    """Why there is no isolation here; nothing if there is."""
    try:
        check("required")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture
def anywhere():
    """For tests that need no isolation."""


@pytest.fixture(autouse=True)
def isolation(request):
    if "anywhere" not in request.fixturenames and (why := lack()):
        pytest.skip(why)


@pytest.fixture(scope="module", autouse=True)
def _ended():
    yield
    for sandbox in launch._kept:
        sandbox.close()


def score(text, **arguments):
    return code(replace(SAMPLE, response_text=text), UnitTests(**{**SQUARES, **arguments}))


def holds(text, **arguments):
    """Whether ``f()`` of a code is true; the code is an attempt at something."""
    return score(text, tests=["assert f() is True"], **arguments).value == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "def f(x): return x * x",
        "Here it is:\n\n```python\ndef f(x):\n    return x * x\n```\nIt squares.",
        "```\ndef f(x): return 0\n```\nNo:\n```py\ndef f(x): return x * x\n```",
        "```python\ndef f(x):\n    return x * x",
        "class f:\n    def __new__(cls, x): return x * x",
        "f = lambda x: x * x",
        "import math\nprint('hello')\ndef f(x): return math.prod([x, x])",
        "def f(x): return x * x\nif __name__ == '__main__':\n    f(input())",
        "from decimal import Decimal\nimport hashlib, json, uuid, zlib\ndef f(x): return x * x",
    ],
)
def test_a_right_program_passes_however_it_is_answered(text):
    assert score(text).value == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I do not know.",
        "def f(x): return 2 * x",
        "def g(x): return x * x",
        "def f(x): return",
        "f = 4",
        "def f(",
    ],
)
def test_a_wrong_program_gets_nothing(text):
    assert score(text).value == 0.0


def test_all_tests_count_unless_their_share_is_asked_for():
    half = "def f(x): return 2 * x"
    assert (score(half).value, score(half).parts) == (0.0, {"passed": 0.5})
    assert score(half, partial=True).value == 0.5
    assert score("def f(x):\n while x > 2: pass\n return x * x", partial=True).value == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "    return x * x\n",
        "```python\n    return int(2 * x * half(x))\n```",
        "def f(x: List[int]): return x * half(x) * 2",
    ],
)
def test_an_answer_goes_on_where_the_context_ends_or_begins_again(text):
    assert score(text, context=CONTEXT).value == 1.0
    assert score("    return x\n", context=CONTEXT).value == 0.0


def test_helpers_of_the_context_are_the_tests_own():
    tests = ["assert half(f(2)) == 2"]
    assert score("    return x * x", tests=tests, context=CONTEXT).value == 1.0
    assert score("    return x\n\ndef half(x): return 2", tests=tests, context=CONTEXT).value == 0.0


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("(1, [2, {3}], {'a': None})", "(1, [2, {3}], {'a': None})"),
        ("frozenset({1j}), b'x', bytearray(b'y')", "(frozenset({1j}), b'x', b'y')"),
        ("2**100, -2**70, 1.5, float('inf')", "(2**100, -2**70, 1.5, float('inf'))"),
        ("'\\ud800'", "'\\ud800'"),
        ("__import__('collections').Counter('aab')", "{'a': 2, 'b': 1}"),
        ("int, [str]", "(int, [str])"),
    ],
)
def test_values_come_back_as_they_were(returned, expected):
    assert score(f"def f(x): return ({returned})", tests=[f"assert f(1) == ({expected})"]).value == 1.0
    assert score(f"def f(x): return x == ({expected})", tests=[f"assert f(({expected}))"]).value == 1.0


def test_objects_of_the_answer_can_be_given_back_to_it_and_an_iterator_is_no_list():
    pair = "class Pair:\n    def __init__(self, a): self.a = a\ndef f(pairs): return sum(pair.a for pair in pairs)"
    assert score(pair, tests=["assert f([Pair(1), Pair(2)]) == 3"], names=["f", "Pair"]).value == 1.0
    assert score(pair, tests=["assert f([one]) == 1"], names=["f", "one"], setup="one = Pair(1)").value == 1.0
    squares = "def f(n): return (i * i for i in range(n))"
    assert score(squares, tests=["assert list(f(3)) == [0, 1, 4]"]).value == 1.0
    assert score(squares, tests=["assert f(3) == [0, 1, 4]"]).value == 0.0


def all_end(processes, within_s=5.0):
    """Whether they do, soon; who reaps them is somebody else's matter."""
    deadline = time.monotonic() + within_s
    while (running := any(map(is_running, processes))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running


def is_running(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


ALWAYS_EQUAL = (
    "def __eq__(self, other): return True\n    __ne__ = __lt__ = __bool__ = lambda *_: True\n    __hash__ = lambda _: 4"
)
HOSTILE = {
    "loops": "while True: pass",
    "loops when called": "def f(x):\n while True: pass",
    "ignores signals": "import signal\nfor n in (2, 14, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "forks": "import os\nwhile True: os.fork()",
    "forks and goes on": "import os\ndef f(x):\n while True:\n  try: os.fork()\n  except OSError: pass",
    "starts threads": "import threading\nwhile True: threading.Thread(target=lambda: 1).start()",
    "takes memory": "x = [0]\nwhile True: x += x",
    "takes memory at once": "x = bytearray(1 << 40)",
    "takes memory in the scratch": "import os\nfor i in range(10**6): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))",
    "computes without end": "x = 9 ** 9 ** 9",
    "a regular expression": "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')",
    "ends": "import os\nos._exit(0)",
    "ends when called": "import os\ndef f(x): os._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "exits when called": "def f(x): raise SystemExit(0)",
    "interrupts": "def f(x): raise KeyboardInterrupt",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "recurses": "def f(x): return f(x)",
    "is deep": "f = " + "(" * 50_000,
    "holds a null": "f = 1\x00",
    "is equal to everything": f"class A:\n    {ALWAYS_EQUAL}\ndef f(x): return A()",
    "is a number equal to everything": f"class A(int):\n    {ALWAYS_EQUAL}\ndef f(x): return A(7)",
    "is a text equal to everything": f"class A(str):\n    {ALWAYS_EQUAL}\ndef f(x): return A('7')",
    "is a list equal to everything": f"class A(list):\n    {ALWAYS_EQUAL}\ndef f(x): return A([7])",
    "is not a number": "def f(x): return float('nan')",
    "changes builtins": "import builtins\nbuiltins.AssertionError = None\nbuiltins.int = lambda *_: 4\n"
    "builtins.compile = builtins.exec = lambda *a, **k: None\ndef f(x): return 0",
    "changes the judge it sees": "import sys\nfor m in list(sys.modules.values()):\n for n in ('judge', '_succeeds'):\n"
    "  if hasattr(m, n): setattr(m, n, lambda *_: True)\ndef f(x): return 0",
    "prints verdicts": "print('11')\nprint('1')\ndef f(x): print('1'); return 0",
    "writes verdicts everywhere": "import os\ndef f(x):\n for n in range(3000):\n  try: os.write(n, b'1111')\n"
    "  except OSError: pass\n return 0",
    "answers for the judge": "import os, json\nm = json.dumps({'value': True}).encode()\nfor n in range(64):\n"
    " try: os.write(n, len(m).to_bytes(4, 'big') + m)\n except OSError: pass\ndef f(x): return 0",
    "closes everything": "import os\nos.closerange(0, 64)\ndef f(x): return 4",
    "kills": "import os\nfor n in (-1, 0, 1, 2, 3, os.getppid(), os.getpid()):\n try: os.kill(n, 9)\n"
    " except OSError: pass",
    "returns too much": "def f(x): return 'x' * (1 << 28)",
    "returns without end": "def f(x):\n while True: yield 4",
    "returns itself": "def f(x):\n a = []\n a.append(a)\n return a",
    "returns depth": "def f(x):\n a = 4\n for _ in range(900): a = [a]\n return a",
    "returns an object it made up": "import os, json\ndef f(x):\n return type('A', (), {})()",
    "writes a gigabyte": "import os\nfor _ in range(1024): os.write(1, bytes(1 << 20)); os.write(2, bytes(1 << 20))",
    "reads what it is asked": "def f(x): return int(input())",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.timed
def test_a_hostile_program_gets_nothing_and_soon(text):
    began = time.monotonic()
    assert score(text, partial=True).value == 0.0
    assert time.monotonic() - began < 10
    assert score("def f(x): return x * x").value == 1.0


def refused(attempt, errors="OSError"):
    """A code whose ``f`` is true if an attempt raised."""
    return f"import os, ctypes, socket\ndef f():\n try: {attempt}\n except {errors}: return True\n return False"


C = "ctypes.CDLL(None)"


@pytest.mark.parametrize(
    "text",
    [
        *(
            refused(f"open({path!r})")
            for path in ("/etc/passwd", "/proc/self/environ", "/proc/1/mem", "/dev/mem", __file__)
        ),
        refused("os.listdir(os.path.expanduser('~root'))"),
        refused("open(os.__file__, 'a')"),
        refused("open('/x', 'w')"),
        refused("os.mkdir('/tmp/../x')"),
        refused("os.chmod(os.__file__, 0o777)"),
        refused("os.execv('/bin/sh', ['sh'])"),
        refused("os.chroot('/tmp')"),
        refused("socket.create_connection(('127.0.0.1', 22), 1)"),
        refused("socket.socket(socket.AF_UNIX).connect('/run/docker.sock')"),
        refused("socket.getaddrinfo('example.org', 80)"),
        f"import ctypes\ndef f(): return all({C}.ptrace(16, pid, 0, 0) == -1 for pid in range(1, 50))",
        f"import ctypes\ndef f(): return {C}.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == -1",
        f"import ctypes\ndef f(): return {C}.umount2(b'/tmp', 2) == -1",
        f"import ctypes\ndef f(): return {C}.unshare(0x10000000) == -1 and {C}.unshare(0x20000) == -1",
        f"import ctypes\ndef f(): return {C}.prctl(39, 0, 0, 0, 0) == 1 and {C}.sethostname(b'x', 1) == -1",
        "import os\ndef f(): return not os.environ and os.listdir('/tmp') == []",
        "import os\ndef f(): return set(os.listdir('/')) <= {'tmp', *os.__file__.split('/')[:2]}",
    ],
)
def test_nothing_gets_out(text):
    assert holds(text)


@pytest.mark.skipif(not call_filter(), reason="libseccomp is not installed")
def test_system_calls_are_filtered_where_the_library_is():
    assert holds(f"import ctypes\ndef f(): return {C}.prctl(21, 0, 0, 0, 0) == 2")
    assert holds("import os\ndef f():\n try: os.memfd_create('x')\n except PermissionError: return True")


def test_the_answer_cannot_find_what_is_expected_of_it():
    """The values of the tests never come into its process."""
    search = (
        "import gc, re\ndef f(*_):\n seen = repr([o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))])\n"
    )
    search += " found = re.findall('9182' + '[0-9]{5}', seen)\n return int(found[0]) if found else 0"
    assert score(search + "\nkept = [918200000]", tests=["assert f() == 918200000"]).value == 1.0
    assert score(search, tests=["assert f() == 918273645", "assert f([918273646]) == 918273645"]).parts["passed"] == 0.0


def test_nothing_of_an_answer_is_left_for_the_next():
    keep = "import os\ndef f():\n before = os.listdir('/tmp')\n open('/tmp/x', 'w').write('x')\n return before == []"
    assert holds(keep)
    assert holds(keep)


def test_sets_of_strings_iterate_alike_each_time():
    words = "list({'ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu', 'hen'})"
    known = [sys.executable, "-c", f"print({words})"]
    order = subprocess.run(
        known, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert score(f"def f(): return {words}", tests=[f"assert f() == {order}"]).value == 1.0


def test_a_prompt_whose_tests_are_no_python_is_at_fault_itself():
    with pytest.raises(RewardFault, match=r"bad_tests: .*SyntaxError"):
        score("def f(x): return 1", tests=["assert f(1) =="])
    with pytest.raises(RewardFault, match=r"bad_tests: .*ZeroDivisionError"):
        score("def f(x): return 1", context="1 / 0\n")
    scored = score_samples(RewardSpec(name="code", args={**SQUARES, "tests": ["("]}), [SAMPLE])
    assert scored[0].value is None
    assert scored[0].error.startswith("bad_tests: ")


@pytest.mark.parametrize("context", ["raise SystemExit\n", "import os\nos._exit(0)\n", "while True: pass\n"])
def test_a_context_that_does_not_come_to_its_end_is_not_the_answers_fault(context):
    with pytest.raises(RewardFault, match="bad_tests: "):
        score("def f(x): return x * x", context=context)


@pytest.mark.usefixtures("anywhere")
def test_a_processor_that_is_not_known_is_named():
    with pytest.raises(OSError, match="expected one of pdp11"):
        root._number({"pdp11": 1})


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    "arguments", [{"tests": []}, {"names": []}, {"names": ["f()"]}, {"seconds": 0}, {"language": "c"}]
)
def test_arguments_that_make_no_test_are_refused(arguments):
    with pytest.raises(RecordError, match="bad_reward_arguments"):
        registry.check(RewardSpec(name="code", args={**SQUARES, **arguments}))


@pytest.mark.usefixtures("anywhere")
@pytest.mark.timed
def test_the_last_block_is_the_code_and_the_whole_text_without_one():
    assert find_code("a\n```python\nx\n```\nb\n```\ny\nz\n```") == "y\nz\n"
    assert find_code("x = '```'") == "x = '```'"
    began = time.monotonic()
    find_code("```\n" * 30_000)
    assert time.monotonic() - began < 1


def test_a_sandbox_waits_for_the_next_job_and_ends_with_its_socket():
    with Sandbox(isolated=True) as sandbox:
        process = psutil.Process(sandbox.pid)
        below = process.children()
        job = Job(("def f(x): return x",), ("assert f(1) == 1",), ("f",))
        assert [sandbox.run(job) for _ in range(3)] == [[True]] * 3
        assert process.children(recursive=True) == below
        sandbox._control.close()
        assert all_end(below)


def test_a_sandbox_that_was_killed_is_replaced():
    assert score("def f(x): return x * x").value == 1.0
    (pid,) = launch.kept()
    process = psutil.Process(pid)
    below = process.children()
    process.kill()
    assert all_end([process, *below])
    assert score("def f(x): return x * x").value == 1.0
    assert launch.kept() != (pid,)


def test_what_a_sandbox_promises_is_found_broken_where_it_is():
    """The probe itself: limits alone keep nobody from files, network and other processes."""
    with Sandbox(isolated=False) as sandbox:
        assert {"files", "network", "neighbours"} <= set(failures(sandbox))
    with Sandbox(isolated=True) as sandbox:
        assert failures(sandbox) == []


REFUSING = (
    "import sys; sys.path.append(sys.argv[1]); from transforms.rewards.sandbox import inside, root\n"
    "def unshare(flags): raise PermissionError(1, 'unshare: Operation not permitted')\n"
    "root.unshare = unshare; inside.begin()"
)


@pytest.fixture
def unpermitted(anywhere, monkeypatch):
    """A system that lets nobody have namespaces."""
    for sandbox in launch._kept:
        sandbox.close()
    launch._prove.cache_clear()
    monkeypatch.setattr(launch, "_BEGIN", REFUSING)
    yield
    launch.choose("isolated")
    for sandbox in launch._kept:
        sandbox.close()


def test_without_isolation_there_is_no_reward_and_no_start(unpermitted):
    scored = score_samples(
        RewardSpec(name="code", args=SQUARES), [replace(SAMPLE, response_text="def f(x): return x*x")]
    )
    assert scored[0].value is None
    assert scored[0].error.startswith("sandbox_unavailable: code cannot be tested in isolation here: unshare")
    with pytest.raises(ConfigError, match=r"rewards\.sandbox 'required': .*unshare: Operation not permitted"):
        check("required")
    with pytest.raises(ConfigError, match=r"rewards\.sandbox 'required'"):
        check_pipeline(RunConfig(rewards=RewardsConfig(sandbox="required")))


def test_an_evaluation_of_code_does_not_start_without_isolation(unpermitted):
    spec = {"name": "code", "args": SQUARES}
    prompts = [Prompt(text="1", reward=RewardSpec(name="last_number", args={"answer": "1"}))]
    check_sandbox(RunConfig(), prompts)
    for reward in (spec, {"name": "weighted", "args": {"of": [{"name": "length"}, spec]}}):
        wanting = [*prompts, Prompt(text="1", reward=reward)]
        with pytest.raises(ConfigError, match=r"rewards\.sandbox 'isolated'"):
            check_sandbox(RunConfig(), wanting)
        check_sandbox(RunConfig(rewards=RewardsConfig(sandbox="rlimits")), wanting)


def test_limits_alone_are_a_choice(unpermitted):
    check("rlimits")
    launch.choose("rlimits")
    assert score("def f(x): return x * x").value == 1.0
    for name in ("loops", "takes memory", "ends", "is equal to everything", "prints verdicts"):
        assert score(HOSTILE[name]).value == 0.0


def test_a_group_is_scored_in_a_reward_process_that_keeps_its_sandbox():
    names = ("loops", "forks", "ends", "takes memory", "kills")
    texts = ["def f(x): return x * x", *(HOSTILE[name] for name in names)]
    samples = [replace(SAMPLE, response_text=text) for text in texts]
    spec = RewardSpec(name="code", args={**SQUARES, "seconds": 0.5})
    processes = RewardProcesses(RewardsConfig(timeout_s=30))
    try:
        for _ in range(2):
            scored = processes.submit(score_samples, spec, samples).result()
            assert [score.value for score in scored] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        kept = [processes.submit(launch.kept).result() for _ in range(2)]
        assert kept[0] == kept[1] != ()
        sandbox = psutil.Process(kept[0][0])
        below = sandbox.children(recursive=True)
        assert len(below) == 1
    finally:
        processes.stop()
    assert all_end([sandbox, *below])


@pytest.mark.usefixtures("anywhere")
def test_how_code_is_isolated_is_configured():
    assert RunConfig().rewards.sandbox == "isolated"

"""An engine that goes on from global weights and is pulled towards them, at every stage that a site may have."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.local.tiny_model import build_tiny_model
from schemas.config import validate
from schemas.errors import ConfigError, StateError
from tests.support.samples import draw_examples
from tests.support.trajectories import shared_ranks
from trainers.batch import Example
from trainers.engine import Engine, Work
from trainers.packing import share_out

MU, RATE = 0.5, 1e-3
FORMS = [(0, "float32"), (1, "float32"), (2, "float32"), (0, "bfloat16"), (2, "bfloat16")]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(model_dir, tmp_path):
    """An engine of a site."""

    def begin(stage=0, dtype="float32", *, mu=MU, **learner):
        tree = {
            "model": {"path": str(model_dir)},
            "learner": {"zero_stage": stage, "max_grad_norm": 1e9, **learner},
            "federation": {"name": "f", "site": "north", "store": str(tmp_path), "proximal_mu": mu},
        }
        return Engine(validate(tree, "test"), dtype, shared_ranks())

    return begin


def full(engine):
    return {name: tensor.to("cpu", torch.float32, copy=True) for name, tensor in engine.full_weights()}


def write(directory, tensors):
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    return directory


def moved(engine, directory, size, seed=0):
    """Global weights near the engine's own, in float32."""
    torch.manual_seed(seed)
    tensors = {name: tensor + size * torch.randn_like(tensor) for name, tensor in full(engine).items()}
    return write(directory, tensors), tensors


def train(engine, advantage=1.0, seed=0):
    examples = [
        Example(one.token_ids, one.prompt_tokens, one.behaviour_logprobs, one.mask, advantage * one.advantage,
                weight=1 / 40)
        for one in draw_examples(7, seed=seed)
    ]  # fmt: skip
    return engine.train(Work(share_out(examples, 1, 64), RATE))


@pytest.mark.parametrize(("stage", "dtype"), FORMS)
def test_global_weights_are_taken_exactly(make, tmp_path, stage, dtype):
    engine = make(stage, dtype, mu=0.0)
    train(engine)
    directory, tensors = moved(engine, tmp_path / "global", 0.01)
    engine.adopt(directory, forget=False)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in full(engine).items())
    low = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    assert all(torch.equal(tensor.cpu(), low[name]) for name, tensor in engine.state_dict().items())
    before = full(engine)
    train(engine, seed=1)
    after, used = full(engine), {name: tensor.to("cpu", copy=True) for name, tensor in engine.state_dict().items()}
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > RATE / 2, "it trains on from there"
    assert all(torch.equal(after[name].to(used[name].dtype), used[name]) for name in used)


@pytest.mark.parametrize(("stage", "dtype"), FORMS)
def test_the_pull_is_that_of_the_paper_and_nothing_else_where_there_is_no_loss(make, tmp_path, stage, dtype):
    """One step of AdamW on the gradient mu (w - global), computed by hand in float64."""
    engine = make(stage, dtype)
    directory, towards = moved(engine, tmp_path / "global", 0.05)
    start = full(engine)
    engine.anchor(directory)
    assert all(torch.equal(tensor, start[name]) for name, tensor in full(engine).items()), "it stays where it is"
    outcome = train(engine, advantage=0.0)
    far = {name: (start[name] - towards[name]).double() for name in start}
    distance = float(torch.sqrt(sum((each**2).sum() for each in far.values())))
    assert engine.drift == pytest.approx(distance, rel=1e-5)
    assert outcome.grad_norm == pytest.approx(MU * distance, rel=1e-5)
    for name, tensor in full(engine).items():
        gradient = MU * far[name]
        expected = start[name].double() - RATE * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(tensor.double(), expected, atol=2e-6, rtol=0)


def test_the_pull_is_added_to_the_gradient_of_the_loss(make, tmp_path):
    """Gradients are read off the second moment of the first step: (1 - 0.95) g²."""
    found = {}
    for mu in (0.0, MU):
        engine = make(mu=mu)
        directory, towards = moved(engine, tmp_path / f"global-{mu}", 0.05)
        start = full(engine)
        engine.anchor(directory)
        train(engine)
        state = engine._optimizer.state
        names = {parameter: name for name, parameter in engine._trained.by_name().items()}
        found[mu] = {names[parameter]: each["exp_avg"].cpu() / 0.1 for parameter, each in state.items()}
    for name, tensor in found[MU].items():
        expected = found[0.0][name] + MU * (start[name] - towards[name])
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("forget", [False, True])
def test_moments_stay_or_begin_anew(make, tmp_path, stage, forget):
    engine = make(stage, mu=0.0)
    for seed in range(3):
        train(engine, seed=seed)
    directory, _ = moved(engine, tmp_path / "global", 0.0)
    engine.adopt(directory, forget=forget)
    assert engine._optimizer.updates == (0 if forget else 3)
    squares = sum(float((state["exp_avg_sq"] ** 2).sum()) for state in engine._optimizer.state.values())
    assert (squares == 0.0) == forget


def test_weights_of_another_model_are_refused(make, tmp_path, model_dir):
    engine = make()
    tensors = full(engine)
    name = sorted(tensors)[0]
    others = {
        "lacks": {key: tensor for key, tensor in tensors.items() if key != name},
        "beside those of the model": {**tensors, "extra": tensors[name].clone()},
        "the model's": {**tensors, name: tensors[name][:1].clone()},
    }
    for number, (words, wrong) in enumerate(others.items()):
        with pytest.raises(StateError, match=words):
            engine.adopt(write(tmp_path / f"wrong-{number}", wrong), forget=False)


def test_an_adapter_is_taken_and_handed_over_by_its_published_names(make, tmp_path):
    engine = make(lora={"rank": 4, "alpha": 8})
    given = full(engine)
    assert given.keys() == engine.state_dict().keys()
    assert all(".lora_" in name for name in given)
    directory, tensors = moved(engine, tmp_path / "global", 0.1)
    engine.adopt(directory, forget=False)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in full(engine).items())


def test_a_value_head_stays_at_home(make, tmp_path):
    engine = make(mu=0.0, objective={"name": "ppo"})
    assert not [name for name in full(engine) if "value_head" in name]
    head = next(tensor for name, tensor in engine._trained.by_name().items() if "value_head" in name)
    with torch.no_grad():
        head.fill_(0.25)
    directory, _ = moved(engine, tmp_path / "global", 0.1)
    engine.adopt(directory, forget=False)
    assert torch.equal(head, torch.full_like(head, 0.25))


def test_stage_3_is_refused_before_anything_starts(model_dir):
    tree = {
        "model": {"path": str(model_dir)},
        "learner": {"zero_stage": 3},
        "federation": {"name": "f", "site": "north", "store": "somewhere"},
    }
    with pytest.raises(ConfigError, match=r"learner\.zero_stage = 3 divides .* set learner\.zero_stage to 2 or less"):
        validate(tree, "test")


def test_a_pull_with_a_value_head_is_refused(model_dir):
    tree = {
        "model": {"path": str(model_dir)},
        "learner": {"objective": {"name": "ppo"}},
        "federation": {"name": "f", "site": "north", "store": "somewhere", "proximal_mu": 0.1},
    }
    with pytest.raises(ConfigError, match=r"federation\.proximal_mu = 0\.1 pulls all that is trained"):
        validate(tree, "test")


def test_global_versions_are_copied_once_verified_and_pruned(tmp_path):
    from schemas.federation import weights_root
    from schemas.manifests import MANIFEST_NAME, Manifest, describe, sha256
    from schemas.weights import version_path
    from trainers.federation.copies import Copies, read_tensors

    digests = {}
    for version, number in ((1, 1.0), (2, 2.0), (3, float("nan"))):
        directory = Path(version_path(weights_root(str(tmp_path / "store")), version))
        directory.mkdir(parents=True)
        save_file({"w": torch.full((3,), number)}, directory / "model.safetensors")
        from fsspec.implementations.local import LocalFileSystem

        entry = describe(LocalFileSystem(), str(directory), "model.safetensors")
        value = Manifest(files=(entry,)).encode()
        (directory / MANIFEST_NAME).write_bytes(value)
        digests[version] = sha256(value)
    copies = Copies(str(tmp_path / "store"), tmp_path / "checkpoints", keep=1)
    first = copies.fetch(1, digests[1])
    assert read_tensors(first)["w"].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(StateError, match="not finite"):
        copies.fetch(3, digests[3])
    with pytest.raises(StateError, match="manifest has sha256"):
        copies.fetch(2, digests[1])
    damaged = Path(version_path(weights_root(str(tmp_path / "store")), 2)) / "model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(StateError, match="sha256"):
        copies.fetch(2, digests[2])
    damaged.write_bytes(whole)
    copies.fetch(2, digests[2])
    assert copies.find(1, digests[1]), "one stays beside the one that was asked for"
    Copies(str(tmp_path / "store"), tmp_path / "checkpoints", keep=0).fetch(1, digests[1])
    assert copies.find(1, digests[1]), "what was asked for stays, whatever its number"
    assert copies.find(2, digests[2]) is None, "pruned"
    with pytest.raises(FileNotFoundError):
        copies.fetch(9, digests[1])
    (copies.fetch(2, digests[2]) / "model.safetensors").write_bytes(b"torn")
    assert read_tensors(copies.fetch(2, digests[2]))["w"].tolist() == [2.0, 2.0, 2.0], "copied again"

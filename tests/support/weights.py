"""Weight versions as the learner publishes them, from a transformers model or from bare tensors."""

from pathlib import Path

from schemas.manifests import MANIFEST_NAME, Manifest, describe, sha256
from schemas.weights import WeightVersion, version_path

PROBE_TOKENS = (1, 8, 16, 9, 19, 17, 10, 2)


def probe_of(model, token_ids=PROBE_TOKENS):
    """``{"token_ids", "logprobs"}`` of a transformers model, computed in its own precision."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([list(token_ids)])).logits[0].float()
    logprobs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
    return {"token_ids": list(token_ids), "logprobs": logprobs.tolist()}


def state_of(model):
    """The tensors that are published: a tied head is left out."""
    tied = model.config.tie_word_embeddings
    return {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def write_version(root, version, tensors, *, probe, step=None, dtype="float32", facts=None) -> WeightVersion:
    """Writes one version below a local root and returns its announcement."""
    from fsspec.implementations.local import LocalFileSystem
    from safetensors.torch import save_file

    directory = Path(version_path(str(root), version))
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    step = version if step is None else step
    facts = {"kind": "weights", "version": version, "step": step, "dtype": dtype, "probe": probe} | (facts or {})
    entry = describe(LocalFileSystem(), str(directory), "model.safetensors")
    value = Manifest(files=(entry,), facts=facts).encode()
    (directory / MANIFEST_NAME).write_bytes(value)
    return WeightVersion(
        version=version, step=step, generation=1, manifest_sha256=sha256(value), dtype=dtype, base_model="tiny"
    )


def publish_version(root, version, model, *, bootstrap=None, topic=None, **options) -> WeightVersion:
    """Writes a version of a transformers model and announces it if a broker is named."""
    announced = write_version(root, version, state_of(model), probe=probe_of(model), **options)
    if bootstrap is not None:
        announce(bootstrap, topic, announced)
    return announced


def announce(bootstrap, topic, announced) -> None:
    """Appends an announcement to a ``weights`` topic."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    value = announced if isinstance(announced, bytes) else announced.encode()
    producer.send(topic, value, partition=0).get(timeout=30)
    producer.close()

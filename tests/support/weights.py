"""Weight versions as the learner publishes them, from a transformers model or from bare tensors."""

from pathlib import Path

from schemas.manifests import MANIFEST_NAME, FileEntry, Manifest, describe, sha256
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
    producer.send(topic, value, partition=0).get(timeout=60)
    producer.close()


def write_snapshot(root, version, tensors, *, probe, dtype="float32", source=None) -> WeightVersion:
    """Writes a version that travels through memory, whose bytes nobody holds, and returns its announcement."""
    import json

    import torch

    from schemas.digests import digests
    from schemas.snapshots import LAYOUT_NAME, SOURCE_NAME, lay_out, views

    directory = Path(version_path(str(root), version))
    directory.mkdir(parents=True)
    layout = lay_out(tensors)
    buffer = torch.zeros(layout.size, dtype=torch.uint8)
    for name, place in views(buffer, layout).items():
        place.copy_(tensors[name])
    text = layout.model_copy(update={"digests": digests(buffer)}).model_dump_json()
    (directory / LAYOUT_NAME).write_text(text)
    source = source or {"kind": "nccl", "version": version, "host": "127.0.0.1", "port": 1, "timeout_s": 1.0}
    (directory / SOURCE_NAME).write_text(json.dumps(source))
    facts = {"kind": "weights", "version": version, "step": version, "dtype": dtype, "probe": probe}
    entry = FileEntry(name=LAYOUT_NAME, size=len(text), sha256=sha256(text.encode()))
    value = Manifest(files=(entry,), facts=facts).encode()
    (directory / MANIFEST_NAME).write_bytes(value)
    return WeightVersion(
        version=version, step=version, generation=1, manifest_sha256=sha256(value), dtype=dtype, base_model="tiny"
    )

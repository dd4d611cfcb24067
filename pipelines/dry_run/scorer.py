"""``asyncflow serve-scorer --dry-run``, which belongs to no run."""

from pathlib import Path

from pipelines.dry_run.show import tell
from pipelines.local.machine import gpus, memory
from pipelines.local.ports import is_free
from pipelines.model_facts import read_model
from pipelines.sizes import BYTES_OF, gib
from schemas.checks import Check
from schemas.errors import ModelError
from schemas.scoring import ScorerServerConfig


def rehearse_scorer(server: ScorerServerConfig) -> int:
    """Prints what would be served; 0 if nothing is wrong, else 2."""
    address = f"a scorer on http://{server.host}:{server.port}, {server.batch_rows} answers a forward pass at most"
    taken = "" if is_free(server.port) else "something else listens there: give another --port, or end it"
    sections = {
        "what would be started": [Check("serve-scorer", address, "ok", "")],
        "model and memory": _model(server),
        "ports": [Check("port", str(server.port), "problem" if taken else "ok", taken)],
    }
    return tell("serve-scorer", sections)


def _model(server: ScorerServerConfig) -> list[Check]:
    if not server.model or not Path(server.model).is_dir():
        return [Check("model", server.model or "none", "problem", "give a directory with --model DIR")]
    try:
        model = read_model(Path(server.model))
    except ModelError as error:
        return [Check("model", server.model, "problem", str(error))]
    found = gpus() if server.device != "cpu" else ()
    dtype = server.dtype if server.dtype != "auto" else "bfloat16" if found else "float32"
    needed, available = model.parameters * BYTES_OF[dtype], found[0].free_bytes if found else memory().available_bytes
    formula = (
        f"{model.parameters:,} parameters × {BYTES_OF[dtype]} bytes ({dtype}) = {gib(needed)} of weights; "
        f"{gib(available)} {'of GPU memory ' if found else ''}are available"
    )
    remedy = "" if needed <= available else "take a smaller model, or a machine with more"
    checks = [
        Check("model", model.architecture, "ok", ""), Check("memory", formula, "problem" if remedy else "ok", remedy)
    ]  # fmt: skip
    if server.device == "cuda" and not found:
        checks.append(Check("device", "cuda", "problem", "there is no GPU here: leave --device out, or give cpu"))
    return checks

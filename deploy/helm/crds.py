"""The kinds that operators add to Kubernetes, as JSON schemas, from where their projects publish them.

    Go modules of KEDA and of Kubeflow's training operator ─┐
    jar of Flink's operator API in the Maven repository ────┴─► .tools/crds/*.yaml ──► {(apiVersion, kind): schema}

    python deploy/helm/crds.py      (make charts; needs go)

Strimzi publishes its definitions in neither, so its two kinds are not among them.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

CRDS: Final = Path(__file__).parents[2] / ".tools" / "crds"
_GO: Final = {
    "github.com/kedacore/keda/v2@v2.21.0": "config/crd/bases/keda.sh_scaledobjects.yaml",
    "github.com/kubeflow/training-operator@v1.9.3": "manifests/base/crds/kubeflow.org_pytorchjobs.yaml",
}
_FLINK: Final = "org.apache.flink:flink-kubernetes-operator-api:1.10.0"
_FLINK_FILE: Final = "META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Of half a megabyte each; the one in Python takes seconds."""
_OF_EVERY_KIND: Final = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
_OPEN: Final = "x-kubernetes-preserve-unknown-fields"


def main() -> None:
    """Fetches all definitions into :data:`CRDS`."""
    CRDS.mkdir(parents=True, exist_ok=True)
    for module, file in _GO.items():
        answer = subprocess.run(["go", "mod", "download", "-json", module], check=True, stdout=subprocess.PIPE)  # noqa: S607
        text = (Path(json.loads(answer.stdout)["Dir"]) / file).read_text()
        (CRDS / Path(file).name).write_text(text)
    with zipfile.ZipFile(_flink_jar()) as jar:
        (CRDS / "flinkdeployments.yaml").write_bytes(jar.read(_FLINK_FILE))
    sys.stdout.write(f"{CRDS}\n")


def _flink_jar() -> Path:
    from jgo.maven import MavenContext

    group, artifact, version = _FLINK.split(":")
    component = MavenContext(timeout=60).project(group, artifact).at_version(version)
    return Path(component.artifact().resolve())


def schemas(directory: Path = CRDS) -> dict[tuple[str, str], dict[str, Any]]:
    """The schema of each version of each kind that was fetched; empty if none was."""
    found = {}
    for file in sorted(directory.glob("*.yaml")):
        spec = yaml.load(file.read_text(), Loader=_LOADER)["spec"]  # noqa: S506 - it is a safe one
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"] = {**_OF_EVERY_KIND, **schema["properties"]}
            found[key] = schema
    return found


def strict(schema: Any) -> Any:
    """Kubernetes' dialect as a JSON schema that refuses fields which are not declared, as `kubectl --validate` does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {
        key: strict(value)
        for key, value in schema.items()
        if key not in ("default", "format") or isinstance(value, Mapping)
    }
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if isinstance(schema.get("properties"), Mapping) and not schema.get(_OPEN):
        made.setdefault("additionalProperties", False)
    return made


if __name__ == "__main__":
    main()

"""The files of deploy/, as tests read them."""

import importlib.util
import shutil
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def script(path):
    """A script of deploy/ as a module: no package is made of that folder."""
    name = f"deploy_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, DEPLOY / path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifests(file):
    """The objects of a file of Kubernetes."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [each for each in yaml.load_all(Path(file).read_text(), Loader=loader) if each]


def tool(name):
    """The path of a program of the development requirements; null where it is not installed."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)

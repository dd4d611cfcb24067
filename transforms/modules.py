"""A program's own code, by the name of a module or by a file: rewards, environments and tasks come so.

    "my_package.rewards" ──► import as Python does
    "my_rewards.py"      ──► the file, as a module whose name nothing else has ──► sys.modules

A file needs no package and no place on Python's path. Its module is named after the file and a hash of where it
lies, so that ``math.py`` of a user hides nobody's ``math``; every process of a run gives it the same name.
"""

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Final

from schemas.errors import AsyncFlowError, ConfigError

FILE_SUFFIX: Final = ".py"
_LOADING: Final = threading.RLock()
"""Held while a file is run: another thread would find its module half made, without what it is to register."""


def is_file(name: str) -> bool:
    """Whether a name is that of a file. Example: ``my_rewards.py``, and not ``my_rewards``."""
    return name.endswith(FILE_SUFFIX)


def absolute(name: str) -> str:
    """The same name from wherever it is looked at: a file with its whole path without ``..``, a module as it is."""
    return os.path.abspath(name) if is_file(name) else name


def load_module(name: str, setting: str) -> ModuleType:
    """Imports a module, or a file, which is run once in each process.

    Args:
        name: such as ``my_package.rewards`` or ``my_rewards.py``; a relative file lies below the working directory.
        setting: where the name was given, for messages.

    Raises:
        ConfigError: there is no such module or file, or running it raises something, with the line.
    """
    file = Path(absolute(name))
    if is_file(name) and not file.is_file():
        raise ConfigError(f"{setting} names {name}, which cannot be read: {file} is no file; give an existing file")
    try:
        return _load_file(file) if is_file(name) else importlib.import_module(name)
    except AsyncFlowError:  # it says itself what is wrong, such as a name that is taken
        raise
    except ImportError as error:
        raise ConfigError(f"{setting} names {name}, which cannot be imported: {error}") from error
    except SystemExit as error:  # a program: it would end this one, with its own exit code
        told = "it is a program that ends Python; put what it runs below if __name__ == '__main__'"
        raise ConfigError(f"{setting} names {name}, which cannot be imported: {told}") from error
    except Exception as error:  # other people's code
        raise ConfigError(
            f"{setting} names {name}, which cannot be imported: {type(error).__name__}: {error}{line_of(error, name)}"
        ) from error


def _load_file(file: Path) -> ModuleType:
    stem = re.sub(r"\W", "_", file.stem)  # pickle takes a dot for a package
    name = f"{stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    with _LOADING:
        return sys.modules[name] if name in sys.modules else _run_file(file, name)


def _run_file(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "the file ends with .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it is run: pydantic and pickle look there for what it defines
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def line_of(error: Exception, name: str) -> str:
    """Where in a file an error was raised, for messages: `` (mine.py, line 2)``; nothing if it was elsewhere."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == Path(name).name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({Path(name).name}, line {line})" if line else ""

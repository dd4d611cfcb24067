"""A program's own code, by the name of a module or by a file: rewards, environments and tasks come so.

    "my_package.rewards" ──► import as Python does
    "my_rewards.py"      ──► the file, as a module whose name nothing else has ──► sys.modules

A file needs no package and no place on Python's path. Its module is named after the file and a hash of where it
lies, so that ``math.py`` of a user hides nobody's ``math``; every process of a run gives it the same name.
"""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from schemas.errors import AsyncFlowError, ConfigError

FILE_SUFFIX: Final = ".py"


def is_file(name: str) -> bool:
    """Whether a name is that of a file. Example: ``my_rewards.py``, and not ``my_rewards``."""
    return name.endswith(FILE_SUFFIX)


def absolute(name: str) -> str:
    """The same name from wherever it is looked at: a file with its whole path, a module as it is."""
    return str(Path(name).absolute()) if is_file(name) else name


def load_module(name: str, setting: str) -> ModuleType:
    """Imports a module, or a file, which is run once in each process.

    Args:
        name: such as ``my_package.rewards`` or ``my_rewards.py``; a relative file lies below the working directory.
        setting: where the name was given, for messages.

    Raises:
        ConfigError: there is no such module or file, or running it raises something, with the line.
    """
    try:
        return _load_file(Path(name).absolute()) if is_file(name) else importlib.import_module(name)
    except AsyncFlowError:  # it says itself what is wrong, such as a name that is taken
        raise
    except ImportError as error:
        raise ConfigError(f"{setting} names {name}, which cannot be imported: {error}") from error
    except FileNotFoundError as error:
        where = f"{Path(name).absolute()} does not exist"
        raise ConfigError(f"{setting} names {name}, which cannot be read: {where}; give an existing file") from error
    except Exception as error:  # other people's code
        raise ConfigError(
            f"{setting} names {name}, which cannot be imported: {type(error).__name__}: {error}{_line_of(error, name)}"
        ) from error


def _load_file(file: Path) -> ModuleType:
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
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


def _line_of(error: Exception, name: str) -> str:
    """Where in the file it was raised; nothing if that is said already or not known."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == Path(name).name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({Path(name).name}, line {line})" if line else ""

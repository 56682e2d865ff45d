"""Find objects by name: those that `module:name` or `file.py:name` names on the command line, and those of a face.

A face, the `__init__` of a room, imports a module of the room when one of its names is asked for, not before.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import reprlib
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class CannotOpen(ValueError):
    """Something on the command line can't be opened; the text says what to do."""


def face(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """A package's `__getattr__`, which imports a name's module when the name is first asked for.

    Args:
        package: the package's full name.
        modules: the names, separated by blanks, of each of its modules.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return __getattr__


def find(source: str) -> Any:
    """The object that `module:name` or `file.py:name` names.

    Raises:
        CannotOpen: it does not exist, or its module can't be imported.
    """
    import difflib

    place, _, name = source.rpartition(":")
    if not place or not name:
        raise CannotOpen(f"expected module:name or file.py:name, got {source!r}")
    found: Any = _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            raise CannotOpen(f"{place} has no {name!r}{f'; is it {near[0]}?' if near else ''}")
        found = getattr(found, part)
    return found


def _import(place: str) -> Any:
    path = Path(place).expanduser().resolve() if place.endswith(".py") else None
    if path is not None and not path.is_file():
        raise CannotOpen(f"there is no file {place}")
    try:
        return importlib.import_module(place) if path is None else _run_file(path)
    except (Exception, SystemExit) as error:  # whatever a user's module raises as it is imported
        hint = "; is it in the current folder? file.py:name works from anywhere" if path is None else ""
        raise CannotOpen(f"{place} can't be imported: {one_line(error)}{hint}") from None


def _run_file(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))  # as `python file.py` does
    name = path.stem if path.stem not in sys.modules else f"_isoflop_{path.stem}"  # a library's of the same name stays
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def library(name: str, extra: str) -> Any:
    """An optional package.

    Raises:
        CannotOpen: it is not installed; with the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CannotOpen(f'{name} is not installed, and this model needs it: pip install "{extra}"') from None


@contextmanager
def needs(extra: str, packages: str) -> Iterator[None]:
    """Around the import of an adapter: say what to install where one of the trainer's packages is missing.

    Any other missing module is a fault that must be seen as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in re.findall(r"\w+", packages):
            raise
        raise ImportError(f"isoflop.{extra} needs {packages}: pip install 'isoflop[{extra}]'") from error


def need(name: str, holds: bool, expected: str, got: object) -> None:
    """Refuse an argument of another kind.

    >>> need("model", False, "a torch.nn.Module", "config.json")
    Traceback (most recent call last):
        ...
    ValueError: model expects a torch.nn.Module, got 'config.json'
    """
    if not holds:
        known = f"the class {got.__name__}" if isinstance(got, type) else reprlib.repr(got)
        raise ValueError(f"{name} expects {expected}, got {known}")


def one_line(error: BaseException) -> str:
    """Its kind and text, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

"""Where a record lies: a folder of this machine, or a URL that fsspec opens (s3://, gs://, memory:// …)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from isoflop.record.run import RecordError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")

Location = Path | str
"""A `Path` of this machine, or a URL."""


def location_of(given: str | os.PathLike[str]) -> Location:
    """A URL as it stands, without a slash at its end; anything else as a `Path`. `file://` is a plain path.

    >>> location_of("s3://bucket/runs/"), str(location_of("file:///data/runs"))
    ('s3://bucket/runs', '/data/runs')
    """
    text = os.fspath(given)
    if not _URL.match(text):
        return Path(text)
    if text.lower().startswith("file://"):
        parts = urlsplit(text)
        # file://relative/path is no URL of the standard, but fsspec reads it so
        return Path(unquote(parts.netloc if parts.netloc != "localhost" else "") + unquote(parts.path))
    return text.rstrip("/")


def as_text(given: str | os.PathLike[str]) -> str:
    """A URL, or a path letter for letter as it was given; of `file://` the path."""
    text = os.fspath(given)
    return str(location_of(text)) if _URL.match(text) else text


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether fsspec is needed to reach it."""
    return isinstance(location_of(place), str)


def below(place: str | os.PathLike[str], *names: str) -> Location:
    """A file or folder inside a place.

    >>> below("s3://bucket/runs", "a", "b.json")
    's3://bucket/runs/a/b.json'
    """
    known = location_of(place)
    return "/".join([known, *names]) if isinstance(known, str) else known.joinpath(*names)


def last_name(place: str | os.PathLike[str]) -> str:
    """The last part of a place: a folder's own name."""
    known = location_of(place)
    return known.rsplit("/", 1)[-1] if isinstance(known, str) else known.resolve().name


def file_system(url: str) -> tuple[Any, str]:
    """The file system of fsspec that a URL names, and the URL's path on it.

    Raises:
        RecordError: fsspec, or its package for this kind of URL, is not installed, or there is no such kind.
    """
    try:
        import fsspec
    except ImportError:
        raise RecordError(f'{url} needs fsspec: pip install "isoflop[cloud]", or name a local folder.') from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise RecordError(f"Expected a URL that fsspec can open, got {url}: {error}") from error
    return system, path


def check_location(given: str | os.PathLike[str]) -> None:
    """Whether the packages that a URL needs are there; nothing is opened.

    Raises:
        RecordError: they are not, or the URL is of a kind that fsspec does not know.
    """
    place = location_of(given)
    if not isinstance(place, str):
        return
    try:
        from fsspec import get_filesystem_class
    except ImportError:
        raise RecordError(f'{place} needs fsspec: pip install "isoflop[cloud]", or name a local folder.') from None
    try:
        for protocol in place.split("://")[0].split("::"):
            get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise RecordError(f"Expected a URL that fsspec can open, got {place}: {error}") from error


def read_bytes(place: Location) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be read.
    """
    if isinstance(place, Path):
        return place.read_bytes()
    with _told_as_os_error(place):
        system, path = file_system(place)
        system.invalidate_cache()  # another process may have written it
        return bytes(system.cat_file(path))


def records_below(url: str) -> list[str]:
    """URLs of the records in a folder and all below it; of a file, its own.

    Raises:
        FileNotFoundError: there is nothing at the URL.
        OSError: it can't be listed.
    """
    if url.endswith(".jsonl"):
        return [url]
    with _told_as_os_error(url):
        system, path = file_system(url)
        system.invalidate_cache()
        if not system.exists(path):
            raise FileNotFoundError(f"no such folder: {url}")
        found = [str(system.unstrip_protocol(name)) for name in sorted(system.find(path))]
    names = [(name, last_name(name)) for name in found]
    return [name for name, last in names if last.startswith("isoflop-") and last.endswith(".jsonl")]


def write_bytes(place: Location, content: bytes) -> None:
    """Replace a whole file; whoever reads meanwhile sees the old one or the new one.

    Raises:
        OSError: it can't be written.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        part.write_bytes(content)
        os.replace(part, place)
        return
    system, path = file_system(place)
    if _protocol(system) in _WHOLE:  # an object appears when it is complete
        system.pipe_file(path, content)
        return
    system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    system.pipe_file(f"{path}.part", content)
    system.mv(f"{path}.part", path)


@contextmanager
def _told_as_os_error(url: str) -> Iterator[None]:
    """File systems have errors of their own kinds."""
    try:
        yield
    except (OSError, RecordError):
        raise
    except Exception as error:
        raise OSError(f"{url} can't be reached: {type(error).__name__}: {error}") from error


_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"}


def _protocol(system: Any) -> str:
    names = system.protocol
    return names if isinstance(names, str) else str(names[0])

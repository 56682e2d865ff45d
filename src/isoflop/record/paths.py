"""Locations of records: paths of this machine, and URLs that fsspec opens (s3://, gs://, memory:// …)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from isoflop.record.run import RecordError

Location = Path | str
"""A `Path` of this machine, or a URL."""

PASSPORT = "isoflop-passport"
"""Name of both files of a passport, without the suffix."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"}
"""Protocols of stores where an object appears when it is complete."""


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


def is_url(given: str | os.PathLike[str]) -> bool:
    """True for a URL, which fsspec is needed for."""
    return isinstance(location_of(given), str)


def below(given: str | os.PathLike[str], *names: str) -> Location:
    """A file or folder inside a folder.

    >>> below("s3://bucket/runs", "a", "b.json")
    's3://bucket/runs/a/b.json'
    """
    location = location_of(given)
    return "/".join([location, *names]) if isinstance(location, str) else location.joinpath(*names)


def last_name(given: str | os.PathLike[str]) -> str:
    """The last part of a location: a folder's own name."""
    location = location_of(given)
    return location.rpartition("/")[2] if isinstance(location, str) else location.resolve().name


def check_location(given: str | os.PathLike[str]) -> None:
    """Check that the packages are there which a URL needs; nothing is opened.

    Raises:
        RecordError: they are not, or the URL is of a kind that fsspec does not know.
    """
    location = location_of(given)
    if isinstance(location, str):
        with _expected(location):
            from fsspec import get_filesystem_class

            for protocol in location.split("://")[0].split("::"):
                get_filesystem_class(protocol)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of fsspec that a URL names, and the URL's path on it.

    Raises:
        RecordError: fsspec, or its package for this kind of URL, is not installed, or there is no such kind.
    """
    with _expected(url):
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
        return system, path


@contextmanager
def _expected(url: str) -> Iterator[None]:
    try:
        import fsspec  # noqa: F401
    except ImportError:
        raise RecordError(f'{url} needs fsspec: pip install "isoflop[cloud]", or name a local folder.') from None
    try:
        yield
    except (ImportError, ValueError) as error:
        raise RecordError(f"Expected a URL that fsspec can open, got {url}: {error}") from error


@contextmanager
def _reached(url: str) -> Iterator[tuple[Any, str]]:
    """The file system and the path of a URL; file systems have errors of their own kinds, which become OSError."""
    try:
        system, path = file_system(url)
        system.invalidate_cache()  # another process may have written it
        yield system, path
    except (OSError, RecordError):
        raise
    except Exception as error:
        raise OSError(f"{url} can't be reached: {type(error).__name__}: {error}") from error


def read_bytes(location: Location) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be read.
    """
    if isinstance(location, Path):
        return location.read_bytes()
    with _reached(location) as (system, path):
        return bytes(system.cat_file(path))


def write_bytes(location: Location, content: bytes) -> None:
    """Replace a whole file; whoever reads meanwhile sees the old one or the new one.

    Raises:
        Exception: it can't be written: OSError, or of the file system's own kind.
    """
    if isinstance(location, Path):
        location.parent.mkdir(parents=True, exist_ok=True)
        part = location.with_name(f".{location.name}.{os.getpid()}.part")
        part.write_bytes(content)
        os.replace(part, location)
        return
    system, path = file_system(location)
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if protocols & _ATOMIC:
        system.pipe_file(path, content)
        return
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(f"{path}.part", content)
    system.mv(f"{path}.part", path)


def is_record(name: str) -> bool:
    """True for the file names of records, `isoflop-<run_id>.jsonl`."""
    return name.startswith("isoflop-") and name.endswith(".jsonl")


def is_link_out(path: str, top: str | os.PathLike[str]) -> bool:
    """True for a link to a folder outside of `top`: one inside of it (W&B's `latest-run`) is found anyway."""
    return (
        os.path.islink(path)
        and os.path.isdir(path)
        and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))
    )


def describe_links(top: str | os.PathLike[str], links: Sequence[str]) -> str:
    """That links to folders are not followed, and what to do."""
    many = f"{len(links)} links to folders are" if len(links) > 1 else "a link to a folder is"
    return f"{os.fspath(top)}: {many} not followed: name {links[0]} itself"


def records_below(url: str) -> list[str]:
    """URLs of the records in a folder and all below it; of a file, its own.

    Raises:
        FileNotFoundError: there is nothing at the URL.
        OSError: it can't be listed.
    """
    if url.endswith(".jsonl"):
        return [url]
    with _reached(url) as (system, path):
        if not system.exists(path):
            raise FileNotFoundError(f"no such folder: {url}")
        found = [str(system.unstrip_protocol(name)) for name in sorted(system.find(path))]
    return [name for name in found if is_record(last_name(name))]

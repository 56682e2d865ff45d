"""What is wrong with another tool's log: `ImportProblem` where nothing can be read, `Problems` for the parts."""

from __future__ import annotations

from isoflop.record.run import RecordError

_MAX_TOLD = 20  # of one source; the others are counted


class ImportProblem(RecordError):
    """A source can't be imported; the text says what was expected, what came and what to do."""


class Problems:
    """What was wrong with a source, place by place; the first ones told, the others counted."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._told: list[str] = []
        self._count = 0

    def add(self, where: str, expected: str, came: object) -> None:
        """Tell a place of the source (`:17`, ` at byte 96 (record 3)`), what it should have held and what it holds."""
        self._count += 1
        if self._count <= _MAX_TOLD:
            self._told.append(f"{self.source}{where}: expected {expected}, got {shown(came)}")

    def all(self) -> tuple[str, ...]:
        """The texts."""
        more = self._count - len(self._told)
        return (*self._told, f"{self.source}: and {more} more") if more else tuple(self._told)


def shown(value: object) -> str:
    """A value from a file, short and in ASCII: a stranger's text must not steer the terminal that shows it."""
    if isinstance(value, (dict, list)):
        return f"{type(value).__name__} of {len(value)}"
    return ascii(value[:60] if isinstance(value, (str, bytes)) else value)[:80]


def plain(text: str, limit: int = 200) -> str:
    """A name from a file as it may be shown and kept: printable, of bounded length."""
    kept = "".join(letter if letter.isprintable() else "?" for letter in text.strip()[:limit])
    return kept.encode("utf-8", "replace").decode("utf-8")


def why(error: BaseException) -> str:
    """A library's error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

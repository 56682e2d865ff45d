"""`isoflop.import_runs`: other tools' logs as `Run`s, with N counted from a config.json as `isoflop count` does."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from typing import Any

from isoflop.record.importing import Given, ImportResult, Sized
from isoflop.record.importing import import_runs as import_with


def import_runs(
    paths: Iterable[str | os.PathLike[str]],
    given: Given | None = None,
    *,
    kind: str | None = None,
    step: str | None = None,
    leave_out: Sequence[Path] = (),
) -> ImportResult:
    """Read other tools' logs; see `isoflop.record.importing.import_runs`, and docs/import.md.

    Args:
        paths: files, folders that are searched, `wandb:entity/project[/run]`, `mlflow:<tracking URI>[#experiment]`.
        given: what the user says of runs whose logs don't.
        kind: huggingface, tensorboard, lightning, wandb, mlflow or table, where the content is not to be asked.
        step: the column of steps of a plain table.
        leave_out: files that are no runs.

    Returns:
        Runs, problems and questions; nothing is written (`isoflop.record.importing.write_run` does).
    """
    return import_with(paths, given, kind=kind, step=step, counter=Counted(), leave_out=leave_out)


class Counted:
    """Counts configurations on the meta device, each once."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, int | None], Sized | ValueError] = {}

    def __call__(self, config: str | Mapping[str, Any], length: int | None) -> Sized:
        """The size of the model that a config.json describes.

        Args:
            config: the file, or its content.
            length: tokens a sequence, for the FLOPs of a token.

        Raises:
            ValueError: it can't be opened or counted.
        """
        try:
            text = Path(config).read_text(encoding="utf-8") if isinstance(config, str) else json.dumps(dict(config))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"expected a config.json that can be read, got {error}") from None
        if (text, length) not in self._done:
            try:
                self._done[text, length] = _count(text, length)
            except ValueError as error:
                self._done[text, length] = error
        done = self._done[text, length]
        if isinstance(done, ValueError):
            raise done
        return done


def _count(text: str, length: int | None) -> Sized:
    from isoflop.cli.inputs import candidate_calls
    from isoflop.cli.models import open_model
    from isoflop.observe.calls import Uncountable
    from isoflop.observe.count import count_measured
    from isoflop.observe.parameters import count_parameters

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' remarks while a model is built
        place = Path(folder) / "config.json"
        place.write_text(text, encoding="utf-8")
        try:
            model = open_model(str(place)).model
        except ValueError as error:
            raise ValueError(str(error).replace(str(place), "config.json")) from None
        count_like_theirs: Any = getattr(model, "num_parameters", None)
        theirs = int(count_like_theirs(exclude_embeddings=True)) if callable(count_like_theirs) else None
        reasons = []
        for call in candidate_calls(model, 1, length or 16, {}):
            try:
                counted = count_measured(model, call)
            except Uncountable as reason:
                reasons.append(str(reason))
                continue
            flops = counted.model_flops
            return Sized(
                parameters=counted.parameters.by_convention(),
                method=counted.parameters.method,
                huggingface=theirs,
                flops_per_token=flops / length if length and flops is not None else None,
                flops_method=f"{counted.method}, at {length} tokens a sequence" if length else None,
            )
        parameters = count_parameters(model)
        return Sized(parameters=parameters.by_convention(), method=parameters.method, huggingface=theirs)

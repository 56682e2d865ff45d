"""Options: one set, errors word by word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from isoflop.live import Options, OptionsDict


def test_nothing_is_set_by_itself():
    assert Options.of().given() == {}


def test_given_are_plain_values_for_the_record(tmp_path: Path):
    def tokens_fn(batch: Any) -> int:
        return 1

    options = Options.of(record_dir=tmp_path, log_every=5, flops_per_token=1e9, peak_flops=10**12, tokens_fn=tokens_fn)
    given = options.given()
    assert given.pop("tokens_fn").startswith("<function")
    assert given == {"record_dir": str(tmp_path), "log_every": 5, "flops_per_token": 1e9, "peak_flops": 10**12}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("flops_per_token", 0, "flops_per_token= expects a positive number, got 0"),
        ("flops_per_token", -1.5, "flops_per_token= expects a positive number, got -1.5"),
        ("flops_per_token", math.nan, "flops_per_token= expects a positive number, got nan"),
        ("peak_flops", math.inf, "peak_flops= expects a positive number or 'measured', got inf"),
        ("log_every", 0, "log_every= expects a whole number of at least 1, got 0"),
        ("log_every", 2.5, "log_every= expects a whole number of at least 1, got 2.5"),
        ("log_every", "10", "log_every= expects a whole number of at least 1, got '10'"),
        ("num_params", -7, "num_params= expects a whole number of at least 1, got -7"),
        ("num_params", 1e9, "num_params= expects a whole number of at least 1, got 1000000000.0"),
        ("data_parallel", 0, "data_parallel= expects a whole number of at least 1, got 0"),
        ("tokens_fn", 4096, "tokens_fn= expects a function of a batch, got 4096"),
        ("record_dir", 3, "record_dir= expects a path or a URL, got 3"),
        ("fit_on", "eval", "fit_on= expects 'train', 'eval/<name>' or 'off', got 'eval'"),
        ("fit_on", "eval/", "fit_on= expects 'train', 'eval/<name>' or 'off', got 'eval/'"),
        ("fit_on", 3, "fit_on= expects 'train', 'eval/<name>' or 'off', got 3"),
        ("history", 3, "history= expects a path or a list of paths, got 3"),
        ("history", ["runs", 3], "history= expects a path or a list of paths, got ['runs', 3]"),
        ("history", "['runs/a']", "history= expects a list of paths, not the text of one, got \"['runs/a']\""),
        ("record_dir", "['runs/a']", "record_dir= expects a path or a URL, not a list, got \"['runs/a']\""),
        ("target_loss", -1, "target_loss= expects a positive number, got -1"),
        ("unique_tokens", "many", "unique_tokens= expects a positive number, got 'many'"),
        ("intent", "small", "intent= expects 'optimal' or 'overtrain', got 'small'"),
        ("on_advice", "raise", "on_advice= expects 'warn', 'stop' or a function, got 'raise'"),
        ("thresholds", {"waste": 0.5}, "thresholds= expects isoflop.advice.Thresholds(…), got {'waste': 0.5}"),
        (
            "lr_plan",
            1e-3,
            "lr_plan= expects a function of the optimizer step or a schedule by name, such as "
            "'cosine:warmup=2000,end=0.1', got 0.001",
        ),
        ("noise_scale", "on", "noise_scale= expects one of auto, split, off, got 'on'"),
    ],
)
def test_a_value_that_can_not_be(option: str, value: Any, message: str):
    with pytest.raises(ValueError) as caught:
        Options.of(**{option: value})
    assert str(caught.value) == message


def test_an_option_that_does_not_exist():
    with pytest.raises(TypeError) as caught:
        Options.of(peak_flop=1e12, log_evry=3)
    assert str(caught.value) == (
        "isoflop has no option log_evry, peak_flop; did you mean log_every, peak_flops? Its options are record_dir, "
        "log_every, tokens_fn, flops_per_token, num_params, peak_flops, fit_on, history, lr_plan, target_loss, "
        "inference_tokens, unique_tokens, intent, task, price_per_hour, on_advice, thresholds, noise_scale, "
        "data_parallel"
    )


def test_the_typed_dictionary_lists_the_same_options():
    assert list(get_type_hints(OptionsDict)) == list(Options.__dataclass_fields__)


def test_every_option_is_documented():
    assert all(f"{name}:" in (Options.__doc__ or "") for name in Options.__dataclass_fields__)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("history", ["runs/a", "runs/b"]),
        ("history", ["runs/a"]),
        ("history", "runs/a"),
        ("task", ["finetuning", "causal"]),
        ("task", "pretraining"),
        ("record_dir", "runs"),
        ("peak_flops", "measured"),
        ("peak_flops", 1e12),
        ("lr_plan", "cosine:warmup=5,end=0.1"),
        ("on_advice", "stop"),
        ("noise_scale", False),
        ("fit_on", False),
        ("fit_on", "eval/val"),
        ("intent", "overtrain"),
        ("log_every", 5),
    ],
)
def test_lightning_cli_passes_a_yaml_value_on_as_it_is(option: str, value: Any):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--given", type=get_type_hints(OptionsDict)[option])
    assert parser.parse_object({"given": value}).given == value
    Options.of(**{option: value})


def test_what_yaml_makes_of_off():
    assert Options.of(fit_on=False, noise_scale=False) == Options.of(fit_on="off", noise_scale="off")


def test_a_path_is_the_last_of_the_kinds_that_a_value_may_be():
    """LightningCLI tries them in order, and `os.PathLike` takes whatever has a text."""
    assert str(get_type_hints(OptionsDict)["history"]).startswith("collections.abc.Sequence")

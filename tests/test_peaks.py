"""Peaks: names as torch reports them, figures as the datasheets print them, unknown is None."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.flops import DTYPES, Peak, known_devices, lookup_peak, model_device, peak_by_short_name
from isoflop.flops import device as peaks


def read(path: Path) -> Iterator[tuple[str, str, float | None]]:
    for row in path.read_text(encoding="utf-8").splitlines():
        if not row.startswith("#"):
            name, dtype, rate, *_ = [*row.split("\t"), ""]
            printed, _, parts = rate.partition("/")
            yield name, dtype, float(printed) / float(parts or 1) if printed else None


DEVICES = [*read(Path(__file__).parent / "data" / "peaks.tsv")]
KNOWN = [(name, dtype, rate) for name, dtype, rate in DEVICES if rate is not None]
UNKNOWN = [(name, dtype) for name, dtype, rate in DEVICES if rate is None]
ROWS = peaks.DATASHEETS


@pytest.mark.parametrize(("name", "dtype", "tflops"), KNOWN)
def test_reported_name_gives_datasheet_figure(name: str, dtype: str, tflops: float) -> None:
    peak = lookup_peak(name, dtype)
    assert peak is not None
    assert peak.dtype == dtype
    assert peak.flops_per_second == pytest.approx(tflops * 1e12, rel=1e-9)
    assert peak.flops_per_second == int(peak.flops_per_second)


@pytest.mark.parametrize(("name", "dtype"), UNKNOWN)
def test_unknown_is_none(name: str, dtype: str) -> None:
    assert lookup_peak(name, dtype) is None


def test_no_name_matches_two_rows() -> None:
    for name in {name for name, *_ in KNOWN}:
        matching = [row.device for row in ROWS if re.fullmatch(row.pattern, name, re.IGNORECASE | re.ASCII)]
        assert len(matching) == 1, (name, matching)


@pytest.mark.parametrize("appended", [" MIG 1g.10gb", " Laptop GPU", " Ti", "X", "-24Q"])
def test_anything_appended_makes_it_unknown(appended: str) -> None:
    names = {name + appended for name, *_ in KNOWN}
    assert [(name, dtype) for name in names for dtype in DTYPES if lookup_peak(name, dtype)] == []


def test_every_device_is_asked_for_above() -> None:
    seen = {peak.device for name, dtype, _ in KNOWN if (peak := lookup_peak(name, dtype))}
    assert seen == set(known_devices())
    assert len(known_devices()) == len(seen)


@pytest.mark.parametrize("row", ROWS, ids=known_devices())
def test_row_has_a_source_and_sane_figures(row: peaks.Datasheet) -> None:
    document = ("datasheet", "data sheet", "whitepaper", "product brief", "documentation")
    assert any(word in row.source for word in document)
    assert any(word in row.source for word in ("dense", "halved", "per chip"))
    rates = [row.peak(dtype) for dtype in DTYPES]
    assert all(peak.flops_per_second > 0 for peak in rates if peak is not None) and any(rates)
    float32, tf32, float16, bfloat16, float8, float4 = (peak and peak.flops_per_second for peak in rates)
    assert float16 in (bfloat16, None) or bfloat16 is None  # no device listed here runs them at two rates
    ascending = [rate for rate in (float32, tf32, bfloat16 or float16, float8, float4) if rate is not None]
    assert ascending == sorted(ascending)
    if float8 is not None and "v5p" not in row.device and "v6e" not in row.device:
        assert float8 == pytest.approx(2 * bfloat16, rel=0.02)  # 2%: L40S's datasheet disagrees with itself


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_prefix(dtype: str) -> None:
    peak = lookup_peak("NVIDIA L4", dtype)
    assert peak is not None
    assert lookup_peak("NVIDIA L4", f"torch.{dtype}") == peak


@pytest.mark.parametrize("dtype", ["torch.float8_e4m3fn", "torch.float8_e5m2", "float8_e4m3fnuz"])
def test_kinds_of_float8(dtype: str) -> None:
    assert lookup_peak("NVIDIA L4", dtype) == lookup_peak("NVIDIA L4", "float8")
    assert lookup_peak("NVIDIA L4", "torch.float8_e8m0fnu") is None  # a scale, not an operand


def test_result_is_frozen_and_names_its_source() -> None:
    peak = lookup_peak(" NVIDIA H200 \n", "bfloat16")
    assert peak == Peak(
        device="NVIDIA H200 SXM",
        dtype="bfloat16",
        flops_per_second=989.5e12,
        source="NVIDIA H200 Tensor Core GPU datasheet: figures printed with sparsity, halved",
    )
    with pytest.raises(AttributeError):
        peak.flops_per_second = 1.0  # type: ignore[misc]


NAMES = st.one_of(
    st.text(),
    st.sampled_from([name for name, *_ in KNOWN]),
    st.builds(lambda name, rest: name + rest, st.sampled_from([name for name, *_ in KNOWN]), st.text()),
)


@settings(max_examples=30)
@given(name=NAMES, dtype=st.one_of(st.text(), st.sampled_from(DTYPES)))
def test_arbitrary_text_never_raises(name: str, dtype: str) -> None:
    peak = lookup_peak(name, dtype)
    assert peak is None or (peak.flops_per_second > 0 and peak.device in known_devices())


def test_doctests() -> None:
    outcome = doctest.testmod(peaks)
    assert outcome.attempted >= 4
    assert outcome.failed == 0


def test_table_needs_no_torch() -> None:
    code = (
        "import sys; from isoflop.flops import lookup_peak; assert lookup_peak('NVIDIA A100-SXM4-40GB', 'tf32'); "
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("short", "device", "tflops"),
    [
        ("h100", "NVIDIA H100 SXM", 989.4),
        ("H100-PCIe", "NVIDIA H100 PCIe", 756.0),
        ("a100", "NVIDIA A100", 312.0),
        ("rtx 4090", "NVIDIA GeForce RTX 4090", 165.2),
        ("rtx4090", "NVIDIA GeForce RTX 4090", 165.2),
        ("mi300x", "AMD Instinct MI300X", 1307.4),
        ("v100", "NVIDIA V100 SXM2", 125.0),
        ("tpu v4", "Google TPU v4", 275.0),
    ],
)
def test_what_people_call_a_device(short: str, device: str, tflops: float) -> None:
    peak = peak_by_short_name(short)
    assert peak is not None and (peak.device, peak.flops_per_second) == (device, tflops * 1e12)


def test_a_part_of_a_name_is_no_device() -> None:
    assert [peak_by_short_name(name) for name in ("", "h", "100", "h10", "pcie100", "geforce 1080")] == [None] * 6


# -- the dtype that layers multiply in ---------------------------------------------------------------------------------


def layer(kind: str, *sizes: int, **attributes: Any) -> torch.nn.Linear:
    """Of a class as torchao's, which replaces a model's linear layers by its own."""
    return type(kind, (torch.nn.Linear,), attributes)(*sizes)


@pytest.fixture
def on_a_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "device_name", lambda device: "NVIDIA H100 80GB HBM3")


@pytest.mark.usefixtures("on_a_h100")
def test_a_model_in_float8_has_its_peak():
    device = model_device(torch.nn.Sequential(layer("Float8Linear", 2, 2)), torch.bfloat16, None)
    assert (device.dtype, device.peak) == ("float8", 1978.9e12)
    plain = model_device(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.bfloat16, None)
    assert (plain.dtype, plain.peak) == ("bfloat16", 989.4e12)


@pytest.mark.usefixtures("on_a_h100")
def test_a_mixed_step_has_a_weighted_peak():
    """Three quarters of the weights in float8, one in bfloat16: the times of both parts add up."""
    model = torch.nn.Sequential(layer("Float8Linear", 16, 48), torch.nn.Linear(16, 16))
    device = model_device(model, torch.bfloat16, None)
    assert device.dtype == "float8 and bfloat16"
    assert device.peak == pytest.approx(1 / (0.75 / 1978.9e12 + 0.25 / 989.4e12))
    assert "75% in float8, 25% in bfloat16" in str(device.peak_source)


@pytest.mark.usefixtures("on_a_h100")
@pytest.mark.parametrize("kind", ["NVFP4Linear", "MXLinear"])
def test_a_part_without_a_rate_makes_the_peak_unknown(kind: str):
    """Hopper does not multiply 4-bit numbers."""
    config = type("Config", (), {"elem_dtype": "torch.float4_e2m1fn_x2"})
    model = torch.nn.Sequential(layer(kind, 4, 4, config=config), torch.nn.Linear(4, 4))
    device = model_device(model, torch.bfloat16, None)
    assert (device.dtype, device.peak) == ("float4 and bfloat16", None)
    assert model_device(model, torch.bfloat16, 1e12).peak == 1e12


@pytest.mark.usefixtures("on_a_h100")
@pytest.mark.parametrize(("recipe", "dtype"), [("DelayedScaling", "float8"), ("NVFP4BlockScaling", "float4")])
def test_transformer_engine_multiplies_as_its_recipe_says(monkeypatch: pytest.MonkeyPatch, recipe: str, dtype: str):
    class FP8GlobalStateManager:
        on = True

        @classmethod
        def is_fp8_enabled(cls) -> bool:
            return cls.on

        @classmethod
        def get_fp8_recipe(cls) -> Any:
            return type(recipe, (), {})()

    module = SimpleNamespace(FP8GlobalStateManager=FP8GlobalStateManager)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.quantization", module)
    model = torch.nn.Sequential(layer("LayerNormMLP", 4, 4, __module__="transformer_engine.pytorch.module"))
    assert model_device(model, torch.bfloat16, None).dtype == dtype
    FP8GlobalStateManager.on = False
    assert model_device(model, torch.bfloat16, None).dtype == "bfloat16"


# -- isoflop peak ------------------------------------------------------------------------------------------------------


def test_what_is_measured_is_used_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = torch.nn.Linear(2, 2)
    assert model_device(model, None, "measured").peak is None
    done = CliRunner().invoke(app, ["peak", "--device", "cpu", "--seconds", "0.05", "--store", "--json"])
    measured = json.loads(done.stdout)["measured"]
    assert {"float32", "bfloat16"} <= measured.keys()
    assert all(1e8 < rate < 1e15 for rate in measured.values())
    device = model_device(model, None, "measured")
    assert device.peak == measured["float32"]
    assert str(device.peak_source).startswith("measured by `isoflop peak`")
    assert model_device(model, None, None).peak is None


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_device_is_called_as_torch_calls_it(monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr(getattr(torch, kind), "get_device_name", lambda device: f"NVIDIA {device}")
    assert peaks.device_name(torch.device(kind, 0)) == f"NVIDIA {kind}:0"


@pytest.mark.parametrize("text", ["", "[1]", '{"cpu": 3}', '{"cpu": {"float32": "fast"}}'])
def test_a_torn_file_of_rates_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "isoflop").mkdir()
    (tmp_path / "isoflop" / "peaks.json").write_text(text)
    assert model_device(torch.nn.Linear(2, 2), None, "measured").peak is None


def test_a_device_that_is_not_there():
    done = CliRunner().invoke(app, ["peak", "--device", "cuda:7"])
    assert done.exit_code != 0 and "--device cuda:7" in done.stderr

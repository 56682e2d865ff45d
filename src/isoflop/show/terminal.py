"""One line an interval for the terminal."""

from __future__ import annotations

from collections.abc import Mapping


def interval_line(step: int, scalars: Mapping[str, float]) -> str:
    """What a user reads while the model trains; unknown numbers are left out.

    >>> interval_line(1200, {"isoflop/loss": 2.4131, "isoflop/tokens_per_second_per_device": 10050.2,
    ...     "isoflop/tflops_per_device": 315.2, "isoflop/mfu": 0.318, "isoflop/goodput": 0.94})
    'step 1,200 · loss 2.413 · 10,050 tok/s/device · 315 TFLOP/s · MFU 31.8% · goodput 94%'
    >>> interval_line(1300, {"isoflop/loss": 2.4, "isoflop/forecast_loss": 2.031, "isoflop/forecast_high": 2.044})
    'step 1,300 · loss 2.400 · ends at 2.031 ± 0.013'
    """
    parts = [f"step {step:,}"]
    loss = scalars.get("isoflop/loss")
    if loss is not None:
        parts.append(f"loss {loss:.3f}" if abs(loss) < 1e6 else f"loss {loss:.3g}")  # also inf and nan
    speed = scalars.get("isoflop/tokens_per_second_per_device")
    if speed is not None:
        parts.append(f"{speed:,.0f} tok/s/device")
    rate = scalars.get("isoflop/tflops_per_device")
    if rate is not None:
        parts.append(_rate(rate))
    mfu = scalars.get("isoflop/mfu")
    if mfu is not None:
        parts.append(f"MFU {mfu:.1%}")
    goodput = scalars.get("isoflop/goodput")
    if goodput is not None:
        parts.append(f"goodput {goodput:.0%}")
    forecast, high = scalars.get("isoflop/forecast_loss"), scalars.get("isoflop/forecast_high")
    if forecast is not None and high is not None:
        parts.append(f"ends at {forecast:.3f} ± {high - forecast:.3f}")
    return " · ".join(parts)


def _rate(tera: float) -> str:
    value, unit = (tera, "TFLOP/s") if tera >= 0.1 else (tera * 1000, "GFLOP/s")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"

"""`noise_scale="split"` under Lightning: on a measured step `training_step` runs on halves of its batch.

Two backward passes inside of `training_step` would be wrong, for Lightning sets gradients to zero after it: the first
half's runs in the module's `on_before_backward`, the second's is Lightning's own.
"""

from __future__ import annotations

from typing import Any

import torch

from isoflop.live.monitor import Monitor

MANUAL = 'noise_scale="split" needs automatic optimization: in a step that calls backward itself use monitor.split'


class SplitStep:
    """Splits steps of one LightningModule; `begin` before a step, `end` after it."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def begin(self, trainer: Any, pl_module: Any) -> None:
        """A step that may be split begins."""
        noise = self._monitor.noise
        if noise.splits and not pl_module.automatic_optimization:
            noise.refuse(MANUAL)
        elif noise.splits:
            self._original = pl_module.training_step
            pl_module.training_step = lambda batch, *args, **kwargs: self._step(trainer, pl_module, batch, args, kwargs)

    def _step(self, trainer: Any, pl_module: Any, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.end(pl_module)  # a closure that is called again (LBFGS) gets the whole

        def losses(batches: list[Any]) -> list[Any]:
            pl_module.log = pl_module.log_dict = lambda *_, **__: None
            try:
                return [loss_of(self._original(each, *args, **kwargs)) for each in batches]
            finally:
                for name in ("log", "log_dict"):
                    vars(pl_module).pop(name, None)

        noise = self._monitor.noise
        parts = noise.halves(batch, self._monitor.observer.count, losses)
        if parts is None:
            return self._original(batch, *args, **kwargs)
        noise.begin_half(parts[0], first=True)
        one, two = (self._original(half.batch, *args, **kwargs) for half in parts)
        first, own = loss_of(one) * parts[0].share, pl_module.on_before_backward

        def on_before_backward(loss: torch.Tensor) -> None:
            # an error in the backward pass of the first half is training's own, and goes its way
            vars(pl_module).pop("on_before_backward", None)
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            (first if scaler is None else scaler.scale(first)).backward()
            noise.begin_half(parts[1], first=False)
            own(loss)

        pl_module.on_before_backward = on_before_backward
        together = loss_of(two) * parts[1].share + first.detach()
        return {**two, "loss": together} if isinstance(two, dict) else together

    def end(self, pl_module: Any) -> None:
        """The step is over."""
        for name in ("training_step", "on_before_backward"):
            vars(pl_module).pop(name, None)


def loss_of(outputs: Any) -> Any:
    """The loss that `training_step` returned."""
    return outputs["loss"] if isinstance(outputs, dict) else outputs

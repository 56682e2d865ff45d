"""What the monitor knows of a run at a log step, as the advice wants it."""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.advise import Situation
from isoflop.advise.situation import Batch
from isoflop.noise import NoiseDriver
from isoflop.observe.parameters import Parameters
from isoflop.observe.tally import Totals


def situation(
    *,
    step: int,
    totals: Totals,
    parameters: Parameters | None,
    scalars: Mapping[str, float],
    training_time: float,
    loss: float | None,
    noise: NoiseDriver,
    whole: bool = True,
) -> Situation:
    """What the monitor knows at a log step, as the evaluators want it.

    Not `whole`: steps of the run were not counted, so its tokens and its hours are not known.
    """
    loss = loss if loss is not None else scalars.get("isoflop/loss")
    tokens = totals.data_tokens if whole else None
    processed = totals.tokens_known
    flops = totals.flops_known
    return Situation(
        step=step,
        # a model of embeddings alone has no place in laws of N
        N=None if parameters is None else parameters.non_embedding_with_head or None,
        N_non_embedding=None if parameters is None else parameters.non_embedding or None,
        tokens=None if tokens is None else float(tokens),
        tokens_per_step=tokens / step if tokens and step else None,
        flops=flops,
        flops_per_token=flops / processed if flops and processed else None,
        seconds=training_time if whole else None,
        loss=loss,
        batch_wanted=noise.option != "off",
        batch=_batch(noise, tokens, loss, scalars.get("isoflop/batch_tokens")),
    )


def _batch(noise: NoiseDriver, tokens: int | None, loss: float | None, processed: float | None) -> Batch | None:
    size = noise.batch or processed
    if noise.option == "off" or noise.critical is None or not tokens or not size:
        return None
    known = noise.beliefs(tokens, loss)
    scale = noise.noise_scale
    steps = 0 if scale is None else scale.measurements
    if not known[0].source.startswith("measured"):
        return Batch(size, noise.critical, None, known[0], steps, noise.measuring)
    return Batch(size, noise.critical, known[0] if noise.enough else None, known[1], steps, noise.measuring)

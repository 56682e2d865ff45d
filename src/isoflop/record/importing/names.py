"""What a column's name says: a training loss, an evaluation's, tokens, FLOPs, a learning rate. Nothing else is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable

TRAIN = (
    "isoflop/loss",
    "train/loss",
    "train_loss",
    "loss/train",
    "loss",
    "training_loss",
    "training/loss",
    "train/loss_step",
    "train_loss_step",
    "train/lm_loss",
    "train/ce_loss",
    "train/cross_entropy",
    "lm loss",
    "train/train_loss",
    "train_loss_epoch",
    "train/loss_epoch",
    "final_loss",
    "L",
)
"""Training losses in nats, the likeliest first."""
TRAIN_PERPLEXITY = ("train/perplexity", "train_perplexity", "train/ppl", "train_ppl", "perplexity", "ppl")
TOKENS = (
    "num_input_tokens_seen",
    "train/num_input_tokens_seen",
    "tokens",
    "train/tokens",
    "tokens_seen",
    "train/tokens_seen",
    "num_tokens",
    "train/num_tokens",
    "n_tokens",
    "total_tokens",
    "train/total_tokens",
    "consumed_tokens",
    "train_tokens",
    "training_tokens",
    "D",
)
"""Tokens since the run began."""
FLOPS = ("flops", "train/flops", "total_flops", "train/total_flops", "compute", "training_flops", "C")
RATES = ("learning_rate", "train/learning_rate", "lr", "train/lr", "learning-rate", "optimizer/lr", "train/lr_0")
SIZES = {
    **dict.fromkeys(("N", "params", "parameters", "n_params", "num_params", "num_parameters", "model_size"), "N"),
    **dict.fromkeys(("n_parameters", "total_params", "total_parameters"), "total"),
    **dict.fromkeys(("N_non_embedding", "N_noembed", "non_embedding", "params_non_embedding"), "non_embedding"),
    "non_embedding_with_head": "non_embedding_with_head",
    "total": "total",
    "active": "active",
    "model/num_parameters": "total",  # Hugging Face's callback in W&B
}
"""Names of N, and its convention; `N` where the name does not tell."""
STEPS = ("step", "global_step", "train/global_step", "trainer/global_step", "_step", "Step", "iteration", "iter", "S")
RUNS = ("run", "run_id", "run_name", "name", "Name")

_EVALUATION = re.compile(r"(^|[/_. -])(eval|evaluation|val|valid|validation|test)\d*([/_. -]|$)", re.I)
_PERPLEXITY = re.compile(r"(^|[/_. -])(perplexity|ppl)([/_. -]|$)", re.I)
_LOSS = re.compile(r"loss|perplexity|(^|[/_. -])ppl([/_. -]|$)|nll|cross_entropy", re.I)
_ISOFLOP = (
    "loss",
    "tokens",
    "tokens_processed",
    "loss_tokens",
    "flops",
    "flops_6nd",
    "batch_tokens",
    "tokens_per_param",
    "tokens_per_param_non_embedding",
)
ISOFLOP = tuple(f"isoflop/{name}" for name in _ISOFLOP)
"""Of isoflop's own scalars those that the record keeps; what they say is exact."""
_PLAIN = {*TRAIN, *TRAIN_PERPLEXITY, *TOKENS, *FLOPS, *RATES, *ISOFLOP}


def wanted(name: str) -> bool:
    """Whether a column of this name can be of use.

    >>> [wanted(name) for name in ("train/loss", "val_ppl", "lr-AdamW/pg1", "isoflop/flops", "isoflop/mfu")]
    [True, True, True, True, False]
    """
    return name in _PLAIN or is_rate(name) or evaluation(name) is not None


def is_rate(name: str) -> bool:
    """Whether a column holds learning rates; Lightning's LearningRateMonitor calls them lr-<optimizer>."""
    return name in RATES or (name.startswith("lr-") and not name.endswith("-momentum"))


def is_perplexity(name: str) -> bool:
    """Whether a column holds exp(loss)."""
    return bool(_PERPLEXITY.search(name))


def evaluation(name: str) -> str | None:
    """The evaluation set that a column is the loss of, or None; named as isoflop's callbacks name it.

    >>> [evaluation(name) for name in ("eval_loss", "eval/math_loss", "val/ppl", "loss/valid", "value_loss")]
    ['eval', 'math', 'val', 'valid', None]
    """
    lowered = name.lower()
    if "train" in lowered or lowered.startswith("isoflop/") or not _LOSS.search(lowered):
        return None
    if not _EVALUATION.search(lowered):
        return None
    rest = _PERPLEXITY.sub("/", lowered.replace("cross_entropy", "").replace("nll", "").replace("loss", ""))
    for double in ("//", "__", "/_", "_/", "--"):
        rest = rest.replace(double, "/")
    rest = rest.removesuffix("epoch").strip("/_-. ")
    for prefix in ("eval/", "eval_", "eval."):
        rest = rest.removeprefix(prefix)
    return rest or "eval"


def first(names: Iterable[str], present: Iterable[str]) -> str | None:
    """The first of some names that is there."""
    there = set(present)
    return next((name for name in names if name in there), None)

"""Hugging Face's `total_flos`, 6·N·D, taken apart: which parameters and positions it counts that nobody multiplies."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from typing import Any

from torch import nn

from isoflop.observe.calls import Call, Shape, Uncountable, metas
from isoflop.observe.count import StepCount
from isoflop.observe.others_run import Term, ThinRun
from isoflop.observe.parameters import numel, unwrap


def by_huggingface(model: nn.Module, call: Call, counted: StepCount, run: ThinRun | None) -> tuple[int, list[Term]]:
    """What Hugging Face's Trainer adds to `total_flos` for this call, and why that is not what we count.

    Raises:
        Uncountable: the Trainer counts 0, for the model is none of Hugging Face's.
    """
    module = unwrap(call.module)
    if not callable(getattr(module, "num_parameters", None)):
        raise Uncountable(f"{type(module).__name__} has no num_parameters: the Trainer's total_flos stays 0")
    inputs = inspect.signature(module.forward).bind_partial(*call.args, **call.kwargs).arguments
    inputs = {**inputs, **inputs.pop("kwargs", {})}
    main = getattr(module, "main_input_name", "input_ids")
    taken = math.prod(inputs[main].size) if isinstance(inputs.get(main), Shape) else 0
    flops = _floating_point_ops(module, inputs, taken)
    if not flops:
        return 0, [(f"{main} is not among the inputs: nothing is counted", -(counted.model_flops or 0))]
    if run is None:
        attention = 0 if counted.flops is None else counted.flops.attention
        return flops, [("attention's products are left out", -attention)]
    return flops, _terms(model, module, main, inputs[main], counted, run)


def _floating_point_ops(module: Any, inputs: dict[str, Any], taken: int) -> int:
    if hasattr(module, "floating_point_ops"):  # transformers 4
        return int(module.floating_point_ops(metas(inputs)))
    return int(6 * taken * module.num_parameters(exclude_embeddings=True))  # Trainer.floating_point_ops


def _terms(model: nn.Module, module: Any, main: str, given: Shape, counted: StepCount, run: ThinRun) -> list[Term]:
    """Their 6·N·D, parameter by parameter, less the products that a step has with each."""
    tables = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    kept = {id(parameter) for name, parameter in module.named_parameters() if name not in tables}
    taken = math.prod(given.size)
    heads = in_no_product = unneeded = seen = matrices = 0
    positions: Counter[int] = Counter()
    for name, parameter in unwrap(model).named_parameters():
        size, products = numel(parameter), run.weights.get(name)
        if id(parameter) not in kept:
            heads += 0 if products is None else products.training
        elif products is None:
            in_no_product += size
        else:
            matrices += size
            seen += 3 * products.forward
            unneeded += 3 * products.forward - products.training
            positions[products.forward // (2 * size)] += size
    active = counted.parameters.active
    idle = 0 if active is None else counted.parameters.total - active
    # pixels and audio frames are no tokens: what most of the matrices see is
    tokens = positions.most_common(1)[0][0] if given.dtype.is_floating_point and positions else taken
    numbers = f"each of the {taken:,} numbers in {main} is taken for a position, of which most matrices see {tokens:,}"
    return [
        (numbers, 6 * (matrices + in_no_product) * (taken - tokens)),
        ("attention's products are left out", -run.count.attention),
        ("products of two activations (a scan) are left out", -run.scans),
        ("the output head, tied to an embedding, is left out with it", -heads),
        ("biases, norms and tables count, which are in no matrix product", 6 * tokens * in_no_product),
        ("all experts count, not the active ones", 6 * tokens * idle),
        ("gradients count that nobody needs (of frozen weights, of the first layer's input)", unneeded),
        (f"some matrices see other than {tokens:,} positions", 6 * tokens * (matrices - idle) - seen),
    ]

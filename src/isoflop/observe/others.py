"""What other counters say about the same training step, and where the difference comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from isoflop.observe.calls import Call, Uncountable
from isoflop.observe.count import StepCount
from isoflop.observe.measure import said
from isoflop.observe.others_fvcore import by_fvcore
from isoflop.observe.others_huggingface import by_huggingface
from isoflop.observe.others_run import Term, ThinRun, thin_run
from isoflop.observe.parameters import unwrap


@dataclass(frozen=True)
class Opinion:
    """What one counter makes of a training step.

    Attributes:
        counter: its name.
        convention: what it counts.
        flops: FLOPs (1 multiply-add = 2) of what it counts; None where it gives no count.
        ours: our count of the same: of the forward pass, or model FLOPs.
        reasons: where the difference comes from, each with its FLOPs, the largest first; or why there is no count.
    """

    counter: str
    convention: str
    flops: int | None
    ours: int | None
    reasons: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """Its error, if ours is right: −0.13 says 13 % too few."""
        return None if self.flops is None or not self.ours else self.flops / self.ours - 1


def opinions(model: nn.Module, call: Call, counted: StepCount) -> tuple[Opinion, ...]:
    """What fvcore, torch's FlopCounterMode (on a CPU) and Hugging Face's Trainer count for a step.

    Nothing is computed or allocated, the live model stays as it is, and nothing is raised.

    Args:
        model: the model, on any device (also "meta").
        call: its forward call.
        counted: our count of the same call.
    """
    run: ThinRun | Uncountable
    try:
        model = unwrap(model)
        run = thin_run(model, call)
    except Exception as error:  # whatever a user's forward may raise: it becomes the reason
        run = Uncountable(said(error))
    forward = sum(flops for (_, phase), flops in counted.by_operator.items() if phase == "forward")
    ours = counted.model_flops

    def torch_counts() -> tuple[int, list[Term]]:
        if isinstance(run, Uncountable):
            raise Uncountable(f"the model does not run on a CPU's fake tensors ({run})")
        if run.flex:
            raise Uncountable("flex_attention does not run under it")
        return by_flop_counter_mode(run)

    thin = run if isinstance(run, ThinRun) else None
    return (
        _opinion(
            "fvcore",
            "forward only; multiply-adds × 2",
            forward or None,
            lambda: by_fvcore(model, call, counted.by_operator, thin),
        ),
        _opinion("torch FlopCounterMode", "forward and backward, as on a CPU", ours, torch_counts),
        _opinion("Hugging Face floating_point_ops", "6·N·D", ours, lambda: by_huggingface(model, call, counted, thin)),
    )


def by_flop_counter_mode(run: ThinRun) -> tuple[int, list[Term]]:
    """What torch's FlopCounterMode reports on a CPU, and why that is not what we count."""
    from torch.utils.flop_counter import flop_registry

    known = {str(packet) for packet in flop_registry}
    terms: list[Term] = []
    attention = again = 0
    for operator in sorted({*run.theirs, *(operator for operator, _ in run.ours)}):
        forward, backward, recomputed = (
            run.ours.get((operator, phase), 0) for phase in ("forward", "backward", "recomputed")
        )
        difference = run.theirs.get(operator, 0) - forward - backward
        if operator in known:
            again += recomputed
            difference -= recomputed
        if operator == "aten.convolution_backward":
            terms.append(("a grouped convolution's backward pass is taken for a full one (pytorch#183405)", difference))
        elif operator in known:
            terms.append((f"{operator} has another formula there", difference))
        elif "attention" in operator:
            attention += difference
        else:
            terms.append((f"{operator} has no formula there", difference))
    terms.append(("scaled_dot_product_attention has no formula there for a CPU (pytorch#195460)", attention))
    terms.append(("activation checkpointing's second forward pass is counted", again))
    return sum(run.theirs.values()), terms


def _opinion(counter: str, convention: str, ours: int | None, count: Callable[[], tuple[int, list[Term]]]) -> Opinion:
    try:
        flops, terms = count()
    except Exception as error:  # whatever tracing somebody's model may raise: it becomes the reason
        return Opinion(counter, convention, None, ours, (said(error),))
    if ours is None:
        return Opinion(counter, convention, flops, None, ("we have no count of our own to compare with",))
    terms = sorted((term for term in terms if term[1]), key=lambda term: -abs(term[1]))
    rest = flops - ours - sum(difference for _, difference in terms)
    if rest:
        terms.append(("not explained", rest))
    return Opinion(counter, convention, flops, ours, tuple(f"{text}: {_signed(number)}" for text, number in terms))


def _signed(number: int) -> str:
    text = f"{number:+,}" if abs(number) < 10**6 else f"{number:+.2e}".replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "−")

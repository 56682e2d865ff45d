"""A backward pass without autograd's engine, for a process that was forked after the engine had started its threads.

Where a machine has an accelerator, the first backward pass of a training starts a thread a device; torch then refuses
every backward pass in a process forked later. What is measured apart in the middle of a run (a second batch shape of
compiled code, a training after another in a notebook) needs one nevertheless, on the meta device, where nothing has to
run in threads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress, repeat
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge

Gradient = torch.Tensor | None


def engine_runs() -> bool:
    """Whether autograd's engine works in this process."""
    try:
        torch.ones((), device="meta", requires_grad=True).exp().backward()
    except RuntimeError:
        return False
    return True


@contextmanager
def any_backward() -> Iterator[None]:
    """Backward passes run in any process: by the engine where it works, else node by node. For a process of our own."""
    if engine_runs():
        yield
        return
    walk, variable = Walk(), torch.autograd.Variable
    replaced = [
        (variable, "_execution_engine", walk),
        (torch._C, "_current_graph_task_id", lambda: walk.task),
        (torch._C, "_current_autograd_node", lambda: walk.node),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)


class Walk:
    """Stands in for `torch.autograd.Variable._execution_engine`: calls the nodes of a graph in the order of need.

    Hooks on tensors and nodes are not called, and no buffers are freed.
    """

    def __init__(self) -> None:
        self.task = -1
        """Number of the backward pass under way; -1: none."""
        self.node: Any = None
        """The node under way."""
        self._passes = 0

    def run_backward(
        self,
        roots: Sequence[torch.Tensor],
        gradients: Sequence[Gradient],
        keep_graph: bool,
        create_graph: bool,
        inputs: Sequence[Any] = (),
        allow_unreachable: bool = False,
        accumulate_grad: bool = False,
    ) -> tuple[Gradient, ...]:
        """As the engine's method of this name; gradients of chosen inputs alone would cost less than the whole graph.

        Raises:
            RuntimeError: `inputs` are named.
        """
        if inputs:
            raise RuntimeError("gradients of chosen tensors need autograd's engine, which a forked process lacks")
        outer, self._passes = (self.task, self.node), self._passes + 1
        self.task = self._passes
        try:
            with torch.set_grad_enabled(create_graph):
                self._walk([get_gradient_edge(root) for root in roots], gradients)
        finally:
            self.task, self.node = outer
        return ()

    def queue_callback(self, callback: Callable[[], None]) -> None:
        """What libraries run at the end of a backward pass computes nothing that is counted."""

    def is_checkpoint_valid(self) -> bool:
        """For checkpoints that run a backward pass of their own."""
        return True

    def _walk(self, edges: Sequence[Any], gradients: Sequence[Gradient]) -> None:
        awaited = _uses([edge.node for edge in edges])
        arrived: dict[Any, dict[int, torch.Tensor]] = defaultdict(dict)
        for edge, gradient in zip(edges, gradients, strict=True):
            _arrive(arrived, edge.node, edge.output_nr, gradient)
        ready = [node for node in dict.fromkeys(edge.node for edge in edges) if not awaited[node]]
        while ready:
            node = ready.pop()
            found = self._call(node, arrived.pop(node, {}))
            for (following, place), gradient in zip(_edges(node), found, strict=False):
                _arrive(arrived, following, place, gradient)
                awaited[following] -= 1
                if not awaited[following]:
                    ready.append(following)

    def _call(self, node: Any, gradients: dict[int, torch.Tensor]) -> Iterator[Gradient]:
        """The gradients along `_edges(node)`."""
        if not gradients:
            return repeat(None)
        self.node = node
        arguments = [gradients.get(place) for place in range(len(node._input_metadata))]
        if callable(node):
            found, wanted = node(*arguments), [following is not None for following, _ in node.next_functions]
        else:  # a user's Function, which returns one for each argument of its forward, tensor or not
            found, wanted = node.apply(*arguments), node.needs_input_grad
        return compress(found if isinstance(found, tuple) else (found,), wanted)


def _edges(node: Any) -> list[tuple[Any, int]]:
    """The nodes that a node's gradients go to, and as which of their inputs."""
    return [edge for edge in node.next_functions if edge[0] is not None]


def _uses(roots: Sequence[Any]) -> Counter[Any]:
    """How many gradients each node of a graph waits for."""
    awaited: Counter[Any] = Counter()
    seen, left = set(roots), list(roots)
    while left:
        for following, _ in _edges(left.pop()):
            awaited[following] += 1
            if following not in seen:
                seen.add(following)
                left.append(following)
    return awaited


def _arrive(arrived: dict[Any, dict[int, torch.Tensor]], node: Any, place: int, gradient: Gradient) -> None:
    """Add a gradient to what a node has, in the shape of what the node once returned (broadcasting is undone)."""
    if gradient is None:
        return
    known = node._input_metadata[place]
    if not known.is_nested_tensor and gradient.shape != known.shape:
        gradient = gradient.sum_to_size(known.shape)
    gradient = gradient.to(known.dtype)  # under autocast a part may come in another precision
    before = arrived[node].get(place)
    arrived[node][place] = gradient if before is None else before + gradient

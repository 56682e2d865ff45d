"""The calls of a training step: which they are, and what they were called with."""

from __future__ import annotations

import copy
from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

from isoflop.flops import (
    Call,
    OutermostCalls,
    Shape,
    Uncountable,
    listen,
    measure_flops,
    shapes,
    signature,
    tensors_in,
    watch,
)
from models import TinyGPT, tokens

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 5), nn.Linear(5, 4)
        self.parts = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(4, 4)])})
        self.criterion = nn.MSELoss()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def seen(model: nn.Module, step: Any) -> tuple[list[nn.Module], str | None]:
    """(modules called, problem) of one step; the model is as it was, within and afterwards."""
    before = [dict(vars(module)) for module in model.modules()]
    calls = [type(module).__call__ for module in model.modules()]
    heard: list[Call] = []
    outermost = OutermostCalls(model, heard.append)
    assert [dict(vars(module)) for module in model.modules()] == before
    try:
        step()
    finally:
        outermost.stop()
    assert [type(module).__call__ for module in model.modules()] == calls
    assert outermost._open == 0
    return [call.module for call in heard], outermost.problem


# -- which calls -------------------------------------------------------------------------------------------------------


def test_the_whole_model():
    model = Pair()
    assert seen(model, lambda: model(X).sum()) == ([model], None)


def test_its_parts_one_after_another():
    model = Pair()
    assert seen(model, lambda: model.decoder(model.encoder(X)).sum()) == ([model.encoder, model.decoder], None)


def test_parts_in_containers_and_the_same_part_twice():
    model = Pair()
    inner = model.parts["list"][0]
    assert seen(model, lambda: inner(inner(X)).sum()) == ([inner, inner], None)


def test_a_loss_module_belongs_to_it():
    model = Pair()
    assert seen(model, lambda: model.criterion(model(X), X)) == ([model, model.criterion], None)


def test_evaluation_and_no_grad_are_no_training():
    model = Pair()
    with torch.no_grad():
        assert seen(model, lambda: (model(X), None)[1]) == ([], None)
    model.eval()
    assert seen(model, lambda: (model(X), None)[1]) == ([], None)


def test_a_frozen_part_is_a_part():
    model = Pair()
    model.encoder.requires_grad_(False)
    assert seen(model, lambda: model.decoder(model.encoder(X)).sum()) == ([model.encoder, model.decoder], None)


def test_a_redirected_forward_is_none():
    """Lightning's _ForwardRedirection: under DDP the module's forward is, for one call, its training_step."""
    strategy = pytest.importorskip("lightning.pytorch.strategies.strategy")

    class Steps(Pair):
        def training_step(self, x: torch.Tensor) -> torch.Tensor:
            return self.criterion(self(x), x)

    model = Steps()
    redirected = strategy._ForwardRedirection()
    assert seen(model, lambda: redirected(model, model, "training_step", X)) == ([model, model.criterion], None)


def test_a_forward_that_was_wrapped_is_one():
    model = Pair()
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    assert seen(model, lambda: model(X).sum()) == ([model], None)


def test_exceptions_do_not_hide_later_calls():
    class Fails(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError(super().forward(x).shape)

    model = Pair()
    model.fails = Fails(nn.Linear(4, 4))

    def step() -> torch.Tensor:
        with pytest.raises(KeyError):
            model.fails(X)
        return model(X).sum()

    modules, problem = seen(model, step)
    assert modules[-1] is model and problem is None


def test_an_exception_leaves_nothing_behind():
    model = Pair()
    with pytest.raises(RuntimeError):
        seen(model, lambda: model(torch.randn(3, 9)))
    assert "__call__" not in vars(Pair)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_compiled_parts_are_seen_from_outside_and_not_compiled_again():
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Part(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight, self.bias)

    model = Pair()
    model.decoder = Part(5, 4)
    encoder = model.encoder = torch.compile(Part(4, 5), backend=backend, fullgraph=True)
    model.decoder.compile(backend=backend, fullgraph=True)
    model.decoder(model.encoder(X))
    assert len(graphs) == 2
    assert seen(model, lambda: model.decoder(model.encoder(X)).sum()) == ([encoder, model.decoder], None)
    assert measure_flops(model, Call(encoder, shapes((X,)), {})).flops.model == 2 * (2 * 3 * 4 * 5)
    model.decoder(model.encoder(X))
    assert len(graphs) == 2


def test_a_compiled_function_around_a_module_is_not_broken():
    """With hooks that break the graph this raised under fullgraph=True, in the user's training."""
    torch._dynamo.reset()
    model = Pair()
    step = torch.compile(lambda x: model(x).sum(), backend="eager", fullgraph=True)
    assert seen(model, lambda: step(X)) == ([], None)


def test_arguments_that_can_not_be_replayed():
    class Cached(nn.Linear):
        def forward(self, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
            return super().forward(x)

    class Cache:
        pass

    model = Cached(4, 4)
    text = "an argument of type Cache can't be copied to the meta device"
    assert seen(model, lambda: model(X, cache=Cache()).sum()) == ([], text)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nothing_is_raised_in_the_live_step():
    class Nested(nn.Linear):
        def forward(self, x: Any) -> torch.Tensor:
            return super().forward(X)

    model = Nested(4, 4)
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert seen(model, lambda: model(ragged).sum())[1].startswith("an argument is a sparse or nested tensor")
    assert seen(model, lambda: model(X.to_sparse()).sum())[1].startswith("an argument is a sparse or nested tensor")


# -- a call's arguments ------------------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")


def test_shapes_keep_nothing_alive_and_metas_are_like_them():
    live = {"a": torch.zeros(2, 3, dtype=torch.int32), "b": [X.clone().requires_grad_(), 1, "two", None, True]}
    taken = shapes((Point(live, UserDict(c=X)),))
    assert taken[0].x["a"] == Shape((2, 3), torch.int32, False)
    assert taken[0].y == {"c": Shape((3, 4), torch.float32, False)}
    a, (b, *rest) = (taken[0].x[name] for name in "ab")
    assert (a.meta().device.type, a.meta().dtype, b.meta().requires_grad) == ("meta", torch.int32, True)
    assert rest == [1, "two", None, True]
    with pytest.raises(Uncountable, match="an argument of type object can't be copied"):
        shapes([object()])


def test_a_signature_tells_shapes_and_the_call_s_own_options():
    ids = tokens(2, 3)
    key = signature({"input_ids": ids, "labels": None, "use_cache": True})
    assert key == (("input_ids", (2, 3)), ("use_cache", (True,)))
    assert signature((ids, "encode", 3)) == ((2, 3), ("encode",), (3,))
    assert hash(signature([ids, {"a": [ids, 1.5]}])) is not None


def test_data_beside_the_tensors_makes_no_key_of_its_own():
    ids = tokens(2, 3)
    assert signature({"ids": ids, "name": ["a", "b"]}) == signature({"ids": ids, "name": ["c", "d", "e"]})
    assert signature([ids, [1, 2], "a"]) == signature([ids, [3, 4], "b"])
    documents = {"cu_seq_lens_q": torch.zeros(3), "max_length_q": 7}  # of a packed row of one length
    assert signature({"ids": ids, **documents}) == signature({"ids": ids})
    assert signature({"ids": ids, "meta": {"row": 1}}) == signature({"ids": ids, "meta": {"row": 2}})
    assert signature(["a", "b"]) == signature(["c"])


def test_tensors_in_what_a_module_returns():
    from transformers.modeling_outputs import CausalLMOutput

    a, b = torch.zeros(1), torch.ones(1)
    found = tensors_in((CausalLMOutput(loss=a, logits=b), [UserDict(x=a)], None, 3))
    assert [id(tensor) for tensor in found] == [id(a), id(b), id(a)]


# -- watching one module -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after", "never"])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_a_watched_module_compiled_before_or_after(when: str, in_place: bool):
    torch._dynamo.reset()
    model, ids, said = TinyGPT(), tokens(2, 8), []
    called: Any = model

    def compile_it() -> Any:
        if in_place:
            model.compile(backend="eager")
            return model
        return torch.compile(model, backend="eager")

    if when == "before":
        called = compile_it()
    unwatch = watch(called, lambda _, args, kwargs: said.append(len(args)), lambda output: said.append(type(output)))
    if when == "after":
        called = compile_it()
    for _ in range(2):
        called(ids)
    assert said == [1, tuple] * 2
    model.eval()
    called(ids)
    model.train()
    with torch.no_grad():
        called(ids)
    assert said == [1, tuple] * 2
    unwatch()
    called(ids)
    assert said == [1, tuple] * 2


def test_watching_leaves_a_model_what_it_is():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 2

    said: list[Any] = []
    for model in (nn.Sequential(nn.Linear(4, 4)), Own()):
        call = type(model).__call__
        expected = model(X)
        unwatch = watch(model, lambda _, args, kwargs: said.append(args))
        twin = copy.deepcopy(model)
        assert torch.equal(model(X), expected) and len(said) == 1 and torch.equal(twin(X), expected)
        assert torch.equal(torch.jit.script(nn.Sequential(model.eval()))(X), torch.jit.script(model)(X))
        torch.export.export(model.train(), (X,))
        assert len(said) == 1  # neither the copy nor code that is exported is training
        unwatch()
        assert type(model).__call__ is call
        said.clear()


def test_two_who_listen_to_one_class_do_not_mind_each_other():
    first, second, said = nn.Linear(4, 4), nn.Linear(4, 4), []
    ends = [listen([module], lambda module, *_: said.append(module)) for module in (first, second, first)]
    first(X), second(X)
    assert said == [first, first, second]
    ends[0]()
    ends[0]()
    first(X)
    assert said[3:] == [first]
    for end in ends[1:]:
        end()
    assert "__call__" not in vars(nn.Linear)

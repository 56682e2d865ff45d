"""A step's FLOPs measured on the meta twin: equal to counts by hand, and the live model untouched."""

from __future__ import annotations

import inspect
import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

from isoflop.flops import Call, FlopCount, Uncountable, measure_flops, shapes
from models import TinyGPT, gpt2, gpt2_forward_flops, llama, llama_forward_flops, rotary_forward_flops, tokens


@pytest.fixture(autouse=True, params=["the engine", "node by node"])
def backward(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every count is the same where autograd's engine refuses to work: in a fork after it has started its threads."""
    if request.param == "node by node":
        monkeypatch.setattr("isoflop.flops.twin.engine_runs", lambda: False)
    return str(request.param)


BY_THE_ENGINE = pytest.mark.parametrize("backward", ["the engine"], indirect=True)
"""Of what a backward pass has no part in."""


def flops(model: nn.Module, *args: Any, **kwargs: Any) -> FlopCount:
    return measure_flops(model, Call(model, shapes(args), shapes(kwargs))).flops


def reason(model: nn.Module, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Uncountable) as caught:
        flops(model, *args, **kwargs)
    return str(caught.value)


# -- equal to the hand count -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("build", "by_hand"), [(gpt2, gpt2_forward_flops), (llama, llama_forward_flops)])
def test_hugging_face_models_in_every_way_they_are_called(build: Any, by_hand: Any, attention: str, backward: str):
    """Node by node in a few: the graph is the same however the model was called."""
    model = build(attention)
    ids = tokens(2, 16, 96)
    angles = rotary_forward_flops(16) if build is llama else 0
    step = 3 * by_hand(2, 16) + angles
    expected = FlopCount(step, step, 3 * 2 * 4 * 2 * 16**2 * 32)
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    # GPT-2 takes the loss's arguments since transformers 4.49
    loss = {"num_items_in_batch": torch.tensor(32)} if inspect.Parameter.VAR_KEYWORD in kinds else {}
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"labels": ids},
        {"labels": ids, **loss},
        {"labels": ids, "use_cache": False},
        {"labels": ids, "attention_mask": mask},
        {"labels": ids, "attention_mask": mask, "use_cache": False},
        {"labels": ids, "attention_mask": mask, "use_cache": True},
        {"labels": ids, "attention_mask": torch.ones_like(ids), "return_dict": False},
    )
    for arguments in ways[:: 1 if backward == "the engine" else 4]:
        assert flops(model, input_ids=ids, **arguments) == expected, arguments


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("with_targets", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_module(attention: str, with_targets: bool, tied: bool):
    model = TinyGPT(attention=attention, tied=tied)
    forward, in_attention = model.forward_flops(3, 16)
    arguments = (tokens(3, 16), tokens(3, 16)) if with_targets else (tokens(3, 16),)
    assert flops(model, *arguments) == FlopCount(3 * forward, 3 * forward, 3 * in_attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["reentrant", "modern"])
def test_checkpointing_is_hardware_flops_alone(kind: str, attention: str):
    plain = TinyGPT(attention=attention)
    forward, in_attention = plain.forward_flops(2, 16)
    again = forward - 2 * 2 * 16 * 16 * 48  # the blocks, not the head
    recomputed = flops(TinyGPT(attention=attention, checkpointing=kind), tokens(2, 16), tokens(2, 16))
    # torch's early stop leaves out what the backward pass needs no more: the last product of a block
    early = 0 if kind == "reentrant" else 2 * (2 * 2 * 16) * (4 * 16 * 16)
    assert recomputed == FlopCount(3 * forward, 3 * forward + again - early, 3 * in_attention)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_hugging_face_checkpointing():
    model = gpt2()
    model.gradient_checkpointing_enable()
    model.train()
    ids = tokens(2, 16, 96)
    counted = flops(model, input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert (counted.model, counted.attention) == (3 * gpt2_forward_flops(2, 16), 3 * 2 * 4 * 2 * 16**2 * 32)
    assert counted.hardware > counted.model


def test_frozen_layers_cost_a_backward_only_where_it_passes():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 7))
    x, products = torch.randn(3, 4), [2 * 3 * 4 * 5, 2 * 3 * 5 * 6, 2 * 3 * 6 * 7]
    first, second, third = products
    assert flops(model, x).model == 3 * sum(products) - first  # the input needs no gradient
    model[0].requires_grad_(False)
    assert flops(model, x).model == sum(products) + second + 2 * third
    model[0].requires_grad_(True)
    model[2].requires_grad_(False)
    assert flops(model, x).model == sum(products) + first + 2 * second + third
    model.requires_grad_(False)
    assert flops(model, x).model == sum(products)


def test_lora_needs_no_gradient_of_what_is_frozen():
    model = TinyGPT(tied=False)
    model.requires_grad_(False)
    model.out.requires_grad_(True)
    forward, _ = model.forward_flops(2, 16)
    assert flops(model, tokens(2, 16), tokens(2, 16)).model == forward + 2 * 2 * 16 * 16 * 48


def test_autocast_and_no_grad_around_the_measurement_change_nothing():
    model = TinyGPT()
    expected = flops(model, tokens(2, 16), tokens(2, 16))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert flops(model, tokens(2, 16), tokens(2, 16)) == expected
        assert torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()


def test_everything_that_is_returned_is_differentiated():
    class TwoLosses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, form: str) -> Any:
            one, two = self.a(x), self.b(x).mean()
            return {"tuple": (one.mean(), two), "logits": (one, two), "dict": {"one": one.mean(), "two": two}}[form]

    for form in ("tuple", "logits", "dict"):
        assert flops(TwoLosses(), torch.randn(2, 4), form).model == 2 * 2 * (2 * 2 * 4 * 4)


def test_a_loss_by_name_goes_before_what_stands_beside_it():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.a(x).mean(), "shown": self.b(x)}

    assert flops(Named(), torch.randn(2, 4)).model == 3 * (2 * 2 * 4 * 4)


def test_more_modules_than_a_container_of_data_has():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(1100)])
    assert flops(model, torch.randn(1, 2)).model == (3 * 1100 - 1) * 2 * 2 * 2


@pytest.mark.parametrize(
    "wrap",
    [
        lambda forward, module: MethodType(forward, module),
        lambda forward, module: partial(forward, module),
    ],
)
def test_a_forward_that_was_replaced_is_the_one_that_counts(wrap: Any):
    model = nn.Linear(4, 4)

    def twice(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.weight), self.weight)

    model.forward = wrap(twice, model)
    assert flops(model, torch.randn(2, 4)).model == 5 * (2 * 2 * 4 * 4)


def test_wrappers_around_a_forward_are_left_out():
    expected = flops(TinyGPT(), tokens(2, 8))
    compiled = TinyGPT()
    compiled.forward = torch.compile(compiled.forward, backend="eager")
    assert flops(compiled, tokens(2, 8)) == expected
    accelerated = TinyGPT()
    accelerated.forward = torch.autocast("cpu", torch.bfloat16)(accelerated.forward)
    assert flops(accelerated, tokens(2, 8)) == expected
    replaced = TinyGPT()
    original = replaced.forward
    replaced.forward = lambda tokens: original(tokens)
    assert flops(replaced, tokens(2, 8)) == expected


# -- the live model stays as it is -------------------------------------------------------------------------------------


class Meter:
    def __init__(self) -> None:
        self.values: list[Any] = []
        self.last: Any = None

    def update(self, value: Any) -> None:
        self.values.append(value)
        self.last = value


class Busy(nn.Module):
    """Changes whatever a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.later: list[nn.Module] = []
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.norm = nn.BatchNorm1d(4)
        self.inner.above = [self]  # held in a list, as one hides a module from its parent
        self.inner.beside = [self.norm]
        self.seen: list[Any] = []
        self.named: dict[str, list[Any]] = {"a": []}
        self.more = (deque(maxlen=3), OrderedDict(), defaultdict(list), Counter(), {1})
        self.meter = Meter()
        self.generator = torch.Generator().manual_seed(3)
        self.python, self.numpy = random.Random(4), np.random.default_rng(5)
        self.count = 0
        self.device = torch.device("cpu")
        self.register_buffer("running", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.rand([], device="cpu") < -1 or random.random() < -1 or np.random.rand() < -1:  # LayerDrop
            return x
        torch.rand(1, device="cpu", generator=self.generator)
        self.python.random(), self.numpy.random()
        x = self.inner(x) + torch.ones(4, device=self.device)
        self.inner.beside[0](x)
        self.seen.append(x)
        self.named["a"].append(x)
        queue, ordered, default, counter, numbers = self.more
        queue.append(x)
        ordered["x"] = default["x"] = x
        counter["calls"] += 1
        numbers.add(2)
        self.meter.update(x)
        self.count += 1
        self.running += x.detach().mean(0)
        self.inner.above[0].count += 1
        return self.norm(x)


def snapshot(model: nn.Module) -> dict[str, Any]:
    taken: dict[str, Any] = {name: value.clone() for name, value in model.state_dict().items()}
    taken |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    taken |= {f"{name}.id": id(p) for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                taken[f"{name}:{key}"] = repr(vars(value)) if isinstance(value, Meter) else repr(value)
    return taken


def random_states() -> list[Any]:
    return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]


def test_nothing_of_the_live_model_changes():
    model = Busy()
    calls: list[str] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append("forward"))
        module.register_full_backward_hook(lambda *_: calls.append("backward"))
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: calls.append("gradient"))
        parameter.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    before, randomness = snapshot(model), random_states()
    generators = [model.generator.get_state().tolist(), model.python.getstate(), repr(model.numpy.bit_generator.state)]
    assert flops(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0))).model == 2 * (2 * 3 * 4 * 4)
    assert calls == []
    assert random_states() == randomness
    after = snapshot(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name], name
    assert generators == [
        model.generator.get_state().tolist(),
        model.python.getstate(),
        repr(model.numpy.bit_generator.state),
    ]
    assert model.more[1:] == (OrderedDict(), defaultdict(list), Counter(), {1}) and not model.more[0]


def test_gradients_in_waiting_stay():
    model, x = TinyGPT(), tokens(2, 8)
    model(x, x)[1].backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    flops(model, x, x)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


def test_a_step_after_measuring_is_the_step_without():
    losses = []
    for measured in (False, True):
        torch.manual_seed(7)
        model, x = TinyGPT(dropout=0.3), tokens(2, 8)
        for _ in range(2):
            if measured:
                flops(model, x, x)
            loss = model(x, x)[1]
            loss.backward()
            losses.append(loss.item())
    assert losses[:2] == losses[2:]


def test_metrics_of_the_training_step_are_neither_touched_nor_in_the_way():
    metrics = pytest.importorskip("torchmetrics")
    model = nn.ModuleDict({"net": nn.Linear(4, 3), "mean": metrics.MeanMetric()})
    with torch.no_grad():
        model["mean"](torch.tensor(2.0))
    x = torch.randn(5, 4)
    assert measure_flops(model, Call(model["net"], shapes((x,)), {})).flops.model == 2 * (2 * 5 * 4 * 3)
    mean = Call(model["mean"], shapes((torch.tensor(1.0, requires_grad=True),)), {})
    assert measure_flops(model, mean).flops.model == 0
    assert (model["mean"].compute().item(), model["mean"]._update_count) == (2.0, 1)


def test_logging_in_a_forward_does_not_reach_the_trainer():
    class Logs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 4)
            self._trainer: Any = Meter()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self._trainer is not None:
                self._trainer.update(x)
            return self.net(x)

    model = Logs()
    flops(model, torch.randn(2, 4))
    assert (model._trainer.values, model._trainer.last) == ([], None)


# -- compiled models ---------------------------------------------------------------------------------------------------


class Frames:
    """A torch.compile backend that counts what it is given."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return run


@BY_THE_ENGINE
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_measured_and_stays_compiled(in_place: bool, fullgraph: bool):
    torch._dynamo.reset()
    frames, model, x = Frames(), TinyGPT(), tokens(2, 8)
    expected = flops(model, x, x)
    if in_place:
        model.compile(backend=frames, fullgraph=fullgraph)
        compiled: Any = model
    else:
        compiled = torch.compile(model, backend=frames, fullgraph=fullgraph)
    assert flops(compiled, x, x) == expected  # before its first call
    compiled(x, x)[1].backward()
    graphs, ran = frames.compiled, frames.ran
    assert graphs >= 1 and ran == graphs
    assert flops(compiled, x, x) == expected
    assert flops(model, x, x) == expected
    compiled(x, x)[1].backward()
    assert (frames.compiled, frames.ran) == (graphs, 2 * ran)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_compiled_children():
    torch._dynamo.reset()
    frames, model, x = Frames(), TinyGPT(), tokens(2, 8)
    expected = flops(model, x)
    model.blocks[0] = torch.compile(model.blocks[0], backend=frames)
    model.norm.compile(backend=frames)
    model(x)
    graphs = frames.compiled
    assert flops(model, x) == expected
    model(x)
    assert frames.compiled == graphs


# -- what can't be measured, and why -----------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_a_branch_on_data():
    text = reason(Branches(), torch.randn(2, 4))
    assert text.startswith("Branches can't run on the meta device (")
    assert "it depends on values, which shapes do not have" in text


def test_sparse_tensors_in_the_model():
    model = nn.Linear(4, 4)
    model.graph = torch.eye(4).to_sparse()
    assert reason(model, torch.randn(2, 4)).startswith("the model holds a sparse or nested tensor")


def test_a_model_that_can_not_be_copied():
    class Stubborn(nn.Linear):
        def __new__(cls, *sizes: int) -> Stubborn:
            assert sizes
            return super().__new__(cls)

    assert flops(Stubborn(4, 4), torch.randn(2, 4)).model == 2 * (2 * 2 * 4 * 4)


def test_without_a_process_of_its_own_a_copy_is_turned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("isoflop.flops.measure.CAN_FORK", False)
    model, x = TinyGPT(), tokens(2, 8)
    forward, _ = model.forward_flops(2, 8)
    assert flops(model, x).model == 3 * forward
    assert not any(parameter.is_meta for parameter in model.parameters())
    model.lock = threading.Lock()
    assert reason(model, x).startswith("TinyGPT can't be copied (TypeError: cannot pickle")


def test_fsdp1_is_not_run():
    FullyShardedDataParallel = type("FullyShardedDataParallel", (nn.Linear,), {})
    text = "FullyShardedDataParallel (FSDP1) holds flat shards, not the model's shapes; use FSDP2"
    assert reason(FullyShardedDataParallel(4, 4), torch.randn(2, 4)) == text


def test_a_failure_says_nothing_on_the_way(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    reason(Branches(), torch.randn(2, 4))
    assert caplog.records == [] and capfd.readouterr() == ("", "")

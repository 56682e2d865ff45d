"""Scripts as strangers write them: a run's total is what torch's FlopCounterMode sees of the same loop."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

import isoflop
from isoflop.flops import APART, OBSERVED, FlopCounter
from models import tokens

V, D, B, STEPS = 48, 16, 4, 7
Step = Callable[[int], torch.Tensor]
Script = Callable[[], tuple[nn.Module, Step]]
SCRIPTS: dict[str, Script] = {}


def script(make: Script) -> Script:
    SCRIPTS[make.__name__] = make
    return make


class Net(nn.Module):
    """Attention of one head in plain torch, which FlopCounterMode counts on a CPU, and a head."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(V, D), nn.Linear(D, V)
        self.layers = nn.ModuleList(nn.Linear(D, 3 * D) for _ in range(layers))

    def block(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q, k, v = layer(x).chunk(3, -1)
        return x + (q @ k.mT).softmax(-1) @ v

    def forward(self, ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        x = self.words(ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x = self.block(layer, x)
        return self.out(x)


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def updates(net: nn.Module, loss: Callable[[int], torch.Tensor], optimizer: Any = None) -> tuple[nn.Module, Step]:
    optimizer = optimizer or torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])

    def step(i: int) -> torch.Tensor:
        optimizer.zero_grad()
        found = loss(i)
        found.backward()
        optimizer.step()
        return found

    return net, step


def ids_of(i: int, length: int = 8) -> torch.Tensor:
    return tokens(B, length, V, seed=i)


@script
def a_teacher_behind_the_student() -> tuple[nn.Module, Step]:
    net, teacher = Net(), Net(3)

    def loss(i: int) -> torch.Tensor:
        logits = net(ids_of(i, 8 + i % 3))
        with torch.no_grad():
            target = teacher(ids_of(i, 8 + i % 3))
        return F.mse_loss(logits, target)

    return updates(net, loss)


@script
def two_views_and_their_similarities() -> tuple[nn.Module, Step]:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, D))

    def loss(i: int) -> torch.Tensor:
        x = torch.randn(B, 3, 8, 8)
        z = torch.cat([net(x), net(x.flip(-1))])
        return F.cross_entropy(z @ z.T, torch.arange(2 * B).roll(B))

    return updates(net, loss)


@script
def a_momentum_encoder_with_a_queue() -> tuple[nn.Module, Step]:
    net, queue = nn.Sequential(nn.Linear(20, D), nn.ReLU(), nn.Linear(D, D)), torch.randn(D, 30)
    slow = copy.deepcopy(net)

    def loss(i: int) -> torch.Tensor:
        x = torch.randn(B, 20)
        q = net(x)
        with torch.no_grad():
            k = slow(x + 0.1)
        return F.cross_entropy(torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1), torch.zeros(B).long())

    return updates(net, loss)


@script
def an_image_before_the_text_by_inputs_embeds() -> tuple[nn.Module, Step]:
    net = nn.ModuleDict({"see": nn.Conv2d(3, D, 4, 4).requires_grad_(False), "project": nn.Linear(D, D), "lm": Net()})

    def loss(i: int) -> torch.Tensor:
        with torch.no_grad():
            image = net["see"](torch.randn(B, 3, 8, 8)).flatten(2).mT
        x = torch.cat([net["project"](image), net["lm"].words(ids_of(i))], 1)
        return loss_of(net["lm"](None, inputs_embeds=x)[:, 4:], ids_of(i))

    return updates(net, loss)


@script
def experts_in_a_loop() -> tuple[nn.Module, Step]:
    class Experts(Net):
        def __init__(self) -> None:
            super().__init__(1)
            self.gate, self.ffn_experts = nn.Linear(D, 4), nn.ModuleList(nn.Linear(D, D) for _ in range(4))

        def forward(self, ids: Any, inputs_embeds: Any = None) -> torch.Tensor:
            x = self.words(ids).flatten(0, 1)
            weight, chosen = self.gate(x).softmax(-1).topk(2, -1)
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.ffn_experts):
                row, place = (chosen == i).nonzero(as_tuple=True)
                out.index_add_(0, row, expert(x[row]) * weight[row, place, None])
            return self.out(out.view(*ids.shape, D))

    net = Experts()
    return updates(net, lambda i: loss_of(net(ids_of(i)), ids_of(i)))


@script
def a_gan_of_two_parts_that_is_never_called_itself() -> tuple[nn.Module, Step]:
    made, judged = nn.Linear(8, 20), nn.Sequential(nn.Linear(20, D), nn.ReLU(), nn.Linear(D, 1))
    one, two = torch.optim.SGD(made.parameters(), 0.1), torch.optim.SGD(judged.parameters(), 0.1)

    def step(i: int) -> torch.Tensor:
        fake = made(torch.randn(B, 8))
        loss = F.softplus(judged(fake.detach())).mean() + F.softplus(-judged(torch.randn(B, 20))).mean()
        two.zero_grad()
        loss.backward()
        two.step()
        one.zero_grad()
        F.softplus(-judged(fake)).mean().backward()
        one.step()
        return loss

    return nn.ModuleList([made, judged]), step


@script
def two_passes_over_what_was_generated() -> tuple[nn.Module, Step]:
    """The step is more than the model's training calls."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(i: int) -> torch.Tensor:
        ids = ids_of(i, 4)
        with torch.no_grad():
            for _ in range(4):
                ids = torch.cat([ids, net(ids)[:, -1].argmax(-1, keepdim=True)], 1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = loss_of(net(ids), ids)
            loss.backward()
            optimizer.step()
        return loss

    return net, step


@script
def chosen_and_rejected_beside_a_reference() -> tuple[nn.Module, Step]:
    net, reference = Net(), Net()

    def loss(i: int) -> torch.Tensor:
        chosen, rejected = ids_of(i, 6 + i % 2), ids_of(i + 50, 9)
        with torch.no_grad():
            known = loss_of(reference(chosen), chosen) - loss_of(reference(rejected), rejected)
        return F.softplus(loss_of(net(chosen), chosen) - loss_of(net(rejected), rejected) - known)

    return updates(net, loss)


@script
def a_step_of_sharpness_and_then_the_step() -> tuple[nn.Module, Step]:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(i: int) -> torch.Tensor:
        for _ in range(2):
            optimizer.zero_grad()
            loss = loss_of(net(ids_of(i)), ids_of(i))
            loss.backward()
        optimizer.step()
        return loss

    return net, step


@script
def micro_batches_the_last_of_which_is_smaller() -> tuple[nn.Module, Step]:
    net = Net()

    def loss(i: int) -> torch.Tensor:
        for j in range(2):
            loss_of(net(ids_of(i + j)), ids_of(i + j)).backward()
        last = ids_of(i)[: 1 + i % 3]
        return loss_of(net(last), last)

    return updates(net, loss)


@script
def a_loss_by_a_method_of_its_own() -> tuple[nn.Module, Step]:
    class Own(Net):
        def loss(self, ids: torch.Tensor) -> torch.Tensor:
            return loss_of(self.forward(ids), ids)

    net = Own()
    return updates(net, lambda i: net.loss(ids_of(i)))


@script
def layers_dropped_at_random() -> tuple[nn.Module, Step]:
    class Drops(Net):
        def block(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return x if torch.rand([]) < 0.4 or random.random() < 0.1 else super().block(layer, x)

    net = Drops(5)
    return updates(net, lambda i: loss_of(net(ids_of(i)), ids_of(i)))


@script
def an_exit_as_early_as_the_values_allow() -> tuple[nn.Module, Step]:
    class Exits(Net):
        def forward(self, ids: Any, inputs_embeds: Any = None) -> torch.Tensor:
            x = self.words(ids)
            for layer in self.layers:
                x = self.block(layer, x)
                if x.sum() > 0:
                    break
            return self.out(x)

    net = Exits(5)
    return updates(net, lambda i: loss_of(net(ids_of(i)), ids_of(i)))


@script
def a_matrix_product_once_in_a_while() -> tuple[nn.Module, Step]:
    net = Net()

    def loss(i: int) -> torch.Tensor:
        if i == 2:
            _ = torch.ones(40, 40) @ torch.ones(40, 40)
        return loss_of(net(ids_of(i)), ids_of(i))

    return updates(net, loss)


def mlp(out: int = D) -> nn.Module:
    return nn.Sequential(nn.Linear(20, D), nn.ReLU(), nn.Linear(D, out))


@script
def a_gradient_of_the_gradient_in_each_task() -> tuple[nn.Module, Step]:
    net = mlp()

    def loss(i: int) -> torch.Tensor:
        total = torch.zeros(())
        for _ in range(3):
            fast = dict(net.named_parameters())
            inner = functional_call(net, fast, (torch.randn(6, 20),)).square().mean()
            slopes = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
            fast = {name: p - 0.1 * slope for (name, p), slope in zip(fast.items(), slopes, strict=True)}
            total = total + functional_call(net, fast, (torch.randn(6, 20),)).square().mean()
        return total

    return updates(net, loss)


@script
def gradients_of_each_sample_by_vmap() -> tuple[nn.Module, Step]:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(i: int) -> torch.Tensor:
        x, weights = torch.randn(B, 20), {name: p.detach() for name, p in net.named_parameters()}
        found = net(x).square().mean().detach()
        slopes = vmap(grad(lambda w, x: functional_call(net, w, (x[None],)).square().mean()), (None, 0))(weights, x)
        for name, parameter in net.named_parameters():
            parameter.grad = slopes[name].clamp(-1, 1).mean(0)
        optimizer.step()
        return found

    return net, step


@script
def adapters_merged_before_the_product() -> tuple[nn.Module, Step]:
    class Merged(nn.Linear):
        def __init__(self) -> None:
            super().__init__(20, D, bias=False)
            self.weight.requires_grad_(False)
            self.a, self.b = nn.Parameter(torch.randn(2, 20)), nn.Parameter(torch.zeros(D, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight + self.b @ self.a)

    net = nn.Sequential(Merged(), nn.ReLU(), nn.Linear(D, 4))
    return updates(net, lambda i: net(torch.randn(B, 20)).square().mean())


@script
def linear_attention_in_chunks() -> tuple[nn.Module, Step]:
    class Linear(Net):
        def block(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
            q, k, v = layer(x).chunk(3, -1)
            state, out = torch.zeros(len(x), D, D), []
            for a, b, c in zip(q.split(4, 1), k.split(4, 1), v.split(4, 1), strict=True):
                out.append(a @ state + (a @ b.mT).tril() @ c)
                state = state + b.mT @ c
            return x + torch.cat(out, 1)

    net = Linear()
    return updates(net, lambda i: loss_of(net(ids_of(i)), ids_of(i)))


@script
def two_losses_of_one_graph_and_their_gradients() -> tuple[nn.Module, Step]:
    net = nn.ModuleDict({"body": mlp(), "left": nn.Linear(D, 3), "right": nn.Linear(D, 2)})

    def loss(i: int) -> torch.Tensor:
        z = net["body"](torch.randn(B, 20))
        left, right = net["left"](z).square().mean(), net["right"](z).square().mean()
        shared = list(net["body"].parameters())
        one = torch.autograd.grad(left, shared, retain_graph=True)
        other = torch.autograd.grad(right, shared, retain_graph=True)
        return left + right + 0 * sum((a * b).sum().detach() for a, b in zip(one, other, strict=True))

    return updates(net, loss)


@script
def tokens_generated_in_evaluation_mode() -> tuple[nn.Module, Step]:
    net = Net()

    def loss(i: int) -> torch.Tensor:
        net.eval()
        with torch.no_grad():
            ids = ids_of(i, 2)
            for _ in range(4):
                ids = torch.cat([ids, net(ids)[:, -1].argmax(-1, keepdim=True)], 1)
        net.train()
        return loss_of(net(ids), ids)

    return updates(net, loss)


@script
def layers_thawed_and_frozen_on_the_way() -> tuple[nn.Module, Step]:
    net = Net(3)
    net.layers.requires_grad_(False)

    def loss(i: int) -> torch.Tensor:
        net.layers[1:].requires_grad_(i >= 3)
        net.words.requires_grad_(i < 5)
        return loss_of(net(ids_of(i)), ids_of(i))

    return updates(net, loss, torch.optim.SGD(net.parameters(), 0.1))


@script
def turns_of_a_critic_before_the_generator_s() -> tuple[nn.Module, Step]:
    made, judged = nn.Linear(8, 20), nn.Sequential(nn.Linear(20, D), nn.ReLU(), nn.Linear(D, 1))
    one, two = torch.optim.SGD(made.parameters(), 0.1), torch.optim.SGD(judged.parameters(), 0.1)

    def step(i: int) -> torch.Tensor:
        for _ in range(3):
            two.zero_grad()
            (judged(made(torch.randn(B, 8)).detach()).mean() - judged(torch.randn(B, 20)).mean()).backward()
            two.step()
        one.zero_grad()
        loss = -judged(made(torch.randn(B, 8))).mean()
        loss.backward()
        one.step()
        return loss

    return made, step


@script
def two_heads_in_turn() -> tuple[nn.Module, Step]:
    class Turns(Net):
        def __init__(self) -> None:
            super().__init__()
            self.turn, self.other = 0, nn.Sequential(nn.Linear(D, 40), nn.Linear(40, V))

        def forward(self, ids: Any, inputs_embeds: Any = None) -> torch.Tensor:
            return (self.other if self.turn else self.out)(self.block(self.layers[0], self.words(ids)))

    net = Turns()

    def loss(i: int) -> torch.Tensor:
        net.turn = i % 2
        return loss_of(net(ids_of(i)), ids_of(i))

    return updates(net, loss)


def agent(mode: bool) -> Script:
    """Acts once, with dropout on or off, and learns from it for three steps."""

    def make() -> tuple[nn.Module, Step]:
        net, seen = mlp(), {"x": torch.zeros(0)}

        def loss(i: int) -> torch.Tensor:
            if i % 3 == 0:
                net.train(mode)
                with torch.no_grad():
                    steps = [torch.randn(B, 20)]
                    for _ in range(4):
                        steps.append(steps[-1] * 0.9 + net(steps[-1]).argmax(-1, keepdim=True))
                seen["x"] = torch.cat(steps)
                net.train()
            return -(seen["x"].mean(-1) * net(seen["x"]).log_softmax(-1).amax(-1)).mean()

        return updates(net, loss)

    return make


SCRIPTS["an_agent_that_acts_in_training_mode"] = agent(True)
SCRIPTS["an_agent_that_acts_in_evaluation_mode"] = agent(False)


@script
def a_teacher_and_then_the_student_without_gradients() -> tuple[nn.Module, Step]:
    net, teacher = Net(), Net(3)

    def loss(i: int) -> torch.Tensor:
        with torch.no_grad():
            target = teacher(ids_of(i)) + net(ids_of(i))
        return F.mse_loss(net(ids_of(i)), target)

    return updates(net, loss)


@script
def parts_in_a_container_on_batches_of_many_sizes() -> tuple[nn.Module, Step]:
    net = nn.ModuleDict({"encode": mlp(), "decode": nn.Linear(D, 20)})
    return updates(net, lambda i: net["decode"](net["encode"](torch.randn(2 + i * 3 % 7, 20))).square().mean())


@script
def a_method_that_calls_the_parts() -> tuple[nn.Module, Step]:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm, self.head = Net(), nn.Linear(V, 5)

        def loss(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.lm(ids)).square().mean()
            return found

    net = Parts()
    return updates(net, lambda i: net.loss(ids_of(i, 4 + i * 2 % 5)))


@script
def an_episode_of_calls_before_one_backward_pass() -> tuple[nn.Module, Step]:
    net = mlp()

    def loss(i: int) -> torch.Tensor:
        return torch.stack([net(torch.randn(1, 20)).amax() for _ in range(3 + i % 2)]).mean()

    return updates(net, loss)


VARIES = {
    "an_episode_of_calls_before_one_backward_pass",
    "a_loss_by_a_method_of_its_own",  # the calls of its parts are heard from the second step on
    "turns_of_a_critic_before_the_generator_s",
    "two_heads_in_turn",
    "a_gradient_of_the_gradient_in_each_task",
    "layers_dropped_at_random",
    "an_exit_as_early_as_the_values_allow",
    "a_matrix_product_once_in_a_while",
    "two_passes_over_what_was_generated",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_s_total(name: str, tmp_path: Path) -> None:
    def begun() -> tuple[nn.Module, Step]:
        torch.manual_seed(0)
        random.seed(0)
        return SCRIPTS[name]()

    _, step = begun()
    with FlopCounterMode(display=False) as each:
        step(0)
    _, step = begun()
    with FlopCounterMode(display=False) as counter:
        for i in range(STEPS):
            step(i)
    net, step = begun()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i))
    assert monitor.totals.flops_known == counter.get_total_flops(), each.get_total_flops()
    methods = monitor.observer.costing.methods
    assert list(methods) == [OBSERVED] and bool(methods[OBSERVED]) is (name in VARIES)
    assert not monitor.guard.aside


@pytest.mark.parametrize("name", ["two_views_and_their_similarities", "turns_of_a_critic_before_the_generator_s"])
def test_tokens_by_hand_leave_the_flops_of_whole_steps_as_they_are(name: str, tmp_path: Path) -> None:
    totals = []
    for given in (None, 7):
        torch.manual_seed(0)
        net, step = SCRIPTS[name]()
        with isoflop.Monitor(net, record_dir=tmp_path / str(given), log_every=1) as monitor:
            for i in range(STEPS):
                monitor.step(step(i), tokens=given)
        totals.append(monitor.totals)
    assert totals[0].flops_known == totals[1].flops_known and totals[1].processed == 7 * STEPS


@pytest.mark.parametrize("times", [3, 20])
def test_an_optimizer_that_has_the_loss_computed_several_times(times: int, tmp_path: Path) -> None:
    def begun() -> tuple[nn.Module, Step]:
        torch.manual_seed(0)
        net = mlp()
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=times)

        def step(i: int) -> torch.Tensor:
            def loss() -> torch.Tensor:
                optimizer.zero_grad()
                found: torch.Tensor = net(x).square().mean()
                found.backward()
                return found

            x = torch.randn(B, 20)
            return optimizer.step(loss).detach()

        return net, step

    _, step = begun()
    with FlopCounter() as counter:
        for i in range(STEPS):
            step(i)
    net, step = begun()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i))
    assert monitor.totals.flops_known == counter.count.model  # its dot products of gradients, more at each step, too
    assert monitor.totals.flops_optimizer == counter.by_operator["aten.dot", "forward"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_model_of_torchscript(how: str, tmp_path: Path) -> None:
    """Its class raises where it is asked for its `forward`."""
    net = nn.Sequential(nn.Linear(20, D), nn.Tanh(), nn.Linear(D, 4))
    net = torch.jit.script(net) if how == "script" else torch.jit.trace(net, torch.randn(B, 20))
    _, step = updates(net, lambda i: net(torch.randn(B, 20)).square().mean())
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i), tokens=B)
    assert monitor.totals.flops_known == STEPS * 2 * B * (2 * 20 * D + 3 * D * 4)  # the input needs no gradient
    assert monitor.observer.costing.methods == {OBSERVED: ""} and not monitor.guard.aside


def test_calls_of_parts_are_heard_from_the_second_step_on(tmp_path: Path) -> None:
    """A class with a `forward`, beside which the loop calls its parts."""
    net = nn.Sequential(nn.Linear(20, D), nn.Linear(D, 4))
    rows = [5, 2, 8, 5, 3, 8, 9]
    _, step = updates(net, lambda i: net[1](net[0](torch.randn(rows[i], 20))).square().mean())
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i), tokens=rows[i])
    each = 2 * (2 * 20 * D + 3 * D * 4)  # the input needs no gradient
    assert monitor.totals.flops_known == (sum(rows) - rows[0] + rows[1]) * each
    assert monitor.totals.tokens_known == sum(rows)
    assert "with the FLOPs of the next one" in monitor.observer.costing.methods[OBSERVED]


class Halves(nn.Linear):
    """Computes its rows in two threads, as DataParallel does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}

        def half(i: int) -> None:
            found[i] = F.linear(x[i::2], self.weight, self.bias)

        threads = [Thread(target=half, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return torch.cat([found[0], found[1]])


@pytest.mark.parametrize("inside", [True, False])
def test_what_runs_in_several_threads_is_measured_apart(inside: bool, tmp_path: Path) -> None:
    """One of them alone shows its operators."""
    net = Halves(20, 4) if inside else nn.Linear(20, 4)

    def loss(i: int) -> torch.Tensor:
        found: list[torch.Tensor] = []
        thread = Thread(target=lambda: found.append(net(torch.randn(B, 20))))
        if inside:
            return net(torch.randn(B, 20)).square().mean()
        thread.start()
        thread.join()
        return found[0].square().mean()

    _, step = updates(net, loss)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i), tokens=B)
    assert (
        "several threads" in str(monitor.observer.costing.methods) and OBSERVED not in monitor.observer.costing.methods
    )
    if not inside:  # (a copy of a process has one thread; there the formula is all there is)
        assert monitor.totals.flops_known == STEPS * B * 2 * 2 * 20 * 4


@pytest.mark.parametrize(
    ("layers", "steps_off"),
    [(lambda i: 1 + i // 600, 300), (lambda i: 3 if i % 5 == 0 else 1, 60)],
    ids=["grow", "every fifth step"],
)
def test_what_a_step_computes_changes_in_the_course_of_a_run(
    layers: Callable[[int], int], steps_off: int, tmp_path: Path
) -> None:
    """A change is seen at one step in 89; from then on one step in 53 is observed, in step with no period."""

    class Grows(nn.Sequential):
        depth = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in list(self)[: self.depth]:
                x = layer(x)
            return x

    net = Grows(*(nn.Linear(D, D) for _ in range(3)))
    steps, product = 1800, 2 * B * D * D

    def loss(i: int) -> torch.Tensor:
        net.depth = layers(i)
        found: torch.Tensor = net(torch.ones(B, D)).square().mean()
        return found

    _, step = updates(net, loss, torch.optim.SGD(net.parameters(), 0.1))
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=100) as monitor:
        for i in range(steps):
            monitor.step(step(i), tokens=B)
    truth = sum(3 * layers(i) - 1 for i in range(steps)) * product
    assert abs((monitor.totals.flops_known or 0) - truth) < steps_off * 3 * product
    assert "their mean" in monitor.observer.costing.methods[OBSERVED]


def test_layers_that_are_inserted_between_observed_steps(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))
    product = 2 * B * D * D

    def loss(i: int) -> torch.Tensor:
        if i == 6:
            net.insert(1, nn.Linear(D, D))
        found: torch.Tensor = net(torch.ones(B, D)).square().mean()
        return found

    _, step = updates(net, loss)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(20):
            monitor.step(step(i), tokens=B)
    assert 20 * 5 < (monitor.totals.flops_known or 0) / product < 6 * 5 + 14 * 8  # the eighth is observed
    assert "until that was noticed" in monitor.observer.costing.methods[OBSERVED]


def Net_forward(length: int) -> int:
    return 2 * B * length * (2 * (D * 3 * D + 2 * length * D) + D * V)


def test_count_says_that_it_is_one_draw() -> None:
    def notes(name: str) -> tuple[str, ...]:
        net, _ = SCRIPTS[name]()
        return isoflop.count(net, ids_of(0)).notes

    assert "this is one draw" in notes("layers_dropped_at_random")[0]
    assert notes("a_matrix_product_once_in_a_while") == ()


class Judged(Net):
    """Counts its own calls."""

    calls = 0

    def forward(self, ids: Any, inputs_embeds: Any = None) -> torch.Tensor:
        self.calls += 1
        return super().forward(ids, inputs_embeds)


def test_a_validation_in_evaluation_mode_is_no_part_of_the_step(tmp_path: Path) -> None:
    """Its loss is added up, compared and logged, outside of no_grad too; nothing that trains meets it."""
    net = Judged()
    _, step = updates(net, lambda i: loss_of(net(ids_of(i)), ids_of(i)))
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i))
            net.eval()
            with torch.no_grad():
                logits = [net(ids_of(i, 6)) for _ in range(2)]
            assert sum(loss_of(each, ids_of(i, 6)) for each in logits) > 0
            net.train()
    assert monitor.totals.flops_known == STEPS * 3 * Net_forward(8)
    assert monitor.totals.flops_no_grad == 0 and net.calls == 3 * STEPS
    assert "left out" in monitor.observer.costing.methods[OBSERVED]


def test_documents_in_a_jagged_tensor(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))

    def loss(i: int) -> torch.Tensor:
        documents = [torch.randn(3 + i, 8), torch.randn(5, 8)]
        found: torch.Tensor = net(torch.nested.nested_tensor(documents, layout=torch.jagged)).values().square().mean()
        return found

    _, step = updates(net, loss)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1, tokens_fn=lambda _: 8) as monitor:
        for i in range(STEPS):
            monitor.step(step(i))
    rows = sum(8 + i for i in range(STEPS))
    assert monitor.totals.flops_known == rows * (2 * 2 * 8 * 16 + 3 * 2 * 16 * 4)  # the inputs take no gradient
    assert list(monitor.observer.costing.methods) == [OBSERVED]


def test_layers_whose_shapes_the_first_batch_tells(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(V, D), nn.LazyLinear(V))
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            loss = loss_of(net(ids_of(i)), ids_of(i))
            loss.backward()
            monitor.step(loss)
    assert monitor.totals.flops_known == STEPS * 3 * 2 * B * 8 * D * V
    assert not monitor.guard.aside
    parameters = monitor.observer.costing.parameters
    assert parameters is not None and parameters.non_embedding == V and parameters.total == 2 * D * V + V


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
@pytest.mark.parametrize("compiled", ["teacher", "student", "both"])
@pytest.mark.parametrize("first", ["teacher", "student"])
def test_compiled_calls_beside_what_is_observed(compiled: str, first: str, tmp_path: Path) -> None:
    """Distillation with several lengths, micro-batches and an optimizer that multiplies."""

    class Orthogonal(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            grad = net.out.weight.grad
            net.out.weight.sub_(1e-3 * (grad @ grad.mT) @ grad)
            super().step()

    Orthogonal.__module__ = "mine"

    def begun(kind: str) -> tuple[nn.Module, Step]:
        nonlocal net
        torch.manual_seed(0)
        torch._dynamo.reset()
        net, teacher = Net(1), Net().eval()
        backend = import_module("torch._dynamo.testing").CompileCounterWithBackend("aot_eager")
        student, tutor = (
            torch.compile(part, backend=backend) if kind in (name, "both") else part
            for name, part in (("student", net), ("teacher", teacher))
        )
        optimizer = Orthogonal(net.parameters(), lr=0.1)

        def taught(ids: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return tutor(ids).softmax(-1)

        def step(i: int) -> torch.Tensor:
            optimizer.zero_grad()
            for part in range(2):
                ids = ids_of(i + part, 8 + i % 2)
                before = taught(ids) if first == "teacher" else None
                logits = student(ids).flatten(0, 1)
                target = taught(ids) if before is None else before
                loss = F.cross_entropy(logits, target.flatten(0, 1))
                loss.backward()
            optimizer.step()
            graphs.append(len(backend.graphs))
            return loss.detach()

        return student, step

    net = Net(1)
    graphs: list[int] = []
    _, step = begun("nothing")
    with FlopCounterMode(display=False) as counter:
        for i in range(STEPS):
            step(i)
    _, step = begun(compiled)
    alone = [step(i) for i in range(STEPS)], [*net.parameters()], graphs[STEPS:]
    student, step = begun(compiled)
    with isoflop.Monitor(student, record_dir=tmp_path, log_every=1) as monitor:
        losses = []
        for i in range(STEPS):
            losses.append(step(i))
            monitor.step(losses[-1])
    torch._dynamo.reset()
    assert monitor.totals.flops_known == monitor.totals.flops_hardware == counter.get_total_flops()
    assert losses == alone[0] and all(map(torch.equal, net.parameters(), alone[1])) and graphs[2 * STEPS :] == alone[2]
    assert set(monitor.observer.costing.methods) == {OBSERVED, APART} and not monitor.guard.aside
    teacher = 2 * sum(B * n * (2 * (3 * D * D + 2 * n * D) + D * V) * 2 for n in (8 + i % 2 for i in range(STEPS)))
    assert monitor.totals.flops_no_grad == teacher
    assert monitor.totals.flops_optimizer == STEPS * 2 * 2 * V * V * D


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
@pytest.mark.parametrize("what", ["similarities", "gradient penalty"])
def test_what_can_not_be_observed_beside_a_compiled_model(what: str, tmp_path: Path) -> None:
    """Products with gradients, and gradients of gradients: the record says that they are not counted."""
    net = torch.compile(nn.Linear(D, D), backend="eager")

    def loss(i: int) -> torch.Tensor:
        x = torch.randn(B, D, requires_grad=True)
        z = net(x)
        if what == "similarities":
            return F.cross_entropy(z @ z.mT, torch.arange(B))
        return z.mean() + torch.autograd.grad(z.square().sum(), x, create_graph=True)[0].norm()

    _, step = updates(net, loss)
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i), tokens=B)
    torch._dynamo.reset()
    assert monitor.totals.flops_known == STEPS * 3 * 2 * B * D * D
    assert monitor.observer.costing.methods[APART].endswith("nothing beside")


def test_an_optimizer_with_compiled_products(tmp_path: Path) -> None:
    """And a compiled one without any before it, behind which nothing is observed."""

    @torch.compile(backend="eager")
    def orthogonal(g: torch.Tensor) -> torch.Tensor:
        return g + (g @ g.mT) @ g

    @torch.compile(backend="eager")
    def less(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return p.sub_(0.1 * g)

    def compiled(name: str, update: Callable[..., Any], parameters: list[nn.Parameter], home: str) -> Any:
        @torch.no_grad()
        def step(self: Any) -> None:
            for parameter in self.param_groups[0]["params"]:
                update(parameter)

        made = {"step": step, "__module__": home}
        return type(name, (torch.optim.Optimizer,), made)(parameters, {})

    net = Net(1)
    plain = compiled("Plain", lambda p: less(p, p.grad), [net.words.weight], "torch.optim.sgd")
    own = compiled("Orthogonal", lambda p: p.sub_(0.01 * orthogonal(p.grad)), [net.out.weight], "mine")

    def step(i: int) -> torch.Tensor:
        net.zero_grad()
        loss = loss_of(net(ids_of(i)), ids_of(i))
        loss.backward()
        plain.step()
        own.step()
        return loss

    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(STEPS):
            monitor.step(step(i))
    products = STEPS * (2 * V * D * V + 2 * V * V * D)
    passes = 3 * 2 * B * 8 * (3 * D * D + D * V) + 3 * 4 * B * 8 * 8 * D
    assert monitor.totals.flops_optimizer == products
    assert monitor.totals.flops_known == STEPS * passes + products
    assert "measured apart" in monitor.observer.costing.methods[OBSERVED] and not monitor.observer.costing.uncounted

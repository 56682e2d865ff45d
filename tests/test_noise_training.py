"""The noise scale under every trainer: training unchanged, what is logged and recorded, refusals word by word."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as package
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import isoflop
from isoflop.flops import Totals
from isoflop.lightning import IsoFLOPMonitor
from isoflop.live import LogStep
from isoflop.noise import Cadence
from isoflop.transformers import IsoFLOPCallback
from syncs import counted_syncs
from tiny import Rows, batches, model, same_weights, the_run, weights
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer, plain_loop, splitting_loop

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

Weights = dict[str, torch.Tensor]
Options = dict[str, Any] | None
STEPS = 50


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure each step, whatever it costs."""
    monkeypatch.setattr("isoflop.live.noise.Cadence", lambda **_: Cadence(every=1, fixed=True))


def with_loop(net: nn.Module, folder: Path, accumulate: int, options: Options) -> tuple[Weights, Any]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.9))
    if options is None:
        plain_loop(net, batches(Rows(8 * STEPS), 8 // accumulate), optimizer=optimizer, accumulate=accumulate)
        return weights(net), None
    with isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=10, **options) as monitor:
        plain_loop(
            net, batches(Rows(8 * STEPS), 8 // accumulate), monitor=monitor, optimizer=optimizer, accumulate=accumulate
        )
    return weights(net), monitor


def with_lightning(net: nn.Module, folder: Path, accumulate: int, options: Options) -> tuple[Weights, Any]:
    callbacks = [] if options is None else [IsoFLOPMonitor(**options)]
    trainer = lightning_trainer(
        package,
        folder,
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=0.1,
        log_every_n_steps=10,
    )

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, betas=(0.9, 0.9))

    module = lightning_module(package, net, configure_optimizers=configure_optimizers)
    trainer.fit(module, batches(Rows(8 * STEPS), 8 // accumulate))
    assert "training_step" not in vars(module)
    return weights(net), callbacks[0].monitor if callbacks else None


def with_transformers(net: nn.Module, folder: Path, accumulate: int, options: Options) -> tuple[Weights, Any]:
    callbacks = [] if options is None else [IsoFLOPCallback(**options)]
    trainer = hf_trainer(
        net,
        folder,
        Rows(8 * STEPS),
        callbacks,
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.1,
        adam_beta2=0.9,
        logging_steps=10,
    )
    trainer.train()
    assert "training_step" not in vars(trainer)
    return weights(net), callbacks[0].monitor if callbacks else None


WAYS = pytest.mark.parametrize("train", [with_loop, with_lightning, with_transformers])
Train = Callable[[nn.Module, Path, int, "dict[str, Any] | None"], tuple[Weights, Any]]


@WAYS
def test_accumulation_is_measured_and_not_changed_by_a_bit(train: Train, every_step: None, tmp_path: Path) -> None:
    found, monitor = train(model(dropout=0.1), tmp_path / "a", 4, {})
    unobserved, _ = train(model(dropout=0.1), tmp_path / "b", 4, None)
    assert same_weights(found, unobserved)
    assert not monitor.guard.aside and not monitor.noise.reasons
    # the first step shows how many micro-batches there are; log step 20 finds v settled, after step 21 was prepared
    assert monitor.noise.raw.count == STEPS - 1
    assert monitor.noise.preconditioned.count == STEPS - 21
    last = the_run(tmp_path / "a").points[-1].extra
    assert last["b_crit"] is not None and last["b_crit_sigma"] is not None and last["b_simple_low"] is not None
    labels = 8 * 9  # of 8 sequences of 16, about half of the positions
    assert monitor.noise.batch == pytest.approx(labels, rel=0.5)
    assert last["batch_over_b_crit"] == pytest.approx(monitor.noise.batch / last["b_crit"])
    assert 0 < last["s_min"] < STEPS and 0 < last["e_min"] < 8 * 16 * STEPS


@WAYS
def test_split_steps_leave_the_weights_as_they_were_to_rounding(train: Train, every_step: None, tmp_path: Path) -> None:
    found, monitor = train(model(), tmp_path / "a", 1, {"noise_scale": "split"})
    unobserved, _ = train(model(), tmp_path / "b", 1, None)
    assert not monitor.guard.aside and not monitor.noise.reasons
    if train is with_loop:  # which has no `monitor.split` around its batch
        assert monitor.noise.raw.count == 0
        return
    assert monitor.noise.raw.count >= STEPS - 10  # but the first ones, and where shapes are looked at
    assert monitor.noise.preconditioned.count >= STEPS - 30
    for name, tensor in unobserved.items():
        assert torch.allclose(found[name], tensor, atol=2e-4), name
    run = the_run(tmp_path / "a")
    assert run.points[-1].tokens == 8 * 16 * STEPS
    unsplit = [point.losses["train"] for point in run.points]
    assert unsplit[-1] is not None and unsplit[-1] < unsplit[0]  # type: ignore[operator]


def test_a_plain_loop_splits_by_itself(every_step: None, tmp_path: Path) -> None:
    def trained(observed: bool) -> tuple[Weights, Any]:
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, log_every=10, noise_scale="split")
        splitting_loop(net, batches(Rows(8 * STEPS), 8), monitor, optimizer, split=observed)
        return weights(net), monitor

    found, monitor = trained(True)
    expected, _ = trained(False)
    assert monitor.noise.raw.count == STEPS - 1 and not monitor.guard.aside
    assert all(torch.allclose(found[name], tensor, atol=2e-4) for name, tensor in expected.items())


def test_accelerate(every_step: None, tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    net = model()
    parts = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=0.01), batches(Rows(160), 2))
    net, optimizer, loader = parts
    with isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, log_every=10) as monitor:
        for batch in loader:
            with accelerator.accumulate(net), monitor.accumulate():
                accelerator.backward(net(**batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                monitor.step()
    assert monitor.noise.raw.count == 19 and not monitor.noise.reasons


def test_accumulate_takes_tokens_and_weights(every_step: None, tmp_path: Path) -> None:
    """Two forward passes a micro-batch, tokens by hand, and a loss that is a share of the step's mean."""
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=5)
    data = iter(batches(Rows(640), 8))
    for _ in range(10):
        for tokens in (100, 300):
            with monitor.accumulate(tokens, by_tokens=True):
                one, two = net(**next(data)), net(**next(data))
                (tokens / 400 * (one["loss"] + two["loss"]) / 2).backward()
        monitor.step()
        net.zero_grad()
    monitor.close()
    assert monitor.noise.batch == 400 and monitor.noise._by_tokens and monitor.noise.raw.count == 9


def test_nothing_is_read_between_log_steps(every_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.5))
    with (
        isoflop.Monitor(net, optimizer=optimizer, record_dir=tmp_path, log_every=4) as monitor,
        counted_syncs(monkeypatch) as found,
    ):
        plain_loop(
            net, batches(Rows(128), 4), monitor=monitor, optimizer=optimizer, accumulate=2, after_step=found.mark
        )
    assert set(found.steps()) <= {4, 8, 12, 16} and monitor.noise.preconditioned.count > 4


def test_a_resumed_run_goes_on(every_step: None, tmp_path: Path) -> None:
    def piece(net: nn.Module, state: dict[str, Any] | None, start: int, stop: int) -> Any:
        monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=4)
        if state:
            monitor.load_state_dict(state)
        rows = torch.utils.data.Subset(Rows(320), range(8 * start, 8 * stop))
        plain_loop(
            net, batches(rows, 4), monitor=monitor, optimizer=torch.optim.SGD(net.parameters(), 0.1), accumulate=2
        )
        return monitor

    whole = piece(model(), None, 0, 24)
    net = model()
    first = piece(net, None, 0, 12)
    import json

    state = json.loads(json.dumps(first.state_dict()))
    second = piece(net, state, 12, 24)
    # the step after a resume is not measured: how many micro-batches it has is not known
    assert whole.noise.raw.count == 23 and second.noise.raw.count == 22
    assert second.noise.noise_scale is not None
    assert second.noise._minimum[1] == pytest.approx(whole.noise._minimum[1], rel=0.5)


def test_off_measures_and_shows_nothing(every_step: None, tmp_path: Path) -> None:
    _, monitor = with_loop(model(), tmp_path, 4, {"noise_scale": "off"})
    assert monitor.noise.raw.count == 0
    assert not [name for name in monitor.scalars if "b_" in name or "_min" in name]


# -- models that need care ---------------------------------------------------------------------------------------------


def measured_steps(net: nn.Module, tmp_path: Path, loss_of: Any = None, steps: int = 8, **kinds: Any) -> Any:
    """Plain accumulation of two micro-batches, each step measured; returns the monitor, closed."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.05)
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=2)
    monitor.noise.cadence = Cadence(every=1, fixed=True)
    monitor.said = []  # type: ignore[attr-defined]
    monitor.run.say = monitor.said.append  # type: ignore[attr-defined]
    data = iter(batches(Rows(8 * steps), 4))
    for _ in range(steps):
        for _ in range(2):
            batch = next(data)
            (net(**batch)["loss"] if loss_of is None else loss_of(net, batch)).div(2).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()
    monitor.close()
    monitor.said = [text for text in monitor.said if "noise scale" in text and "not judged" not in text]  # type: ignore[attr-defined]
    return monitor


def test_frozen_parameters(tmp_path: Path) -> None:
    net = model()
    for part in (net.embedding, net.qkv, net.up):
        part.requires_grad_(False)
    monitor = measured_steps(net, tmp_path)
    assert monitor.noise.raw.count == 7
    assert len(monitor.noise._source is None and [1]) == 1  # closed
    nothing = model()
    nothing.requires_grad_(False)
    said: list[str] = []
    monitor = isoflop.Monitor(nothing, record_dir=tmp_path / "b")
    monitor.run.say = said.append
    for batch in batches(Rows(16), 4):
        nothing(**batch)
        monitor.step()
    assert "isoflop: no gradient noise scale: no parameter of the model is trained" in said


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool, tmp_path: Path) -> None:
    class Checkpointed(type(model())):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            x = self.embedding(input_ids)
            x = x + checkpoint(lambda y: self.down(torch.relu(self.up(y))), x, use_reentrant=reentrant)
            x = x + checkpoint(lambda y: self.qkv(y)[..., :16], x, use_reentrant=reentrant)
            logits = self.head(x)
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}

    class Plain(type(model())):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            x = self.embedding(input_ids)
            x = x + self.down(torch.relu(self.up(x)))
            x = x + self.qkv(x)[..., :16]
            logits = self.head(x)
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}

    found = []
    for kind in (Checkpointed, Plain):
        torch.manual_seed(0)
        found.append(measured_steps(kind(), tmp_path / kind.__name__).noise.raw)
    assert found[0].count == found[1].count == 7
    assert found[0].sums == pytest.approx(found[1].sums, rel=1e-4)


def test_torch_compile_is_measured_without_compiling_anew(tmp_path: Path) -> None:
    torch._dynamo.reset()
    net = model()
    compiled = torch.compile(net, backend="aot_eager")
    monitor = measured_steps(compiled, tmp_path / "a")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    expected = measured_steps(model(), tmp_path / "b")
    assert monitor.noise.raw.sums == pytest.approx(expected.noise.raw.sums, rel=1e-3)


def test_loss_scaling_is_divided_out(tmp_path: Path) -> None:
    """AMP's scaler, which grows: the averages are of unscaled gradients."""

    def trained(scaler: Any, folder: Path) -> Any:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        monitor = isoflop.Monitor(net, optimizer=optimizer, record_dir=folder, log_every=2)
        monitor.noise.cadence = Cadence(every=1, fixed=True)
        monitor.run.grad_scaler = scaler
        data = iter(batches(Rows(64), 4))
        for _ in range(8):
            for _ in range(2):
                scaler.scale(net(**next(data))["loss"] / 2).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            monitor.step()
        monitor.close()
        return monitor

    on = trained(torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2), tmp_path / "a")
    off = trained(torch.amp.GradScaler("cpu", enabled=False), tmp_path / "b")
    assert on.run.grad_scaler.get_scale() > 30
    assert on.noise.raw.sums == pytest.approx(off.noise.raw.sums, rel=1e-3)


# -- no value, and why -------------------------------------------------------------------------------------------------


def test_one_part_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, monitor = with_loop(model(), tmp_path, 1, {})
    out = capsys.readouterr().out
    assert out.count("AdamW; no gradient noise scale: one micro-batch a step on one device has no parts to") == 1
    assert monitor.noise.raw.count == 0 and "isoflop/b_simple_raw" not in monitor.scalars
    low, high = monitor.noise.critical.interval()
    assert monitor.noise.critical.source.startswith("prior") and high / low > 30  # far outside of what it was fitted to


def test_a_plain_loop_that_splits_nothing_is_told_how(
    every_step: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = with_loop(model(), tmp_path, 1, {"noise_scale": "split"})[1]
    assert monitor.noise.raw.count == 0 and not monitor.noise.measuring
    assert capsys.readouterr().out.count("needs the batch to go through monitor.split: for part, share in") == 1


def test_nan_and_overflow_are_left_out(tmp_path: Path) -> None:
    calls = [0]

    def now_and_then(net: nn.Module, batch: Any) -> torch.Tensor:
        calls[0] += 1
        return net(**batch)["loss"] * (math.inf if calls[0] == 8 else 1.0)

    net = model()
    before = copy.deepcopy(net)
    net.register_forward_hook(lambda *_: None)
    optimizer_steps = measured_steps(net, tmp_path, now_and_then, steps=4)
    assert optimizer_steps.noise.reasons == {"NOT_FINITE": 1} and optimizer_steps.noise.raw.count == 2
    assert before is not net


def test_zero_gradients(tmp_path: Path) -> None:
    monitor = measured_steps(model(), tmp_path, lambda net, batch: net(**batch)["loss"] * 0)
    assert monitor.noise.reasons == {"ZERO": 7} and monitor.noise.raw.count == 0
    assert monitor.said == ["isoflop: no gradient noise scale from 3 of the measured steps: the gradient was zero"]


def test_identical_sequences(tmp_path: Path) -> None:
    same = Rows(4)[0]
    batch = {name: tensor.repeat(4, 1) for name, tensor in same.items()}
    monitor = measured_steps(model(), tmp_path, lambda net, _: net(**batch)["loss"])
    assert monitor.noise.reasons == {"IDENTICAL": 7} and monitor.noise.raw.count == 0
    assert "the parts' gradients were the same: their sequences are identical" in monitor.said[0]


def test_two_passes_a_step_as_sam_makes_them(tmp_path: Path) -> None:
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=2)
    monitor.noise.cadence = Cadence(every=1, fixed=True)
    said: list[str] = []
    monitor.run.say = said.append
    for batch in batches(Rows(64), 4):
        net(**batch)["loss"].backward()
        net.zero_grad()
        net(**batch)["loss"].backward()
        monitor.step()
        net.zero_grad()
    monitor.close()
    assert monitor.noise.raw.count == 0 and monitor.noise.reasons["NOT_THE_SUM"] >= 3
    assert "micro-batches were thrown away (two passes a step, as SAM makes them)" in "".join(said)


def test_two_backward_passes_of_one_micro_batch(tmp_path: Path) -> None:
    def twice(net: nn.Module, batch: Any) -> torch.Tensor:
        loss = net(**batch)["loss"]
        loss.backward(retain_graph=True)
        return loss

    monitor = measured_steps(model(), tmp_path, twice)
    assert monitor.noise.raw.count == 0
    assert monitor.said[0].startswith(
        "isoflop: no gradient noise scale: a parameter got its gradient twice in one micro-batch"
    )


def test_sparse_gradients(tmp_path: Path) -> None:
    net = model()
    net.embedding.sparse = True
    monitor = measured_steps(net, tmp_path)
    assert monitor.said == ["isoflop: no gradient noise scale: a gradient is sparse: use nn.Embedding(sparse=False)"]


def test_unknown_tokens(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=2)
    monitor.noise.cadence = Cadence(every=1, fixed=True)
    said: list[str] = []
    monitor.run.say = said.append
    torch.manual_seed(0)
    for _ in range(8):
        for _ in range(2):
            net(torch.randn(3, 4)).square().mean().backward()
        monitor.step()
        net.zero_grad()
    monitor.close()
    assert monitor.noise.reasons == {"NO_TOKENS": 7}
    assert "noise scale" not in "".join(said)  # the line on the batch says it


def trains_whole(train: Train, kind: Callable[[], nn.Module], folder: Path) -> None:
    """Asked to split its steps, it does not, and ends with the weights of a run without isoflop."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return kind()

    found, monitor = train(made(), folder / "a", 1, {"noise_scale": "split"})
    expected, _ = train(made(), folder / "b", 1, None)
    assert same_weights(found, expected) and monitor.noise.raw.count == 0


@WAYS
def test_batch_norm_refuses_to_be_split(
    train: Train, every_step: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if train is with_loop:
        pytest.skip("a plain loop asks by monitor.split")

    class Normed(type(model())):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(16)

        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            logits = self.head(self.norm(self.embedding(input_ids).transpose(1, 2)).transpose(1, 2))
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}

    trains_whole(train, Normed, tmp_path)
    out = capsys.readouterr().out
    assert out.count("norm normalises over the batch (BatchNorm1d), so halves have another gradient") == 1


@pytest.mark.parametrize("train", [with_lightning, with_transformers])
def test_a_loss_over_the_whole_batch_refuses_to_be_split(
    train: Train, every_step: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contrastive: sequences of a batch are each other's negatives. Found by comparing losses, once."""

    class Contrasting(type(model())):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            x = self.down(torch.relu(self.up(self.embedding(input_ids)))).mean(1)
            scores = x @ x.flip(0).T
            return {"loss": nn.functional.cross_entropy(scores, torch.arange(len(scores)))}

    trains_whole(train, Contrasting, tmp_path)
    out = capsys.readouterr().out
    assert out.count("a step can't be split: the batch's loss is") == 1 and "its halves' come to" in out


def test_manual_optimization_can_not_be_split(
    every_step: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.net(**batch)["loss"]
        self.manual_backward(loss)
        optimizer.step()
        return loss

    module = lightning_module(package, model(), training_step=training_step)
    module.automatic_optimization = False
    watcher = IsoFLOPMonitor(noise_scale="split")
    lightning_trainer(package, tmp_path, callbacks=[watcher]).fit(module, batches(Rows(64), 8))
    assert 'noise_scale="split" needs automatic optimization' in capsys.readouterr().out


def test_disagreement_with_published_runs_is_printed_with_both(tmp_path: Path) -> None:
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=1)
    said: list[str] = []
    monitor.run.say = said.append
    for i in range(20):
        monitor.noise.raw.add(1.0 + 0.01 * (i % 3), 1e9)
    step = LogStep(step=1, updates=1, totals=Totals(processed=10**10))
    monitor.noise.log(step)
    scalars = step.scalars
    assert scalars["isoflop/b_simple"] == pytest.approx(1e9, rel=0.05)
    (text,) = [text for text in said if "differ" in text]
    assert "measured, raw" in text and "prior by tokens" in text
    monitor.close()


def test_an_unbounded_interval_is_said_as_such(tmp_path: Path) -> None:
    monitor = isoflop.Monitor(model(), record_dir=tmp_path)
    for i in range(10):
        monitor.noise.raw.add((-1.0) ** i + 0.1, 100.0 + i % 3)
    scale = monitor.noise.noise_scale
    assert scale is not None and not scale.bounded
    step = LogStep(step=1, updates=1, totals=Totals(processed=1000))
    monitor.noise.log(step)
    scalars = step.scalars
    assert "isoflop/b_simple_low" in scalars
    assert "isoflop/b_simple" not in scalars and "isoflop/b_simple_high" not in scalars
    monitor.close()

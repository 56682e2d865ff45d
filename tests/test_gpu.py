"""What only a CUDA device can show: no sync outside log steps, the same FLOPs as on meta, compiled code stays so."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isoflop
from isoflop.flops import Call, FlopCounter, measure_flops, shapes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
STEPS, LOG_EVERY = 12, 5


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, -1, 64).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self, vocabulary: int = 512, width: int = 256, layers: int = 3, length: int = 256) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).float().flatten(0, 1), labels.flatten())


def batch() -> torch.Tensor:
    return torch.randint(0, 512, (4, 256), device="cuda")


def forbid_syncs(owner: Any, names: list[str], allowed: Any) -> None:
    """A sync inside these methods raises, which the boundary then notes in `guard.aside`."""
    for name in names:
        method = getattr(owner, name)

        def strict(*args: Any, method: Any = method, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode("default" if allowed() else "error")
            try:
                return method(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        setattr(owner, name, strict)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_flops_on_the_device_equal_those_on_meta(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, tokens = Gpt().cuda(), batch()
    counter = FlopCounter()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32), counter:
        model(tokens, tokens).backward()
    on_meta = measure_flops(model, Call(model, shapes((tokens, tokens)), {})).flops
    assert counter.count.model == on_meta.model == counter.count.hardware


@pytest.mark.parametrize("compiled", [False, True])
def test_a_plain_loop_never_waits_between_log_steps(tmp_path: Path, compiled: bool) -> None:
    torch.manual_seed(0)
    model: Any = Gpt().cuda()
    if compiled:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters())
    monitor = isoflop.Monitor(model, optimizer=optimizer, record_dir=tmp_path, log_every=LOG_EVERY)
    for i in range(STEPS):
        tokens = batch()
        warm = i > 1  # the first batch is measured; compiling may sync
        torch.cuda.set_sync_debug_mode("error" if warm and (i + 1) % LOG_EVERY else "default")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(tokens, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(loss)
    torch.cuda.set_sync_debug_mode("default")
    monitor.close()
    assert monitor.guard.aside == {}
    assert list(monitor.observer.costing.methods) == ["measured on the meta device"]
    assert monitor.scalars["isoflop/mfu"] > 0
    (run,) = isoflop.read_runs(tmp_path)
    assert run.points[-1].tokens == STEPS * 4 * 256
    assert run.device["dtype"] == "bfloat16"


def test_cuda_graphs_do_not_overwrite_the_losses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = torch.compile(Gpt().cuda(), mode="reduce-overhead")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = isoflop.Monitor(model, optimizer=optimizer, record_dir=tmp_path, log_every=STEPS)
    seen = []
    for _ in range(STEPS):
        tokens = batch()
        loss = model(tokens, tokens)
        seen.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(loss)
    monitor.close()
    assert monitor.guard.aside == {}
    assert monitor.scalars["isoflop/loss"] == pytest.approx(sum(seen) / len(seen), rel=1e-5)


def test_lightning_never_waits_between_log_steps() -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from isoflop.lightning import IsoFLOPMonitor

    class Module(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Gpt()

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return self.model(batch[0], batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    ours = IsoFLOPMonitor(log_every=LOG_EVERY)
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        default_root_dir=tempfile.mkdtemp(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
        callbacks=[ours],
    )
    forbid_syncs(
        ours,
        ["on_train_batch_start", "on_before_backward", "on_train_batch_end"],
        lambda: trainer.global_step < 2 or trainer.global_step % LOG_EVERY == 0,
    )
    tokens = torch.randint(0, 512, (4 * STEPS, 256))
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens), batch_size=4))
    assert ours.guard.aside == {}
    assert ours.monitor is not None and ours.monitor.totals.processed == tokens.numel()


def test_the_hugging_face_trainer_never_waits_between_log_steps() -> None:
    transformers = pytest.importorskip("transformers")
    from isoflop.transformers import IsoFLOPCallback

    config = transformers.GPT2Config(
        vocab_size=512, n_positions=256, n_embd=256, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    data = torch.randint(0, 512, (48, 256))
    rows = [{"input_ids": row, "labels": row, "attention_mask": row * 0 + 1} for row in data]
    ours = IsoFLOPCallback()
    trainer = transformers.Trainer(
        transformers.GPT2LMHeadModel(config),
        transformers.TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            logging_steps=LOG_EVERY,
            save_strategy="no",
            report_to="none",
            bf16=True,
        ),
        train_dataset=rows,
        callbacks=[ours],
    )
    begin = ours.on_train_begin

    def on_train_begin(*args: Any, **kwargs: Any) -> None:
        begin(*args, **kwargs)
        forbid_syncs(ours.monitor, ["forward", "loss", "step"], lambda: trainer.state.global_step < 2)

    ours.on_train_begin = on_train_begin  # type: ignore[method-assign]
    trainer.train()
    assert ours.guard.aside == {}
    assert ours.monitor is not None and ours.monitor.totals.processed == 48 * 256

"""A tiny language model, its data, and what its run recorded, for the end-to-end tests; `trainers` trains it."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from isoflop.record import Point, RecordLog, Run, read_runs

LENGTH, VOCABULARY, WIDTH = 16, 32, 16
TOTALS = ("tokens", "padding", "loss_tokens", "flops", "flops_hardware", "flops_6nd")


class TinyLM(nn.Module):
    """One attention and one feed-forward layer; `labels` are aligned with the logits."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        logits = self.head(self.layers(self.embedding(input_ids)))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return x + self.dropout(self.down(F.gelu(self.up(x))))


def model(dropout: float = 0.0, seed: int = 1) -> TinyLM:
    torch.manual_seed(seed)
    return TinyLM(dropout)


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Sequences of one length, with padding and with labels that are ignored; counts and FLOPs known by hand."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
        ends = torch.randint(LENGTH // 2, LENGTH + 1, (count, 1), generator=generator)
        places = torch.arange(LENGTH)
        self.mask = (places < ends).long()
        self.labels = torch.where((places >= 2) & (places < ends - 1), self.ids.roll(-1, 1), -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": self.labels[index]}

    def totals(self) -> dict[str, int]:
        """What training on each row once comes to, counted by hand."""
        n, t, d = len(self), LENGTH, WIDTH
        body = 3 * d * d + (4 * d * d + 4 * d) + (4 * d * d + d)
        products = n * t * (2 * (3 * d * d + 8 * d * d + VOCABULARY * d)) + n * 2 * (2 * t * t * d)
        return {
            "tokens": n * t,
            "padding": int((self.mask == 0).sum()),
            "loss_tokens": int((self.labels != -100).sum()),
            "flops": 3 * products,  # backward: twice the forward; the embedding needs no product
            "flops_hardware": 3 * products,
            "flops_6nd": 6 * body * n * t,
        }


def batches(rows: Rows, size: int) -> DataLoader[dict[str, torch.Tensor]]:
    return DataLoader(rows, batch_size=size)


def the_run(folder: Path) -> Run:
    """The one record below a folder."""
    (run,) = read_runs(folder)
    return run


def totals(run: Run) -> dict[str, int | None]:
    """The totals that the record's last point holds; its end line, if any, must say the same."""
    last = {name: getattr(run.points[-1], name) for name in TOTALS}
    if run.end is not None:
        assert {name: run.end[name] for name in TOTALS} == last
    return last


def losses(run: Run, name: str = "train") -> dict[int, float | None]:
    return {point.step: point.losses[name] for point in run.points if name in point.losses}


def earlier_runs(folder: Path) -> Path:
    """Records of runs about as small as `TinyLM`'s, of which advice can speak: published sweeps do not reach there."""
    for C in (1e7, 4e7):
        for k in (0.25, 0.5, 1.0, 2.0, 4.0):
            N = round(k * math.sqrt(C / 6 / 10))
            log = RecordLog.create(folder, f"{C:.0f}-{k}", {"parameters": {"non_embedding_with_head": N}})
            loss = 2 + 3 * (C / 1e7) ** -0.1 + 0.1 * math.log(k) ** 2
            log.point(Point(step=8, tokens=round(C / 6 / N), padding=0, losses={"train": loss}))
            log.end(8, "completed")
            log.close()
    return folder


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

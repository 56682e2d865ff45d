"""Thirty situations of users, trained for a few steps under a trainer: what may be said, and what must not (slow).

Each row: a model, its data, how it is trained, and which words must not come. No row may hear of a size: none is a
pretraining at a published scale, though `num_params=` and the planned steps make each look badly sized.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.advice import Advice, Severity
from isoflop.transformers import IsoFLOPCallback
from trainers import hf_arguments

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SIZE = re.compile(r"too (large|small) for its data|least compute|next run|stopping point", re.IGNORECASE)
RECIPE = re.compile(r"published recipes|learning rate far", re.IGNORECASE)
V, WIDTH = 300, 32


def config(kind: str, **more: Any) -> Any:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return getattr(transformers, kind)(**{"vocab_size": V, **sizes, **more})


def gpt2(head: str = "GPT2LMHeadModel", **more: Any) -> Any:
    shape = {"vocab_size": V, "n_positions": 64, "n_embd": WIDTH, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
    return getattr(transformers, head)(transformers.GPT2Config(**shape, **more))


def bert(head: str, **more: Any) -> Any:
    return getattr(transformers, head)(config("BertConfig", max_position_embeddings=64, **more))


def t5() -> Any:
    shape = {"vocab_size": V, "d_model": WIDTH, "d_ff": 64, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, decoder_start_token_id=0, pad_token_id=0)
    )


def bart() -> Any:
    ends = ("encoder", "decoder")
    shape: dict[str, Any] = {f"{end}_{name}": n for end in ends for name, n in (("layers", 1), ("attention_heads", 2))}
    shape |= {f"{end}_ffn_dim": 64 for end in ends}
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=V, d_model=WIDTH, max_position_embeddings=64, forced_eos_token_id=None, **shape
        )
    )


def whisper() -> Any:
    ends = ("encoder", "decoder")
    shape: dict[str, Any] = {f"{end}_{name}": n for end in ends for name, n in (("layers", 1), ("attention_heads", 2))}
    shape |= {f"{end}_ffn_dim": 64 for end in ends} | {"max_source_positions": 16, "max_target_positions": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    more = {"begin_suppress_tokens": None, "suppress_tokens": None, "num_mel_bins": 8}
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(vocab_size=V, d_model=WIDTH, **shape, **special, **more)
    )


def vit(head: str = "ViTForImageClassification") -> Any:
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return getattr(transformers, head)(transformers.ViTConfig(image_size=16, patch_size=8, encoder_stride=8, **shape))


def mixtral() -> Any:
    shape = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(config("MixtralConfig", **shape))


def loaded(make: Callable[[], Any]) -> Callable[[Path], Any]:
    """The model saved and read back, as a user loads a pretrained one."""

    def read(folder: Path) -> Any:
        model = make()
        model.save_pretrained(folder / "pretrained")
        return type(model).from_pretrained(folder / "pretrained")

    return read


def frozen(make: Callable[[], Any]) -> Callable[[Path], Any]:
    def freeze(folder: Path) -> Any:
        model = make()
        next(model.parameters()).requires_grad_(False)
        return model

    return freeze


class Adapted(nn.Module):
    """Low-rank matrices beside a frozen model, by PEFT's names."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = gpt2().requires_grad_(False)
        self.config = self.base_model.config
        self.lora_A, self.lora_B = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, V, bias=False)

    def forward(self, input_ids: Any, labels: Any = None, **_: Any) -> Any:
        hidden = self.base_model.transformer(input_ids).last_hidden_state
        logits = self.base_model.lm_head(hidden) + self.lora_B(self.lora_A(hidden))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class Pairwise(nn.Module):
    """A preference loss on a causal model, as TRL's DPO computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = gpt2()

    def forward(self, input_ids: Any, labels: Any = None, **_: Any) -> Any:
        scores = torch.log_softmax(self.model(input_ids).logits, -1).mean((1, 2))
        half = len(scores) // 2
        return {"loss": -nn.functional.logsigmoid(scores[:half] - scores[half:]).mean(), "logits": scores}


class DPOModel(Pairwise):
    """Told by its name."""


class ContrastiveEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = bert("BertModel")

    def forward(self, input_ids: Any, labels: Any = None, **_: Any) -> Any:
        z = self.encoder(input_ids).last_hidden_state[:, 0]
        return {"loss": nn.functional.cross_entropy(z @ z.T, torch.arange(len(z))), "logits": z}


def words(row: int) -> dict[str, Any]:
    ids = torch.randint(3, V, (32,), generator=torch.Generator().manual_seed(row))
    return {"input_ids": ids, "labels": ids}


def masked(row: int) -> dict[str, Any]:
    ids = words(row)["input_ids"]
    hidden = torch.arange(32) % 7 == 0
    return {"input_ids": torch.where(hidden, 2, ids), "labels": torch.where(hidden, ids, -100)}


def prompted(row: int) -> dict[str, Any]:
    ids = words(row)["input_ids"]
    return {"input_ids": ids, "labels": torch.where(torch.arange(32) < 20, -100, ids)}


def labelled(row: int) -> dict[str, Any]:
    return {"input_ids": words(row)["input_ids"], "labels": row % 2}


def tagged(row: int) -> dict[str, Any]:
    return {"input_ids": words(row)["input_ids"], "labels": torch.arange(32) % 2}


def pixels(row: int) -> dict[str, Any]:
    return {"pixel_values": torch.full((3, 16, 16), row / 64), "labels": row % 2}


def masked_pixels(row: int) -> dict[str, Any]:
    return {"pixel_values": torch.full((3, 16, 16), row / 64), "bool_masked_pos": torch.arange(4) % 2 == 0}


def sounds(row: int) -> dict[str, Any]:
    return {"input_features": torch.full((8, 32), row / 64), "labels": words(row)["labels"]}


ROWS: dict[str, tuple[Callable[[Path], Any], Callable[[int], dict[str, Any]], dict[str, Any], str]] = {
    "causal from scratch, smoke test": (lambda _: gpt2(), words, {}, "training from scratch"),
    "causal loaded": (loaded(gpt2), words, {}, "fine-tuning"),
    "causal loaded, told as pretraining": (loaded(gpt2), words, {"task": "continued causal"}, "continued pretraining"),
    "instructions": (lambda _: gpt2(), prompted, {}, "training from scratch"),
    "instructions, loaded": (loaded(gpt2), prompted, {}, "fine-tuning"),
    "told as fine-tuning": (lambda _: gpt2(), words, {"task": "finetuning"}, "fine-tuning"),
    "layer frozen": (frozen(gpt2), words, {}, "fine-tuning"),
    "adapter": (lambda _: Adapted(), words, {}, "fine-tuning of an adapter"),
    "masked from scratch": (lambda _: bert("BertForMaskedLM"), masked, {}, "masked model"),
    "masked loaded": (loaded(lambda: bert("BertForMaskedLM")), masked, {}, "masked model"),
    "GLUE": (loaded(lambda: bert("BertForSequenceClassification")), labelled, {}, "classification"),
    "GLUE from scratch": (lambda _: bert("BertForSequenceClassification"), labelled, {}, "classification"),
    "tags": (lambda _: bert("BertForTokenClassification"), tagged, {}, "classification"),
    "GPT-2 as classifier": (lambda _: gpt2("GPT2ForSequenceClassification"), labelled, {}, "classification"),
    "T5 from scratch": (lambda _: t5(), words, {}, "sequence-to-sequence"),
    "T5 loaded": (loaded(t5), words, {}, "fine-tuning"),
    "BART": (lambda _: bart(), words, {}, "sequence-to-sequence"),
    "Whisper from scratch": (lambda _: whisper(), sounds, {}, "training from scratch"),
    "Whisper loaded": (loaded(whisper), sounds, {}, "fine-tuning"),
    "ViT from scratch": (lambda _: vit(), pixels, {}, "classification on image"),
    "ViT loaded": (loaded(vit), pixels, {}, "fine-tuning"),
    "ViT masked": (lambda _: vit("ViTForMaskedImageModeling"), masked_pixels, {}, "masked model"),
    "experts": (lambda _: mixtral(), words, {}, "mixture-of-experts"),
    "preference": (lambda _: DPOModel(), words, {}, "preference training"),
    "preference, told": (lambda _: Pairwise(), words, {"task": "preference"}, "fine-tuning: preference training"),
    "contrastive": (lambda _: ContrastiveEncoder(), words, {}, "contrastive training"),
    "labels smoothed": (lambda _: gpt2(), words, {"smoothing": 0.1}, "smoothed by 0.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_situation(name: str, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    """4 of 780,000 planned steps, the size told as 7B: D/N is far off whatever is trained."""
    make, row, options, said = ROWS[name]
    told: list[Advice] = []
    smoothing = options.pop("smoothing", 0.0) if "smoothing" in options else 0.0
    torch.manual_seed(0)

    class Stop(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= state.global_step >= 4

    model = make(tmp_path)
    logging.getLogger("isoflop").setLevel(logging.INFO)
    try:
        transformers.Trainer(
            model,
            hf_arguments(tmp_path, max_steps=780_000, logging_steps=1, label_smoothing_factor=smoothing,
                         per_device_train_batch_size=4, remove_unused_columns=False),
            train_dataset=[row(i) for i in range(64)],
            callbacks=[IsoFLOPCallback(num_params=7_000_000_000, on_advice=told.append, **options), Stop()],
        ).train()  # fmt: skip
    finally:
        logging.getLogger("isoflop").setLevel(logging.NOTSET)
    text = capsys.readouterr().out + caplog.text
    assert not SIZE.search(text), text
    assert not RECIPE.search(text) or said == "training from scratch", text
    assert [str(each) for each in told if each.severity >= Severity.WARNING] == []
    assert any(said in line for line in text.splitlines() if line.startswith("isoflop: ")), text
    assert text.count("fine-tuning") <= 1


def curve(step: int) -> float:
    return 2.2 + 8 * step**-0.45


@pytest.mark.parametrize("kind", ["stopped short", "resumed", "resumed without a state"])
def test_a_plain_loop_that_is_no_whole_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"num_params": 10**9, "flops_per_token": 6e9, "total_steps": 2000, "record_dir": tmp_path}
    monitor = isoflop.Monitor(None, log_every=20, **options)
    for step in range(1, 1001):
        monitor.step(curve(step), tokens=10**7)
    if kind == "stopped short":
        monitor.close()
    else:
        again = isoflop.Monitor(None, log_every=20, **options)
        if kind == "resumed":
            again.load_state_dict(monitor.state_dict())
        else:
            again.expect(1000)
        capsys.readouterr()
        for step in range(1001, 1500):
            again.step(curve(step), tokens=10**7)
        again.close()
    text = capsys.readouterr().out
    assert "for the next run" not in text
    assert "too large" not in text and "too small" not in text

"""Three sizes of GPT-2 under the Hugging Face Trainer, watched by one callback.

    python examples/hf_trainer.py
    tensorboard --logdir runs/hf

The models are built from a `GPT2Config` and the text is Python's own library: nothing is downloaded.
Each start replaces runs/hf/<size>, and nothing else.
"""

from __future__ import annotations

import argparse

import torch
from tiny_gpt import QUICK, READ_ONCE, VOCABULARY, Windows, fresh_folder, stdlib_text
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import isoflop
from isoflop.live.passport import print_summary
from isoflop.transformers import IsoFLOPCallback

SIZES = {"6k": (16, 2.0e-2), "25k": (32, 1.4e-2), "98k": (64, 8e-3)}  # width, peak learning rate
CONTEXT = 64
BATCH = 16


class LanguageModelling(Dataset[dict[str, Tensor]]):
    """Windows of text as the Trainer wants them. GPT-2 shifts the labels by one token itself."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs, _ = self.windows[index]
        return {"input_ids": inputs, "labels": inputs}


def train(size: str, folder: str, texts: tuple[bytes, bytes], steps: int, report_to: str) -> None:
    """Train one size; its record and its curves go to `runs/<folder>/<size>`."""
    set_seed(0)
    width, learning_rate = SIZES[size]
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_layer=2,
        n_embd=width,
        n_head=width // 16,
        **READ_ONCE,
    )
    arguments = TrainingArguments(
        output_dir=str(fresh_folder(f"{folder}/{size}")),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=learning_rate,
        lr_scheduler_type="inverse_sqrt",  # see warm_up_then_decay in tiny_gpt.py
        warmup_steps=min(200, steps),
        adam_beta2=0.99,
        weight_decay=0.01,
        eval_strategy="steps",
        eval_steps=max(1, steps // 5),
        per_device_eval_batch_size=128,
        logging_steps=min(50, steps),
        save_strategy="no",
        report_to=report_to,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=LanguageModelling(Windows(texts[0], CONTEXT)),
        eval_dataset=LanguageModelling(Windows(texts[1], CONTEXT, limit=512)),
        callbacks=[IsoFLOPCallback()],  # this line is all that isoflop needs
    )
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000, help="optimizer steps of each size (%(default)s)")
    parser.add_argument("--report-to", choices=("none", "tensorboard"), default="none", help="the Trainer's own logs")
    parser.add_argument("--quick", action="store_true", default=QUICK, help="seconds, to see that it runs")
    arguments = parser.parse_args()
    folder, steps, sizes = "hf", arguments.steps, list(SIZES)
    if arguments.quick:
        folder, steps, sizes = "hf-quick", 20, sizes[:2]

    torch.set_num_threads(1)  # models this small only wait for a second thread, badly so on a busy machine
    torch.set_num_threads(1)  # matrices this small gain little from a second one
    texts = stdlib_text()
    for size in sizes:
        print(f"\n{size} parameters, {steps * BATCH * CONTEXT:,} tokens", flush=True)
        train(size, folder, texts, steps, arguments.report_to)

    print_summary(isoflop.read_runs(f"runs/{folder}"))
    print(f"See the curves:  tensorboard --logdir runs/{folder}  (chart isoflop/1000log10C_loss)")


if __name__ == "__main__":
    main()

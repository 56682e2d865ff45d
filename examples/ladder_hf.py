"""The runs of a ladder under the Hugging Face Trainer: for `isoflop ladder run --train examples/ladder_hf.py:train`.

    python examples/ladder_hf.py        # a ladder of four small runs, minutes; here, in processes

A run that is killed goes on from its last checkpoint when the ladder is run again.
"""

from __future__ import annotations

from typing import Any

import torch
from _tiny_ladder import train_ladder
from hf_trainer import LanguageModelling
from tiny_gpt import READ_ONCE, Windows, stdlib_text
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from isoflop.transformers import IsoFLOPCallback


def train(config: dict[str, Any]) -> None:
    """Train one planned run to its last step."""
    set_seed(config["seed"])
    torch.set_num_threads(1)  # models this small only wait for a second thread
    texts, shape, steps = stdlib_text(), config["config"], config["steps"]
    context = shape["sequence_length"]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape["vocab_size"],
            n_positions=context,
            n_layer=shape["depth"],
            n_embd=shape["width"],
            n_head=shape["width"] // shape["head_dim"],
            **READ_ONCE,
        )
    )
    arguments = TrainingArguments(
        output_dir=config["checkpoint_dir"],
        run_name=config["name"],
        max_steps=steps,
        per_device_train_batch_size=config["batch_tokens"] // context,
        learning_rate=config["learning_rate"],
        # (1) Warm up, stay, decay: the decay ends with this run, so its last loss is what the law is about.
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=config["warmup_steps"],
        lr_scheduler_kwargs={"num_decay_steps": max(1, steps // 5)},
        adam_beta2=0.99,
        eval_strategy="steps",
        eval_steps=steps,  # (2) once, at the end: the loss that the law is fitted to
        per_device_eval_batch_size=128,
        logging_steps=max(1, steps // 50),
        save_steps=max(1, steps // 10),
        save_total_limit=1,
        seed=config["seed"],
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LanguageModelling(Windows(texts[0], context)),
        eval_dataset=LanguageModelling(Windows(texts[1], context, limit=512)),
        callbacks=[IsoFLOPCallback(record_dir=config["record_dir"])],  # (3) the record is how the ladder knows of it
    )
    trainer.train(resume_from_checkpoint=config["resume"])  # (4) None for a run from the start


if __name__ == "__main__":
    train_ladder(__file__, "ladder_hf")

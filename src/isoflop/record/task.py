"""`Task`: what a run trains, on what, and from where. Laws and priors are asked only of the tasks they were learnt on.

The user's word comes first (`task=`), then the trainer's and the model's class, then weights that were loaded or
frozen. Unknown is None; a language model of unknown objective counts as causal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

START_NAMES = {
    "scratch": "training from scratch",
    "continued": "continued pretraining",
    "finetuning": "fine-tuning",
    "adapter": "fine-tuning of an adapter",
}
NAMES = {
    **{"causal": "a causal language model", "masked": "a masked model", "seq2seq": "a sequence-to-sequence model"},
    **{"contrastive": "contrastive training", "preference": "preference training"},
    **{"reinforcement": "reinforcement learning", "classification": "classification", "regression": "regression"},
    "generative": "a generative model",
    "headless": "a model without an output for each token of its vocabulary",
}
"""Of objectives."""
WORDS = {
    **dict.fromkeys(START_NAMES, "start"),
    **dict.fromkeys(NAMES, "objective"),
    **dict.fromkeys(("text", "image", "audio", "other"), "modality"),
}
"""What `task=` may name → the field that it sets."""

_OBJECTIVE = (
    ("reinforcement", r"(?<![A-Z])(GRPO|PPO|RLOO|OnlineDPO|NashMD|XPO|DQN|A2C|SAC)|Reinforce|Actor|Critic|Policy"),
    ("preference", r"(?<![A-Z])(DPO|CPO|KTO|ORPO|BCO|PRM|IPO)|SimPO|Reward|Preference"),
    ("classification", r"Classif|QuestionAnswering|MultipleChoice|ForCTC|Detection|Segmentation|NextSentence"),
    (
        "contrastive",
        r"SentenceTransformer|Contrastive|(?<![A-Z])CLIP|SimCLR|Siglip|SigLIP|MoCo|DINO|BYOL|CrossEncoder|BiEncoder|DualEncoder|Triplet|InfoNCE",
    ),
    ("masked", r"MaskedLM|ForPreTraining|MaskedImage|MaskedAuto|(?<![A-Z])MAE(?![a-z])"),
    (
        "generative",
        r"Diffusion|U[Nn]et|DDPM|Denois|FlowMatch|(?<![A-Z])DiT(?![a-z])|(?<![A-Z])GAN(?![a-z])|VAE|AutoEncoder|Autoencoder",
    ),
    ("regression", r"Regress|TimeSeries|ForPrediction"),
    ("seq2seq", r"Seq2Seq|EncoderDecoder"),
    ("causal", r"CausalLM|LMHead|ForConditionalGeneration|NextToken"),
)
"""Objectives by class names, the first that fits."""
_TUNING = r"(?<![A-Z])SFT|DPO|GRPO|PPO|KTO|ORPO|Reward|Distill|GKD"
"""Trainers whose models were trained before."""
_INPUTS = {"pixel_values": "image", "input_features": "audio", "input_values": "audio", "input_ids": "text"}
_OTHER_INPUTS = ("vision_config", "audio_config", "speech_config")
_FAMILIES = (
    ("rate-free", r"schedule_?free|d_?adapt|prodigy|mechanic"),
    ("layer-wise", r"lamb(?!da)|lars"),
    ("muon", r"muon|dion|scion"),
    ("adam", r"adam"),
    ("second-order", r"shampoo|soap|sophia|kfac"),
    ("sign", r"lion|signum"),
    ("adafactor", r"adafactor|came"),
    ("sgd", r"sgd|momentum|rmsprop"),
)
_SHOWN = {"adam": "Adam", "muon": "Muon", "sgd": "SGD", "sign": "a sign optimizer", "adafactor": "Adafactor"}
LOADED, FROZEN = 0.5, 0.02
"""Shares of the elements from which a model counts as loaded, or as tuned in part. Tables of sinusoids are left out
before; what else is frozen in models from scratch (buffers kept as parameters) stays below."""
KNOWS = 0.5
"""Of ln V: a first loss below it comes from weights that have learnt. A model from scratch begins at ln V or above."""
NOTHING = 0.01
"""Of ln V: a first loss below it is none of a text's tokens, but a divergence from a teacher, or a policy's loss."""
LEAST_VOCABULARY = {"step": 32, "interval": 256}
"""Whose first loss, or mean of the first log interval, is judged. Smaller ones are of bases and digits; a model from
scratch learns the frequencies of some more, and falls below `KNOWS`, within an interval."""
NEAR, SUM = 0.15, 100.0
"""How near the first loss over ln V is to the number of micro-batches where losses were summed over them; and from
which on it is a sum, whatever of: models of a bad initialisation begin at some tens."""
BITS, PERPLEXITY = 0.02, (0.5, 3.0)
"""How near the first loss is to log₂ V where it is in bits; and between which multiples of V it is a perplexity."""
HALF = 0.005
"""How near the first loss is to ln 2 where two answers are compared by a policy that is its reference yet."""
SOFT = 0.85
"""Of ln V: a first loss below it, of targets that are distributions, is a divergence, less their entropy."""
PREDICTED = 0.6
"""Of the tokens: pretraining predicts them all; fewer are a mask, or prompts that are left out."""
PLAIN = "nats per token"
LANGUAGE = ("causal", "masked", "seq2seq")
"""Objectives whose loss is a mean over tokens."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run trains; None: unknown."""

    start: str | None = None  # one of `START_NAMES`
    objective: str | None = None  # one of `NAMES`
    modality: str | None = None  # text, image, audio or other
    optimizer: str | None = None  # its family, one of `_FAMILIES` or other
    experts: bool = False  # a mixture of experts
    loss: str = PLAIN  # its unit: `PLAIN`, or why it is another
    partial: bool = False  # the loss is of a part of the tokens alone
    guess: str = ""  # what the start was concluded from, and what else that may be
    given: tuple[str, ...] = ()  # fields that the user named

    def __str__(self) -> str:
        return self.shown()

    def shown(self, optimizer: str = "") -> str:
        """In a line; `optimizer`: its class, where that is known, in place of its family."""
        what = NAMES.get(self.objective or "", "a model")
        kind = f"a mixture-of-experts {what.removeprefix('a ')}" if self.experts else what
        on = "" if self.modality in (None, "other") else f" on {self.modality}"
        family = None if self.optimizer == "other" else self.optimizer
        by = "" if family is None else f" with {optimizer or _SHOWN.get(family, family)}"
        of = " (the loss is of a part of the tokens)" if self.partial else ""
        odd = "" if self.loss == PLAIN else f"; its loss is not in nats per token: {self.loss}"
        guess = f" ({self.guess})" if self.guess else ""
        return f"{START_NAMES[self.start or 'scratch']}{guess}: {kind}{on}{by}{of}{odd}"

    @property
    def tuned(self) -> bool:
        """The weights were trained before."""
        return self.start in ("continued", "finetuning", "adapter")

    @property
    def unit(self) -> str:
        """Of its losses; "": not known."""
        text = self.objective is None and self.modality in (None, "text")
        return PLAIN if self.loss == PLAIN and (text or self.objective in LANGUAGE) else ""

    @property
    def falls(self) -> bool:
        """Whether the loss is known to fall as the model learns: no adversary, no targets that move."""
        text = self.objective is None and self.modality in (None, "text")
        return text or self.objective not in (None, "headless", "reinforcement", "generative")

    @property
    def unlike_pretraining(self) -> str:
        """Why results on pretraining causal language models from scratch do not apply; "": they do."""
        what = "published sweeps are of dense causal language models, trained from scratch on text"
        if self.tuned:
            return f"{what}, and this is {START_NAMES[self.start or '']}"
        if self.experts:
            return f"{what}, and this one has experts"
        if self.objective not in (None, "causal"):
            return f"{what}, and this is {NAMES[self.objective]}"
        if self.modality not in (None, "text"):
            return f"{what}, and this is of {'another kind' if self.modality == 'other' else self.modality}"
        if self.partial:
            return f"{what}, and here a part of the tokens alone is predicted"
        return "" if self.loss == PLAIN else f"{what} in nats per token, and this loss is no such ({self.loss})"

    def differs(self, other: Task) -> str:
        """Why results of the other task do not apply to this one; "": none is known."""
        if self.experts != other.experts:
            return "a mixture of experts, and this one not" if other.experts else "no mixture of experts, as this one"
        if self.tuned != other.tuned:
            return "fine-tuning, and this one not" if other.tuned else "not fine-tuning, and this one is"
        for mine, its in ((self.objective, other.objective), (self.modality, other.modality)):
            if mine and its and mine != its:
                return f"of another task ({its}, not {mine})"
        odd = other.loss != self.loss and self.loss == PLAIN
        return f"its loss is not in nats per token: {other.loss}" if odd else ""

    def seen(
        self,
        first_loss: float | None,
        vocabulary: int | None,
        predicted: float | None,
        accumulate: int | None = None,
        of: str = "step",
        made_by: Collection[str] = (),
    ) -> Task:
        """The task as the first log step shows it. A model that knows nothing has a loss of ln V.

        Args:
            first_loss: the mean over the tokens of the first step, or `of` the first interval.
            vocabulary: number of tokens, V.
            predicted: share of the tokens that the loss is of.
            accumulate: micro-batches of a step.
            of: "step" or "interval".
            made_by: names of the loss's operators (`flops.totals.operators_of`).
        """
        least = (vocabulary or 0) >= LEAST_VOCABULARY[of]
        found = self._compared(first_loss if least else None, made_by)
        if predicted is not None and predicted < PREDICTED and self.objective in (None, "causal"):
            found = replace(found, partial=True)
        language = found.objective in (None, *LANGUAGE)
        if first_loss is None or not language or self.loss != PLAIN or not least:
            return found
        share, parts = first_loss / math.log(vocabulary or 0), accumulate or 1
        picked = any(each.startswith(("Nll", "Gather")) for each in made_by)
        if "LogSoftmax, all of it" in made_by and (picked or NOTHING < share < SOFT):
            whose = "smoothed labels, or also a teacher's" if picked else "a teacher's, less their entropy"
            return replace(found, loss=f"its targets are distributions ({whose})")
        if share < NOTHING and not self.tuned and "start" not in self.given:
            return replace(found, loss=f"its first value, {first_loss:.3g}, is no cross-entropy of text")
        divided = parts > 1 and abs(share * parts - 1) < NEAR
        if (share < KNOWS or divided) and not self.tuned and "start" not in self.given:
            twice, bytes_ = (
                f"or a loss divided by the {parts} micro-batches twice",
                "if it is in bits per byte or the like",
            )
            other = twice if divided else f'{bytes_}, pass task="pretraining"'
            return replace(found, start="continued", guess=f"its first loss is {share:.2g} of ln V; {other}")
        what = f"its first value, {first_loss:.3g}, is {share:.3g} times ln V, the loss of an untrained model"
        for odd, holds in (
            ("a sum over micro-batches", parts > 1 and abs(share / parts - 1) < NEAR),
            ("log2 V, bits", abs(share * math.log(2) - 1) < BITS),
            ("about V, a perplexity or a sum", PERPLEXITY[0] < first_loss / (vocabulary or 1) < PERPLEXITY[1]),
            ("a sum", share > SUM),
        ):
            if holds:
                return replace(found, loss=f"{what}: {odd}")
        return found

    def _compared(self, first_loss: float | None, made_by: Collection[str]) -> Task:
        """With the objective of losses that compare a text's log-probabilities: with a reference's, with another's."""
        if self.objective not in (None, "causal") or self.modality not in (None, "text"):
            return self
        even = first_loss is not None and self.loss == PLAIN and abs(first_loss / math.log(2) - 1) < HALF
        if "LogSoftmax, compared" in made_by or (even and not made_by):
            how = "by its loss, a log-sigmoid of log-probabilities" if made_by else "its first loss is ln 2"
            found = self.having(objective="preference")
        elif {"Exp, clipped", "Clamp, clipped", "LogSoftmax, clipped"} <= set(made_by):
            how, found = "by its loss, of clipped ratios of probabilities", self.having(objective="reinforcement")
        else:
            return self
        tuned = found if self.tuned else found.having(start="finetuning")
        return self if found == self else replace(tuned, guess=how)

    def having(self, **found: Any) -> Task:
        """The task with other values of fields, but for those that the user named."""
        return replace(self, **{name: value for name, value in found.items() if name not in self.given})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the record."""
        return {**asdict(self), "given": list(self.given)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """The inverse; fields that do not fit are left out."""
        kinds = {"experts": bool, "partial": bool, "given": list}
        known = {f.name: values[f.name] for f in fields(cls) if isinstance(values.get(f.name), kinds.get(f.name, str))}
        known |= {"given": tuple(map(str, known.get("given", ())))}
        return cls(**known)


def task_words(given: str | Iterable[str]) -> dict[str, str]:
    """The fields that `task=` sets.

    >>> task_words("finetuning, causal")
    {'start': 'finetuning', 'objective': 'causal'}

    Raises:
        ValueError: a word that is none, or two of one field.
    """
    text = given if isinstance(given, str) else " ".join(given)
    words = [word for word in re.split(r"[\s,+/]+", text.lower().replace("fine-tuning", "finetuning")) if word]
    words = [each for word in words for each in (("scratch", "causal", "text") if word == "pretraining" else (word,))]
    found: dict[str, str] = {}
    for word in words:
        if word not in WORDS or found.get(WORDS.get(word, ""), word) != word:
            known = ", ".join(("pretraining", *WORDS))
            raise ValueError(f"task= expects one word each of start, objective and modality ({known}), got {given!r}")
        found[WORDS[word]] = word
    if not found:
        raise ValueError(f"task= expects words such as 'pretraining' or 'finetuning causal', got {given!r}")
    return found


def recognise(
    names: Sequence[str],
    *,
    inputs: str | None = None,
    config: Mapping[str, Any] | None = None,
    table: bool | None = None,
    convolutions: bool = False,
    loaded: float | None = None,
    frozen: float = 0.0,
    adapter: bool = False,
    experts: bool = False,
    smoothing: float = 0.0,
    optimizers: Sequence[str] = (),
    given: Mapping[str, str] | None = None,
) -> Task:
    """The task by what is known before the first step.

    Args:
        names: of classes: the trainer's and its arguments', then the module's, its base classes', the model's.
        inputs: name of the model's main input, as Hugging Face has it.
        config: of the model.
        table: a table of embeddings; None: no model is known.
        convolutions: over two dimensions.
        loaded: share of the elements that came from a checkpoint; None: not known.
        frozen: share of the elements that do not train, without position tables.
        adapter: low-rank or prompt parameters beside the model's.
        experts: a mixture of experts.
        smoothing: of labels.
        optimizers: class names.
        given: `task_words`.
    """
    config = config or {}
    objective = next((word for name in names for word, text in _OBJECTIVE if re.search(text, name)), None)
    if config.get("is_encoder_decoder") and objective in (None, "causal"):
        objective = "seq2seq"
    modality = _INPUTS.get(inputs or "", "other" if inputs else None)
    if any(config.get(part) is not None for part in _OTHER_INPUTS):
        modality = "other"
    elif modality is None and table is not None:
        modality = "image" if convolutions else "text" if table else "other"  # a table of time steps or classes
    words: dict[str, Any] = dict(given or {})
    trained = ("preference", "reinforcement") if modality in (None, "text") else ("preference",)  # others' policies not
    tuned = words.get("objective", objective) in trained or any(re.search(_TUNING, name) for name in names)
    part = frozen >= FROZEN and (loaded or 0.0) < LOADED and not tuned and not adapter
    start = "adapter" if adapter else "finetuning" if tuned or frozen >= FROZEN or (loaded or 0.0) >= LOADED else None
    found = Task(
        start=start or "scratch",
        objective=objective,
        modality=modality,
        optimizer=family_of(optimizers),
        experts=experts,
        loss=f"labels are smoothed by {smoothing:g}" if smoothing else PLAIN,
        guess=f"{frozen:.0%} of its weights are frozen" if part and "start" not in words else "",
    )
    return replace(found, **words, given=tuple(words))


def task_of(recorded: Mapping[str, Any], parameters: Mapping[str, int | None], model: Mapping[str, Any]) -> Task:
    """A record's task; of records of earlier versions what sizes, class and configuration tell."""
    if recorded:
        return Task.from_dict(recorded)
    total, active, trainable = (parameters.get(name) for name in ("total", "active", "trainable"))
    config = model.get("config") if isinstance(model.get("config"), Mapping) else {}
    return recognise(
        [str(model.get("class") or "").rpartition(".")[2]],
        config=config,
        loaded=1.0 if config and config.get("_name_or_path") else None,
        frozen=1 - trainable / total if total and trainable is not None else 0.0,
        experts=bool(total and active and active < total),
    )


def family_of(optimizers: Sequence[str]) -> str | None:
    """The first family that one of the optimizers' classes is of: a mixture with Adam is named by the other.

    >>> family_of(["Muon", "AdamW"]), family_of(["AdamW8bit"]), family_of(["DAdaptAdam"]), family_of([])
    ('muon', 'adam', 'rate-free', None)
    """
    found = [next((name for name, text in _FAMILIES if re.search(text, each.lower())), "other") for each in optimizers]
    return next((name for name in found if name != "adam"), found[0] if found else None)

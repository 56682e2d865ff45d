"""What a run trains: recognised by classes, parameters and the first loss; the user's word comes first."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.flops.tokens import TokenCount
from isoflop.flops.totals import Operators, operators_of
from isoflop.live import RunInfo, describe_task, vocabulary_of
from isoflop.record import Task, read_runs, recognise, task_of, task_words
from trainers import LIGHTNING_NOISE, hf_arguments, lightning_module, lightning_trainer

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

GUESS = 'its first loss is 0.29 of ln V; if it is in bits per byte or the like, pass task="pretraining"'
DIVIDED = "its first loss is 0.25 of ln V; or a loss divided by the 4 micro-batches twice"
CAUSAL, MASKED = ["GPT2LMHeadModel"], ["BertForMaskedLM"]
SEEN = [
    (["TrainingArguments", *CAUSAL], {"inputs": "input_ids"}, "scratch causal text"),
    (CAUSAL, {"loaded": 1.0, "inputs": "input_ids"}, "finetuning causal text"),
    (["LitModule", *CAUSAL], {}, "scratch causal"),
    (MASKED, {"inputs": "input_ids"}, "scratch masked text"),
    (["BertForPreTraining"], {"loaded": 0.9}, "finetuning masked"),
    (["T5ForConditionalGeneration"], {"config": {"is_encoder_decoder": True}}, "scratch seq2seq"),
    (["WhisperForConditionalGeneration"], {"config": {"is_encoder_decoder": True}, "inputs": "input_features"},
     "scratch seq2seq audio"),
    (["LlavaForConditionalGeneration"], {"config": {"vision_config": {}}, "inputs": "input_ids"},
     "scratch causal other"),
    (["ViTForImageClassification"], {"inputs": "pixel_values"}, "scratch classification image"),
    (["BertForSequenceClassification"], {"loaded": 0.99}, "finetuning classification"),
    (["Wav2Vec2ForCTC"], {"inputs": "input_values"}, "scratch classification audio"),
    (["CLIPModel"], {}, "scratch contrastive"),
    (["SentenceTransformerTrainer", "BertModel"], {}, "scratch contrastive"),
    (["DPOTrainer", "DPOConfig", *CAUSAL], {}, "finetuning preference"),
    (["RewardTrainer", "LlamaForSequenceClassification"], {}, "finetuning preference"),
    (["GRPOTrainer", *CAUSAL], {}, "finetuning reinforcement"),
    (["SFTTrainer", "SFTConfig", *CAUSAL], {}, "finetuning causal"),
    (["PeftModelForCausalLM"], {"adapter": True, "frozen": 0.99}, "adapter causal"),
    (CAUSAL, {"frozen": 0.3}, "finetuning causal"),
    (["DiTPipeline"], {"convolutions": True, "table": False}, "scratch generative image"),
    (["ResNet"], {"convolutions": True, "table": False}, "scratch image"),
    (["GPT"], {"table": True}, "scratch text"),
    (["CharRNN"], {"table": True, "given": task_words("finetuning, classification")}, "finetuning classification text"),
    ([], {}, "scratch"),
    # what strangers train
    (["KTOTrainer", *CAUSAL], {}, "finetuning preference"),
    (["ORPOTrainer", *CAUSAL], {}, "finetuning preference"),
    (["CPOTrainer", *CAUSAL], {}, "finetuning preference"),
    (["BCOTrainer", *CAUSAL], {}, "finetuning preference"),
    (["PRMTrainer", "Qwen2ForTokenClassification"], {}, "finetuning preference"),
    (["OnlineDPOTrainer", *CAUSAL], {}, "finetuning reinforcement"),
    (["RLOOTrainer", *CAUSAL], {}, "finetuning reinforcement"),
    (["NashMDTrainer", *CAUSAL], {}, "finetuning reinforcement"),
    (["GKDTrainer", *CAUSAL], {}, "finetuning causal"),
    (["ActorModel", *CAUSAL], {"table": True}, "finetuning reinforcement text"),
    (["CriticModel"], {"table": True}, "finetuning reinforcement text"),
    (["PolicyNet"], {"table": False}, "scratch reinforcement other"),
    (["PreferenceModel"], {"table": True}, "finetuning preference text"),
    (["CrossEncoderTrainer", "BertForSequenceClassification"], {}, "scratch contrastive"),
    (["TripletNet"], {"table": False, "convolutions": True}, "scratch contrastive image"),
    (["DualEncoder"], {"table": True}, "scratch contrastive text"),
    (["SiglipModel"], {"config": {"vision_config": {}}}, "scratch contrastive other"),
    (["UNet2DConditionModel"], {"table": False, "convolutions": True}, "scratch generative image"),
    (["Unet"], {"table": False, "convolutions": True}, "scratch generative image"),
    (["GaussianDDPM"], {"table": False, "convolutions": True}, "scratch generative image"),
    (["DenoisingTransformer"], {"table": False}, "scratch generative other"),
    (["FlowMatchingModel"], {"table": False}, "scratch generative other"),
    (["DiT"], {"table": True, "convolutions": True}, "scratch generative image"),
    (["VisionTransformer"], {"table": False, "convolutions": True}, "scratch image"),
    (["ViTMAEForPreTraining"], {"inputs": "pixel_values"}, "scratch masked image"),
    (["MAE"], {"table": False, "convolutions": True}, "scratch masked image"),
    (["Dinov2ForImageClassification"], {"inputs": "pixel_values"}, "scratch classification image"),
    (["SegformerForSemanticSegmentation"], {"inputs": "pixel_values"}, "scratch classification image"),
    (["DetrForObjectDetection"], {"inputs": "pixel_values"}, "scratch classification image"),
    (["Wav2Vec2ForPreTraining"], {"inputs": "input_values"}, "scratch masked audio"),
    (["HubertForCTC"], {"inputs": "input_values", "loaded": 0.99}, "finetuning classification audio"),
    (["WhisperForConditionalGeneration"],
     {"config": {"is_encoder_decoder": True}, "inputs": "input_features", "loaded": 1.0}, "finetuning seq2seq audio"),
    (["T5ForConditionalGeneration"], {"config": {"is_encoder_decoder": True}, "adapter": True, "frozen": 0.9},
     "adapter seq2seq"),
    (["ElectraForPreTraining"], {"inputs": "input_ids"}, "scratch masked text"),
    (["ElectraForMaskedLM"], {"inputs": "input_ids"}, "scratch masked text"),
    (["MarianMTModel"], {"config": {"is_encoder_decoder": True}, "inputs": "input_ids"}, "scratch seq2seq text"),
    (["BertForQuestionAnswering"], {"loaded": 0.98, "inputs": "input_ids"}, "finetuning classification text"),
    (["PatchTSTForPrediction"], {"inputs": "past_values"}, "scratch regression other"),
    (["TimeSeriesTransformer"], {"table": False}, "scratch regression other"),
    (["MLP"], {"table": False}, "scratch other"),
    (["LightningModule", "LlamaForCausalLM"], {"inputs": "input_ids", "given": task_words("continued")},
     "continued causal text"),
    (["GPTModel"], {"table": True}, "scratch text"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "known", "words"), SEEN)
def test_what_is_recognised(names: list[str], known: dict[str, Any], words: str) -> None:
    found = recognise(names, **known)
    assert " ".join(word for word in (found.start, found.objective, found.modality) if word) == words
    again = Task.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found
    applies = set(words.split()) <= {"scratch", "causal", "text"}
    assert (found.unlike_pretraining == "") is applies


@pytest.mark.parametrize(
    ("optimizers", "family"),
    [
        (["AdamW"], "adam"), (["PagedAdamW8bit"], "adam"), (["Muon"], "muon"), (["AdamW", "Muon"], "muon"),
        (["DistributedShampoo"], "second-order"), (["SOAP"], "second-order"), (["Lion"], "sign"),
        (["Adafactor"], "adafactor"), (["SGD"], "sgd"), (["Mine"], "other"), ([], None), (["Lamb"], "layer-wise"),
        (["AdamWScheduleFree"], "rate-free"), (["Prodigy"], "rate-free"),
    ],
)  # fmt: skip
def test_families_of_optimizers(optimizers: list[str], family: str | None) -> None:
    assert recognise([], optimizers=optimizers).optimizer == family


@pytest.mark.parametrize(
    ("task", "known", "found"),
    [
        (Task(), (10.4, 50_000, 1.0), Task()),
        (Task(), (3.1, 50_000, 1.0), Task(start="continued", guess=GUESS)),  # weights that have learnt
        (Task(start="scratch", given=("start",)), (3.1, 50_000, 1.0), Task(start="scratch", given=("start",))),
        (Task(), (1.0, 64, 1.0, None, "interval"), Task()),  # of so few tokens the frequencies are learnt at once
        (Task(), (1.5, 65, 1.0), Task(start="continued", guess=GUESS.replace("0.29", "0.36"))),  # characters, loaded
        (Task(), (0.6, 7, 1.0), Task()),  # bases, and some marks
        (Task(), (10.4, 50_000, 0.15), Task(partial=True)),
        (Task(objective="classification"), (0.7, 50_000, 0.01), Task(objective="classification")),
        (Task(), (40.0, 50_000, 1.0), Task()),  # a bad initialisation
        (Task(), (-0.02, 50_000, 1.0), Task(loss="its first value, -0.02, is no cross-entropy of text")),  # a policy's
        (Task(), (None, None, None), Task()),
        (Task(), (10.82, 50_000, 1.0, 4), Task()),  # the mean over four micro-batches
        (Task(), (10.82 / 4, 50_000, 1.0, 4), Task(start="continued", guess=DIVIDED)),
    ],
)
def test_the_first_log_step_tells_more(task: Task, known: tuple[Any, ...], found: Task) -> None:
    assert task.seen(*known) == found


@pytest.mark.parametrize(
    ("first", "vocabulary", "accumulate", "odd"),
    [
        (8 * 10.7, 50_000, 8, "a sum over micro-batches"),
        (10.8 * 1024, 50_000, None, "a sum"),
        (8.02, 256, None, "log2 V, bits"),
        (15.7, 50_000, None, "log2 V, bits"),
        (238.0, 256, None, "about V, a perplexity or a sum"),
        (64 * 5.8, 256, None, "about V, a perplexity or a sum"),  # of 64 tokens
        (54e3, 50_000, None, "about V, a perplexity or a sum"),
    ],
)
def test_what_is_no_mean_in_nats_over_tokens(first: float, vocabulary: int, accumulate: int | None, odd: str) -> None:
    found = Task().seen(first, vocabulary, 1.0, accumulate)
    assert found.loss.endswith(f": {odd}") and "nats per token" in found.unlike_pretraining
    assert Task().differs(found).startswith("its loss is not in nats per token")


def test_words_that_are_none_are_refused() -> None:
    for given in ("fine", "causal masked", ""):
        with pytest.raises(ValueError, match=r"task= expects"):
            task_words(given)
    assert task_words(["fine-tuning", "text"]) == {"start": "finetuning", "modality": "text"}
    assert task_words("pretraining") == {"start": "scratch", "objective": "causal", "modality": "text"}


def test_records_of_earlier_versions_have_a_task_too() -> None:
    sizes: dict[str, int | None] = {"total": 100, "active": 40, "trainable": 100}
    assert task_of({}, sizes, {"class": "transformers.GPT2LMHeadModel"}) == Task(
        start="scratch", objective="causal", experts=True
    )
    assert task_of({}, {**sizes, "trainable": 3}, {}).start == "finetuning"
    assert task_of({"start": "adapter", "given": 3, "experts": "x"}, sizes, {}) == Task(start="adapter")


class Tied(nn.Module):
    """A table of positions that never trains, as a Whisper's sinusoids."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.positions = nn.Embedding(300, 8), nn.Embedding(1000, 8)
        self.positions.weight.requires_grad_(False)
        self.head = nn.Linear(8, 300, bias=False)


def test_weights_that_are_frozen_are_named_as_the_reason() -> None:
    """A model from scratch may have some, too: fixed embeddings."""
    assert str(recognise(CAUSAL, frozen=0.3)).startswith("fine-tuning (30% of its weights are frozen): a causal")
    assert "frozen" not in str(recognise(CAUSAL, frozen=0.3, given=task_words("scratch")))


def test_frozen_sinusoids_are_no_fine_tuning() -> None:
    net = Tied()
    optimizers = [torch.optim.SGD([net.head.weight], 0.1), torch.optim.AdamW([net.wte.weight])]
    found = describe_task(RunInfo(optimizer=optimizers), net)
    assert (found.start, found.modality, found.optimizer) == ("scratch", "text", "sgd")
    assert vocabulary_of(net) == 300 and vocabulary_of(nn.Linear(2, 2)) is None
    net.wte.weight.requires_grad_(False)
    assert describe_task(RunInfo(), net).start == "finetuning"
    assert describe_task(RunInfo(), net, "scratch").start == "scratch"


class Averaged(nn.Module):
    """Diffusion's weights beside their average, self-supervision's student beside its momentum teacher."""

    def __init__(self, same: bool = True) -> None:
        super().__init__()
        layers = lambda: nn.Sequential(nn.Embedding(300, 8), nn.Linear(8, 300))  # noqa: E731
        self.net = layers()
        self.shadow = (copy.deepcopy(self.net) if same else layers()).requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.net(ids)


def test_averaged_weights_are_no_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are not active, but no token passes them."""
    net = Averaged()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for _ in range(3):
            loss = nn.functional.cross_entropy(net(torch.arange(4)[None])[0], torch.arange(4))
            loss.backward()
            monitor.step(loss)
    assert "isoflop: training from scratch: a model on text" in capsys.readouterr().out
    sizes = read_runs(tmp_path)[0].parameters
    assert sizes["total"] == 2 * sizes["active"] and sizes["non_embedding_with_head"] == 300 * 8 + 300


def test_averaged_weights_are_no_fine_tuning() -> None:
    assert describe_task(RunInfo(), Averaged()).start == "scratch"
    assert describe_task(RunInfo(), Averaged(same=False)).start == "finetuning"  # a network of its own
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    layers[0].load_state_dict(layers[1].requires_grad_(False).state_dict())
    assert describe_task(RunInfo(), layers).start == "finetuning"


@pytest.mark.parametrize(("kind", "modality"), [(nn.Conv2d, "image"), (nn.Conv1d, "text")])
def test_a_table_of_time_steps_beside_convolutions_is_no_text(kind: type[nn.Module], modality: str) -> None:
    """A diffusion model's; of one dimension they stand in language models, too."""
    model = nn.ModuleDict({"time": nn.Embedding(1000, 8), "image": kind(1, 8, 3)})  # type: ignore[call-arg]
    assert describe_task(RunInfo(), model).modality == modality


class Halves(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def test_an_encoder_beside_a_decoder_is_sequence_to_sequence() -> None:
    """Both were causal language models. Of a recurrent model of words they are its table and its head."""
    half = lambda: nn.Sequential(nn.Embedding(300, 8), nn.Linear(8, 8))  # noqa: E731
    words = Halves(nn.Embedding(300, 8), nn.Linear(8, 300))
    torchs = nn.ModuleList([nn.Embedding(300, 8), nn.Transformer(8, 2, 1, 1, 16, batch_first=True)])
    found = [describe_task(RunInfo(), model).objective for model in (Halves(half(), half()), torchs, words)]
    assert found == ["seq2seq", "seq2seq", None]
    series = Halves(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)))
    masks = Halves(*(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Embedding(9, 3)) for _ in range(2)))
    assert [describe_task(RunInfo(), model).objective for model in (series, masks)] == [None, None]


def test_smoothed_labels_are_a_loss_of_their_own() -> None:
    net = nn.Sequential(nn.Embedding(300, 8), nn.Linear(8, 300), nn.CrossEntropyLoss(label_smoothing=0.1))
    assert "smoothed by 0.1" in describe_task(RunInfo(), net).unlike_pretraining
    assert "smoothed by 0.2" in describe_task(RunInfo(label_smoothing=0.2), nn.Linear(2, 2)).loss


class Clicks(nn.Module):
    """Of numbers [B, 13] and categories [B, 26], as recommenders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(2600, 8), nn.Linear(26 * 8 + 13, 1)

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([numbers, self.table(categories).flatten(1)], 1))


def test_a_table_of_categories_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Clicks()
    with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
        for i in range(3):
            loss = net(torch.randn(4, 13), torch.full((4, 26), i)).pow(2).mean()
            loss.backward()
            monitor.step(loss)
    (start,) = [line for line in capsys.readouterr().out.splitlines() if "training from scratch: a model" in line]
    assert "on text" not in start
    assert read_runs(tmp_path)[0].task.get("modality") == "other"


class Bigrams(nn.Sequential):
    """Logits for each of 300 tokens."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(300, 8), nn.Linear(8, 300))


F, ROWS = nn.functional, torch.arange(64).view(4, 16)


def log_probabilities(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Of each next token [4, 15]."""
    return net(rows[:, :-1]).log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)


def causal(net: nn.Module, rows: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return F.cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), label_smoothing=smoothing)


def compared(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """DPO's loss where the policy is its reference yet."""
    ratio = log_probabilities(net, rows)
    chosen, rejected = (ratio - ratio.detach()).sum(1).chunk(2)
    return -F.logsigmoid(chosen - rejected).mean()


def clipped(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """GRPO's."""
    now = log_probabilities(net, rows)
    ratio = (now - now.detach()).exp()
    return 3 - torch.min(ratio, ratio.clamp(0.8, 1.2)).mean()


def taught(net: nn.Module, rows: torch.Tensor, mixed: float = 0.0) -> torch.Tensor:
    """A divergence from a teacher that knows more, alone or with the cross-entropy."""
    found = net(rows[:, :-1]).log_softmax(-1)
    teacher = (9 * torch.arange(found.numel(), device=rows.device).float().sin()).view_as(found).softmax(-1)
    divergence = F.kl_div(found.flatten(0, 1), teacher.flatten(0, 1), reduction="batchmean")
    return (1 - mixed) * divergence + (mixed * causal(net, rows) if mixed else 0.0)


def by_hand(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return -log_probabilities(net, rows).mean()


def one_hot(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return -(F.one_hot(rows[:, 1:], 300) * net(rows[:, :-1]).log_softmax(-1)).sum(-1).mean()


def masked(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Of every fifth token alone."""
    chosen = rows % 5 == 0
    return F.cross_entropy(net(rows)[chosen], rows[chosen])


@pytest.mark.parametrize(
    ("loss_of", "start"),
    [
        (masked, "training from scratch: a model on text; (the loss is of a part of the tokens)"),
        (causal, "training from scratch: a model on text"),
        (by_hand, "training from scratch: a model on text"),
        (one_hot, "training from scratch: a model on text"),
        (compared, "fine-tuning (by its loss, a log-sigmoid of log-probabilities): preference training on text"),
        (clipped, "fine-tuning (by its loss, of clipped ratios of probabilities): reinforcement learning on text"),
        (taught, "training from scratch: a model on text; its loss is not in nats per token: its targets are distrib"),
        (partial(taught, mixed=0.5), "a model on text; its loss is not in nats per token: its targets are distrib"),
        (partial(causal, smoothing=0.1), "a model on text; its loss is not in nats per token: its targets are distrib"),
    ],
)
@pytest.mark.parametrize("trainer", ["loop", "lightning", "transformers"])
def test_a_loss_tells_what_is_trained_by_its_operators(
    loss_of: Any, start: str, trainer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DPO, GRPO and distillation by hand were taken for continued pretraining, or for pretraining from scratch."""
    torch.manual_seed(0)
    net = Bigrams()
    nn.init.normal_(net[1].weight, std=0.02)
    if trainer == "loop":
        with isoflop.Monitor(net, record_dir=tmp_path, log_every=1) as monitor:
            for _ in range(3):
                loss = loss_of(net, ROWS)
                loss.backward()
                monitor.step(loss)
    elif trainer == "transformers":
        transformers = pytest.importorskip("transformers")
        from isoflop.transformers import IsoFLOPCallback

        class Own(transformers.Trainer):  # type: ignore[misc,name-defined]
            def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
                return loss_of(model, inputs["input_ids"])

        arguments = hf_arguments(tmp_path, per_device_train_batch_size=4, remove_unused_columns=False)
        rows = [{"input_ids": row} for row in ROWS.repeat(3, 1)]
        own = Own(model=net, args=arguments, train_dataset=rows, callbacks=[IsoFLOPCallback()])
        own.train()
        assert "compute_loss" not in vars(own)
    else:
        package = pytest.importorskip("lightning.pytorch")
        from isoflop.lightning import IsoFLOPMonitor

        step = {"training_step": lambda self, batch, i: loss_of(self.net, batch)}
        watcher = IsoFLOPMonitor(record_dir=tmp_path, log_every=1)
        lightning_trainer(package, tmp_path, callbacks=[watcher]).fit(
            lightning_module(package, net, **step), torch.utils.data.DataLoader(ROWS.repeat(3, 1), batch_size=4)
        )
    line = next(line for line in capsys.readouterr().out.splitlines() if "on text" in line)
    assert all(part in line for part in start.split("; "))
    assert ("not in nats" in line) is ("not in nats" in start)


def test_a_graph_that_cannot_be_read_costs_nothing() -> None:
    assert operators_of(0.7) == operators_of(torch.tensor(0.7)) == Operators()
    found, part = operators_of(causal(Bigrams(), ROWS))
    assert part == 1.0
    assert "NllLoss" in found and not any("mm" in each.lower() for each in found)
    loss = torch.ones((), requires_grad=True)
    for _ in range(5000):  # a chain without a product
        loss = loss + 1
    assert operators_of(loss).names == {"Add", "Add, all of it"}


@pytest.mark.parametrize("how", ["index", "select", "masked", "rows"])
def test_padding_left_out_of_the_logits_is_no_mask(how: str, tmp_path: Path) -> None:
    """Where the attention mask shows that it is padding. Of chosen positions so few are a mask."""
    net, kept = Bigrams(), ROWS % 16 < 7

    def loss_of() -> torch.Tensor:
        logits, labels = net(ROWS), ROWS[kept]
        if how == "rows":
            pairs = zip(logits, ROWS, kept, strict=True)
            return sum(F.cross_entropy(a[k], b[k], reduction="sum") for a, b, k in pairs) / kept.sum()  # type: ignore
        if how == "select":
            return F.cross_entropy(logits.flatten(0, 1).index_select(0, kept.flatten().nonzero()[:, 0]), labels)
        chosen = logits[kept] if how == "index" else logits.masked_select(kept[..., None]).view(-1, 300)
        return F.cross_entropy(chosen, labels)

    def partial_with(padding: int, folder: Path) -> bool:
        with isoflop.Monitor(net, record_dir=folder, log_every=1) as monitor:
            loss = loss_of()
            loss.backward()
            monitor.step(loss, tokens=TokenCount(ROWS.numel(), padding))
        return bool(read_runs(folder)[0].task["partial"])

    assert operators_of(loss_of()).part == 7 / 16
    assert not partial_with(36, tmp_path / "padding")
    assert partial_with(0, tmp_path / "mask")


def test_losses_beside_cross_entropy_are_no_comparison() -> None:
    """Log-sigmoids, minima and clamps that no log-probabilities go through; a part of the vocabulary is no mask."""
    net = Bigrams()
    balanced = causal(net, ROWS) - 0.1 * F.logsigmoid(net[0](ROWS)).mean()
    each = F.cross_entropy(net(ROWS).flatten(0, 1), ROWS.flatten(), reduction="none")
    focal = ((1 - (-each).exp().clamp(1e-6, 1)) ** 2 * each).mean() + torch.minimum(net[0](ROWS).mean(), each[0] * 0)
    for loss in (balanced, focal):
        names, part = operators_of(loss)
        assert {"LogSoftmax"} < names and part == 1.0
        assert Task().seen(loss.item(), 300, 1.0, made_by=names).objective is None
    restricted = F.cross_entropy(net(ROWS).index_select(2, torch.arange(100)).flatten(0, 1), ROWS.flatten())
    assert operators_of(restricted).part == 1.0


@pytest.mark.parametrize(
    ("task", "first", "words"),
    [
        (Task(objective="causal", modality="text"), 0.6931, "fine-tuning (its first loss is ln 2): preference"),
        (Task(start="finetuning", objective="causal"), 0.6914, "fine-tuning (its first loss is ln 2): preference"),
        (Task(start="adapter"), 0.6931, "fine-tuning of an adapter (its first loss is ln 2): preference"),
        (Task(objective="causal"), 0.71, "continued pretraining"),
        (Task(objective="masked"), 0.6931, "continued pretraining"),
        (Task(start="scratch", objective="causal", given=("start", "objective")), 0.6931, "training from scratch: a c"),
    ],
)
def test_a_first_loss_of_ln_2_is_a_comparison(task: Task, first: float, words: str) -> None:
    """Where the loss comes as a number, without its graph."""
    assert str(task.seen(first, 50_000, 1.0)).startswith(words)

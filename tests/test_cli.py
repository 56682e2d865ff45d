"""`isoflop count` as its users meet it: every kind of MODEL, every option, and what it says when it can't."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import typer
from torch import nn
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.flops import context_of, parse_input
from isoflop.lightning import IsoFLOPMonitor
from models import TinyGPT, gpt2, gpt2_forward_flops, llama, llama_forward_flops
from trainers import LIGHTNING_NOISE, lightning_trainer

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

ROOT = Path(__file__).parents[1]
CONVENTIONS = ["total", "trainable", "non_embedding", "non_embedding_with_head", "active"]


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder, a path and modules of the test's own, no network, a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "120")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def run(*args: object) -> Any:
    return CliRunner().invoke(app, ["count", *map(str, args)], catch_exceptions=False)


def shown(*args: object) -> str:
    """What people see."""
    done = run(*args)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout)


def counted(*args: object) -> dict[str, Any]:
    """What machines read: one JSON object and nothing else on stdout."""
    found: dict[str, Any] = json.loads(shown(*args, "--json"))
    return found


def failed(*args: object) -> str:
    """What it says when it can't; stdout stays empty."""
    done = run(*args)
    assert (done.exit_code, done.stdout) == (1, "")
    before, ours, said = str(done.stderr).rpartition("isoflop count: ")
    assert ours and "Traceback" not in before + said
    return said.strip()


def test_a_hub_out_of_reach_is_given_up_after_one_try(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:9")
    assert failed("gpt2-of-nobody").startswith("'gpt2-of-nobody' is no file here, 127.0.0.1 is out of reach")


def saved(folder: Path, model: Any) -> Path:
    """A folder as on the hub, without weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder


def config(folder: Path, name: str, **sizes: Any) -> Path:
    """A folder with the configuration of a model class."""
    import transformers

    kind = getattr(transformers, name)
    made = kind.config_class(**sizes)
    made.architectures = [name]
    made.save_pretrained(folder)
    return folder


MODULE = """
import torch
from torch import nn
from models import TinyGPT

print("a user's remark while it is imported")
number = 3
a_model = TinyGPT()

def gpt():
    print("a user's remark while it is built")
    return TinyGPT()

def nothing():
    pass

def raises():
    raise KeyError("no such size")

def leaves():
    raise SystemExit(2)

def needs(width):
    return TinyGPT(width=width)

def image():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))

def reads_values():
    rates = [float(rate) for rate in torch.linspace(0, 0.1, 3)]
    return TinyGPT(dropout=rates[-1])

class Small(TinyGPT):
    pass

class Branching(TinyGPT):
    def forward(self, ids):
        x = self.words(ids)
        assert x.abs().max() < 100
        return self.out(x)

class Wrapped:
    model = TinyGPT

@torch.library.custom_op("isoflop_test_cli::fused", mutates_args=())
def fused(x: torch.Tensor) -> torch.Tensor:
    return x @ x.T

fused.register_fake(lambda x: x.new_empty(x.shape[0], x.shape[0]))
fused.register_autograd(lambda ctx, grad: None, setup_context=lambda ctx, inputs, output: None)

class Custom(nn.Embedding):
    def forward(self, ids):
        return fused(super().forward(ids).flatten(1))

def custom():
    return Custom(9, 4)
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    path = tmp_path / "zoo_of_the_cli.py"
    path.write_text(MODULE)
    return path


# -- Hugging Face configurations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "by_hand"), [(gpt2, gpt2_forward_flops), (llama, llama_forward_flops)])
def test_the_object_for_machines(build: Any, by_hand: Any, tmp_path: Path):
    model = build()
    found = counted(saved(tmp_path / "model", model), "--batch", 3, "--seq", 20)
    forward, total = by_hand(3, 20), model.num_parameters()
    attention = 3 * 2 * 4 * 3 * 20**2 * 32
    assert list(found) == ["parameters", "flops", "method", "uncounted", "notes"]
    assert list(found["parameters"]) == CONVENTIONS
    assert list(found["flops"]) == ["model", "hardware", "causal", "full", "6nd"]
    tables = 96 * 32 + (64 * 32 if build is gpt2 else 96 * 32)  # tokens and positions; tokens and the head
    without = total - tables
    expected = [total, total, without, without + 96 * 32, total]
    assert found["parameters"] == dict(zip(CONVENTIONS, expected, strict=True))
    assert found["flops"] == {
        "model": 3 * forward,
        "hardware": 3 * forward,
        "causal": 3 * forward - attention // 2,
        "full": 3 * forward,
        "6nd": 6 * without * 60,
    }
    assert all(type(value) is int for value in [*found["flops"].values(), *found["parameters"].values()])
    assert (found["method"], found["uncounted"], found["notes"]) == ("measured on the meta device", [], [])


def test_a_folder_and_its_file_are_the_same(tmp_path: Path):
    folder = saved(tmp_path / "model", gpt2())
    assert counted(folder) == counted(folder / "config.json")
    (tmp_path / "other.json").write_text((folder / "config.json").read_text())
    assert counted("other.json") == counted("model") == counted(folder)


def test_the_default_length_is_the_context(tmp_path: Path):
    folder = saved(tmp_path / "model", gpt2())
    assert counted(folder)["flops"]["model"] == 3 * gpt2_forward_flops(1, 64)
    long = saved(tmp_path / "long", gpt2(n_positions=2048))
    assert counted(long)["flops"]["model"] == 3 * gpt2_forward_flops(1, 1024)


def test_the_context_is_that_of_the_model_inside():
    assert context_of(nn.ModuleDict({"model": gpt2(n_positions=48)})) == 48
    assert context_of(nn.Linear(3, 3)) is None


def test_beyond_the_context_it_warns_and_stdout_stays_pure(tmp_path: Path):
    done = run(saved(tmp_path / "model", gpt2()), "--seq", 80, "--json")
    assert done.exit_code == 0
    assert "the model is made for 64 positions, fewer than --seq 80" in done.stderr
    assert json.loads(done.stdout)["flops"]["model"] == 3 * gpt2_forward_flops(1, 80)


def test_checkpointing_is_hardware_flops(tmp_path: Path):
    folder = saved(tmp_path / "model", llama())
    plain, again = counted(folder), counted(folder, "--checkpointing")
    assert again["flops"]["model"] == plain["flops"]["model"] == plain["flops"]["hardware"]
    assert again["flops"]["hardware"] > again["flops"]["model"]
    heads = [line.split() for line in shown(folder, "--checkpointing").splitlines() if line.startswith(" module")]
    assert heads == [["module", "parameters", "forward", "step", "hardware", "share"]]


def test_experts_are_active_or_not(tmp_path: Path):
    folder = config(
        tmp_path / "moe",
        "MixtralForCausalLM",
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=1,
        vocab_size=48,
    )
    found = counted(folder, "--seq", 8)
    idle = 2 * 3 * (3 * 16 * 24)
    assert found["parameters"]["active"] == found["parameters"]["total"] - idle
    assert found["flops"]["6nd"] == 6 * (found["parameters"]["non_embedding"] - idle) * 8


@pytest.mark.parametrize("layers", [2, pytest.param(80, marks=pytest.mark.slow)])
def test_a_70b_configuration_takes_no_memory(layers: int, tmp_path: Path):
    folder = config(
        tmp_path / "70b",
        "LlamaForCausalLM",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = counted(folder, "--seq", 4096, "--batch", 4)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    matrices = layers * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672) + 32000 * 8192
    total = matrices + 32000 * 8192 + (2 * layers + 1) * 8192
    assert found["parameters"]["total"] == total
    assert layers != 80 or total == 68_976_648_192  # Llama 2 "70B"
    assert found["flops"]["model"] == 3 * (2 * matrices * 4 * 4096 + layers * 4 * 4 * 4096**2 * 8192)
    assert grown < 1e6, "kB"  # where the weights alone are 9 GB or 276 GB


def test_without_architectures_the_usual_class_and_a_note(tmp_path: Path):
    import transformers

    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "vocab_size": 48}
    transformers.T5Config(**sizes).save_pretrained(tmp_path / "t5")
    done = run("t5", "--seq", 8, "--json")
    assert "counted as T5ForConditionalGeneration" in done.stderr  # both its stacks
    known = json.loads((tmp_path / "t5" / "config.json").read_text())
    (tmp_path / "later.json").write_text(json.dumps({**known, "architectures": ["T5ForTimeTravel"]}))
    assert "transformers has no T5ForTimeTravel: counted as T5ForCond" in run("later.json", "--seq", 8).stderr
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertConfig(**small, vocab_size=48).save_pretrained(tmp_path / "bert")
    assert "counted as BertForMaskedLM" in run("bert", "--seq", 8).stderr
    both = {"text_config": {**small, "vocab_size": 99}, "vision_config": {**small, "image_size": 16, "patch_size": 8}}
    transformers.CLIPConfig(**both, projection_dim=8).save_pretrained(tmp_path / "clip")
    done = run("clip")
    assert "counted as CLIPModel" in done.stderr and "pixel_values=1×3×16×16:float32" in done.stdout


def test_quantised_configurations_count_as_what_they_stand_for(tmp_path: Path):
    folder = saved(tmp_path / "model", llama())
    plain = counted(folder)
    known = json.loads((folder / "config.json").read_text())
    known["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(known))
    assert counted(folder) == plain


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "got the folder model, without a config.json"),
        ({"config.json": "{"}, "is not a valid JSON file"),
        ({"config.json": '{"vocab_size": 3}'}, 'model/config.json has no "model_type"'),
        ({"config.json": '{"model_type": "nobody\'s"}'}, "transformers can open"),
    ],
)
def test_folders_that_hold_no_model(files: dict[str, str], message: str, tmp_path: Path):
    (tmp_path / "model").mkdir()
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text)
    assert message in failed("model")


def test_code_beside_a_configuration_is_run_if_trusted(tmp_path: Path):
    folder = tmp_path / "own"
    folder.mkdir()
    maps = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": maps, "architectures": ["Own"]}))
    (folder / "own.py").write_text(
        "from torch import nn\n"
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "class OwnConfig(PreTrainedConfig):\n"
        "    model_type = 'own'\n"
        "class OwnModel(PreTrainedModel):\n"
        "    config_class = OwnConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 9)\n"
        "        self.post_init()\n"
        "    def forward(self, input_ids):\n"
        "        return self.out(self.embed(input_ids))\n"
    )
    assert "brings code of its own: pass --trust" in failed("own")
    assert counted("own", "--trust", "--seq", 5)["flops"]["model"] == 3 * 2 * 5 * 4 * 9


def test_names_that_are_nothing():
    message = failed("no-such-model")
    assert "expected a Hugging Face config.json or a folder with one" in message
    assert "there is no file no-such-model, nor a model on the hub" in message
    assert failed("./nothing").endswith("there is no file ./nothing")
    assert failed("nothing.ckpt").endswith("there is no file nothing.ckpt")


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_function_of_a_module_or_a_file(zoo: Path):
    forward = TinyGPT().forward_flops(2, 16)[0]
    for source in ("zoo_of_the_cli:gpt", zoo, "zoo_of_the_cli.py"):
        source = source if source == "zoo_of_the_cli:gpt" else f"{source}:gpt"
        found = counted(source, "--batch", 2, "--seq", 16)
        assert found["flops"]["model"] == 3 * forward
        assert found["parameters"]["total"] == sum(parameter.numel() for parameter in TinyGPT().parameters())
        assert found["flops"]["6nd"] == 6 * TinyGPT().block_parameters() * 32


def test_what_users_print_goes_to_stderr(zoo: Path):
    done = run(f"{zoo}:gpt", "--json")
    json.loads(done.stdout)
    assert "a user's remark while it is imported" in done.stderr
    assert "a user's remark while it is built" in done.stderr


@pytest.mark.parametrize("name", ["Small", "a_model", "Wrapped.model", "reads_values"])
def test_whatever_makes_a_model_will_do(name: str, zoo: Path):
    assert counted(f"{zoo}:{name}", "--seq", 16)["flops"]["model"] == 3 * TinyGPT().forward_flops(1, 16)[0]


def test_a_librarys_module_of_the_same_name_stays(zoo: Path):
    import textwrap

    (zoo.parent / "textwrap.py").write_text(MODULE)
    assert counted(f"{zoo.parent}/textwrap.py:gpt", "--seq", 16)["flops"]["model"] > 0
    assert sys.modules["textwrap"] is textwrap


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "to return a torch.nn.Module, got NoneType"),
        ("raises", "the model can't be built: KeyError: 'no such size'"),
        ("leaves", "the model can't be built: SystemExit: 2"),
        ("needs", "missing 1 required positional argument: 'width'; it is called without arguments: write a function"),
        ("number", "zoo_of_the_cli:number to be a function that builds a model, got int"),
        ("gpd", "zoo_of_the_cli has no 'gpd'; is it gpt?"),
        ("Small.xyz", "zoo_of_the_cli has no 'Small.xyz'"),
        ("", "expected module:name or file.py:name, got 'zoo_of_the_cli:'"),
    ],
)
def test_functions_that_build_no_model(name: str, message: str, zoo: Path):
    assert message in failed(f"zoo_of_the_cli:{name}")


def test_modules_that_cant_be_imported(zoo: Path):
    assert "nowhere can't be imported: ModuleNotFoundError: No module named 'nowhere'" in failed("nowhere:gpt")
    assert failed("nowhere.py:gpt") == "there is no file nowhere.py"
    (zoo.parent / "broken.py").write_text("import torch\n1 / 0\n")
    assert failed("broken.py:gpt") == "broken.py can't be imported: ZeroDivisionError: division by zero"
    (zoo.parent / "script.py").write_text("raise SystemExit('usage: script')\n")
    assert failed("script.py:gpt") == "script.py can't be imported: SystemExit: usage: script"
    assert failed(zoo.name).endswith("name its function that builds the model, zoo_of_the_cli.py:function")


def test_a_branch_on_values_is_told(zoo: Path):
    found = counted(f"{zoo}:Branching", "--seq", 16)
    assert found["flops"]["model"] == 3 * 2 * 16 * 16 * 48
    assert found["method"].startswith("measured on one real step (Branching can't run on the meta device (it depends")
    text = shown(f"{zoo}:Branching", "--seq", 16)
    assert "Counted by: measured on one real step" in text
    assert "No better method was possible: Branching can't run on the meta device" in text
    assert "out" in text  # the tree


def test_an_operator_without_a_formula_is_named(zoo: Path):
    assert counted(f"{zoo}:custom")["uncounted"] == ["isoflop_test_cli::fused"]
    assert "Counted 0, for no formula is known: isoflop_test_cli::fused" in shown(f"{zoo}:custom")


def test_a_model_that_eats_no_tokens_needs_its_input(zoo: Path):
    message = failed(f"{zoo}:image")
    assert "with input=1×1024:int64: Sequential does not run on these inputs" in message
    assert "Say with --input name=shape:dtype what training gives the model" in message
    found = counted(f"{zoo}:image", "--input", "input=Bx3x8x8", "--batch", 5)
    products = [2 * 5 * 36 * 27 * 4, 2 * 5 * 144 * 10]
    assert found["flops"]["model"] == 2 * products[0] + 3 * products[1]  # the image needs no gradient
    assert found["flops"]["6nd"] is None
    assert "6·N·D is unknown" in shown(f"{zoo}:image", "--input", "input=Bx3x8x8")
    message = failed(f"{zoo}:image", "--input", "x=Bx3x8x8")
    assert "can't be called with x=1×3×8×8:float32" in message and "It takes input" in message


def test_checkpointing_of_a_model_that_has_none(zoo: Path):
    assert failed(f"{zoo}:gpt", "--checkpointing").startswith("--checkpointing: TinyGPT has no gradient_checkpoint")


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "size", "dtype"),
    [
        ("pixel_values=8x3x224x224:float32", "pixel_values", (8, 3, 224, 224), torch.float32),
        ("labels=BxS:int64", "labels", (4, 7), torch.int64),
        ("x = b×s×16 : torch.bfloat16", "x", (4, 7, 16), torch.bfloat16),
        ("labels=B", "labels", (4,), torch.int64),
        ("decoder_input_ids=B,64", "decoder_input_ids", (4, 64), torch.int64),
        ("image=(2, 3, 8, 8)", "image", (2, 3, 8, 8), torch.float32),
        ("attention_mask=BxS:bool", "attention_mask", (4, 7), torch.bool),
    ],
)
def test_inputs_as_people_write_them(text: str, name: str, size: Any, dtype: torch.dtype):
    found, shape = parse_input(text, 4, 7)
    assert (found, shape.size, shape.dtype) == (name, size, dtype)


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("labels", "got 'labels'"),
        ("labels=", "got 'labels='"),
        ("1a=3:int64", "got '1a=3:int64'"),
        ("labels=Bx0:int64", "got the size '0' in 'labels=Bx0:int64'"),
        ("labels=BxN:int64", "got the size 'N'"),
        ("labels=B:integer", "got the dtype 'integer'"),
        ("labels=B:nn", "got the dtype 'nn'"),
    ],
)
def test_inputs_that_are_none(text: str, came: str, tmp_path: Path):
    message = failed(saved(tmp_path / "model", gpt2()), "--input", text)
    assert message.startswith("expected --input name=shape:dtype, such as pixel_values=8x3x224x224:float32")
    assert came in message


def test_an_image_model(tmp_path: Path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    folder = config(tmp_path / "vit", "ViTForImageClassification", **sizes, image_size=32, patch_size=8)
    patches, d = 16, 16
    per_image = 2 * ((patches + 1) * 2 * (4 * d * d + 2 * d * 32)) + 2 * 4 * (patches + 1) ** 2 * d + 2 * d * 2
    embedding = 2 * patches * 3 * 8 * 8 * d  # its input needs no gradient
    found = counted(folder, "--batch", 3)
    assert found["flops"]["model"] == 3 * (3 * per_image + 2 * embedding)
    assert found["flops"]["6nd"] is None
    assert found == counted(folder, "--input", "pixel_values=3x3x32x32:float32")
    # D as the user says it
    assert counted(folder, "--seq", 17)["flops"]["6nd"] == 6 * found["parameters"]["non_embedding"] * 17


def test_an_image_without_a_size_is_asked_for(tmp_path: Path):
    folder = config(tmp_path / "net", "ResNetForImageClassification", embedding_size=8, hidden_sizes=[8], depths=[1])
    assert "such as --input pixel_values=Bx3x224x224:float32" in failed(folder)
    assert counted(folder, "--input", "pixel_values=Bx3x32x32:float32")["flops"]["model"] > 0


def whisper(folder: Path) -> Path:
    return config(
        folder,
        "WhisperForConditionalGeneration",
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=48,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


def whisper_flops(batch: int, target: int) -> int:
    """By hand: two convolutions over 40 and 20 frames, one layer of either stack, the head."""
    d, source = 16, 20
    stem = 2 * batch * (40 * 8 * 3 * d * 2 + source * d * 3 * d * 3)  # the first: its input needs no gradient
    layer = 2 * source * (4 * d * d + 2 * d * 32) + 4 * source**2 * d
    cross = 2 * target * 2 * d * d + 2 * source * 2 * d * d + 4 * target * source * d
    decoder = 2 * target * (4 * d * d + 2 * d * 32) + 4 * target**2 * d + cross
    return stem + 3 * batch * (layer + decoder + 2 * target * d * 48)


def test_speech(tmp_path: Path):
    folder = whisper(tmp_path / "whisper")
    assert counted(folder, "--batch", 2)["flops"]["model"] == whisper_flops(2, 12)
    assert counted(folder, "--seq", 5)["flops"]["model"] == whisper_flops(1, 5)
    labels = counted(folder, "--input", "labels=Bx7:int64", "--batch", 2)
    assert labels["flops"]["model"] == whisper_flops(2, 7)
    assert "made for 12 positions, fewer than --seq 30" in run(folder, "--seq", 30).stderr


def test_an_encoder_decoder_with_sides_of_two_lengths(tmp_path: Path):
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "vocab_size": 48}
    folder = config(tmp_path / "t5", "T5ForConditionalGeneration", **sizes)
    d, s, t = 16, 12, 5

    def by_hand(s: int, t: int) -> int:
        encoder = 2 * s * (4 * d * d + 2 * d * 32) + 4 * s * s * d
        cross = 2 * t * 2 * d * d + 2 * s * 2 * d * d + 4 * t * s * d
        decoder = 2 * t * (4 * d * d + 2 * d * 32) + 4 * t * t * d + cross
        return 3 * (2 * (encoder + decoder) + 2 * t * d * 48)

    given = ["--input", f"input_ids=Bx{s}:int64"]
    for name in ("labels", "decoder_input_ids"):
        found = counted(folder, *given, "--input", f"{name}=Bx{t}:int64", "--batch", 3)
        assert found["flops"]["model"] == 3 * by_hand(s, t)
        assert found["flops"]["6nd"] == 6 * found["parameters"]["non_embedding"] * 3 * s
    assert counted(folder, "--seq", s)["flops"]["model"] == by_hand(s, s)


def test_audio_has_no_length_of_its_own(tmp_path: Path):
    folder = config(tmp_path / "audio", "Wav2Vec2ForCTC", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert "takes input_values, whose shape its configuration does not state" in failed(folder)
    assert "--input input_values=Bx160000:float32" in failed(folder)


def test_a_slip_of_the_pen_is_told(tmp_path: Path):
    done = run(saved(tmp_path / "model", gpt2()), "--input", "lables=BxS:int64")
    assert "GPT2LMHeadModel.forward names no input 'lables'" in done.stderr


@pytest.mark.parametrize("seq", [16, 10**8])  # run for real, and too large for that
def test_inputs_that_dont_fit_are_an_error_and_no_estimate(seq: int, tmp_path: Path, monkeypatch: Any):
    if seq > 64:
        monkeypatch.setattr("isoflop.flops.count.RUN_AT_MOST", 0)
    message = failed(saved(tmp_path / "model", gpt2()), "--seq", 16, "--input", "labels=1x4:int64")
    assert "with labels=1×4:int64, input_ids=1×16:int64: GPT2LMHeadModel " in message
    assert "Expected input batch_size (16) to match target batch_size (4)" in message


# -- Lightning's checkpoints -------------------------------------------------------------------------------------------

LIT = """
import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from dataclasses import dataclass
from torch import nn

class Lit(lightning.LightningModule):
    def __init__(self, width=16, vocabulary=40):
        super().__init__()
        self.save_hyperparameters()
        self.embed, self.out = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.out(self.embed(x)).flatten(0, 1), y.flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

@dataclass
class Sizes:
    width: int = 8
    vocabulary: int = 40

class FromObject(Lit):
    def __init__(self, sizes):
        super().__init__(sizes.width, sizes.vocabulary)
        self.save_hyperparameters()

class Unsaved(Lit):
    def __init__(self, width):
        lightning.LightningModule.__init__(self)
        self.embed, self.out = nn.Embedding(40, width), nn.Linear(width, 40)

class Image(Lit):
    def __init__(self):
        lightning.LightningModule.__init__(self)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with lit_of_the_cli.py and checkpoints of its modules after a step."""
    folder = tmp_path_factory.mktemp("lightning")
    (folder / "lit_of_the_cli.py").write_text(LIT)
    module = types.ModuleType("lit_of_the_cli")
    sys.modules["lit_of_the_cli"] = module
    exec(compile(LIT, str(folder / "lit_of_the_cli.py"), "exec"), vars(module))
    ids, images = torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, 3, 8, 8)

    def train(name: str, model: Any, batch: Any, *callbacks: Any) -> None:
        trainer = lightning_trainer(lightning, folder, max_steps=1, callbacks=list(callbacks), logger=False)
        trainer.fit(model, DataLoader(list(zip(*batch, strict=True)), batch_size=2))
        trainer.save_checkpoint(folder / f"{name}.ckpt")

    watch = IsoFLOPMonitor(record_dir=str(folder / "record"))
    train("watched", module.Lit(), (ids, ids), watch)  # type: ignore[attr-defined]
    assert not watch.guard.aside
    train("plain", module.Lit(), (ids, ids))  # type: ignore[attr-defined]
    train("objects", module.FromObject(module.Sizes()), (ids, ids))  # type: ignore[attr-defined]
    train("unsaved", module.Unsaved(16), (ids, ids))  # type: ignore[attr-defined]
    train("image", module.Image(), (images, ids[:, 0]))  # type: ignore[attr-defined]
    torch.save(module.Lit().state_dict(), folder / "weights.pt")  # type: ignore[attr-defined]
    (folder / "corrupt.ckpt").write_bytes((folder / "plain.ckpt").read_bytes()[:-200])
    (folder / "text.ckpt").write_text("no checkpoint")
    yield folder
    del sys.modules["lit_of_the_cli"]


@pytest.fixture
def lit(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(checkpoints)
    return "lit_of_the_cli"


def lit_flops(batch: int, length: int, width: int = 16) -> int:
    return 3 * 2 * batch * length * width * 40


def test_a_watched_run_knows_its_class(lit: str):
    message = failed("watched.ckpt", "--batch", 2, "--seq", 8)
    assert "is of the class lit_of_the_cli:Lit" in message and "--class lit_of_the_cli:Lit" in message
    found = counted("watched.ckpt", "--batch", 2, "--seq", 8, "--trust")
    assert found["flops"]["model"] == lit_flops(2, 8)
    assert found["parameters"]["total"] == 40 * 16 + 16 * 40 + 40
    text = shown("watched.ckpt", "--batch", 2, "--seq", 8, "--class", "lit_of_the_cli:Lit")
    assert "one training step on batch=(2×8:int64, 2×8:int64)" in text


@pytest.mark.parametrize("trust", [False, True])
def test_a_file_that_a_checkpoint_names_is_never_run(tmp_path: Path, trust: bool):
    planted = tmp_path / "planted.py"
    planted.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    state = {"IsoFLOPMonitor": {"module": f"{planted}:Model"}}
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": {}, "callbacks": state}, tmp_path / "model.ckpt")
    assert "names a file" in failed(tmp_path / "model.ckpt", *(["--trust"] if trust else []))
    assert not (tmp_path / "ran").exists()


def test_an_absurd_model_ends_with_a_sentence(tmp_path: Path):
    (tmp_path / "endless.py").write_text("def build():\n    while True:\n        pass\n")
    (tmp_path / "huge.py").write_text("def build():\n    return bytearray(10**15)\n")
    assert "not counted within 2 s" in failed(f"{tmp_path}/endless.py:build", "--limit", 2)
    assert "memory" in failed(f"{tmp_path}/huge.py:build").lower()


def test_another_run_asks_for_it(lit: str):
    assert "pass --class module:Class or --class file.py:Class" in failed("plain.ckpt")
    for place in (f"{lit}:Lit", f"{lit}.py:Lit", f"{Path.cwd()}/{lit}.py:Lit"):
        assert counted("plain.ckpt", "--class", place, "--seq", 8)["flops"]["model"] == lit_flops(1, 8)


def test_a_class_that_is_elsewhere(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    lit = "lit_of_the_cli"
    monkeypatch.delitem(sys.modules, lit)
    message = failed(checkpoints / "watched.ckpt", "--trust")
    assert f"is of the class {lit}:Lit, but {lit} can't be imported" in message
    assert "pass --class file.py:Class" in message


def test_hyperparameters_that_are_objects_want_trust(lit: str):
    message = failed("objects.ckpt", "--class", f"{lit}:FromObject")
    assert "holds Python objects (lit_of_the_cli.Sizes)" in message and "pass --trust" in message
    found = counted("objects.ckpt", "--class", f"{lit}:FromObject", "--trust", "--seq", 8)
    assert found["flops"]["model"] == lit_flops(1, 8, width=8)


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("weights.pt", "Lit", "weights.pt was not saved by Lightning: pass module:function"),
        ("corrupt.ckpt", "Lit", "got corrupt.ckpt, which torch.save did not write, or not to its end"),
        ("text.ckpt", "Lit", "got text.ckpt, which torch.save did not write"),
        (
            "plain.ckpt",
            "Image",
            "plain.ckpt can't be loaded as lit_of_the_cli:Image: RuntimeError: Error(s) in loading",
        ),
        ("plain.ckpt", "Sizes", "expected lit_of_the_cli:Sizes to be a LightningModule"),
        ("plain.ckpt", "Let", "lit_of_the_cli has no 'Let'; is it Lit?"),
        ("unsaved.ckpt", "Unsaved", "What save_hyperparameters() did not save is not in it: pass module:function"),
    ],
)
def test_checkpoints_that_cant_be_opened(lit: str, name: str, place: str, message: str):
    assert message in failed(name, "--class", f"{lit}:{place}")


def test_a_batch_that_is_no_tokens(lit: str):
    message = failed("image.ckpt", "--class", f"{lit}:Image")
    assert message.count("Image does not run on these inputs") == 3  # a pair, a dict, tokens alone
    inputs = ["--input", "x=Bx3x8x8:float32", "--input", "y=B:int64"]
    found = counted("image.ckpt", "--class", f"{lit}:Image", *inputs, "--batch", 4)
    assert found["flops"]["model"] == 2 * 2 * 4 * 192 * 10  # the image needs no gradient


# -- what people see ---------------------------------------------------------------------------------------------------


def test_the_output_for_people(tmp_path: Path):
    text = shown(saved(tmp_path / "tiny", gpt2()), "--batch", 2, "--seq", 16)
    assert text.startswith("tiny · one training step on input_ids=2×16:int64\n")
    for words in (
        "Parameters N, counted by use in a traced forward pass",
        *CONVENTIONS,
        "Kaplan 2020",
        "1 multiply-add = 2",
        "6·N·D",
        "Counted by: measured on the meta device",
    ):
        assert words in text, words
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert f"{3 * gpt2_forward_flops(2, 16):.4e}" in lines["model"]
    assert "100.0%" in lines["model"]
    tree = [line for line in text.splitlines() if line.lstrip().startswith(("(model)", "├", "└", "│"))]
    assert tree[0].split()[:2] == ["(model)", "GPT2LMHeadModel"]
    (blocks,) = [line for line in tree if "h.0–1 " in line]  # a list and its layers are one row
    assert "2× GPT2Block" in blocks
    assert any("c_attn" in line for line in tree)
    assert tree[-1].startswith(" └ lm_head")
    assert not any("dropout" in line or "ModuleList" in line for line in tree)


def test_depth(tmp_path: Path):
    folder = saved(tmp_path / "tiny", gpt2())
    assert "By module" not in shown(folder, "--depth", 0)
    one, two = shown(folder, "--depth", 1), shown(folder, "--depth", 2)
    assert "├ transformer" in one and "└ lm_head" in one and "wte" not in one
    assert "│ ├ wte" in two and "ln_1" not in two


@pytest.mark.parametrize("checkpointing", [(), ("--checkpointing",)])
def test_a_narrow_terminal(checkpointing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    folder = config(tmp_path / "llama-1b", "LlamaForCausalLM", num_hidden_layers=4)
    lines = shown(folder, *checkpointing).splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if "post_attention_layernorm" in line]
    assert "16,384" in row and row.rstrip().endswith("0.0%")
    assert not any("…" in line for line in lines if "e+" in line and "×" not in line and "(model)" not in line)


def test_help_is_quick_and_complete():
    done = CliRunner().invoke(app, ["--help"])
    assert "count" in done.stdout
    text = CliRunner().invoke(app, ["count", "--help"], env={"COLUMNS": "200"}).stdout
    options = ("--batch", "--seq", "--input", "--compare", "--json", "--checkpointing", "--depth", "--class", "--trust")
    assert all(option in text for option in options)
    assert "at most 1024" in " ".join(text.split())


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [*commands(typer.main.get_command(app))], ids=" ".join)
def test_every_command_has_its_help(path: tuple[str, ...]):
    """Brackets in a help are no markup."""
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.exception
    if path == ("import",):
        assert "wandb:entity/project[/run] or mlflow:<tracking URI>[#experiment]" in " ".join(done.stdout.split())


@pytest.mark.parametrize("args", [("--batch", "0"), ("--seq", "-1"), ("--seq", "x"), ("--depth", "-1"), ("--nothing",)])
def test_options_that_cant_be(args: Any, tmp_path: Path):
    done = run("somewhere", *args)
    assert done.exit_code == 2 and args[0] in done.stderr


# -- in a process of its own -------------------------------------------------------------------------------------------


def python(*args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "integrations")])}
    return subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=120)


def test_as_a_command(tmp_path: Path):
    folder = saved(tmp_path / "tiny", gpt2())
    done = python("-m", "isoflop", "count", str(folder), "--batch", "2", "--seq", "16", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["flops"]["model"] == 3 * gpt2_forward_flops(2, 16)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import isoflop", {"torch", "typer", "rich", "numpy"}),
        ("import isoflop.cli", {"torch", "rich", "numpy", "msgspec"}),
        ("from isoflop.fit.plan import plan\nplan(1e21)", {"torch", "scipy", "rich"}),
    ],
)
def test_what_is_not_needed_is_not_loaded(code: str, absent: set[str]):
    done = python("-c", f"{code}\nimport sys\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {name.partition(".")[0] for name in done.stdout.split()} & absent


def test_the_version_is_printed() -> None:
    from isoflop import __version__

    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.output == f"isoflop {__version__}\n"

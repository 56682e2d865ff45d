"""What the documentation shows runs as printed: its Python blocks and its commands; its tables are the code's."""

from __future__ import annotations

import csv
import gc
import importlib.util
import json
import os
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.cli.report import unpack
from isoflop.guard import BOUNDARIES
from isoflop.live import AXES, SCALARS, Options, OptionsDict
from report_files import write_all
from study_runs import sweep
from test_backtest_cli import folder_of_curves
from workers import forking

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "config.json": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, **TINY},
    "vit/config.json": {"model_type": "vit", "architectures": ["ViTForImageClassification"], **TINY},
    "t5/config.json": {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": 64,
        "num_layers": 2,
    },
}
MODULES = {
    "my_models.py": """
from transformers import GPT2Config, GPT2LMHeadModel

def build_gpt():
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64))
""",
    "my_module.py": """
import lightning
import torch

class LitModel(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(64, 8)

    def forward(self, ids):
        return self.embed(ids)
""",
}
"""What the reader would have written."""
ELSEWHERE = {
    "isoflop ladder run": "trains a ladder: test_ladder_run",
    "isoflop ladder fit": "needs a trained ladder: test_ladder_fit",
    "isoflop count llava-1.5-7b/": "the configuration of a published model: test_count",
    "isoflop count qwen2-vl/": "the same",
}
"""What the documentation shows and this file does not run, and the tests that run its like."""


def blocks(language: str) -> dict[str, str]:
    """The fenced blocks of a language, by page and number."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = {}
    for page in PAGES:
        of_language = [text for tag, text in fence.findall(page.read_text(encoding="utf-8")) if tag == language]
        found |= {f"{page.stem}-{i}": text for i, text in enumerate(of_language, 1)}
    return found


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for text in blocks("sh").values() for line in text.splitlines()]
    return [line for line in dict.fromkeys(lines) if line.startswith("isoflop ")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the reader has: records, a table of runs, configurations, logs of another trainer."""
    desk = tmp_path_factory.mktemp("desk")
    runs = sweep((1e18, 1e19, 1e20), 5, noise=0.002)
    write_all(desk / "runs", runs[:10])
    (desk / "runs/isoflop-20261122-051233-a1b2c3.jsonl").write_bytes(next((desk / "runs").glob("*.jsonl")).read_bytes())
    with (desk / "runs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("N", "D", "loss", "outlier"))
        for run in runs:
            last = run.points[-1]
            table.writerow((run.parameters["non_embedding_with_head"], last.tokens, last.losses["train"], 0))
    log = "step,tokens,train_loss\n" + "".join(f"{n},{n * 4096},{3 + 9 / n}\n" for n in range(10, 500, 10))
    named = {
        "llama-70b/config.json": "config.json",
        "path/to/config.json": "config.json",
        "outputs/config.json": "config.json",
    }
    texts = {name: json.dumps(model) for name, model in MODELS.items()}
    texts |= {name: texts[source] for name, source in named.items()}
    texts |= {"outputs/metrics.csv": log, "lightning_logs/version_0/metrics.csv": log}
    for name, text in texts.items():
        (desk / name).parent.mkdir(parents=True, exist_ok=True)
        (desk / name).write_text(text)
    for name, text in MODULES.items():
        (desk / name).write_text(text)
    weights = {"state_dict": {"embed.weight": torch.zeros(64, 8)}, "hyper_parameters": {}}
    torch.save({**weights, "pytorch-lightning_version": "2.6.0"}, desk / "runs/last.ckpt")
    folder_of_curves(desk / "curves", {"a/one": 2.0, "a/two": 2.2, "b/three": 2.4})
    return desk


def run_as_script(code: str, folder: Path, output: Path) -> None:
    """Of a process of its own: forked, so that torch and the trainers are imported once for all."""
    gc.freeze()  # as workers do
    os.chdir(folder)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="0")
    torch.set_num_threads(1)
    exec(compile(code, "<documentation>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", blocks("python"))
def test_python_in_the_documentation_runs_as_printed(name: str, desk: Path, tmp_path: Path) -> None:
    code = blocks("python")[name]
    for package in ("optuna", "ray", "matplotlib", "plotly", "pandas"):
        if re.search(rf"(import|from|isoflop\.|figures\.) ?{package}\b", code):
            pytest.importorskip(package)
    if name.startswith("README"):
        code = re.sub(r"\b200\b", "20", code)  # steps
    with forking() as context:
        process = context.Process(target=run_as_script, args=(code, desk, tmp_path / "output"))
        process.start()
    process.join(300)
    printed = (tmp_path / "output").read_text()
    assert process.exitcode == 0, printed
    assert "is turned off" not in printed and "Traceback" not in printed, printed


@pytest.fixture(scope="module")
def architectures() -> None:
    """Imported here, not again by each process that counts."""
    import transformers

    for model in MODELS.values():
        assert all(getattr(transformers, name) for name in model["architectures"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_documentation_run(
    command: str, desk: Path, architectures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = next((place for start, place in ELSEWHERE.items() if command.startswith(start)), None)
    if elsewhere is not None:
        pytest.skip(elsewhere)
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    words = shlex.split(command)[1:]
    if words[0] == "peak":
        words += ["--seconds", "0.05"]  # a rate that nobody reads
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, (done.output, done.exception)


SHOWN = {name: text for name, text in blocks("").items() if text.startswith("$ isoflop ")}


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_command_prints_is_what_is_shown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the records of `isoflop demo`."""
    command, _, shown = SHOWN[name].partition("\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    unpack(Path("runs/isoflop-demo"))
    done = CliRunner().invoke(app, shlex.split(command)[2:], catch_exceptions=False)
    printed, expected = ([line.rstrip() for line in text.splitlines() if line.strip()] for text in (done.output, shown))
    assert printed == expected


def test_something_is_shown() -> None:
    assert SHOWN


def builder() -> Any:
    spec = importlib.util.spec_from_file_location("documentation", ROOT / "docs/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_has_every_page_and_no_link_is_dead(tmp_path: Path) -> None:
    site = builder()
    named = [page for pages in site.SECTIONS.values() for page in pages]
    assert sorted(named) == sorted(["README", *(page.stem for page in (ROOT / "docs").glob("*.md"))])
    site.build(tmp_path)
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert len(pages) == len(named)
    dead = []
    for page, text in pages.items():
        for address in re.findall(r'(?:href|src)="([^"]+)"', text):
            assert not (address.startswith("http") and f'src="{address}"' in text)  # nothing is fetched from outside
            path, _, anchor = address.partition("#")
            if address.startswith("http"):
                continue
            there = not path or (tmp_path / path).exists() or (ROOT / "docs" / path).exists() or (ROOT / path).exists()
            if not there or (anchor and f'id="{anchor}"' not in pages[path or page]):
                dead.append((page, address))
    assert not dead


def table(text: str) -> dict[str, list[str]]:
    """The other cells by the first, of all rows whose first cell is code."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", text, re.MULTILINE)
    return {name: rest.split(" | ") for name, rest in rows}


def test_every_scalar_is_in_the_reference_with_its_unit_and_meaning() -> None:
    rows = table(REFERENCE)
    for name, scalar in {**SCALARS, **AXES}.items():
        assert rows[name] == [scalar.unit, scalar.meaning]
    assert {name for name in rows if name.startswith("isoflop/")} == {*SCALARS, *AXES}


def test_every_option_is_in_the_reference_and_in_the_typed_keywords() -> None:
    names = [field.name for field in fields(Options)]
    assert [name for name in table(REFERENCE) if "/" not in name] == names
    assert list(OptionsDict.__annotations__) == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_each_file_is_named_in_the_architecture() -> None:
    """In the items of its room, so that a reader finds what is where."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## Every file, by room")[2]
    listed = text.partition("\n## ")[0]
    items = {}
    for item in re.findall(r"`(\w+)`(?:, [^:]*)?: (.*?)(?=\. `\w+`:|\n- |\Z)", listed, re.DOTALL):
        items.setdefault(item[0], item[1])
    source = ROOT / "src/isoflop"
    rooms = {path.name: path for path in source.iterdir() if (path / "__init__.py").is_file()}
    missing = [
        f"{room}/{path.name}"
        for room, folder in rooms.items()
        for path in folder.glob("*.py")
        if path.stem != "__init__" and f"`{path.stem}`" not in items.get(room, "")
    ]
    assert missing == []
    assert all(f"`{path.stem}`" in listed for path in source.glob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_of_text_are_no_longer_than_a_screen(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\]\([^()]*\)", "]", text)  # as it is read
    long = [line for line in text.splitlines() if len(line) > 140 and not line.startswith(("|", "![", "    "))]
    assert long == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert (ROOT / "docs/tensorboard.png").stat().st_size < 300_000


def test_boundaries_say_what_is_missing() -> None:
    import isoflop_lightning
    import isoflop_transformers

    assert isoflop_lightning.IsoFLOPMonitor and isoflop_transformers.IsoFLOPCallback  # they name boundaries too
    assert len(BOUNDARIES) > 20
    assert all(name and missing for name, missing in BOUNDARIES.items())

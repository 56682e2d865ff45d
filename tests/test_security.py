"""Records and logs from strangers are data: nothing of theirs is run, unpickled or taken for a path; no port opens."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoflop.cli import app
from isoflop.forecast import read_curves
from isoflop.record import Point, RecordLog

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")])
CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports by name",
    "pickle.load": "runs what a file says",
    "pickle.loads": "runs what a file says",
    "pickle.Unpickler": "runs what a file says",
    "marshal.loads": "runs what a file says",
    "shelve.open": "pickles",
    "joblib.load": "pickles",
    "numpy.load": "may unpickle: np.load(…, allow_pickle=False) is np.load with nothing else",
    "yaml.load": "makes objects: yaml.safe_load",
    "yaml.unsafe_load": "makes objects",
    "yaml.full_load": "makes objects",
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "socket.socket": "opens a port",
    "socket.create_server": "opens a port",
    "http.server.HTTPServer": "opens a port",
    "socketserver.TCPServer": "opens a port",
    "werkzeug.serving.run_simple": "opens a port",
    "tempfile.mktemp": "a race",
}
"""What isoflop never calls."""
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "telnetlib", "xmlrpc"}
"""What it never imports."""
ALLOWED = {
    ("isoflop/flops/apart.py", "pickle"): "the answer of the process that it has forked, through a pipe of its own",
    ("isoflop/flops/open_model.py", "torch.load"): "weights_only unless the user says --trust",
    ("isoflop/logs/files.py", "yaml.load"): "with a SafeLoader that makes None of what is no plain value",
}
"""File and call: why it may."""


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def calls_in(text: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call's full name."""
    tree = ast.parse(text)
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)) is not None:
            first, _, rest = name.partition(".")
            yield ".".join(filter(None, (names.get(first, first), rest))), node


def wrongs(text: str) -> list[str]:
    """What a file must not do."""
    found = []
    for name, node in calls_in(text):
        keywords = {word.arg: word.value for word in node.keywords}
        if name in CALLS:
            found.append(f"line {node.lineno}: {name} {CALLS[name]}")
        if name == "torch.load":
            given = keywords.get("weights_only")
            if not (isinstance(given, ast.Constant) and given.value is True):
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
        shell = keywords.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            found.append(f"line {node.lineno}: a shell")
        if name.rsplit(".", 1)[-1] in ("listen", "bind") and "socket" in text:
            found.append(f"line {node.lineno}: opens a port")
    for node in ast.walk(ast.parse(text)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        found += [f"imports {module}" for module in modules if module.split(".")[0] in MODULES]
    return found


def unexpected(path: Path) -> list[str]:
    allowed = {call for file, call in ALLOWED if path.as_posix().endswith(file)}
    return [wrong for wrong in wrongs(path.read_text()) if not any(call in wrong for call in allowed)]


def test_no_file_runs_what_it_reads() -> None:
    assert {str(path.relative_to(ROOT)): found for path in SOURCES if (found := unexpected(path))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch as t\nt.load('x', weights_only=trust)",
        "from yaml import load\nload('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import os\nos.system('x')",
        "import socket\nsocket.socket()",
        "import socket\ns.bind(('', 80))",
        "import numpy as np\nnp.load('x')",
    ],
)
def test_the_search_can_find(text: str) -> None:
    assert wrongs(text)


def test_what_is_fine_is_not_found() -> None:
    assert (
        wrongs("import torch\ntorch.load('x', weights_only=True)\nmodel.eval()\nre.compile('x')\nyaml.safe_load(x)")
        == []
    )


INDEX = "dataset,run,total_steps,peak_lr,schedule\n{dataset},{run},100,0.1,\n"


@pytest.mark.parametrize(
    ("dataset", "run"), [("..", "secret"), ("a", "../secret"), ("/etc", "passwd"), ("a", ""), ("a/b", "c")]
)
def test_an_index_does_not_lead_out_of_its_folder(dataset: str, run: str, tmp_path: Path) -> None:
    folder = tmp_path / "curves"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text("step,loss\n1,2\n")
    (folder / "index.csv").write_text(INDEX.format(dataset=dataset, run=run))
    with pytest.raises(ValueError, match=re.escape("plain name of a folder or file")):
        read_curves(folder)


STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def test_texts_of_strangers_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and constants in records, names of folders, tables: no escape, bell or turned writing is printed."""
    text = "\x1b[2J\x1b]0;title\x07\r\u202ename"
    folder = tmp_path / "a\x1b[31mb"
    for number in range(4):
        header = {"name": f"{text}{number}", "model": {"class": text}, "planned": {"steps": 40}, "framework": text}
        log = RecordLog.create(folder, f"r{number}", {**header, "parameters": {"non_embedding_with_head": 10**6}})
        raw = log.path.read_text()
        log.path.write_text(raw.replace("?", "\\u001b"))  # as no writer of ours would
        for step in range(1, 41):
            log.point(Point(step=step, tokens=1000 * step, losses={"train": 4 * step**-0.1, f"eval/{text}": 3.0}))
        log.close()
    (tmp_path / "table.csv").write_text(f"N,D,loss,{text}\n1e6,{text},3,a\n")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "circle").symlink_to("circle")
    (tmp_path / "links" / "nowhere.csv").symlink_to("missing.csv")
    for command in ("rank", "fit", "backtest", "passport", "import -n"):
        for path in (folder, tmp_path / "table.csv", tmp_path / "links", folder / "missing"):
            with pytest.raises(SystemExit):
                app([*command.split(), str(path)])
                raise SystemExit
            printed = "".join(capsys.readouterr())
            assert printed and not STEERS.search(printed), (command, path, printed)
            assert "Traceback" not in printed and "symbolic" not in printed

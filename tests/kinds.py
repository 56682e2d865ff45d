"""Kinds of forward that keep state, draw numbers, wait or talk: trained with isoflop and without, in fresh processes.

Each is a few lines put into a tiny model: `world` outside of it, `own` in its constructor, `body` in its forward, where
`h` are the activations and `ids` the input, `loss` after it, and `end`, which undoes what others would meet. `told`
collects what has to be the same.
"""

# ruff: noqa: E501

from __future__ import annotations

import hashlib
import logging
import random
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as package
import numpy as np
import torch
from torch.utils.data import DataLoader

import isoflop
from isoflop.lightning import IsoFLOPMonitor
from isoflop.transformers import IsoFLOPCallback
from trainers import hf_trainer, lightning_trainer

_HEAD = """
import collections, contextlib, contextvars, copy, dataclasses, functools, gc, inspect, itertools, logging, os, pickle
import queue, random, signal, socket, sqlite3, sys, threading, time, types, warnings, weakref
import numpy as np, torch, torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
"""
_MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50)
        {own}
    def block(self, ids):
        CALLS[0] += 1
        h = self.hidden(self.table(ids))
        {body}
        return h
    def forward(self, ids):
        if CHECKPOINTING and self.training:
            return self.head(checkpoint(self.block, ids, use_reentrant=False))
        return self.head(self.block(ids))
def loss_of(model, ids):
    loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    {loss}
    return loss
class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Model()
    def forward(self, input_ids=None, labels=None):
        return {{"loss": loss_of(self.model, input_ids)}}
"""

_SEEN = """N = {}
def seen(module, *_):
    name = type(module).__name__; N[name] = N.get(name, 0) + 1
"""

KINDS: dict[str, dict[str, str]] = {
    # what it collects
    "module-level list": dict(
        world="AUX = []",
        body="AUX.append(h.pow(2).mean())",
        loss="told([float(a) for a in AUX]); loss = loss + 0.1 * sum(AUX); AUX.clear()",
    ),
    "list on a module outside": dict(
        world="class Holder(nn.Module): pass\nholder = Holder(); holder.acts = []",
        body="holder.acts.append(h.detach().mean())",
        loss="told([float(a) for a in holder.acts])",
    ),
    "deque": dict(
        own="self.last = collections.deque(maxlen=3)", body="self.last.append(h.mean().item())\ntold(len(self.last))"
    ),
    "its outputs are kept": dict(body="self.kept = h", loss="told(model.kept.sum() if hasattr(model, 'kept') else 0)"),
    "key-value cache": dict(
        own="self.keys = []",
        body="self.keys.append(h.detach().mean((0, 1)))\nh = h + 0.1 * torch.stack(self.keys[-4:]).mean(0)",
    ),
    "a dictionary by shape": dict(
        own="self.masks = {}",
        body="mask = self.masks.setdefault(ids.shape[1], torch.rand(ids.shape[1], 1)); h = h * mask",
    ),
    "weak dictionary": dict(
        world="SEEN = weakref.WeakKeyDictionary()",
        body="SEEN[self.hidden] = SEEN.get(self.hidden, 0) + 1; h = h * (1 + 0.01 * SEEN[self.hidden])",
    ),
    "queue": dict(
        own="self.queue = queue.Queue()",
        body="self.queue.put(h.detach().mean())\nif self.queue.qsize() > 2: h = h + self.queue.get()",
    ),
    # operators that have a kernel, and parts which round otherwise
    "silu and mish": dict(body="h = F.silu(h) + F.mish(3 * h)"),
    # state that steers it
    "object in object": dict(
        world="class Layer: last = None\nclass Memory:\n    def __init__(self): self.layers = [Layer()]",
        own="self.memory = Memory()",
        body="layer = self.memory.layers[0]; last, layer.last = layer.last, h.detach().mean((0, 1))\n"
        "if last is not None: h = h + 0.3 * last",
    ),
    "numpy array": dict(own="self.n = np.zeros(1)", body="self.n += 1; h = h * (1 + 0.1 * float(self.n[0]))"),
    "closure": dict(
        world="def counter():\n    n = 0\n    def tick():\n        nonlocal n; n += 1; return n\n    return tick",
        own="self.tick = counter()",
        body="h = h * (1 + 0.1 * self.tick())",
    ),
    "default argument": dict(world="def tick(n=[0]): n[0] += 1; return n[0]", body="h = h * (1 + 0.1 * tick())"),
    "attribute of a function": dict(
        world="def tick(): tick.n = getattr(tick, 'n', 0) + 1; return tick.n", body="h = h * (1 + 0.1 * tick())"
    ),
    "module-level number": dict(world="NUMBER = 0", body="global NUMBER; NUMBER += 1; h = h * (1 + 0.1 * NUMBER)"),
    "attribute of the class": dict(
        body="type(self).n = getattr(type(self), 'n', 0) + 1; h = h * (1 + 0.1 * type(self).n)"
    ),
    "iterator": dict(own="self.gains = itertools.cycle([1.0, 2.0, 3.0])", body="h = h * next(self.gains)"),
    "generator function": dict(
        world="def gains():\n    gain = 1.0\n    while True:\n        yield gain\n        gain *= 1.01",
        own="self.gains = gains()",
        body="h = h * next(self.gains)",
    ),
    "cached function": dict(
        world="MADE = []\n@functools.lru_cache(None)\ndef gain(n): MADE.append(n); return 1 + len(MADE)",
        body="h = h * gain(ids.shape[1])",
        loss="told(list(MADE))",
    ),
    "context variable": dict(
        world="N = contextvars.ContextVar('n', default=0)", body="N.set(N.get() + 1); h = h * (1 + 0.1 * N.get())"
    ),
    "thread-local": dict(
        world="HERE = threading.local()", body="HERE.n = getattr(HERE, 'n', 0) + 1; h = h * (1 + 0.1 * HERE.n)"
    ),
    "environment": dict(
        body="os.environ['KIND_N'] = str(int(os.environ.get('KIND_N', 0)) + 1); h = h * (1 + 0.1 * int(os.environ['KIND_N']))",
        end="os.environ.pop('KIND_N', None)",
    ),
    "data base": dict(
        world="DB = sqlite3.connect(':memory:'); DB.execute('create table calls (n)')",
        body="DB.execute('insert into calls values (1)')\nh = h * (1 + 0.1 * DB.execute('select count(*) from calls').fetchone()[0])",
    ),
    "shared memory": dict(
        own="self.n = torch.zeros(1).share_memory_()", body="self.n += 1; h = h * (1 + 0.1 * self.n)"
    ),
    "made at the first call": dict(body="if not hasattr(self, 'gain'): self.gain = torch.rand(16)\nh = h * self.gain"),
    "a copy of itself": dict(
        body="if not hasattr(self, 'old'): self.__dict__['old'] = copy.deepcopy(self.hidden)\nh = h + self.old(self.table(ids)).detach()"
    ),
    "its forward changes": dict(
        body="if not self.training: return h\nn = self.__dict__['n'] = self.__dict__.get('n', 0) + 1\nif n == 3: self.block = functools.partial(type(self).block, self)",
    ),
    # tensors' state
    "buffer in place": dict(
        own="self.register_buffer('n', torch.zeros(1))", body="self.n += 1; h = h * (1 + 0.1 * self.n)"
    ),
    "buffer that is replaced": dict(
        own="self.register_buffer('n', torch.zeros(1))", body="self.n = self.n + 1; h = h * (1 + 0.1 * self.n)"
    ),
    "batch norm": dict(own="self.norm = nn.BatchNorm1d(16)", body="h = self.norm(h.flatten(0, 1)).view_as(h)"),
    "spectral norm": dict(
        own="self.other = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))", body="h = self.other(h)"
    ),
    "weight norm": dict(
        own="self.other = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))", body="h = self.other(h)"
    ),
    "moving average of weights": dict(
        own="self.register_buffer('mean', self.hidden.weight.detach().clone())",
        body="self.mean.lerp_(self.hidden.weight.detach(), 0.1); h = h + F.linear(h, self.mean)",
    ),
    "weights clipped in it": dict(
        body="with torch.no_grad(): self.head.bias.clamp_(-0.01, 0.01)", loss="told(float(loss))"
    ),
    # random numbers
    "dropout": dict(body="h = F.dropout(h, 0.3, self.training)"),
    "torch's numbers": dict(body="h = h + torch.randn_like(h)"),
    "generator of torch's": dict(
        world="NOISE = torch.Generator().manual_seed(3)",
        body="h = h * (torch.rand(16, generator=NOISE, device='cpu').to(h.device) > 0.2)",
    ),
    "numpy's numbers": dict(body="h = h * (1 + 0.1 * np.random.rand())"),
    "generator of numpy's": dict(world="NOISE = np.random.default_rng(3)", body="h = h * (1 + 0.1 * NOISE.random())"),
    "Python's numbers": dict(body="h = h * (1 + 0.1 * random.random())"),
    "generator of Python's": dict(world="NOISE = random.Random(3)", body="h = h * (1 + 0.1 * NOISE.random())"),
    "layers dropped at random": dict(body="if random.random() < 0.5: h = self.hidden(h)"),
    "numbers put aside": dict(
        body="with torch.random.fork_rng(devices=[]): torch.manual_seed(len(ids)); h = h + torch.randn_like(h)"
    ),
    "state of the numbers": dict(body="told(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())"),
    # hooks
    "global forward hook": dict(
        world=_SEEN + "    if isinstance(module, nn.Linear): return _[1] * (1 + 0.001 * N[name])\n"
        "HOOK = nn.modules.module.register_module_forward_hook(seen)",
        loss="told(sorted((k, n) for k, n in N.items() if k in ('Linear', 'Embedding', 'Model')))",
        end="HOOK.remove()",
    ),
    "global hook ahead": dict(
        world=_SEEN + "HOOK = nn.modules.module.register_module_forward_pre_hook(seen)",
        loss="told(sorted((k, n) for k, n in N.items() if k in ('Linear', 'Embedding', 'Model')))",
        end="HOOK.remove()",
    ),
    "global backward hook": dict(
        world=_SEEN + "HOOK = nn.modules.module.register_module_full_backward_hook(seen)",
        loss="told(sorted(N.items()))",
        end="HOOK.remove()",
    ),
    "hook of a part": dict(
        own="self.n = 0\nself.hidden.register_forward_hook(self.after)",
        world="def after(self, module, inputs, out): self.n += 1; return out * (1 + 0.1 * self.n)",
        body="told(self.n)",
        late="Model.after = after",
    ),
    "hook ahead of a part": dict(own="self.hidden.register_forward_pre_hook(lambda m, x: (x[0] * 1.5,))"),
    "hook that goes": dict(
        own="handle = self.hidden.register_forward_hook(lambda *_: handle.remove())",
        body="told(len(self.hidden._forward_hooks))",
    ),
    "hook on a tensor": dict(
        world="N = [0]\ndef seen(g): N[0] += 1; return g * (1 + 0.1 * N[0])",
        body="if h.requires_grad: h.register_hook(seen)",
    ),
    "hook on a gradient": dict(
        world="N = [0]\ndef seen(p): N[0] += 1; p.grad.mul_(1 + 0.1 * N[0])",
        own="self.hidden.weight.register_post_accumulate_grad_hook(seen)",
    ),
    "hooks on saved tensors": dict(
        world="N = [0, 0]\ndef pack(x): N[0] += 1; return x\ndef unpack(x): N[1] += 1; return x",
        body="with torch.autograd.graph.saved_tensors_hooks(pack, unpack): h = self.hidden(h)",
        loss="told(list(N))",
    ),
    "hooks of the optimizer": dict(
        world="N = [0]\nfrom torch.optim.optimizer import register_optimizer_step_pre_hook\n"
        "def seen(*_): N[0] += 1\nHOOK = register_optimizer_step_pre_hook(seen)",
        loss="told(N[0])",
        end="HOOK.remove()",
    ),
    # waiting and talking
    "lock": dict(
        own="self.__dict__['lock'] = threading.Lock()",
        body="self.lock.acquire()\nif h.sum() > 1e9: h = h * 2\nself.lock.release()",
    ),
    "thread": dict(
        body="got = []; t = threading.Thread(target=lambda: got.append(self.hidden(h.detach()).detach().mean())); t.start(); t.join()\nh = h + got[0]"
    ),
    "pool of threads": dict(
        world="import concurrent.futures\nPOOL = concurrent.futures.ThreadPoolExecutor(1)",
        body="h = h + POOL.submit(lambda: h.detach().mean()).result()",
        end="POOL.shutdown()",
    ),
    "pipe": dict(
        world="R, W = os.pipe()", body="os.write(W, b'x'); told(os.read(R, 9))", end="os.close(R); os.close(W)"
    ),
    "socket": dict(
        world="A, B = socket.socketpair()", body="A.send(b'x'); told(B.recv(9))", end="A.close(); B.close()"
    ),
    "file": dict(
        body="with open(FOLDER / 'calls', 'a') as file: file.write('x')", loss="told((FOLDER / 'calls').stat().st_size)"
    ),
    "memory-mapped file": dict(
        own="self.n = np.memmap(FOLDER / 'n', 'int64', 'w+', shape=(1,))",
        body="self.n += 1; h = h * (1 + 0.1 * int(self.n[0]))",
    ),
    "log": dict(
        world="N = [0]\nclass Count(logging.Handler):\n    def emit(self, record): N[0] += 1\n"
        "LOG = logging.getLogger('kinds'); LOG.addHandler(Count()); LOG.setLevel('INFO'); LOG.propagate = False",
        body="LOG.info('called')",
        loss="told(N[0])",
        end="LOG.handlers.clear()",
    ),
    "warning": dict(body="with warnings.catch_warnings(record=True) as said: warnings.warn('x')\ntold(len(said))"),
    "signal": dict(
        world="N = [0]\nOLD = signal.signal(signal.SIGUSR1, lambda *_: N.__setitem__(0, N[0] + 1))",
        body="os.kill(os.getpid(), signal.SIGUSR1); h = h * (1 + 0.1 * N[0])",
        end="signal.signal(signal.SIGUSR1, OLD)",
    ),
    "collection": dict(
        world="class Gone:\n    def __del__(self): GONE.append(1)\nGONE = []",
        body="a = Gone(); a.a = a; del a; gc.collect()\ntold(len(GONE))",
    ),
    # what it computes
    "branch on a value": dict(body="if h.sum() > 0: h = h * 2"),
    "loop on a value": dict(body="n = 0\nwhile h.norm() > 1 and n < 9: h = h * 0.5; n += 1\ntold(n)"),
    "rows picked by value": dict(
        body="rows = h.flatten(0, 1); mask = rows.sum(-1) > 0; rows = rows.index_put((mask,), self.hidden(rows[mask])); h = rows.view_as(h)"
    ),
    "experts": dict(
        world="LOADS = []",
        own="self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))",
        body="to = h.detach().argmax(-1) % 3; out = torch.zeros_like(h)\n"
        "for i, expert in enumerate(self.experts):\n"
        "    at = (to == i).nonzero(as_tuple=True); LOADS.append(len(at[0])); out = out.index_put(at, expert(h[at]))\n"
        "h = h + out",
        loss="told(list(LOADS))",
    ),
    "in place": dict(body="h = h.clone(); h.mul_(1.5).add_(0.1)"),
    "teacher": dict(
        own="self.__dict__['teacher'] = nn.Linear(16, 16)",
        body="with torch.no_grad(): t = self.teacher(h)\nh = h + 0.1 * t",
    ),
    "gradient in it": dict(
        body="with torch.enable_grad(): x = h if h.requires_grad else h.clone().requires_grad_(); g, = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)\nh = h + 0.1 * g"
    ),
    "torch.func": dict(body="h = h + 0.1 * torch.func.vmap(torch.func.grad(lambda x: x.pow(3).sum()))(h)"),
    "functional call": dict(
        body="h = torch.func.functional_call(self.hidden, {k: v * 1.1 for k, v in self.hidden.named_parameters()}, (h,))"
    ),
    "function of its own": dict(
        world="N = [0, 0]\nclass Twice(torch.autograd.Function):\n    @staticmethod\n"
        "    def forward(ctx, x): N[0] += 1; ctx.save_for_backward(x); return x @ x.mT @ x\n    @staticmethod\n"
        "    def backward(ctx, g): N[1] += 1; x, = ctx.saved_tensors; return g * x.sum()",
        body="h = h + 1e-3 * Twice.apply(h)",
        loss="told(list(N))",
    ),
    "checkpoint in it": dict(body="h = checkpoint(self.hidden, h, use_reentrant=False)"),
    "reentrant checkpoint": dict(body="h = checkpoint(self.hidden, h, use_reentrant=True)"),
    "autocast": dict(body="with torch.autocast('cpu', torch.bfloat16): h = self.hidden(h)\nh = h.float()"),
    "itself again": dict(
        body="self.depth = getattr(self, 'depth', 0) + 1\nif self.depth < 3: h = h + self.block(ids)\nself.depth -= 1"
    ),
    "an error that it catches": dict(body="try: h @ h.flatten()\nexcept RuntimeError: h = h * 1.5"),
    "an error in a part": dict(
        world="class Part(nn.Module):\n    def forward(self, x): raise ValueError('no')",
        own="self.part = Part()",
        body="try: self.part(h)\nexcept ValueError: h = h * 1.5",
    ),
    "evaluation in it": dict(
        own="self.drop = nn.Dropout(0.5)",
        body="mode = self.training; self.drop.eval(); h = self.drop(h); self.drop.train(mode); h = self.drop(h)",
    ),
    # modes and switches
    "function mode": dict(
        world="N = [0]\nclass Mode(TorchFunctionMode):\n    def __torch_function__(self, f, types, args=(), kwargs=None):\n        N[0] += 1; return f(*args, **(kwargs or {}))",
        body="with Mode(): h = self.hidden(h)",
        loss="told(N[0])",
    ),
    "dispatch mode": dict(
        world="N = []\nclass Mode(TorchDispatchMode):\n    def __torch_dispatch__(self, f, types, args=(), kwargs=None):\n        N.append(str(f)); return f(*args, **(kwargs or {}))",
        body="with Mode(): h = self.hidden(h)",
        loss="told(list(N))",
    ),
    "subclass of tensor": dict(
        world="class Mine(torch.Tensor): pass",
        body="h = h.as_subclass(Mine) * 1.5; told(type(h).__name__); h = h.as_subclass(torch.Tensor)",
    ),
    "default dtype": dict(
        body="torch.set_default_dtype(torch.float64); h = h + torch.rand(16).float(); torch.set_default_dtype(torch.float32)"
    ),
    "deterministic": dict(
        body="torch.use_deterministic_algorithms(True); h = h * 1.5; torch.use_deterministic_algorithms(False)"
    ),
    "anomaly mode": dict(body="with torch.autograd.set_detect_anomaly(True, check_nan=False): h = self.hidden(h)"),
    "inspection": dict(
        body="told(str(inspect.signature(self.forward)), type(self).__name__, len(list(self.modules())), len(self._forward_hooks))"
    ),
    "pickle": dict(body="told(len(pickle.dumps(self.hidden)))"),
    "compiled part": dict(
        own="import torch._dynamo\nself.__dict__['run'] = torch.compile(F.gelu, backend='eager', fullgraph=True, dynamic=True)",
        body="h = self.run(h)",
        loss="told(torch._dynamo.utils.counters['stats'].get('unique_graphs', 0))",
        end="torch._dynamo.reset(); torch._dynamo.utils.counters.clear()",
    ),
    "dtype of the loss": dict(loss="told(str(loss.dtype), loss.grad_fn is not None)"),
}

NOT_CHECKPOINTED = {"layers dropped at random", "torch.func"}
"""Kinds that torch's activation checkpointing refuses, with isoflop as without."""
LOOPS = ("plain", "checkpointing", "lightning", "transformers")


def results(loop: str, observed: bool, folder: Path, names: list[str]) -> dict[str, Any]:
    """What each kind came to: what was told, how often its code ran, and a digest of the weights."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = {}
    for name in names:
        place = folder / f"{loop}-{observed}-{list(KINDS).index(name)}"
        place.mkdir(parents=True)
        try:
            found[name] = _one(KINDS[name], loop, observed, place)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _one(kind: dict[str, str], loop: str, observed: bool, folder: Path) -> Any:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    told: list[Any] = []
    world: dict[str, Any] = {
        "__name__": f"kind_{folder.name}",
        "FOLDER": folder,
        "CALLS": [0],
        "CHECKPOINTING": loop == "checkpointing",
        "hashlib": hashlib,
        "told": lambda *values: told.append(repr(values)),
    }
    model_of = _MODEL.format(
        own=kind.get("own", "pass").replace("\n", "\n        "),
        body=kind.get("body", "pass").replace("\n", "\n        "),
        loss=kind.get("loss", "pass"),
    )
    exec(_HEAD + kind.get("world", "") + model_of + kind.get("late", ""), world)
    train = {"lightning": _lightning, "transformers": _transformers}.get(loop, _plain)
    module = train(world, observed, folder)
    exec(kind.get("end", ""), world)
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()
    return told, world["CALLS"][0], weights


def _plain(world: dict[str, Any], observed: bool, folder: Path) -> Any:
    """Two micro-batches a step, of lengths that change, and an evaluation now and then."""
    model, data = world["Model"](), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    monitor = isoflop.Monitor(model, optimizer=optimizer, record_dir=folder, log_every=4) if observed else None
    for step in range(8):
        for _ in range(2):
            length = 8 if step < 4 else 9 + step % 3
            loss = world["loss_of"](model, torch.randint(0, 50, (4, length), generator=data))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None:
            monitor.step(loss.detach())
        if step % 3 == 2:
            model.eval()
            with torch.no_grad():
                world["loss_of"](model, torch.randint(0, 50, (4, 8), generator=data))
            model.train()
    if monitor is not None:
        monitor.close()
        assert not monitor.guard.aside, monitor.guard.aside
    return model


def _lightning(world: dict[str, Any], observed: bool, folder: Path) -> Any:
    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = world["Model"]()

        def training_step(self, batch: Any, _: int) -> Any:
            return world["loss_of"](self.model, batch)

        def validation_step(self, batch: Any, _: int) -> None:
            world["loss_of"](self.model, batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    module, callbacks = Module(), [IsoFLOPMonitor(record_dir=folder)] if observed else []
    options = {"accumulate_grad_batches": 2, "val_check_interval": 3, "num_sanity_val_steps": 0}
    rows = torch.randint(0, 50, (32, 8), generator=torch.Generator().manual_seed(1))
    lightning_trainer(package, folder, callbacks=callbacks, **options).fit(
        module, DataLoader(rows, 4), DataLoader(rows[:8], 4)
    )
    return module


def _transformers(world: dict[str, Any], observed: bool, folder: Path) -> Any:
    module = world["Wrapped"]()
    ids = torch.randint(0, 50, (32, 8), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    hf_trainer(
        module,
        folder,
        rows,
        [IsoFLOPCallback(record_dir=folder)] if observed else [],
        rows[:8],
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    ).train()
    return module


def gathering(observed: bool, folder: Path) -> Any:
    """On several ranks: a forward that asks the others for the lengths of their batches."""
    import torch.distributed as dist

    KINDS["collective"] = {
        "world": "import torch.distributed as dist",
        "body": "n = [None] * 2; dist.all_gather_object(n, ids.shape[1] + dist.get_rank()); h = h * (1 + sum(n) / 100)",
    }
    return results("plain", observed, folder / str(dist.get_rank()), ["collective"])


def pooled(observed: bool, folder: Path) -> Any:
    """A pool starts its thread under a lock that a fork of the process waits for."""
    return results("loop", observed, folder, ["pool of threads"])

"""Train the model or its float twin: seeded, resumable, on a CPU or on a GPU if there is one.

The batch of a step depends on the seed and the step number alone, so a resumed run continues
exactly where it stopped, and the two twins see the same tokens in the same order.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.model import BitNet, ModelConfig, set_compute_dtype
from training.optimiser import make_optimisers

Tokens = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The recipe. Two stages as BitNet recommends: full rate with decay, then down without."""

    steps: int = 1350
    batch_tokens: int = 4096
    micro_tokens: int = 2048
    context: int = 256
    final_context: int = 1024
    final_fraction: float = 0.038
    warmup: int = 40
    matrix_lr: float = 0.02
    other_lr: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 1
    bf16: bool = True

    def context_at(self, step: int) -> int:
        """Short windows first, which cost less per token; full windows for the last part."""
        final = step >= self.steps * (1 - self.final_fraction)
        return self.final_context if final else self.context

    def rate_at(self, step: int) -> float:
        """Fraction of the peak rate: warm up, hold, then fall linearly over the second half."""
        half = self.steps / 2
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / half))

    def decay_at(self, step: int) -> float:
        """Weight decay: on in the first stage, off in the second."""
        return self.weight_decay if step < self.steps / 2 else 0.0


@dataclass(slots=True)
class Run:
    """Everything a checkpoint holds, live."""

    model: BitNet
    optimisers: list[torch.optim.Optimizer]
    config: TrainConfig
    step: int = 0
    seconds: float = 0.0


def batch_at(tokens: Tokens, config: TrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """Random windows of the stream for one step: inputs and targets, int64[rows, context]."""
    context = config.context_at(step)
    rng = np.random.default_rng([config.seed, step])
    rows = config.batch_tokens // context
    starts = rng.integers(0, len(tokens) - context, size=rows)
    windows = np.stack([tokens[s : s + context + 1] for s in starts]).astype(np.int64)
    ids = torch.from_numpy(windows)
    return ids[:, :-1], ids[:, 1:]


def new_run(model_config: ModelConfig, config: TrainConfig, device: str) -> Run:
    """A fresh model from the seed; twins start from the same random weights."""
    torch.manual_seed(config.seed)
    model = BitNet(model_config).to(device)
    return Run(model, make_optimisers(model, config.matrix_lr, config.other_lr), config)


def save(run: Run, path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    state = {
        "model_config": asdict(run.model.config),
        "train_config": asdict(run.config),
        "model": run.model.state_dict(),
        "optimisers": [o.state_dict() for o in run.optimisers],
        "step": run.step,
        "seconds": run.seconds,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load(path: Path, device: str = "cpu", config: TrainConfig | None = None) -> Run:
    """Read a checkpoint back; ``config`` replaces the recipe it was started with."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    recipe = config or TrainConfig(**state["train_config"])
    run = new_run(ModelConfig(**state["model_config"]), recipe, device)
    run.model.load_state_dict(state["model"])
    for optimiser, saved in zip(run.optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    run.step, run.seconds = state["step"], state["seconds"]
    return run


LossFunction = Callable[[Tensor, Tensor], Tensor]


def train_step(run: Run, loss_of: LossFunction, tokens: Tokens) -> float:
    """One optimiser step over the batch in pieces that fit the cache; returns the mean loss."""
    config, device = run.config, run.model.cos.device
    ids, targets = batch_at(tokens, config, run.step)
    rows = max(1, config.micro_tokens // ids.shape[1])
    pieces = range(0, len(ids), rows)
    total = 0.0
    for begin in pieces:
        part = slice(begin, begin + rows)
        loss = loss_of(ids[part].to(device), targets[part].to(device)) / len(pieces)
        torch.autograd.backward(loss)
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimiser, peak in zip(run.optimisers, (config.matrix_lr, config.other_lr), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = peak * config.rate_at(run.step)
            if "momentum" in group:
                group["weight_decay"] = config.decay_at(run.step)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    run.step += 1
    return total


@torch.no_grad()
def held_out_loss(run: Run, loss_of: LossFunction, tokens: Tokens, batch_tokens: int) -> float:
    """Mean loss over fixed windows of the held-out stream; a progress figure, not the result."""
    fixed = TrainConfig(
        batch_tokens=batch_tokens, context=run.config.context, final_fraction=0.0, seed=0
    )
    ids, targets = batch_at(tokens, fixed, 0)
    rows = max(1, run.config.micro_tokens // ids.shape[1])
    device = run.model.cos.device
    losses = [
        float(loss_of(ids[b : b + rows].to(device), targets[b : b + rows].to(device)))
        for b in range(0, len(ids), rows)
    ]
    return sum(losses) / len(losses)


def train(run: Run, data: Path, checkpoint: Path, *, compiled: bool, every: int) -> None:
    """Run to the last step, logging and saving every so many steps."""
    tokens: Tokens = np.load(data / "train.npy")
    held_out: Tokens = np.load(data / "held_out.npy")
    set_compute_dtype(torch.bfloat16 if run.config.bf16 else torch.float32)
    loss_of: LossFunction = run.model.loss
    loss_fast: LossFunction = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    log = checkpoint.with_suffix(".jsonl")
    recent: list[float] = []
    while run.step < run.config.steps:
        began = time.perf_counter()
        recent.append(train_step(run, loss_fast, tokens))
        run.seconds += time.perf_counter() - began
        if run.step % every and run.step < run.config.steps:
            continue
        save(run, checkpoint)
        entry = {
            "step": run.step,
            "tokens": run.step * run.config.batch_tokens,
            "seconds": round(run.seconds, 1),
            "train": round(sum(recent) / len(recent), 4),
            "held_out": round(held_out_loss(run, loss_of, held_out, 16384), 4),
        }
        recent.clear()
        with log.open("a") as out:
            out.write(json.dumps(entry) + "\n")
        print(entry, flush=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="train the embedded model, or with --float its float twin",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of the corpus")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to save to, .pt")
    parser.add_argument("--float", action="store_true", help="train the float twin instead")
    parser.add_argument("--resume", action="store_true", help="continue from --checkpoint")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's")
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    parser.add_argument("--every", type=int, default=50, help="steps between saves and log lines")
    for field in fields(TrainConfig):
        if field.name != "bf16":
            kind = type(field.default)
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=field.default, help="see TrainConfig")
    parser.add_argument("--fp32", action="store_true", help="float32 products, slower on most CPUs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [f.name for f in fields(TrainConfig) if f.name != "bf16"]
    config = TrainConfig(**{n: getattr(args, n) for n in names}, bf16=not args.fp32)
    if args.resume:
        run = load(args.checkpoint, device, config)
    else:
        run = new_run(ModelConfig(ternary=not args.float), config, device)
    train(run, args.data, args.checkpoint, compiled=not args.no_compile, every=args.every)


if __name__ == "__main__":
    main()

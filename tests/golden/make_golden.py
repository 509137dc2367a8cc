"""Write tests/golden/*.npz: tiny checkpoints and what transformers computes from them.

    PYTHONPATH=tests python tests/golden/make_golden.py [name ...]

needs numpy, torch, transformers and accelerate (the `golden` dependency group), not ryzanstein.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tolerances
from checkpoints import Tensors, random_tensors, with_images, write_checkpoint
from golden.files import HERE, relative_error
from golden.hf import Reference, inverse_frequencies, versions
from golden.specs import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    ROPE_LENGTHS,
    ROPE_SPECS,
    SPECS,
    TEXT_TOKENS,
    Spec,
)
from reference.model import Oracle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_SEEDS = 20_000
DISTINCT_TOKENS = 8  # a text that repeats itself shows little


def main() -> None:
    wanted = set(sys.argv[1:]) or {spec.name for spec in SPECS}
    for spec in SPECS:
        if spec.name in wanted:
            make(spec)
    frequencies = {
        name: inverse_frequencies(config, ROPE_LENGTHS.get(name, 1))
        for name, config in ROPE_SPECS.items()
    }
    save(HERE / "rope.npz", frequencies)


def make(spec: Spec) -> None:
    seed, tensors, prompt, greedy = search(spec)
    config = spec.published or spec.config
    stored = with_images(tensors) if spec.published else tensors
    with tempfile.TemporaryDirectory() as temporary:
        directory = write_checkpoint(Path(temporary), config, stored, spec.shards)
        reference = Reference(directory, config, TEXT_TOKENS)
        hidden, logits = reference.run(prompt)
        generated = reference.generate(prompt, NEW_TOKENS)
        files = {f"file:{path.name}": path.read_bytes() for path in sorted(directory.iterdir())}
    trace = Oracle(spec.config, tensors, TEXT_TOKENS).forward(prompt)
    worst = max(relative_error(hidden, trace.hidden), relative_error(logits, trace.logits))
    if worst > tolerances.ORACLE or not np.array_equal(generated, greedy):
        raise SystemExit(f"{spec.name}: transformers and the oracle disagree ({worst:.1e})")
    target = HERE / f"{spec.name}.npz"
    arrays: dict[str, NDArray[Any]] = {
        name: np.frombuffer(data, np.uint8) for name, data in files.items()
    }
    arrays |= {"prompt": prompt, "hidden": hidden, "logits": logits, "generated": generated}
    save(target, arrays | {"seed": np.array(seed)})
    print(f"{spec.name}: seed {seed}, error {worst:.1e}, {target.stat().st_size} bytes")


def save(target: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays and the versions they were made with."""
    np.savez_compressed(target, allow_pickle=False, versions=np.array(versions()), **arrays)


def search(spec: Spec) -> tuple[int, Tensors, NDArray[np.int32], NDArray[np.int32]]:
    """Return the first seed whose whole text is unambiguous, with its tensors and its text."""
    for seed in range(MAX_SEEDS):
        tensors = random_tensors(spec.config, seed, spec.dtype)
        rng = np.random.default_rng(seed)
        prompt = rng.integers(0, spec.config["vocab_size"], PROMPT_TOKENS).astype(np.int32)
        greedy = continuation(Oracle(spec.config, tensors, TEXT_TOKENS), prompt)
        if greedy is not None and len(set(greedy.tolist())) >= DISTINCT_TOKENS:
            return seed, tensors, prompt, greedy
    raise SystemExit(f"{spec.name}: no seed below {MAX_SEEDS} is unambiguous")


def continuation(oracle: Oracle, prompt: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """Return the greedy tokens, or None if an activation or a choice comes near a boundary."""
    text = prompt
    for _ in range(NEW_TOKENS):
        trace = oracle.forward(text)
        first, second = np.sort(trace.logits[-1])[:-3:-1]
        tie = 10 * tolerances.GOLDEN_LOGITS * np.abs(trace.logits).max()
        if trace.margin < tolerances.GOLDEN_MARGIN or first - second < tie:
            return None
        text = np.append(text, np.int32(np.argmax(trace.logits[-1])))
    return text[PROMPT_TOKENS:]


if __name__ == "__main__":
    main()

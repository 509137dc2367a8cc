"""Loading must not hold the checkpoint twice."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
from checkpoints import Config, Stored, linear_shapes, random_tensors, store, write_checkpoint
from golden.specs import SPECS

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import WeightCache
from ryzanstein.models import load_model

def kib(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

before = kib("VmRSS")
cache = WeightCache(Path(sys.argv[2]), 1 << 30, minimum_bytes=0)
model = load_model(open_files(Path(sys.argv[1])), threads=2, isa=None, weight_cache=cache)
print(kib("VmHWM") - before, model.mapped_bytes)
"""


def test_peak_memory_is_near_the_packed_size(tmp_path: Path) -> None:
    """48 MB packed: the peak is that and little else, since source pages go as they are packed.

    The first load also writes a file of packed weights, the second maps it.

    The bound asked of the engine is twice the packed size; keeping the source alone would reach it.
    """
    wide: Config = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 3}
    config = SPECS[0].config | wide
    # Weights of zero, in the place of the spec's own random ones: the bytes are quickly made.
    tensors = random_tensors(SPECS[0].config | {"num_hidden_layers": 3}, 0)
    for name, tensor in tensors.items():
        size = 8192 if "ffn_sub_norm" in name else 2048
        if tensor.array.size > 1 and tensor.array.ndim == 1:
            tensors[name] = store(np.ones(size), "F32")
    tensors["model.embed_tokens.weight"] = store(np.ones((96, 2048)), "F32")
    for index in range(3):
        for linear, (rows, columns) in linear_shapes(config).items():
            packed = np.full((rows // 4, columns), 0b01010101, np.uint8)
            tensors[f"model.layers.{index}.{linear}.weight"] = Stored("U8", packed)
    write_checkpoint(tmp_path, config, tensors)
    size = (tmp_path / "model.safetensors").stat().st_size
    del tensors

    command = [sys.executable, "-P", "-c", PROGRAM, str(tmp_path), str(tmp_path / "cache")]
    assert size > 40 << 20
    for is_warm in (False, True):
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        peak, mapped_bytes = map(int, result.stdout.split())
        assert (mapped_bytes > 0.7 * size) == is_warm
        assert peak * 1024 < 1.5 * size

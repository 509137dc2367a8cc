"""A worker that times this engine as `ryzanstein bench` does. `bench.peers` starts it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from bench.worker import Job, serve
from ryzanstein import _core
from ryzanstein.bench.runner import Runner
from ryzanstein.bench.workload import Workload
from ryzanstein.config import HeadKind, KVDtype, WeightKind
from ryzanstein.loaders.model_files import open_files
from ryzanstein.loaders.weight_cache import default_weight_cache
from ryzanstein.models import load_model


class _Worker:
    def __init__(
        self,
        directory: Path,
        *,
        threads: int,
        isa: str | None,
        weights: WeightKind,
        lm_head: HeadKind,
        kv_dtype: KVDtype,
    ) -> None:
        model = load_model(
            open_files(directory),
            threads=threads,
            isa=isa,
            lm_head=lm_head,
            weights=weights,
            weight_cache=default_weight_cache(),
        )
        self._runner = Runner(model, kv_dtype)
        self._formats = f"{weights} weights, {lm_head} head, {kv_dtype} cache"

    def describe(self) -> str:
        commit = _core.build_info()["commit"]
        isa = self._runner.model.decoder.isa
        return f"ryzanstein {commit} ({isa}, {self._formats})"

    def prepare(self, job: Job) -> None:
        self._runner.prepare(Workload(**asdict(job)))

    def run(self, job: Job) -> None:
        self._runner.run(Workload(**asdict(job)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine_worker", description=__doc__)
    parser.add_argument("directory", type=Path, help="the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="instruction-set tier (default: the best)")
    parser.add_argument("--weights", choices=get_args(WeightKind), default="auto")
    parser.add_argument("--lm-head", choices=get_args(HeadKind), default="exact")
    parser.add_argument("--kv-dtype", choices=get_args(KVDtype), default="f16")
    serve(_Worker(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()

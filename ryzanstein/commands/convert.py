"""The `ryzanstein convert` command."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ryzanstein.commands.report import count_of, format_bytes
from ryzanstein.convert import FORMATS, convert_model
from ryzanstein.loaders.hub import resolve_model
from ryzanstein.loaders.model_files import open_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ryzanstein.convert import Conversion

__all__ = ["convert"]


def convert(
    model: Annotated[
        str, typer.Argument(metavar="IN", help="Directory, GGUF file or hub id of any model.")
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="What to make; nothing may be there yet.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: how every tensor was stored.")
    ] = False,
) -> None:
    """Write a model in another format.

    hf is a directory of packed ternary weights that transformers loads; the others are GGUF files.
    tq2_0 and tq1_0 take ternary models only, q8_0 and q4_0 any. What was written is read back and
    compared before it gets its name, and what changed is said. OUT is never half there.

    \b
    Examples:
      ryzanstein convert microsoft/bitnet-b1.58-2B-4T-bf16 ./bitnet-2b --to hf
      ryzanstein convert ./falcon-e falcon-e.gguf --to tq2_0
      ryzanstein convert ./model model-q8.gguf --to q8_0 --json > changes.json
    """
    conversion = convert_model(open_files(resolve_model(model)), Path(output), to)
    if as_json:
        report = {
            "path": str(conversion.path),
            "bytes": conversion.nbytes,
            "notes": conversion.notes,
            "tensors": [dataclasses.asdict(tensor) for tensor in conversion.tensors],
        }
        typer.echo(json.dumps(report, indent=2))
        return
    for line in _lines(conversion):
        typer.echo(line)


def _lines(conversion: Conversion) -> Iterator[str]:
    yield f"{conversion.path}: {format_bytes(conversion.nbytes)}"
    kinds = Counter((tensor.source, tensor.stored) for tensor in conversion.tensors)
    for (source, stored), count in sorted(kinds.items()):
        changes = [
            tensor.relative_change
            for tensor in conversion.tensors
            if (tensor.source, tensor.stored) == (source, stored)
        ]
        largest = max(changes)
        effect = f"weights change by up to {largest:.2g} of the largest" if largest else "exact"
        yield f"  {count_of(count, 'tensor')}, {source} to {stored}: {effect}"
    for note, count in Counter(tensor.note for tensor in conversion.tensors if tensor.note).items():
        yield f"  {count_of(count, 'tensor')} not stored as asked: {note}"
    for note in conversion.notes:
        yield f"  {note}"

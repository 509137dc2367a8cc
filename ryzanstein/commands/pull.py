"""The `ryzanstein pull` command."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from ryzanstein.commands.report import count_of, format_bytes
from ryzanstein.errors import ValidationError
from ryzanstein.loaders.hub import download, parse_hub_model

__all__ = ["pull"]


def pull(
    model: Annotated[str, typer.Argument(help="Hub id, as in the examples.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit (or write MODEL@REVISION).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Download a model from the Hugging Face hub.

    Prints where it is. Only the files that loading reads are fetched, into the cache that all
    Hugging Face tools share (HF_HOME, HF_HUB_CACHE); those already there are not fetched again.
    HF_TOKEN opens gated and private models. With HF_HUB_OFFLINE=1 the cache alone is searched.

    \b
    Examples:
      ryzanstein pull microsoft/bitnet-b1.58-2B-4T
      ryzanstein pull tiiuae/Falcon-E-1B-Instruct@prequantized
      ryzanstein pull org/model-GGUF:Q4_0
      ryzanstein pull org/model-GGUF/model-q8_0.gguf --json
    """
    wanted = parse_hub_model(model)
    if wanted is None:
        raise ValidationError(
            f"{model} is not a hub id; give org/name, org/name:Q4_0 or org/name/file.gguf"
        )
    if revision is not None:
        if wanted.revision not in (None, revision):
            raise ValidationError(f"{model} names another revision than --revision {revision}")
        wanted = dataclasses.replace(wanted, revision=revision)
    found = download(wanted)
    sizes = {name: (found.snapshot / name).stat().st_size for name in found.files}
    if as_json:
        report = {
            "model": wanted.repo,
            "commit": found.snapshot.name,
            "path": str(found.path),
            "bytes": sum(sizes.values()),
            "files": [{"name": name, "bytes": size} for name, size in sizes.items()],
        }
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(found.path)
    what = f"{count_of(len(sizes), 'file')}, {format_bytes(sum(sizes.values()))}"
    typer.echo(f"{wanted.repo} at commit {found.snapshot.name}: {what}", err=True)

"""The `ryzanstein info` command."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from ryzanstein.commands.report import format_bytes, print_report
from ryzanstein.loaders.fingerprint import verify_file
from ryzanstein.loaders.hub import resolve_model
from ryzanstein.loaders.model_files import open_files
from ryzanstein.model_info import ModelInfo, describe_model
from ryzanstein.progress import byte_progress

if TYPE_CHECKING:
    from pathlib import Path

    from ryzanstein.loaders.fingerprint import FileHash

__all__ = ["info"]


def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Directory, GGUF file or hub id (default: the embedded model)."),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the weight files and check their hashes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model is, and the memory it will take.

    No weights are read, and nothing is measured.

    --verify hashes the weight files (blake3). The first time the hashes are kept, in
    RYZANSTEIN_CACHE; from then on a file whose bytes changed while its size and time did not is
    damaged, and that is an error. Files from the hub are also checked against its SHA-256.

    \b
    Examples:
      ryzanstein info
      ryzanstein info ./model --tensors
      ryzanstein info microsoft/bitnet-b1.58-2B-4T --verify
      ryzanstein info model.gguf --json
    """
    report = describe_model(open_files(resolve_model(model)))
    checked = _verify(list(report.hashes)) if verify else None
    if as_json:
        print_report(_json(report, checked, with_tensors=tensors), as_json=True)
        return
    print_report(_table(report, checked), as_json=False)
    if tensors:
        typer.echo()
        width = max(len(tensor.name) for tensor in report.tensors)
        for tensor in report.tensors:
            shape = " x ".join(map(str, tensor.shape))
            typer.echo(f"{tensor.name:<{width}}  {tensor.dtype:<6}  {shape}")


def _verify(files: list[Path]) -> dict[Path, FileHash]:
    total = sum(path.stat().st_size for path in files)
    with byte_progress("Verifying", total) as advance:
        return {path: verify_file(path, advance) for path in files}


def _table(report: ModelInfo, checked: dict[Path, FileHash] | None) -> dict[str, object]:
    config, memory, tokenizer = report.config, report.memory, report.tokenizer
    sizes = {kind: sum(t.nbytes for t in group) for kind, group in report.types.items()}
    types = ", ".join(
        f"{len(group)} {kind} ({format_bytes(sizes[kind])})" for kind, group in report.types.items()
    )
    free = f"{format_bytes(report.free_bytes)} free"
    fits = "fits" if memory.total <= report.free_bytes else "does not fit"
    table: dict[str, object] = {
        "model": report.path,
        "architecture": f"{config.architecture}, {config.activation}",
        "layers": f"{config.num_layers} of {config.num_heads} heads "
        f"({config.num_kv_heads} of keys and values) of {config.head_dim}",
        "sizes": f"hidden {config.hidden_size}, feed-forward {config.intermediate_size}, "
        f"vocabulary {config.vocab_size}{', tied head' if config.tie_word_embeddings else ''}",
        "parameters": f"{report.parameters:,}",
        "tensors": f"{len(report.tensors)} in {format_bytes(sum(sizes.values()))}: {types}",
        "context": f"{config.max_position_embeddings} tokens",
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size} tokens, ends at "
        f"{' or '.join(map(str, tokenizer.eos_token_ids)) or 'nothing'}",
        "chat template": _template(report.chat_template),
        **{f"note {number}": note for number, note in enumerate(report.notes, 1)},
        "packed weights": report.packed_weights,
        "memory": {
            "weights": ("" if memory.is_exact else "at most ") + format_bytes(memory.weights),
            "head": format_bytes(memory.head),
            "keys and values": f"{format_bytes(memory.kv_token)} per token, "
            f"{format_bytes(memory.kv_context)} for the whole context",
            "total": f"{format_bytes(memory.total)}, {fits} in {free}",
        },
    }
    if checked is None:
        known = {path.name: digest for path, digest in report.hashes.items() if digest}
        return table | ({"blake3": known} if known else {})
    return table | {"blake3": {path.name: _verdict(found) for path, found in checked.items()}}


def _template(template: str | None) -> str:
    return "none: generate, not chat" if template is None else f"{len(template)} characters"


def _verdict(found: FileHash) -> str:
    known = "as it was" if found.is_known else "recorded"
    return f"{found.blake3} ({known}{', as on the hub' if found.matches_hub else ''})"


def _json(
    report: ModelInfo, checked: dict[Path, FileHash] | None, *, with_tensors: bool
) -> dict[str, object]:
    packed = report.packed_weights
    values: dict[str, object] = {
        "model": str(report.path),
        "parameters": report.parameters,
        "tensors": len(report.tensors),
        "tensor_bytes": sum(tensor.nbytes for tensor in report.tensors),
        "types": {
            kind: {"tensors": len(group), "bytes": sum(tensor.nbytes for tensor in group)}
            for kind, group in report.types.items()
        },
        **dataclasses.asdict(report.config),
        "tokenizer": dataclasses.asdict(report.tokenizer),
        "chat_template": report.chat_template,
        "notes": report.notes,
        "defaults": dataclasses.asdict(report.defaults),
        "memory": {
            **dataclasses.asdict(report.memory),
            "total": report.memory.total,
            "free": report.free_bytes,
        },
        "packed_weights": packed and {"path": str(packed), "bytes": packed.stat().st_size},
        "blake3": {str(path): digest for path, digest in report.hashes.items()},
    }
    if checked is not None:
        values["verified"] = {str(path): dataclasses.asdict(v) for path, v in checked.items()}
    if with_tensors:
        values["tensor_list"] = [dataclasses.asdict(tensor) for tensor in report.tensors]
    return values

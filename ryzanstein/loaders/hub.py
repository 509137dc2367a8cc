"""Where a model is: the embedded one, a directory, or the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ryzanstein.errors import ModelLoadError, ValidationError

__all__ = ["EMBEDDED_MODEL", "resolve_model"]

EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "assets" / "default"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]


def resolve_model(model: str | os.PathLike[str] | None) -> Path:
    """Return where a model is, downloading it if it has to be.

    Args:
        model: None for the embedded model, a directory, a GGUF file, or a hub id such as
            "microsoft/bitnet-b1.58-2B-4T". A directory of that name comes before the hub.

    Raises:
        ValidationError: not a path.
        ModelLoadError: there is no such model, or it cannot be downloaded.
    """
    if model is None:
        return EMBEDDED_MODEL
    if not isinstance(model, str | os.PathLike) or not os.fspath(model):
        raise ValidationError(
            f"model must be a directory, a GGUF file, a hub id or None (the embedded model), "
            f"got {model!r}"
        )
    path = Path(model).expanduser()
    if path.exists() or path.suffix == ".gguf" or not _HUB_ID.fullmatch(os.fspath(model)):
        return path
    return _download(os.fspath(model))


def _download(hub_id: str) -> Path:
    import huggingface_hub  # takes 0.2 s to import, and most runs need no download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_PATTERNS))
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{hub_id} is neither a directory nor in the local Hugging Face cache, and the hub "
            "cannot be reached; check the path, or download it where there is a network "
            f"(hf download {hub_id}) and without HF_HUB_OFFLINE"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(
            f"{hub_id} is not a directory here and cannot be downloaded from the Hugging Face hub: "
            f"{reason}; check the name and, for a gated model, HF_TOKEN"
        ) from error

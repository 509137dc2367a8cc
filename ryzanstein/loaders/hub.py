"""Where a model is: the embedded one, a file or directory, or the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryzanstein.errors import ModelLoadError, UnsupportedFormatError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

__all__ = [
    "EMBEDDED_MODEL",
    "Download",
    "HubModel",
    "download",
    "parse_hub_model",
    "resolve_model",
]

EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "assets" / "default"
_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?<!\.gguf)"
    r"(?:/(?P<file>(?:[\w+-][\w.+-]*/)*[\w+-][\w.+-]*\.gguf)|:(?P<choice>[\w.-]+))?"
    r"(?:@(?P<revision>[\w./-]+))?"
)
# What is read of a repository in the Hugging Face layout. Weights in subdirectories, and under the
# names that their authors' own tools use, are copies of these.
_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
_WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub.

    Args:
        repo: "organisation/name".
        revision: a branch, tag or commit; None for the main branch.
        file: the GGUF file in the repository that is the model, where one was named.
        choice: part of that file's name, such as "Q4_0", where this was given instead.
    """

    repo: str
    revision: str | None = None
    file: str | None = None
    choice: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class Download:
    """A hub model in the local cache.

    Args:
        path: what to load: the snapshot, or the GGUF file in it.
        snapshot: the repository's directory at one commit, which it is named after.
        files: the names in it that were asked for.
    """

    path: Path
    snapshot: Path
    files: list[str]


def parse_hub_model(model: str) -> HubModel | None:
    """Return the hub model that a text names, None where it cannot be one.

    Example:
        >>> parse_hub_model("org/name:Q4_0@v2")
        HubModel(repo='org/name', revision='v2', file=None, choice='Q4_0')
    """
    match = _HUB_ID.fullmatch(model)
    return None if match is None else HubModel(**match.groupdict())


def resolve_model(model: str | os.PathLike[str] | None) -> Path:
    """Return the directory or the GGUF file of a model, downloading it if it has to be.

    Args:
        model: None for the embedded model, a path, or a hub id: "org/name", which may go on with
            ":Q4_0" or "/file.gguf" where the repository holds GGUF files, and end with "@revision".
            What exists under that name here comes before the hub.

    Raises:
        ValidationError: not a path.
        ModelLoadError: there is no such model, or it cannot be downloaded.
        UnsupportedFormatError: the repository has nothing that can be loaded.
    """
    if model is None:
        return EMBEDDED_MODEL
    if not isinstance(model, str | os.PathLike) or not os.fspath(model):
        raise ValidationError(
            "model must be a directory, a GGUF file, a hub id or None (the embedded model), got "
            f"{model!r}"
        )
    path = Path(model).expanduser()
    wanted = parse_hub_model(os.fspath(model))
    return path if wanted is None or path.exists() else download(wanted).path


def download(model: HubModel) -> Download:
    """Return where a hub model is, after fetching what the cache lacks.

    Only what loading reads is fetched, and of that what an earlier download has not left complete.

    Raises:
        ModelLoadError: there is no such model, the hub cannot be reached, or it refuses.
        UnsupportedFormatError: the repository has nothing that can be loaded, or several GGUF
            files of which none was chosen.
    """
    import huggingface_hub  # takes 0.2 s to import, and most runs need no download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = [model.file] if model.file else _choose(model, _list_files(model))
    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(
                model.repo,
                revision=model.revision,
                allow_patterns=wanted,
                tqdm_class=_terminal_bar(),
            )
        )
    except LocalEntryNotFoundError as error:
        _refuse_offline(model, error)
    except (HFValidationError, OSError) as error:
        _refuse(model, error)
    for name in wanted:
        if not (snapshot / name).is_file():
            raise ModelLoadError(f"{model} holds no file {name}; check the name on the hub")
    is_gguf = wanted[0].endswith(".gguf")
    return Download(snapshot / wanted[0] if is_gguf else snapshot, snapshot, wanted)


def _terminal_bar() -> type[Any]:
    """Return the library's progress bar, but off where standard error is no terminal."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class TerminalBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options["disable"] = options.get("disable") or None  # None asks the terminal
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    return TerminalBar


def _list_files(model: HubModel) -> list[str]:
    """Return the names of a repository's files, those in the cache where there is no network."""
    import huggingface_hub
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = huggingface_hub.HfApi().model_info(model.repo, revision=model.revision)
        return [sibling.rfilename for sibling in info.siblings or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        _refuse(model, error)
    except Exception as error:  # of the HTTP client, which is the library's own affair
        try:
            cached = huggingface_hub.snapshot_download(
                model.repo, revision=model.revision, local_files_only=True, allow_patterns=[]
            )
        except LocalEntryNotFoundError:
            _refuse_offline(model, error)
    return [
        path.relative_to(cached).as_posix() for path in Path(cached).rglob("*") if path.is_file()
    ]


def _choose(model: HubModel, names: Iterable[str]) -> list[str]:
    """Return what to fetch of a repository's files: a Hugging Face model, or one GGUF file."""
    names = sorted(names)
    files = [name for name in names if name.endswith(".gguf")]
    if model.choice is None:
        if _WEIGHTS & set(names) or not files:
            return _hugging_face_files(model, names)
        chosen = files
    else:
        # As a whole word of the name: Q4_0 is not in Q4_0_4_4, nor Q2 in IQ2.
        part = re.compile(rf"(?<![a-z0-9_]){re.escape(model.choice.lower())}(?![a-z0-9_])")
        chosen = [name for name in files if part.search(name.lower())]
    if len(chosen) == 1:
        return chosen
    listing = ", ".join(f"{model.repo}/{name}" for name in chosen or files)
    if not listing:
        raise UnsupportedFormatError(
            f"{model} has no GGUF files, so there is nothing to choose by :{model.choice}"
        )
    problem = "no GGUF file" if not chosen else f"{len(chosen)} GGUF files"
    named = "" if model.choice is None else f" named {model.choice}"
    raise UnsupportedFormatError(f"{model} has {problem}{named}; choose one of {listing}")


def _hugging_face_files(model: HubModel, names: list[str]) -> list[str]:
    found = [
        name
        for name in names
        if "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS)
    ]
    if not found:
        others = ", ".join(names[:5]) or "nothing"
        raise UnsupportedFormatError(
            f"{model} holds neither config.json with safetensors nor GGUF files, but {others}; "
            "only those two forms can be loaded"
        )
    return found


def _refuse_offline(model: HubModel, error: Exception) -> NoReturn:
    raise ModelLoadError(
        f"{model} is neither a path nor in the local Hugging Face cache, and the hub cannot be "
        f"reached ({_reason(error)}); check the name, or run ryzanstein pull {model} where there "
        "is a network and without HF_HUB_OFFLINE"
    ) from error


def _refuse(model: HubModel, error: Exception) -> NoReturn:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{model.repo}"
    if isinstance(error, GatedRepoError):
        problem = f"is gated: accept its terms at {page}, then set HF_TOKEN to a token of yours"
    elif isinstance(error, RepositoryNotFoundError):
        problem = (
            "is neither a path here nor a model on the hub; check the name and, for a private "
            "model, HF_TOKEN"
        )
    elif isinstance(error, RevisionNotFoundError):
        problem = f"does not exist: {model.repo} has no revision {model.revision!r}; see {page}"
    else:
        problem = f"cannot be downloaded: {_reason(error)}"
    raise ModelLoadError(f"{model} {problem}") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

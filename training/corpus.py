"""Collect Python sources, deduplicate them, and hold some out by path.

The default source is the standard library of the running interpreter: every machine that can run
this already has it, under the PSF licence. Needs no third-party package.

The split is a function of the module path alone (``json/decoder.py``), so every version of one file
falls on the same side. Files do move between releases, though (``unittest/test`` became
``test/test_unittest``), so a second guard drops any training file that shares a noticeable part of
its lines with a held-out file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Not sources of the library itself, or generated: installed packages, machine-specific build
# records, character tables, and the language reference rendered into one huge string table.
EXCLUDED_PARTS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "lib-dynload"}
)
# Over half of the library's bytes, and mostly near-repetitions of one assertion: a small model
# learns to recite them, and figures measured on them say little about code that people write.
TEST_PARTS = frozenset({"test", "tests", "idle_test"})
EXCLUDED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "sitecustomize", "config-")

HELD_OUT_ONE_IN = 10
MIN_LETTERS = 0.45
MAX_FILE_BYTES = 400_000
SHINGLE_LINES = 4
MAX_SHARED = 0.10


@dataclass(frozen=True, slots=True)
class Document:
    """One source file: its path inside the library, where it came from, and its text."""

    path: str
    root: str
    text: str


@dataclass(frozen=True, slots=True)
class Split:
    """The two sides of the corpus, and how many files each rule removed."""

    train: list[Document]
    held_out: list[Document]
    dropped: dict[str, int]


def default_root() -> Path:
    """The standard library of the running interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def is_held_out(path: str) -> bool:
    """Whether a module path belongs to the held-out side: a fixed 1 in 10 by hash."""
    digest = hashlib.sha256(PurePosixPath(path).as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a path inside a library root is source text that a person wrote."""
    if (EXCLUDED_PARTS | TEST_PARTS).intersection(path.parts):
        return False
    return not any(part.startswith(EXCLUDED_PREFIXES) for part in path.parts)


def looks_like_code(text: str) -> bool:
    """Reject tables of numbers and empty files: they teach and measure nothing."""
    if not 32 <= len(text) <= MAX_FILE_BYTES:
        return False
    visible = [c for c in text if not c.isspace()]
    letters = sum(c.isalpha() for c in visible)
    return bool(visible) and letters / len(visible) >= MIN_LETTERS


def read_root(root: Path, name: str) -> Iterator[Document]:
    """Yield the wanted files of one library root, in path order."""
    for file in sorted(root.rglob("*.py")):
        relative = PurePosixPath(file.relative_to(root).as_posix())
        if not is_wanted(relative):
            continue
        try:
            text = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except (UnicodeDecodeError, OSError):
            continue  # the library's own tests hold files that are undecodable on purpose
        yield Document(relative.as_posix(), name, text)


def deduplicate(documents: Iterable[Document], *, all_versions: bool = False) -> list[Document]:
    """Keep the first of equal texts; unless ``all_versions``, also the first of equal paths.

    Give the newest library first: the first version seen is the one that stays.
    """
    seen_texts: set[bytes] = set()
    seen_paths: set[str] = set()
    kept = []
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        if digest in seen_texts or (document.path in seen_paths and not all_versions):
            continue
        seen_texts.add(digest)
        seen_paths.add(document.path)
        kept.append(document)
    return kept


def shingles(text: str) -> set[int]:
    """Hashes of every run of four non-blank lines, ignoring indentation."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {
        hash(tuple(lines[i : i + SHINGLE_LINES])) for i in range(len(lines) - SHINGLE_LINES + 1)
    }


def drop_leaks(train: list[Document], held_out: list[Document]) -> list[Document]:
    """Remove training files of which over a tenth of the line runs occur in held-out text."""
    known: set[int] = set()
    for document in held_out:
        known |= shingles(document.text)
    kept = []
    for document in train:
        own = shingles(document.text)
        if not own or len(own & known) / len(own) <= MAX_SHARED:
            kept.append(document)
    return kept


def shared_part(train: list[Document], held_out: list[Document]) -> float:
    """The fraction of the held-out line runs that training text still holds: what leaked."""
    known: set[int] = set()
    for document in train:
        known |= shingles(document.text)
    runs = [shingles(d.text) for d in held_out]
    return sum(len(r & known) for r in runs) / max(1, sum(len(r) for r in runs))


def split(documents: Iterable[Document], *, all_versions: bool = False) -> Split:
    """Filter, deduplicate and split; the held-out side keeps one version of each path."""
    everything = list(documents)
    code = [d for d in everything if looks_like_code(d.text)]
    unique = deduplicate(code, all_versions=all_versions)
    held_out = deduplicate(d for d in unique if is_held_out(d.path))
    train = [d for d in unique if not is_held_out(d.path)]
    clean = drop_leaks(train, held_out)
    dropped = {
        "not code": len(everything) - len(code),
        "duplicate": len(code) - len(unique),
        "shares lines with held-out": len(train) - len(clean),
    }
    return Split(clean, held_out, dropped)


def write_jsonl(documents: Iterable[Document], path: Path) -> None:
    """One JSON object per line; the format every later step reads."""
    with path.open("w", encoding="utf-8") as out:
        for document in documents:
            out.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[Document]:
    """Read back what write_jsonl wrote."""
    with path.open(encoding="utf-8") as source:
        return [Document(**json.loads(line)) for line in source]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(".data"), help="folder to write to")
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        help="a library root, newest first; repeatable (default: this interpreter's own)",
    )
    parser.add_argument(
        "--all-versions", action="store_true", help="keep every distinct version of a path"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    roots: list[Path] = args.root or [default_root()]
    result = split(
        (d for root in roots for d in read_root(root, root.name)),
        all_versions=args.all_versions,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(result.train, args.out / "train.jsonl")
    write_jsonl(result.held_out, args.out / "held_out.jsonl")
    summary: dict[str, object] = {"roots": [r.name for r in roots], "dropped": result.dropped}
    for name, side in (("train", result.train), ("held_out", result.held_out)):
        summary[name] = {"files": len(side), "bytes": sum(len(d.text.encode()) for d in side)}
    summary["held-out line runs also in training"] = round(
        shared_part(result.train, result.held_out), 4
    )
    (args.out / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()

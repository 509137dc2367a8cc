"""The corpus split never leaks and never repeats. Needs no torch."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from training.corpus import (
    Document,
    deduplicate,
    drop_leaks,
    is_held_out,
    is_wanted,
    looks_like_code,
    read_jsonl,
    read_root,
    shared_part,
    split,
    write_jsonl,
)


def body(name: str, lines: int = 12) -> str:
    return "\n".join(f"def {name}_{i}(value): return value.{name}" for i in range(lines))


def documents(versions: int = 3, files: int = 200) -> list[Document]:
    """The same paths in several versions, each with a text of its own."""
    return [
        Document(f"package/module{n}.py", f"v{v}", body(f"mod{chr(97 + n % 26)}{n}_version{v}"))
        for v in range(versions)
        for n in range(files)
    ]


def test_all_versions_of_a_path_land_on_one_side() -> None:
    result = split(documents(), all_versions=True)
    train = {d.path for d in result.train}
    held_out = {d.path for d in result.held_out}
    assert train
    assert held_out
    assert not train & held_out
    assert all(is_held_out(path) for path in held_out)
    assert not any(is_held_out(path) for path in train)


def test_held_out_keeps_one_version_the_first() -> None:
    held_out = split(documents(), all_versions=True).held_out
    assert len({d.path for d in held_out}) == len(held_out)
    assert {d.root for d in held_out} == {"v0"}


def test_split_does_not_depend_on_the_other_files() -> None:
    few, many = split(documents(files=50)), split(documents(files=200))
    paths = {d.path for d in few.held_out}
    assert paths == {d.path for d in many.held_out} & {d.path for d in documents(1, 50)}


def test_a_moved_copy_of_a_held_out_file_is_dropped_from_training() -> None:
    held_out = [Document("a.py", "new", body("alpha"))]
    moved = Document("old/place.py", "old", "# moved\n" + body("alpha"))
    other = Document("b.py", "new", body("beta"))
    assert drop_leaks([moved, other], held_out) == [other]


def test_shared_part_counts_the_held_out_line_runs_seen_in_training() -> None:
    lines = body("alpha").splitlines()
    half = Document("b.py", "new", "\n".join(lines[:6] + body("beta").splitlines()))
    held_out = [Document("a.py", "new", body("alpha"))]
    assert shared_part([half], held_out) == pytest.approx(3 / 9)
    assert shared_part([], held_out) == 0.0


def test_duplicates_across_versions_count_once() -> None:
    first = Document("a.py", "new", body("alpha"))
    same_text = Document("b.py", "old", body("alpha"))
    same_path = Document("a.py", "old", body("beta"))
    everything = [first, same_text, same_path]
    assert deduplicate(everything) == [first]
    assert deduplicate(everything, all_versions=True) == [first, same_path]


def test_read_root_skips_what_people_did_not_write(tmp_path: Path) -> None:
    for name in ("json/decoder.py", "site-packages/x.py", "encodings/cp437.py", "test/test_a.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("pass\n")
    (tmp_path / "_sysconfigdata_linux.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    assert [d.path for d in read_root(tmp_path, "lib")] == ["json/decoder.py"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), (body("alpha"), True), ("x = [" + "12345, " * 200 + "]", False)],
)
def test_looks_like_code(text: str, expected: bool) -> None:
    assert looks_like_code(text) is expected


def test_jsonl_round_trip(tmp_path: Path) -> None:
    kept = [Document("é.py", "v", 'print("naïve\\n")\n')]
    write_jsonl(kept, tmp_path / "x.jsonl")
    assert read_jsonl(tmp_path / "x.jsonl") == kept


def test_is_wanted_rejects_machine_records() -> None:
    assert is_wanted(PurePosixPath("asyncio/locks.py"))
    assert not is_wanted(PurePosixPath("config-3.11-x86_64/python-config.py"))

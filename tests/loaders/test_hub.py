from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import huggingface_hub.constants as hub
import pytest

from ryzanstein import ModelLoadError, ValidationError
from ryzanstein.loaders.hub import EMBEDDED_MODEL, HubModel, parse_hub_model, resolve_model

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "c0ffee" * 6 + "1234"
OLD = "0dd" * 13 + "1"
SAFETENSORS = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"hi",
    "chat_template.json": b"{}",
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": b"{}",
}
UNREAD = {
    "README.md": b"#",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"a copy",
    "original/model.safetensors": b"another",
    "onnx/config.json": b"{}",
}
GGUF = {
    "m-Q4_0.gguf": b"four",
    "m-Q4_0_4_4.gguf": b"repacked",
    "m-IQ2_S.gguf": b"two",
    "big/m-TQ2_0.gguf": b"ternary",
}


@dataclass
class Hub:
    """A hub on this machine: repositories by name and revision, and what was asked of it."""

    repositories: dict[str, dict[str, dict[str, bytes]]]
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    tokens: set[str | None] = field(default_factory=set)
    cut_at: int | None = None  # bytes after which the next file's connection breaks


class Answer(BaseHTTPRequestHandler):
    """The part of the hub's interface that downloads use."""

    hub: ClassVar[Hub]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        self.hub.tokens.add(self.headers.get("Authorization"))
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        if repo in self.hub.refusals:
            code, reason = self.hub.refusals[repo]
            self.reply(code, b"", {"X-Error-Code": reason, "X-Error-Message": reason})
        elif repo not in self.hub.repositories:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif is_api:
            self.describe(repo, parts[4:])
        else:
            self.send_file(self.hub.repositories[repo][parts[3]]["/".join(parts[4:])], parts[3])

    do_HEAD = do_GET  # noqa: N815

    def describe(self, repo: str, rest: list[str]) -> None:
        revisions = self.hub.repositories[repo]
        wanted = rest[1] if len(rest) > 1 else "main"
        commit = next((c for c in revisions if wanted in (c, "main")), None)
        if commit is None:
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        files = revisions[commit]
        if rest[:1] == ["tree"]:
            answer: Any = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)[:40]}
                for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            answer = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def send_file(self, data: bytes, commit: str) -> None:
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        begin = self.headers.get("Range", "")
        if begin:
            start = int(begin.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.reply(206, data[start:], headers)
        else:
            self.reply(200, data, headers)

    def reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            is_file = "ETag" in headers
            self.wfile.write(body[: self.hub.cut_at] if is_file else body)
            if is_file:
                self.hub.cut_at = None

    def log_message(self, *_: object) -> None:
        pass


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def server(offline: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache."""
    Answer.hub = Hub(
        {
            "org/name": {COMMIT: {**SAFETENSORS, **UNREAD}, OLD: {**SAFETENSORS}},
            "org/quantised": {COMMIT: {**GGUF, "config.json": b"{}"}},
            "org/one": {COMMIT: {"only.gguf": b"g"}},
            "org/pickle": {COMMIT: {"pytorch_model.bin": b"pickle"}},
        },
        {"org/gated": (403, "GatedRepo")},
    )
    listener = HTTPServer(("127.0.0.1", 0), Answer)
    address = f"http://127.0.0.1:{listener.server_port}"
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    yield Answer.hub
    listener.shutdown()
    listener.server_close()
    thread.join()


def test_nothing_means_the_embedded_model() -> None:
    assert resolve_model(None) == EMBEDDED_MODEL
    assert (EMBEDDED_MODEL / "config.json").is_file()


def test_what_exists_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "a.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name") == Path("org/name")
    assert resolve_model("org/name/a.gguf") == Path("org/name/a.gguf")
    assert resolve_model(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/org") == tmp_path / "org"


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "a.gguf",
        "./org/name",
        "/org/name",
        "a/b/c",
        "../x",
        "a/b/../c.gguf",
        "a/b:",
        "a/b@",
    ],
)
def test_paths_never_reach_the_hub(name: str) -> None:
    assert resolve_model(name) == Path(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", HubModel("a/b")),
        ("a/b@refs/pr/1", HubModel("a/b", revision="refs/pr/1")),
        ("a/b:Q4_0", HubModel("a/b", choice="Q4_0")),
        ("a/b:Q4_0@v1.0", HubModel("a/b", revision="v1.0", choice="Q4_0")),
        ("a/b/c.gguf", HubModel("a/b", file="c.gguf")),
        ("a/b/c/d-q8.0.gguf@main", HubModel("a/b", revision="main", file="c/d-q8.0.gguf")),
    ],
)
def test_names(name: str, expected: HubModel) -> None:
    assert parse_hub_model(name) == expected


@pytest.mark.usefixtures("server")
def test_only_what_loading_reads_is_fetched() -> None:
    found = resolve_model("org/name")
    assert found.name == COMMIT
    assert {path.name: path.read_bytes() for path in found.rglob("*")} == SAFETENSORS


def test_a_fetched_model_needs_no_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve_model("org/name")
    file = resolve_model("org/one")
    asked = len(server.asked)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert resolve_model("org/name") == found
    assert resolve_model(f"org/name@{COMMIT}") == found
    assert resolve_model("org/one") == file
    assert resolve_model("org/one/only.gguf") == file
    assert len(server.asked) == asked


@pytest.mark.usefixtures("server")
def test_a_hub_that_cannot_be_reached_leaves_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve_model("org/name")
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model("org/name") == found
    with pytest.raises(ModelLoadError, match=r"org/one is neither .* be reached \(.*refused"):
        resolve_model("org/one")


@pytest.mark.usefixtures("server")
def test_revisions() -> None:
    assert resolve_model(f"org/name@{OLD}").name == OLD
    with pytest.raises(ModelLoadError, match=r"org/name has no revision 'v9'"):
        resolve_model("org/name@v9")


def test_a_token_is_shown_with_every_request(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    resolve_model("org/name")
    assert server.tokens == {"Bearer hf_mine"}


def test_a_broken_download_goes_on(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "DOWNLOAD_CHUNK_SIZE", 50)
    data = server.repositories["org/one"][COMMIT]["only.gguf"] = bytes(range(200))
    server.cut_at = 150
    assert resolve_model("org/one").read_bytes() == data
    path = f"/org/one/resolve/{COMMIT}/only.gguf"
    gets = [(path, begin) for method, path, begin in server.asked if method == "GET"]
    assert gets[-2:] == [(path, ""), (path, "bytes=150-")]
    assert "Fetching" not in capsys.readouterr().err  # no progress bar off a terminal


def test_what_was_complete_is_not_fetched_again(server: Hub) -> None:
    found = resolve_model("org/name")
    (found / "config.json").unlink()
    server.asked.clear()
    assert resolve_model("org/name") == found
    gets = [path for method, path, _ in server.asked if method == "GET" and "/resolve/" in path]
    assert gets in ([], [f"/org/name/resolve/{COMMIT}/config.json"])
    assert (found / "config.json").read_bytes() == b"{}"


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("org/quantised:q4_0", "m-Q4_0.gguf"),
        ("org/quantised:TQ2_0", "big/m-TQ2_0.gguf"),
        ("org/quantised/big/m-TQ2_0.gguf", "big/m-TQ2_0.gguf"),
        ("org/one", "only.gguf"),
    ],
)
def test_gguf_files(name: str, file: str) -> None:
    found = resolve_model(name)
    assert found.as_posix().endswith(f"{COMMIT}/{file}")
    assert list(found.parents[file.count("/")].rglob("*.gguf")) == [found]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("org/quantised", r"has 4 GGUF files; choose one of org/quantised/big/m-TQ2_0.gguf, "),
        ("org/quantised:m", r"has 4 GGUF files named m; choose one of "),
        ("org/quantised:Q8_0", r"has no GGUF file named Q8_0; choose one of org/quantised/big"),
        ("org/name:Q4_0", r"has no GGUF files, so there is nothing to choose by :Q4_0"),
        ("org/one/x.gguf", r"org/one holds no file x.gguf"),
        ("org/pickle", r"neither config.json with safetensors nor GGUF files, but pytorch_model"),
        ("org/gated", r"org/gated is gated: accept its terms at https://huggingface.co/org/gated"),
        ("org/unknown", r"is neither a path here nor a model on the hub; check the name and"),
    ],
)
def test_what_the_hub_cannot_give(name: str, problem: str) -> None:
    with pytest.raises(ModelLoadError, match=problem):
        resolve_model(name)


def test_offline_without_the_model(offline: Path) -> None:
    problem = r"org/name is neither .* or run ryzanstein pull org/name where there is a network"
    with pytest.raises(ModelLoadError, match=problem):
        resolve_model("org/name")
    assert not list(offline.iterdir())


@pytest.mark.parametrize("model", ["", 3, b"bytes", ["a"]])
def test_what_is_not_a_model(model: Any) -> None:
    with pytest.raises(ValidationError, match="model must be a directory, a GGUF file, a hub id"):
        resolve_model(model)

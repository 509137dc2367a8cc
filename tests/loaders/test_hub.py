from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants as hub
import pytest

from ryzanstein import ModelLoadError, ValidationError
from ryzanstein.loaders.hub import EMBEDDED_MODEL, resolve_model

if TYPE_CHECKING:
    from collections.abc import Iterator


class Refusal(BaseHTTPRequestHandler):
    """A hub that has nothing."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def refusing(offline: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine that answers every request with 404."""
    server = HTTPServer(("127.0.0.1", 0), Refusal)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def test_nothing_means_the_embedded_model() -> None:
    assert resolve_model(None) == EMBEDDED_MODEL
    assert (EMBEDDED_MODEL / "config.json").is_file()


def test_directories_come_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name") == Path("org/name")
    assert resolve_model(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/org") == tmp_path / "org"


@pytest.mark.parametrize("name", ["missing", "./org/name", "/org/name", "a/b/c", "../x"])
def test_paths_never_reach_the_hub(name: str) -> None:
    assert resolve_model(name) == Path(name)


def test_a_cached_model_needs_no_network(offline: Path) -> None:
    folder = offline / "models--org--name"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert resolve_model("org/name") == snapshot


def test_offline_without_the_model(offline: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"org/name is neither .* \(hf download org/name\)"):
        resolve_model("org/name")


@pytest.mark.usefixtures("refusing")
def test_a_name_the_hub_does_not_have() -> None:
    with pytest.raises(ModelLoadError, match=r"org/name is not a directory .* check the name and"):
        resolve_model("org/name")


@pytest.mark.parametrize("model", ["", 3, b"bytes", ["a"]])
def test_what_is_not_a_model(model: Any) -> None:
    with pytest.raises(ValidationError, match="model must be a directory, a GGUF file"):
        resolve_model(model)


def test_a_gguf_file_is_never_a_hub_id() -> None:
    assert resolve_model("models/a.gguf") == Path("models/a.gguf")

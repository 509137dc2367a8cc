from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import CHAT_TEMPLATE, copy_embedded, python_environment, run_python

from ryzanstein import LLM, SamplingParams, __version__, llm
from ryzanstein.bench import command as bench_command
from ryzanstein.cli import main
from ryzanstein.loaders.hub import EMBEDDED_MODEL
from ryzanstein.loaders.weight_cache import WeightCache
from ryzanstein.speculative.drafter import PROPOSERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ryzanstein.speculative.proposer import Proposer

    Feed = Callable[..., None]

PROMPT = "def fibonacci(n):"
RUN = "import sys; from ryzanstein.cli import main; sys.exit(main())"


class Input(io.StringIO):
    """Standard input that may claim to be a terminal."""

    def __init__(self, text: str, terminal: bool) -> None:
        super().__init__(text)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(autouse=True)
def single_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests quick on a busy machine."""
    monkeypatch.setenv("RYZANSTEIN_THREADS", "1")


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    """Give the command something to read."""

    def give(text: str, *, terminal: bool = False) -> None:
        monkeypatch.setattr(sys, "stdin", Input(text, terminal))

    return give


@pytest.fixture
def chatty(tmp_path: Path) -> str:
    """A model with a chat template, always greedy."""
    return str(
        copy_embedded(
            tmp_path / "chatty",
            tokenizer_config={"chat_template": CHAT_TEMPLATE},
            generation_config={"do_sample": False},
        )
    )


def greedy(llm: LLM, max_tokens: int) -> SamplingParams:
    """The model's own defaults under `-t 0 -n max_tokens`."""
    return dataclasses.replace(llm.defaults.params, temperature=0, max_tokens=max_tokens)


def test_generate_prints_the_completion(embedded: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "-t", "0", "-n", "20"]) == 0
    expected = embedded.generate(PROMPT, greedy(embedded, 20)).text
    out, err = capsys.readouterr()
    assert out == expected + "\n"
    assert err == ""


def test_sampling_options_reach_the_engine(
    embedded: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {
        "temperature": 1.2,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 4,
        "max_tokens": 30,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert main(["generate", PROMPT, *flags, "--stop", "return", "--stop", "\n\n"]) == 0
    params = SamplingParams(**options, stop=["return", "\n\n"])
    assert capsys.readouterr().out == embedded.generate(PROMPT, params).text + "\n"


def test_structured_output_reaches_the_engine(
    embedded: LLM, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "digits.lark"
    schema.write_text('{"type": "array", "items": {"enum": ["é", 2]}, "maxItems": 4}', "utf-8")
    grammar.write_text("start: /[0-9]{3}/")
    for flags, options in (
        (["--json-schema", str(schema)], {"json_schema": schema.read_text("utf-8")}),
        (["--regex", "[a-z]{3}"], {"regex": "[a-z]{3}"}),
        (["--choice", "yes", "--choice", "no"], {"choice": ["yes", "no"]}),
        (["--grammar", str(grammar)], {"grammar": grammar.read_text()}),
    ):
        assert main(["generate", PROMPT, "-t", "0", "-n", "50", *flags]) == 0
        params = dataclasses.replace(greedy(embedded, 50), **options)
        assert capsys.readouterr().out == embedded.generate(PROMPT, params).text + "\n"
    schema.write_bytes(b"\xff")
    assert main(["generate", PROMPT, "--json-schema", str(schema)]) == 2
    assert "schema.json is not UTF-8 text" in capsys.readouterr().err
    assert main(["generate", PROMPT, "--grammar", str(tmp_path / "none")]) == 1
    assert main(["generate", PROMPT, "--regex", "("]) == 2
    assert "regex cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("source", PROPOSERS)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_guesses_are_made_and_change_nothing(
    command: str,
    source: str,
    chatty: str,
    feed: Feed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    make = PROPOSERS[source]

    def make_and_count() -> Proposer:
        made.append(source)
        return make()

    monkeypatch.setitem(PROPOSERS, source, make_and_count)
    arguments = [command, "-m", chatty, "-t", "0", "-n", "40"]
    outputs = []
    for more in ([], ["--speculative", source]):
        feed("def f(x):")
        assert main([*arguments, *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert made == [source]


def test_unknown_guesses_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--speculative", "tea leaves"]) == 2
    error = capsys.readouterr().err
    assert "tea leaves" in error
    assert len(error.splitlines()) == 1


def test_stats_are_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--stats", "-n", "9", "-t", "0"]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"\d tokens, first token \d+ ms, (\d+\.\d|-) tok/s, peak memory \d+\.\d\d GB\n", err
    )
    assert main(["generate", PROMPT, "--stats", "-n", "1"]) == 0
    assert "1 tokens, first token" in (err := capsys.readouterr().err)
    assert " - tok/s" in err


def test_json_holds_the_completion(embedded: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--json", "-t", "0", "-n", "8", "--stats"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    expected = embedded.generate(PROMPT, greedy(embedded, 8))
    assert found["text"] == expected.text
    assert found["token_ids"] == list(expected.token_ids)
    assert found["usage"]["completion_tokens"] == len(expected.token_ids)
    assert found["finish_reason"] == expected.finish_reason
    assert err.count("\n") == 1


@pytest.mark.parametrize("argument", [[], ["-"]])
def test_the_prompt_may_be_piped_in(
    argument: list[str], feed: Feed, embedded: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    feed("x = [\n")
    assert main(["generate", *argument, "-t", "0", "-n", "5"]) == 0
    expected = embedded.generate("x = [\n", greedy(embedded, 5)).text
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (["generate"], 2, "give a prompt, or pipe one in; see ryzanstein generate --help"),
        (["generate", ""], 2, "the prompt is empty; give some text"),
        (["generate", "x", "--bogus"], 2, "No such option: --bogus See ryzanstein --help."),
        (["generate", "x", "-n", "many"], 2, "Invalid value for '--max-tokens'"),
        (["generate", "x", "-n", "0"], 2, "max_tokens must be an integer >= 1, got 0"),
        (["generate", "x", "-n", "99999"], 1, "max_tokens=99999 exceed the context of"),
        (["generate", "x", "-t", "-1"], 2, r"temperature must be a number in [0, inf), got -1"),
        (["generate", "x", "-t", "nan"], 2, "temperature must be a number in [0, inf), got nan"),
        (["generate", "x", "--threads", "0"], 2, "threads must be in 1..1024, got 0"),
        (["generate", "x", "--isa", "mmx"], 2, "mmx"),
        (["generate", "x", "--kv-dtype", "f8"], 2, "kv_dtype must be one of"),
        (["generate", "x", "--lm-head", "f8"], 2, "lm_head must be one of"),
        (["generate", "x", "--weights", "f8"], 2, "weights must be one of"),
        (["chat", "--weights", "bf16"], 1, "the model is ternary"),
        (["generate", "x", "-m", "/no/such"], 1, "no model directory /no/such"),
        (["generate", "x", "-m", "a.gguf"], 1, "a.gguf does not exist"),
        (["chat"], 2, "has no chat template, so it cannot chat"),
        (["info", "/no/such"], 1, "no model directory /no/such"),
        (["pull", "./model"], 2, "./model is not a hub id; give org/name, org/name:Q4_0 or "),
        (["pull", "a/b@v1", "--revision", "v2"], 2, "a/b@v1 names another revision than --revisi"),
        (["convert", "/no/such", "out.gguf", "--to", "q8_0"], 1, "no model directory /no/such"),
        (["convert", str(EMBEDDED_MODEL), "out", "--to", "q9"], 2, "the format must be one of hf,"),
        (["convert", str(EMBEDDED_MODEL), "out"], 2, "Missing option '--to'."),
        (["nonsense"], 2, "No such command 'nonsense'."),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    wanted: str,
    feed: Feed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    feed("", terminal=True)
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ryzanstein: ")
    assert wanted in err
    assert err.count("\n") == 1


def test_input_that_is_not_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["generate"]) == 2
    assert "standard input is not utf-8 text" in capsys.readouterr().err


def test_memory_that_runs_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(llm, "load_model", refuse)
    assert main(["generate", "x"]) == 1
    assert capsys.readouterr().err == "ryzanstein: out of memory\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ryzanstein {__version__}\n"
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
    commands = ("generate", "chat", "info", "pull", "convert", "samplers", "bench", "doctor")
    for text in ("Exit codes:", "130", "RYZANSTEIN_ISA", *commands):
        assert text in shown
    for command in commands:
        assert main([command, "-h"]) == 0
        assert "Examples:\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["generate", "-n", "1", "x"], ["bench", "-p", "1", "-n", "0"]])
def test_the_weight_cache_can_be_left_out(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = WeightCache(tmp_path / "cache", 1 << 30, minimum_bytes=0)
    for module in (llm, bench_command):
        monkeypatch.setattr(module, "default_weight_cache", lambda: cache)
    assert main([*command, "--no-weight-cache"]) == 0
    assert not cache.directory.exists()
    assert main(command) == 0
    assert len(list(cache.directory.iterdir())) == 1
    capsys.readouterr()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for label in ("version", "commit", "isa", "compiled isas", "features", "kernels", "threads"):
        assert re.search(rf"^{label}:", shown, re.MULTILINE)
    for label in ("physical cores", "cpu quota", "memory bytes"):
        assert re.search(rf"^  {label}: +\S", shown, re.MULTILINE)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["isa"] in found["available_isas"]
    assert found["host"]["physical_cores"] >= 1


def answers(model: str, *messages: str) -> list[str]:
    """What a greedy chat answers to each message in turn."""
    history: list[dict[str, str]] = []
    texts = []
    with LLM(model, threads=1) as chat:
        for message in messages:
            history.append({"role": "user", "content": message})
            texts.append(chat.chat(history, greedy(chat, 6)).text)
            history.append({"role": "assistant", "content": texts[-1]})
    return texts


def test_chat_through_a_pipe(chatty: str, feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    feed("hello\n\nand then\n")
    assert main(["chat", "-m", chatty, "-n", "6"]) == 0
    out, _ = capsys.readouterr()
    assert out == "".join(text + "\n" for text in answers(chatty, "hello", "and then"))


def test_chat_commands(chatty: str, feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    feed("hello\n/clear\nhello\n/help\n/what\n/exit\nnever read\n", terminal=True)
    assert main(["chat", "-m", chatty, "-n", "6"]) == 0
    out, err = capsys.readouterr()
    (answer,) = answers(chatty, "hello")
    assert out == f"> {answer}\n> > {answer}\n> > > "
    assert "/clear   forget the conversation" in err
    assert "unknown command /what; /help lists them" in err


def test_chat_takes_instructions(
    chatty: str, feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    feed("hello\n")
    assert main(["chat", "-m", chatty, "-n", "6", "--system", "Be brief."]) == 0
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    with LLM(chatty, threads=1) as chat:
        expected = chat.chat(messages, greedy(chat, 6)).text
    assert capsys.readouterr().out == expected + "\n"


def test_chat_that_outgrows_the_context(
    chatty: str, feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["chat", "-m", chatty, "--context-length", "64", "-n", "6"]
    feed("word " * 90 + "\nhello\n", terminal=True)
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == "> " + "> " + answers(chatty, "hello")[0] + "\n> "
    assert "but the context of 64 must also hold what is generated" in err
    assert "(or /clear)]" in err
    feed("word " * 90 + "\nhello\n")
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_answer_may_fill_the_context(
    chatty: str, feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    feed("hello\n")
    assert main(["chat", "-m", chatty, "--context-length", "48"]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert err == "" or "[cut off: out of tokens; raise --max-tokens or /clear]" in err


def test_ctrl_c_stops_an_answer_but_not_a_conversation(
    chatty: str,
    feed: Feed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted = iter([True, False])
    stream = LLM.stream

    def interrupt_first(self: LLM, *arguments: Any) -> Any:
        if next(interrupted):
            raise KeyboardInterrupt
        return stream(self, *arguments)

    monkeypatch.setattr(LLM, "stream", interrupt_first)
    feed("first\nhello\n", terminal=True)
    assert main(["chat", "-m", chatty, "-n", "6"]) == 0
    out, err = capsys.readouterr()
    assert "[stopped]" in err
    assert out == f"> > {answers(chatty, 'hello')[0]}\n> "


def test_ctrl_c_ends_generate_with_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, "generate", "x", "-n", "900"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=python_environment(),
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


def test_a_reader_that_leaves_is_not_an_error_message() -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, "generate", "x", "-n", "900"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=python_environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1
    process.stderr.close()


def test_text_appears_as_it_is_generated() -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, "generate", "x", "-n", "900"],
        stdout=subprocess.PIPE,
        env=python_environment(),
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1 << 16)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(first) < len(rest)


def test_a_wrong_environment_is_one_line_too(tmp_path: Path) -> None:
    script = tmp_path / "ryzanstein"
    script.write_text(RUN)
    for name, value in {"RYZANSTEIN_ISA": "pentium", "RYZANSTEIN_THREADS": "many"}.items():
        result = run_python(str(script), "generate", "x", **{name: value})
        assert result.returncode == 2
        assert result.stderr.startswith("ryzanstein: ")
        assert value in result.stderr
        assert result.stderr.count("\n") == 1


def test_output_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    script = tmp_path / "ryzanstein"
    script.write_text(RUN)
    arguments = ("generate", "é", "-n", "50", "--temperature", "3", "--seed", "1")
    result = run_python(str(script), *arguments, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr


def test_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers"]) == 0
    text = capsys.readouterr().out
    for name in ("top n sigma:", "typical p:", "mirostat:", "llama.cpp:"):
        assert name in text
    assert main(["samplers", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["strategies"]["xtc"]["parameters"] == {
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "min_keep": 1,
    }
    assert listing["orders"]["llama.cpp"][-1] == "temperature"


def test_several_texts_are_printed_apart(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "-n", "6", "--seed", "1", "-t", "1", PROMPT]
    assert main([*arguments, "--set", "n=2"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "[1 of 2]\n[2 of 2]\n"
    assert main([*arguments, "--set", "best_of=2", "--stats"]) == 0
    assert "12 tokens" in capsys.readouterr().err
    assert main([*arguments, "--set", "n=2", "--json"]) == 0
    completion = json.loads(capsys.readouterr().out)
    assert shown.out == completion["text"] + "\n" + completion["others"][0]["text"] + "\n"


@pytest.mark.parametrize("setting", ["n=2", "best_of=2", "echo=true"])
def test_chat_prints_one_answer(
    setting: str, chatty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "-m", chatty, "-t", "1", "--set", setting]) == 2
    assert "chat prints one answer" in capsys.readouterr().err


def test_any_sampling_parameter_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "-n", "3", "-t", "0", "def f("]
    assert main([*arguments, "--set", 'bad_words=["a", "b"]', "--set", "order=llama.cpp"]) == 0
    capsys.readouterr()
    for setting, wanted in (
        ("min_keep=0", "min_keep must be an integer >= 1"),
        ("xtc_probability=x", "xtc_probability must be a number"),
        ("top_q=1", "--set top_q=1: expected FIELD=VALUE"),
        ("top_k", "--set top_k: expected FIELD=VALUE"),
    ):
        assert main([*arguments, "--set", setting]) == 2
        assert wanted in capsys.readouterr().err

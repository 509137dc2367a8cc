"""The conversation behind `ryzanstein chat`, on a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING

import typer

from ryzanstein.errors import ContextLengthError, ValidationError

if TYPE_CHECKING:
    from ryzanstein.llm import LLM
    from ryzanstein.sampling import SamplingParams

__all__ = ["ChatLoop"]

_HELP = """/clear   forget the conversation
/exit    leave (also /quit, or Ctrl-D)
/help    show this"""


class ChatLoop:
    """Reads messages, prints answers.

    Args:
        llm: a model with a chat template.
        params: sampling; without max_tokens an answer may fill the context.
        system: instructions that open the conversation.

    Raises:
        ValidationError: the model has no chat template, or the params ask for more than an answer.
    """

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        llm.require_chat_template()
        if params.num_samples > 1 or params.echo:
            raise ValidationError("chat prints one answer: leave out n, best_of and echo")
        self._llm = llm
        self._params = params
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)
        self._interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Talk until the input ends or the user leaves."""
        if self._interactive:
            # Gives input() line editing and history; some builds of Python lack it.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401
        while (line := self._read_line()) is not None:
            text = line.strip()
            if text in ("/exit", "/quit"):
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._answer(text)

    def _read_line(self) -> str | None:
        try:
            return input("> " if self._interactive else "")
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise ValidationError(f"standard input is not text: {error}") from error

    def _command(self, text: str) -> None:
        if text == "/clear":
            self._messages = list(self._opening)
        elif text == "/help":
            typer.echo(_HELP, err=True)
        else:
            typer.echo(f"unknown command {text}; /help lists them", err=True)

    def _answer(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        try:
            answer = self._stream_answer()
        except (KeyboardInterrupt, ContextLengthError) as error:
            if not self._interactive:
                raise
            self._messages.pop()
            reason = "stopped" if isinstance(error, KeyboardInterrupt) else f"{error} (or /clear)"
            typer.echo(f"\n[{reason}]", err=True)
        else:
            self._messages.append({"role": "assistant", "content": answer})

    def _stream_answer(self) -> str:
        prompt = self._llm.chat_prompt(self._messages)
        params = self._params
        if params.max_tokens is None:
            room = self._llm.context_length - len(prompt)
            params = dataclasses.replace(params, max_tokens=max(1, room))
        texts: list[str] = []
        for piece in self._llm.stream(prompt, params):
            typer.echo(piece.text, nl=False)
            texts.append(piece.text)
            if piece.finish_reason == "length":
                typer.echo("\n[cut off: out of tokens; raise --max-tokens or /clear]", err=True)
        typer.echo()
        return "".join(texts)

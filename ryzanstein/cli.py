"""The `ryzanstein` command."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ryzanstein import __version__
from ryzanstein.bench.command import bench
from ryzanstein.chat_loop import ChatLoop
from ryzanstein.commands.convert import convert
from ryzanstein.commands.info import info
from ryzanstein.commands.pull import pull
from ryzanstein.commands.report import print_report
from ryzanstein.cpu import doctor as examine
from ryzanstein.cpu import peak_resident_bytes
from ryzanstein.errors import RyzansteinError, ValidationError
from ryzanstein.llm import LLM
from ryzanstein.loaders.weight_cache import default_weight_cache
from ryzanstein.sampling.params import SamplingParams, describe_strategies
from ryzanstein.tuning import Measured, remembered_kernels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ryzanstein.engine.result import Completion

__all__ = ["main"]

_EPILOG = """\b
Exit codes:
  0    success
  1    the model, its files, memory or the machine failed
  2    a bad option, argument, prompt or environment variable
  130  interrupted (Ctrl-C)

\b
Environment:
  RYZANSTEIN_THREADS   threads to compute with (default: one per usable physical core)
  RYZANSTEIN_ISA       scalar, avx2 or avx512 (default: the best this machine has)
  RYZANSTEIN_CACHE     where packed weights, kernel timings and hashes of files are kept
                       (default: ~/.cache/ryzanstein)
  RYZANSTEIN_CACHE_LIMIT   gigabytes of packed weights to keep, 0 for none (default: 16)
  RYZANSTEIN_TERNARY_KERNEL   two_bit, five_trit or a kernel's name (default: the fastest here)
  RYZANSTEIN_GROUPED_KERNEL   multiply_add, lookup or a kernel's name (default: the fastest here)
  HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN   where hub models come from
"""

app = typer.Typer(
    name="ryzanstein",
    help="Run ternary (BitNet b1.58) language models on a plain CPU.",
    epilog=_EPILOG,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Directory, GGUF file or hub id (default: the embedded model)."
    ),
]
_Threads = Annotated[int | None, typer.Option(help="Threads to compute with.")]
_Context = Annotated[int | None, typer.Option(help="Tokens of prompt and generation together.")]
_KVDtype = Annotated[str, typer.Option(help="Storage of keys and values: f16, f32 or int8.")]
_LmHead = Annotated[str, typer.Option(help="Logits: exact, int8, int7, int5, int4 or dense.")]
_Weights = Annotated[
    str, typer.Option(help="Linears: auto (as stored), bf16, int8, int4 or ternary.")
]
_Isa = Annotated[str | None, typer.Option(help="Instruction set: scalar, avx2 or avx512.")]
_WeightCache = Annotated[
    bool,
    typer.Option(help="Keep the packed weights of a large model, to load it faster next time."),
]
_Speculative = Annotated[
    str | None,
    typer.Option(help="Check guesses, for the same text sooner: auto, suffix or ngram."),
]
_MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", help="Tokens to generate at most.")
]
_Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", help="0 is greedy; higher is more varied.")
]
_TopK = Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")]
_TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens up to this mass.")]
_MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest.")]
_Penalty = Annotated[float | None, typer.Option(help="Above 1, repeats become less likely.")]
_Stop = Annotated[list[str] | None, typer.Option(help="End at this text; may be repeated.")]
_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any other sampling parameter (see ryzanstein samplers); may be repeated.",
    ),
]
_Schema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="Write JSON as this schema has it."),
]
_Regex = Annotated[str | None, typer.Option(help="Write what this expression matches.")]
_Choice = Annotated[list[str] | None, typer.Option(help="Write this; repeated, one of these.")]
_Grammar = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write what this Lark grammar allows.")
]
_Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
_Stats = Annotated[bool, typer.Option("--stats", help="End with a line of figures on stderr.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ryzanstein {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; read from stdin if left out or '-'.")
    ] = None,
    model: _Model = None,
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = None,
    top_k: _TopK = None,
    top_p: _TopP = None,
    min_p: _MinP = None,
    repetition_penalty: _Penalty = None,
    stop: _Stop = None,
    json_schema: _Schema = None,
    regex: _Regex = None,
    choice: _Choice = None,
    grammar: _Grammar = None,
    settings: _Set = None,
    seed: _Seed = None,
    threads: _Threads = None,
    context_length: _Context = None,
    kv_dtype: _KVDtype = "f16",
    lm_head: _LmHead = "exact",
    weights: _Weights = "auto",
    isa: _Isa = None,
    weight_cache: _WeightCache = True,
    speculative: _Speculative = None,
    stats: _Stats = False,
    as_json: _Json = False,
) -> None:
    """Continue a text, printed as it is generated.

    Sampling options that are left out come from the model's generation_config.json.

    \b
    Examples:
      ryzanstein generate "def fibonacci(n):"
      ryzanstein generate --stats -n 100 -t 0.8 --seed 1 "import os"
      ryzanstein generate --set order=llama.cpp --set n=3 "import os"
      ryzanstein generate -m microsoft/bitnet-b1.58-2B-4T "The capital of France is"
      ryzanstein generate --choice yes --choice no "Is water wet? "
      cat module.py | ryzanstein generate --json
    """
    chosen = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or None,
        **_structure(json_schema, regex, choice, grammar),
        "seed": seed,
    }
    text = _read_prompt(prompt)
    held = (kv_dtype, lm_head, weights, isa, weight_cache, speculative)
    with _load(model, threads, context_length, *held) as llm:
        params = _sampling(llm, chosen, settings)
        completion = (_print_json if as_json else _print_stream)(llm, text, params)
    if stats:
        typer.echo(_stats_line(completion), err=True)


@app.command()
def chat(
    model: _Model = None,
    system: Annotated[str | None, typer.Option(help="Instructions to the model.")] = None,
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = None,
    top_k: _TopK = None,
    top_p: _TopP = None,
    min_p: _MinP = None,
    repetition_penalty: _Penalty = None,
    settings: _Set = None,
    seed: _Seed = None,
    threads: _Threads = None,
    context_length: _Context = None,
    kv_dtype: _KVDtype = "f16",
    lm_head: _LmHead = "exact",
    weights: _Weights = "auto",
    isa: _Isa = None,
    weight_cache: _WeightCache = True,
    speculative: _Speculative = None,
) -> None:
    """Talk to a model that has a chat template.

    Each line is a message, typed or piped in. /help lists the commands; Ctrl-C stops an answer.

    \b
    Examples:
      ryzanstein chat -m microsoft/bitnet-b1.58-2B-4T
      echo "Name three rivers." | ryzanstein chat -m ./model --system "Be brief."
    """
    chosen = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    with _load(
        model, threads, context_length, kv_dtype, lm_head, weights, isa, weight_cache, speculative
    ) as llm:
        params = _sampling(llm, chosen, settings)
        ChatLoop(llm, params, system).run()


app.command()(info)
app.command()(pull)
app.command()(convert)
app.command()(bench)


@app.command()
def doctor(as_json: _Json = False) -> None:
    """Show the build, the machine and what was chosen for it: paste it into a bug report.

    \b
    Examples:
      ryzanstein doctor
      ryzanstein doctor --json
    """
    report = examine()
    kernels = remembered_kernels(isa=report.isa, threads=report.threads)
    shown = dataclasses.asdict if as_json else _measured_line
    cache = default_weight_cache()
    print_report(
        dataclasses.asdict(report)
        | {"measured_kernels": {shape: shown(measured) for shape, measured in kernels.items()}}
        | {"weight_cache": None if cache is None else cache.report()},
        as_json,
    )


@app.command()
def samplers(as_json: _Json = False) -> None:
    """List the sampling strategies, with their parameters and defaults, and the orders they run in.

    \b
    Examples:
      ryzanstein samplers
      ryzanstein samplers --json
    """
    print_report(describe_strategies(), as_json)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: those behind the program's name; None takes them from the command line.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = app(args=arguments, prog_name="ryzanstein", standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output is gone; keep the interpreter from flushing to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} See ryzanstein --help.", 2)
    except ValidationError as error:
        return _fail(str(error), 2)
    except MemoryError as error:
        return _fail(str(error) or "out of memory", 1)
    except (RyzansteinError, OSError) as error:
        return _fail(str(error), 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    typer.echo(f"ryzanstein: {' '.join(message.split())}", err=True)
    return code


def _load(
    model: str | None,
    threads: int | None,
    context_length: int | None,
    kv_dtype: str,
    lm_head: str,
    weights: str,
    isa: str | None,
    weight_cache: bool,
    speculative: str | None,
) -> LLM:
    options: dict[str, Any] = {
        "context_length": context_length,
        "kv_dtype": kv_dtype,
        "lm_head": lm_head,
        "weights": weights,
        "speculative": speculative,
    }
    return LLM(model, threads=threads, isa=isa, weight_cache=weight_cache, **options)


def _given(options: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _sampling(
    llm: LLM, chosen: Mapping[str, object], settings: Sequence[str] | None
) -> SamplingParams:
    """Return the model's defaults with what the options say; `--set` values are JSON or text."""
    fields = _given(chosen)
    known = {field.name for field in dataclasses.fields(SamplingParams)}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise ValidationError(
                f"--set {setting}: expected FIELD=VALUE, FIELD one of those that "
                "ryzanstein samplers lists"
            )
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return dataclasses.replace(llm.defaults.params, **fields)


def _read_prompt(argument: str | None) -> str:
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise ValidationError("give a prompt, or pipe one in; see ryzanstein generate --help")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValidationError(f"standard input is not {error.encoding} text: {error}") from error


def _structure(
    json_schema: Path | None, regex: str | None, choice: list[str] | None, grammar: Path | None
) -> dict[str, object]:
    return {
        "json_schema": json_schema and _read_text(json_schema),
        "regex": regex,
        "choice": choice or None,
        "grammar": grammar and _read_text(grammar),
    }


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValidationError(f"{path} is not UTF-8 text: {error}") from error


def _print_json(llm: LLM, text: str, params: Any) -> Completion:
    completion = llm.generate(text, params)
    typer.echo(json.dumps(dataclasses.asdict(completion), ensure_ascii=False))
    return completion


def _print_stream(llm: LLM, text: str, params: SamplingParams) -> Completion:
    if params.num_samples > 1:
        return _print_choices(llm, text, params)
    completion = None
    for piece in llm.stream(text, params):
        typer.echo(piece.text, nl=False)
        completion = piece.completion
    typer.echo()
    assert completion is not None
    return completion


def _print_choices(llm: LLM, text: str, params: SamplingParams) -> Completion:
    completion = llm.generate(text, params)
    for choice in completion.choices:
        typer.echo(f"[{choice.index + 1} of {len(completion.choices)}]", err=True)
        typer.echo(choice.text)
    return completion


def _stats_line(completion: Completion) -> str:
    timings = completion.timings
    rate = timings.decode_tokens_per_s
    drafted, accepted = timings.drafted_tokens, timings.accepted_tokens
    gain_ms = timings.speculation_gain_s * 1000
    return ", ".join(
        (
            f"{completion.usage.completion_tokens} tokens",
            f"first token {timings.time_to_first_token_s * 1000:.0f} ms",
            "- tok/s" if rate is None else f"{rate:.1f} tok/s",
            *(
                [f"{accepted} of {drafted} guesses right ({gain_ms:+.0f} ms gained)"]
                if drafted
                else []
            ),
            f"peak memory {peak_resident_bytes() / 1e9:.2f} GB",
        )
    )


def _measured_line(measured: Measured) -> str:
    timings = (
        f"{name} {timing.one_token * 1e6:.0f}/{timing.many_tokens * 1e6:.0f}"
        for name, timing in measured.timings.items()
    )
    return f"{measured.chosen} (us for one/many tokens: {', '.join(timings)})"

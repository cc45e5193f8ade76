"""The options of `fmo run` and `fmo chat` that say how tokens are chosen, and the model they open."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .finite_range import FiniteRange

if TYPE_CHECKING:
    from friendli_runtime.llm import LLM
    from friendli_runtime.sampling import SamplingParams


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --max-tokens, --temperature, --top-p, --top-k, --seed and --stop."""
    options = [
        click.option(
            "--max-tokens", type=click.IntRange(min=1), help="Longest answer. Default: until the model ends or the context is full."
        ),
        click.option("--temperature", type=FiniteRange(0, 100), default=0.0, show_default=True, help="0: always the likeliest token."),
        click.option("--top-p", type=FiniteRange(0, 1), default=1.0, show_default=True, help="Share of probability to choose from."),
        click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="Tokens to choose from; 0: all."),
        click.option("--seed", type=click.IntRange(min=0), help="Repeats a sampled answer."),
        click.option("--stop", multiple=True, help="End the answer before this text; may be given several times."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the engine says of a user's prompt or options, as an error of the command line (exit code 1) and not as a bug."""
    from friendli_runtime.chat import InvalidChat
    from friendli_runtime.engine import EngineError
    from friendli_runtime.sampling import InvalidSamplingParams

    try:
        yield
    except (InvalidSamplingParams, EngineError, InvalidChat) as error:
        raise click.ClickException(str(error)) from error


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    from friendli_runtime.sampling import SamplingParams

    names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    return SamplingParams(**{name: options[name] for name in names}, stop=tuple(options["stop"]))


def open_llm(artifact: Path, options: dict[str, Any]) -> LLM:
    """The artifact with the engine options of the command line, for one conversation at a time."""
    from friendli_runtime.llm import LLM

    return LLM(
        artifact,
        num_threads=options["num_threads"],
        max_num_seqs=options["max_batch_size"],
        max_num_tokens=options["max_num_tokens_per_step"],
        kv_cache_bytes=options["kv_cache_memory"],
        kv_dtype=options["kv_dtype"],
        has_prefix_cache=options["prefix_cache"],
        ngram_size=options["ngram_size"],
        chat_template=options["chat_template"],
    )

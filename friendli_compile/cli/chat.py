"""`fmo chat`: a conversation in the terminal, reasoning apart from the answers. The model sees the whole history; the prefix that it has
seen before is in its cache."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .engine_options import chat_template_option, engine_options
from .sampling_options import open_llm, sampling_options, sampling_params, user_errors

if TYPE_CHECKING:
    from friendli_runtime.chat import ChatDelta
    from friendli_runtime.llm import LLM
    from friendli_runtime.sampling import SamplingParams

EXAMPLES = """\b
Examples:
  fmo chat build/stdlib-coder
  fmo chat build/stdlib-coder --system "Answer in one line." --temperature 0.7"""
COMMANDS = "/exit leaves · /clear forgets the conversation · Ctrl-C stops an answer"


@click.command(name="chat", epilog=EXAMPLES)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--system", help="A system message before the conversation.")
@chat_template_option
@sampling_options
@engine_options(max_batch_size=64)
def chat(artifact: Path, system: str | None, **options: Any) -> None:
    """Chat with the model of ARTIFACT. `/exit` or Ctrl-D leaves, Ctrl-C stops the answer, `/clear` forgets the conversation."""
    params = sampling_params(options)
    opening = [{"role": "system", "content": system}] if system else []
    with user_errors(), open_llm(artifact, options) as llm:
        llm.chat_prompt([*opening, {"role": "user", "content": ""}])  # a model without a template is refused now
        click.echo(f"{llm.name}: {COMMANDS}", err=True)
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (editing and history of the input line)
        history = list(opening)
        while (line := _read_line()) is not None and line != "/exit":
            if line == "/clear":
                history = list(opening)
            elif line:
                _exchange(llm, history, line, params)


def _read_line() -> str | None:
    """The next line of the user, None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        click.echo()
        return ""


def _exchange(llm: LLM, history: list[dict[str, Any]], line: str, params: SamplingParams) -> None:
    """One question and its answer; both stay in `history` unless the conversation no longer fits."""
    from friendli_runtime.sampling import InvalidSamplingParams

    history.append({"role": "user", "content": line})
    answer = {"role": "assistant", "content": "", "reasoning_content": ""}
    try:
        for delta in written(llm.stream_chat(history, params)):
            answer["content"] += delta.content
            answer["reasoning_content"] += delta.reasoning
    except KeyboardInterrupt:
        click.echo(" [stopped]", err=True)
    except InvalidSamplingParams as error:
        history.pop()
        click.echo(f"the conversation does not fit any more: {error}; /clear starts a new one", err=True)
        return
    click.echo()
    history.append(answer if answer["reasoning_content"] else {"role": "assistant", "content": answer["content"]})


def written(deltas: Iterable[ChatDelta]) -> Iterator[ChatDelta]:
    """Shows an answer as it comes: content on stdout, reasoning on stderr and faint where that is a terminal."""
    in_reasoning = False
    for delta in deltas:
        if delta.reasoning:
            click.secho(delta.reasoning, nl=False, err=True, dim="NO_COLOR" not in os.environ or None)
        if in_reasoning and delta.content:
            click.echo("\n", err=True)
        in_reasoning = (in_reasoning or bool(delta.reasoning)) and not delta.content
        click.echo(delta.content, nl=False)
        sys.stdout.flush()
        yield delta

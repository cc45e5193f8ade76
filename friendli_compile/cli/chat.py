"""`fmo chat`: a conversation in the terminal. The model sees the whole history; the prefix that it has seen before is in its cache."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .engine_options import engine_options
from .sampling_options import open_llm, sampling_options, sampling_params, user_errors

if TYPE_CHECKING:
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
    parts: list[str] = []
    try:
        for delta in llm.stream(llm.chat_prompt(history), params):
            parts.append(delta.text)
            click.echo(delta.text, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        click.echo(" [stopped]", err=True)
    except InvalidSamplingParams as error:
        history.pop()
        click.echo(f"the conversation does not fit any more: {error}; /clear starts a new one", err=True)
        return
    click.echo()
    history.append({"role": "assistant", "content": "".join(parts)})

"""`fmo run`: one prompt, the answer on stdout as it comes, figures on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .chat import written
from .engine_options import chat_template_option, engine_options
from .sampling_options import open_llm, sampling_options, sampling_params, user_errors

if TYPE_CHECKING:
    from friendli_runtime.tokenizer.sample_text import TextDelta

EXAMPLES = """\b
Examples:
  fmo run build/stdlib-coder "def main(" --max-tokens 64
  echo "class Stack:" | fmo run build/stdlib-coder - --temperature 0.8 --seed 1"""


@click.command(name="run", epilog=EXAMPLES)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--chat", "as_chat", is_flag=True, help="Send the prompt as a user's message through the chat template.")
@chat_template_option
@sampling_options
@engine_options(max_batch_size=64)
def run(artifact: Path, prompt: str, as_chat: bool, **options: Any) -> None:
    """Answer PROMPT once; `-` reads it from stdin. A plain prompt is continued: give --chat for models that follow instructions."""
    text = sys.stdin.read() if prompt == "-" else prompt
    params = sampling_params(options)
    start = time.monotonic()
    with user_errors(), open_llm(artifact, options) as llm:
        load_s = time.monotonic() - start
        conversation = [{"role": "user", "content": text}]
        prompt_ids = llm.chat_prompt(conversation) if as_chat else llm.tokenizer.encode(text)
        num_tokens, first_token_time = 0, None
        start = time.monotonic()
        for delta in written(llm.stream_chat(conversation, params)) if as_chat else _shown(llm.stream(prompt_ids, params)):
            first_token_time = first_token_time or time.monotonic()
            num_tokens += delta.num_tokens
        end = time.monotonic()
    click.echo()
    ttft_s = (first_token_time or end) - start
    rate = (num_tokens - 1) / (end - start - ttft_s) if num_tokens > 1 else 0.0
    click.echo(
        f"loaded in {load_s:.2f} s · {len(prompt_ids)} prompt tokens · first token after {ttft_s * 1e3:.0f} ms · "
        f"{num_tokens} tokens, {rate:.1f} tokens/s",
        err=True,
    )


def _shown(deltas: Iterable[TextDelta]) -> Iterator[TextDelta]:
    """Writes a text to stdout as it comes."""
    for delta in deltas:
        click.echo(delta.text, nl=False)
        sys.stdout.flush()
        yield delta

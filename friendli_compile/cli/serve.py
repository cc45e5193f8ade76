"""`fmo serve`: a thin layer over `friendli_runtime.server.serve.serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .engine_options import chat_template_option, engine_options
from .finite_range import FiniteRange

if TYPE_CHECKING:
    from friendli_runtime.server.auth import ApiKeys

EXAMPLES = """\b
Examples:
  fmo serve build/stdlib-coder
  fmo serve build/stdlib-coder --host 0.0.0.0 --web-server-port 9000 --kv-cache-memory 512MiB
\b
Exit codes: 0 all requests were finished, 1 the user can mend it, 2 usage, 3 a bug of ours, 4 requests were cut off."""


@click.command(name="serve", epilog=EXAMPLES)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 lets other machines in.")
@click.option(
    "--web-server-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port and prints it."
)
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), default=8281, show_default=True, help="Prometheus text at /metrics; 0 as above."
)
@click.option("--served-model-name", help="The model's name in requests and answers. Default: that of the artifact.")
@engine_options(max_batch_size=384)
@click.option(
    "--max-queue-len",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Answers that may wait to be started, n for a request with n; more get a 429.",
)
@click.option(
    "--num-request-threads", type=click.IntRange(min=1), default=4, show_default=True, help="Threads that tokenize large requests."
)
@click.option(
    "--timeout-microseconds", type=click.IntRange(min=0), default=0, show_default=True, help="Longest time per request; 0: no limit."
)
@click.option(
    "--ignore-nan-error",
    type=bool,
    default=False,
    show_default=True,
    help="A score that is NaN counts as a token that cannot be chosen, and the answer ends where no score is left. Else: error 400.",
)
@click.option(
    "--drain-timeout", type=FiniteRange(min=0), default=30.0, show_default=True, help="Seconds that running requests get at the end."
)
@click.option(
    "--tokenizer-add-special-tokens", type=bool, default=True, show_default=True, help="Encode prompts with the tokens of the model."
)
@click.option("--tokenizer-skip-special-tokens", type=bool, default=True, show_default=True, help="Leave special tokens out of answers.")
@click.option(
    "--bad-stop-file-path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with stop, stop_tokens, bad_words and bad_word_tokens for every request.",
)
@chat_template_option
@click.option(
    "--parse-reasoning", type=bool, default=False, show_default=True, help="Split reasoning from content unless a request says otherwise."
)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Require a key of this file, one per line; it may change (or FMO_API_KEY).",
)
@click.option(
    "--adapter-model",
    metavar="NAME:PATH,…",
    help="LoRA adapters (folders or hub ids, in PEFT's format) and the names by which requests choose them as 'model'.",
)
@click.option(
    "--adapter-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Let clients load the adapters in this folder (POST /v1/adapters) and unload them. Default: they may not.",
)
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Change a limit of requests, e.g. max_n=8; a wrong name lists all."
)
def serve(
    artifact: Path,
    host: str,
    web_server_port: int,
    metrics_port: int,
    served_model_name: str | None,
    max_queue_len: int,
    num_request_threads: int,
    timeout_microseconds: int,
    ignore_nan_error: bool,
    drain_timeout: float,
    tokenizer_add_special_tokens: bool,
    tokenizer_skip_special_tokens: bool,
    bad_stop_file_path: Path | None,
    chat_template: Path | None,
    parse_reasoning: bool,
    api_key_file: Path | None,
    adapter_model: str | None,
    adapter_dir: Path | None,
    limits: tuple[str, ...],
    **engine: Any,
) -> int:
    """Serve ARTIFACT over an OpenAI-compatible HTTP API.

    SIGTERM or Ctrl-C: new requests get 503, the running ones finish within --drain-timeout. A second signal exits at once.
    """
    from friendli_runtime.loaded_model import EngineOptions, TextOptions
    from friendli_runtime.lora.source import parse_adapter_list
    from friendli_runtime.server.app import AppOptions
    from friendli_runtime.server.limits import limits_from
    from friendli_runtime.server.serve import ServeOptions
    from friendli_runtime.server.serve import serve as run_server

    options = ServeOptions(
        artifact=artifact,
        host=host,
        port=web_server_port,
        metrics_port=metrics_port,
        served_model_name=served_model_name,
        bad_stop_file=bad_stop_file_path,
        drain_timeout_s=drain_timeout,
        engine=EngineOptions(
            num_threads=engine["num_threads"],
            max_num_seqs=engine["max_batch_size"],
            max_num_tokens=engine["max_num_tokens_per_step"],
            max_queue_len=max_queue_len,
            kv_cache_bytes=engine["kv_cache_memory"],
            kv_dtype=engine["kv_dtype"],
            has_prefix_cache=engine["prefix_cache"],
            ngram_size=engine["ngram_size"],
            ignores_nan=ignore_nan_error,
            adapters=parse_adapter_list(adapter_model) if adapter_model is not None else {},
        ),
        text=TextOptions(
            add_special_tokens=tokenizer_add_special_tokens,
            skip_special_tokens=tokenizer_skip_special_tokens,
            chat_template=chat_template,
        ),
        app=AppOptions(
            limits=limits_from(limits),
            api_keys=_api_keys(api_key_file),
            request_timeout_s=timeout_microseconds * 1e-6,
            num_request_threads=num_request_threads,
            max_queue_len=max_queue_len,
            parse_reasoning=parse_reasoning,
            adapter_dir=adapter_dir,
        ),
    )
    return run_server(options, lambda line: click.echo(line, err=True))


def _api_keys(file: Path | None) -> ApiKeys | None:
    """The keys of the file, else of the environment; None: anybody may ask. No key at all would let everybody in and is refused."""
    from friendli_runtime.server.auth import ApiKeys

    source = file if file is not None else os.environ.get("FMO_API_KEY")
    return None if source is None else ApiKeys(source)

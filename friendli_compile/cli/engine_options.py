"""The options of every verb that runs an engine (serve, run, chat), and sizes written for people (`512MiB`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMG]I?)B?", re.IGNORECASE)


class Size(click.ParamType):
    """A number of bytes: `512MiB`, `2GB`, `1048576`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"'{value}' is not a size; write for instance 512MiB or 2GB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


KV_DTYPES = {"auto": None, "fp32": "f32", "bf16": "bf16", "int8": "i8"}
"""What the command line calls the dtypes of the KV cache; None: as the artifact says."""


def _kv_dtype(_ctx: click.Context, _param: click.Parameter, value: str) -> str | None:
    return KV_DTYPES[value]


kv_cache_dtype_option = click.option(
    "--kv-cache-dtype",
    "kv_dtype",
    type=click.Choice(list(KV_DTYPES)),
    default="auto",
    show_default=True,
    callback=_kv_dtype,
    help="How keys and values are stored. int8: one scale per token and head. auto: as the artifact says.",
)


chat_template_option = click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Jinja file in place of the model's own chat template; fmo check-template tells what one means.",
)


def engine_options(*, max_batch_size: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds the options; `max_batch_size` is the default of --max-batch-size."""
    options = [
        click.option("--num-threads", type=click.IntRange(min=0), default=0, help="CPU threads. 0: all that the process may use."),
        click.option(
            "--max-batch-size", type=click.IntRange(min=1), default=max_batch_size, show_default=True, help="Sequences at the same time."
        ),
        click.option(
            "--max-num-tokens-per-step",
            type=click.IntRange(min=1),
            default=512,
            show_default=True,
            help="Tokens that one step computes at most; longer prompts take several steps.",
        ),
        click.option(
            "--kv-cache-memory",
            type=Size(),
            help="Memory of the KV cache, e.g. 512MiB. Default: what the batch needs, at most 1/4 of what is free.",
        ),
        kv_cache_dtype_option,
        click.option(
            "--prefix-cache/--no-prefix-cache",
            default=True,
            show_default=True,
            help="Keep computed prompts and share them between requests that begin alike.",
        ),
        click.option(
            "--ngram-size",
            type=click.IntRange(0, 16),
            default=3,
            show_default=True,
            help="Tokens that are guessed ahead from what the text has said before, and verified in one step; 0: none.",
        ),
    ]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add

"""An artifact, opened and running: executor, engine and tokenizer, ready for the server or for `LLM`.

    Artifact.open ─┬─▶ hash every file        (thread)
                   ├─▶ tokenizer, template    (thread)
                   └─▶ executor ─▶ engine ─▶ start, after the hashes are right

How much memory the KV cache gets is decided here, from the options or from what the machine has free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .artifact import Artifact
from .engine import Engine
from .errors import ConfigError
from .free_memory import free_memory_bytes

if TYPE_CHECKING:
    from .embedder import Embedder
    from .lora.registry import LoadedAdapter
    from .tokenizer.chat_template import ChatTemplate
    from .tokenizer.tokenizer import Tokenizer

BLOCK_SIZE = 16
"""Tokens of one KV block."""
KV_DTYPE_BYTES = {"f32": 4, "bf16": 2, "i8": 1}
MAX_GUESSING_SEQS = 16
"""Sequences whose guesses one step verifies: a larger batch keeps the machine busy without them, and each guess needs a row of logits."""
FREE_MEMORY_SHARE = 0.25
"""Of the memory that is free at start, what the KV cache takes at most unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """`num_threads` 0: all that the process may use. `max_num_seqs`: samples at the same time. `max_num_tokens`: rows of one step.

    `ngram_size`: tokens that are guessed ahead from what a sequence has said before; 0: none.
    `ignores_nan`: scores that are no numbers never end a request with an error.
    `has_prefix_cache`: computed prompts are kept and shared between requests that begin alike.
    `adapters`: LoRA adapters to load, name → folder or hub id.
    `kv_cache_bytes` None: as much as `max_num_seqs` full contexts need, within FREE_MEMORY_SHARE. `kv_dtype` None: that of the artifact.
    """

    num_threads: int = 0
    max_num_seqs: int = 64
    max_num_tokens: int = 512
    max_queue_len: int = 1024
    kv_cache_bytes: int | None = None
    kv_dtype: str | None = None
    has_prefix_cache: bool = True
    ignores_nan: bool = False
    ngram_size: int = 3
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """The meaning of special tokens in text, as in the call arguments of Hugging Face tokenizers.

    `chat_template`: a Jinja file in place of the model's own.
    """

    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    chat_template: Path | None = None


@dataclass(slots=True)
class LoadedModel:
    """A started engine with what is needed around it. `close` ends it."""

    artifact: Artifact
    engine: Engine
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    kv_cache_tokens: int
    kv_cache_bytes: int

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.artifact.eos_token_ids

    def chat_template_for(self, adapter: LoadedAdapter | None) -> ChatTemplate | None:
        """The adapter's own where it has one."""
        return self.chat_template if adapter is None or adapter.chat_template is None else adapter.chat_template

    def close(self, drain_s: float = 0.0) -> None:
        self.engine.shutdown(drain_s)


@dataclass(slots=True)
class LoadedEmbedder:
    """As LoadedModel, of a model that gives embeddings."""

    artifact: Artifact
    engine: Embedder
    tokenizer: Tokenizer | None

    chat_template = None
    eos_token_ids: tuple[int, ...] = ()

    def close(self) -> None:
        self.engine.shutdown()


def open_model(path: str | Path, options: EngineOptions, text: TextOptions, *, has_dispatcher: bool = True) -> LoadedModel:
    """Opens, checks and starts a model that writes text; `has_dispatcher`: of its engine.

    Raises ArtifactError and its kinds, ConfigError, AdapterError.
    """
    artifact = Artifact.open(path)
    if artifact.embedding is not None:
        raise ConfigError(
            f"'{artifact.name}' gives embeddings, not text",
            where=str(artifact.folder),
            hint="serve it: fmo serve, then POST /v1/embeddings",
        )
    verification = artifact.start_verification()
    num_blocks = num_kv_blocks(artifact, options)
    with ThreadPoolExecutor(1, "fmo-load-text") as pool:
        texts = pool.submit(_load_text, artifact, text)
        engine = _open_engine(artifact, options, num_blocks, has_dispatcher)
        if artifact.tokenizer_folder is not None:  # while the other thread reads the vocabulary, for which it needs no GIL
            import_module(".tokenizer.chat_template", __package__)
        tokenizer, template = texts.result()
    verification.wait()
    _load_adapters(engine, artifact.name, tokenizer, options.adapters)
    engine.start()
    block_bytes = kv_block_bytes(artifact, options.kv_dtype or artifact.kv_dtype)
    return LoadedModel(artifact, engine, tokenizer, template, num_blocks * BLOCK_SIZE, num_blocks * block_bytes)


def open_any(path: str | Path, options: EngineOptions, text: TextOptions) -> LoadedModel | LoadedEmbedder:
    """Whatever the artifact holds, opened, checked and started, without a dispatcher. Raises as `open_model` does."""
    artifact = Artifact.open(path)
    return (
        _open_embedder(artifact, options, text) if artifact.embedding is not None else open_model(path, options, text, has_dispatcher=False)
    )


def _open_embedder(artifact: Artifact, options: EngineOptions, text: TextOptions) -> LoadedEmbedder:
    from .embedder import Embedder, num_blocks_for
    from .executor import load_executor

    assert artifact.embedding is not None
    if options.adapters:
        what = f"'{artifact.name}' gives embeddings and takes no adapters"
        raise ConfigError(what, where="--adapter-model", hint="merge the adapter into the checkpoint before it is compiled")
    verification = artifact.start_verification()
    num_tokens, num_seqs = options.max_num_tokens, options.max_num_seqs
    executor = load_executor(
        artifact,
        num_threads=options.num_threads,
        max_num_tokens=num_tokens,
        max_num_logits=num_tokens if artifact.embedding.pooling == "mean" else num_seqs,
        num_blocks=num_blocks_for(artifact.max_context_len, num_tokens, num_seqs),
        kv_dtype=options.kv_dtype,
    )
    tokenizer, _ = _load_text(artifact, text)
    verification.wait()
    sizes = {"max_num_tokens": num_tokens, "max_num_seqs": num_seqs, "max_queue_len": options.max_queue_len}
    embedder = Embedder(executor, artifact.embedding, max_context_len=artifact.max_context_len, **sizes)
    embedder.start()
    return LoadedEmbedder(artifact, embedder, tokenizer)


def _load_adapters(engine: Engine, model_name: str, tokenizer: Tokenizer | None, adapters: Mapping[str, str]) -> None:
    if tokenizer is not None:
        from .tokenizer.chat_template import load_chat_template

        engine.adapters.read_template = lambda folder: load_chat_template(folder, tokenizer)
    engine.adapters.reserve(model_name)
    for name, path in adapters.items():
        engine.adapters.load(name, path)


def _load_text(artifact: Artifact, options: TextOptions) -> tuple[Tokenizer | None, ChatTemplate | None]:
    folder, own_template = artifact.tokenizer_folder, options.chat_template
    if own_template is not None and (folder is None or artifact.embedding is not None):
        what = "has no tokenizer" if folder is None else "gives embeddings"
        raise ConfigError(
            f"'{artifact.name}' {what} and takes no chat template", where=f"--chat-template {own_template}", hint="leave it out"
        )
    if folder is None:
        return None, None
    from .tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder, add_special_tokens=options.add_special_tokens, skip_special_tokens=options.skip_special_tokens)
    from .tokenizer.chat_template import load_chat_template, read_chat_template

    return tokenizer, load_chat_template(folder, tokenizer) if own_template is None else read_chat_template(own_template, tokenizer)


def _open_engine(artifact: Artifact, options: EngineOptions, num_blocks: int, has_dispatcher: bool) -> Engine:
    from .executor import load_executor

    if options.max_num_tokens < options.max_num_seqs:
        raise ConfigError(
            f"a step of {options.max_num_tokens} tokens cannot hold {options.max_num_seqs} sequences",
            where="--max-num-tokens-per-step, --max-batch-size",
            hint="raise the first or lower the second",
        )
    kv_dtype = options.kv_dtype or artifact.kv_dtype
    executor = load_executor(
        artifact,
        num_threads=options.num_threads,
        max_num_tokens=options.max_num_tokens,
        max_num_logits=options.max_num_seqs + min(options.max_num_seqs, MAX_GUESSING_SEQS) * options.ngram_size,
        num_blocks=num_blocks,
        kv_dtype=kv_dtype,
    )
    return Engine(
        executor,
        max_num_seqs=options.max_num_seqs,
        max_num_tokens=options.max_num_tokens,
        max_queue_len=options.max_queue_len,
        max_context_len=artifact.max_context_len,
        vocab_size=artifact.vocab_size,
        has_prefix_cache=options.has_prefix_cache,
        ignores_nan=options.ignores_nan,
        ngram_size=options.ngram_size,
        has_dispatcher=has_dispatcher,
    )


def num_kv_blocks(artifact: Artifact, options: EngineOptions) -> int:
    """Blocks of the KV cache. Raises ConfigError when the given memory does not hold one block, or when that much is not free."""
    blocks_per_context = -(-artifact.max_context_len // BLOCK_SIZE)
    most = blocks_per_context * options.max_num_seqs
    block_bytes = kv_block_bytes(artifact, options.kv_dtype or artifact.kv_dtype)
    if block_bytes == 0:
        return most
    free_bytes = free_memory_bytes()
    if options.kv_cache_bytes is None:
        num_blocks = max(min(most, int(free_bytes * FREE_MEMORY_SHARE) // block_bytes), blocks_per_context)
    else:
        num_blocks = options.kv_cache_bytes // block_bytes
    if num_blocks == 0:
        raise ConfigError(
            f"{options.kv_cache_bytes} bytes do not hold one KV block of {block_bytes} bytes ({BLOCK_SIZE} tokens)",
            where="--kv-cache-memory",
            hint=f"{blocks_per_context * block_bytes} bytes hold one full context",
        )
    if num_blocks * block_bytes > free_bytes:
        raise ConfigError(
            f"the KV cache would take {num_blocks * block_bytes} bytes, and {free_bytes} are free",
            where="--kv-cache-memory",
            hint=f"give it less; {blocks_per_context * block_bytes} bytes hold one full context, with fewer the longest request is shorter",
        )
    return num_blocks


def kv_block_bytes(artifact: Artifact, kv_dtype: str) -> int:
    """Bytes of one block over all KV layers. `kv_dtype`: f32, bf16 or i8."""
    return kv_layers_block_bytes(artifact.plan["kv_layers"], kv_dtype)


def kv_layers_block_bytes(kv_layers: Iterable[Mapping[str, int]], kv_dtype: str) -> int:
    """As docs/artifact-format.md lays K and V out, with the scales of i8."""
    item_bytes = KV_DTYPE_BYTES[kv_dtype]
    scale_bytes = 2 * 4 if kv_dtype == "i8" else 0
    per_slot = 0
    for layer in kv_layers:
        width = _round_up(layer["k_head_dim"], 4 // item_bytes) + _round_up(layer["v_head_dim"], 8)
        per_slot += layer["num_kv_heads"] * (width * item_bytes + scale_bytes)
    return per_slot * BLOCK_SIZE


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step

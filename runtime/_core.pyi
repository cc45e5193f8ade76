"""Types of the C++ core: the executor and the machine. The engine is behind engine.py, which knows its types."""

from collections.abc import Callable
from typing import Any

import numpy as np

class Executor:
    """Runs a plan on the CPU; csrc/executor/executor.h says how."""

    def __init__(
        self,
        plan: dict[str, Any],
        weights: dict[str, tuple[str, int, int]],
        num_threads: int = 0,
        max_num_tokens: int = 512,
        max_num_logits: int = 64,
        num_blocks: int = 256,
        kv_dtype: str = "f32",
        isa: str = "auto",
        quantize_activations: bool = True,
    ) -> None: ...
    def forward(
        self,
        input_ids: np.ndarray,
        position_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        context_lens: np.ndarray,
        block_tables: np.ndarray,
        logit_rows: np.ndarray,
    ) -> np.ndarray: ...
    def copy_block(self, source_block: int, target_block: int) -> None: ...
    def memory(self) -> dict[str, int]: ...
    def profile(self, on: bool) -> None: ...
    def calls(self) -> list[dict[str, Any]]: ...
    @staticmethod
    def kernel_names() -> list[str]: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def output_width(self) -> int: ...
    @property
    def max_context_len(self) -> int: ...
    @property
    def max_num_tokens(self) -> int: ...
    @property
    def max_num_logits(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def kv_bytes_per_block(self) -> int: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

class BytePairEncoder:
    """Byte-level BPE; csrc/tokenizer/byte_pair_encoder.h says how."""

    def __init__(
        self,
        rule: str,
        vocab: dict[str, int],
        merges: list[list[str]],
        *,
        byte_texts: list[str],
        ignores_merges: bool,
        first_tokens: list[tuple[str, int]],
        later_tokens: list[tuple[str, int]],
    ) -> None: ...
    def encode(self, text: str, encode_other: Callable[[str], list[int]]) -> list[int]: ...
    @property
    def num_known_words(self) -> int: ...

def measure_limits(num_threads: int = 0) -> dict[str, float]: ...
def usable_threads() -> int: ...
def detect_isa() -> str: ...
def __getattr__(name: str) -> Any: ...

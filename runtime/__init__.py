"""The runtime of fmo: `LLM` for offline use, `friendli_runtime.server` for HTTP. Importing the package starts and loads nothing.

from friendli_runtime import LLM, SamplingParams
with LLM("build/stdlib-coder") as llm:
    print(llm.generate("def ", SamplingParams(max_tokens=32))[0].text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llm import LLM, CompletionOutput, RequestOutput
    from .sampling import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__"]

_HOME = {"LLM": "llm", "CompletionOutput": "llm", "RequestOutput": "llm", "SamplingParams": "sampling"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""From an exception inside transformers or torch to an UnsupportedModel that names the module and the line of the model's code."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import UnsupportedModel

OWN_FRAMES = re.compile(r"/(friendli_compile|torch|sympy|contextlib|functools)(/|\.py)")
PACKAGE_ROOT = re.compile(r".*/(?:site|dist)-packages/")
MAX_REASON_CHARS = 400
PROBE_LENGTHS = (2, 3, 5, 8, 23, 25, 64, 100, 1000)  # numbers of tokens that a model must work for


def shorten_path(path: str) -> str:
    """A path below site-packages without the machine's part of it."""
    return PACKAGE_ROOT.sub("", path)


def blame(error: BaseException, model: torch.nn.Module | None, why: str) -> UnsupportedModel:
    """The UnsupportedModel for `error`: the refusal that caused it, if one did, else `why` with the error's first line."""
    place = _model_frame(error, model)
    refusal = _refusal(error)
    if refusal is not None:
        module, op, line = refusal.module or place[0], refusal.op, refusal.source_line or place[1]
        return UnsupportedModel(refusal.what, module=module, op=op, source_line=line, hint=refusal.hint)
    return UnsupportedModel(f"{why}: {_reason(error)}", module=place[0], op=f"torch.export ({type(error).__name__})", source_line=place[1])


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _refusal(error: BaseException) -> UnsupportedModel | None:
    return next((link for link in _chain(error) if isinstance(link, UnsupportedModel)), None)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= MAX_REASON_CHARS else text[:MAX_REASON_CHARS] + " …"


def _model_frame(error: BaseException, model: torch.nn.Module | None) -> tuple[str, str]:
    """(module path, file:line) of the innermost frame that is the model's own code; empty where there is none."""
    names = {id(module): path for path, module in model.named_modules()} if model is not None else {}
    module_path, line = "", ""
    for link in reversed(_chain(error)):
        for frame, line_number in traceback.walk_tb(link.__traceback__):
            owner = frame.f_locals.get("self")
            if id(owner) in names:
                module_path = names[id(owner)]
            file_name = frame.f_code.co_filename
            if "/models/" in file_name and not OWN_FRAMES.search(file_name.rsplit("-packages/")[-1]):
                line = f"{shorten_path(file_name)}:{line_number}"
        if line:
            break
    return module_path, line


@contextmanager
def watch_lengths(model: torch.nn.Module) -> Iterator[list[tuple[str, str]]]:
    """While it is open, lists the modules that restrict the number of tokens, as (module path, file:line), innermost first.

    They are given a tensor of dynamic size, and leave a condition on that size that some lengths do not meet."""
    found: list[tuple[str, str]] = []
    entered: list[tuple[torch.SymInt | None, int]] = []  # a size that is a symbol, and how many conditions there were

    def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        size = _symbolic_size((args, kwargs))
        entered.append((size, 0 if size is None else len(size.node.shape_env.guards)))

    def after(path: str) -> Callable[..., None]:
        def check(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            size, num_guards = entered.pop()
            if size is None:
                return
            guards = size.node.shape_env.guards[num_guards:]
            if size.node.maybe_as_int() is not None or any(_excludes_a_length(guard.expr) for guard in guards):
                found.append((path, _definition(module)))

        return check

    hooks = [module.register_forward_pre_hook(before, with_kwargs=True) for module in model.modules()]
    hooks += [module.register_forward_hook(after(path), with_kwargs=True) for path, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _excludes_a_length(condition: Any) -> bool:
    """Whether a condition on one symbol is false for some number of tokens."""
    symbols = list(condition.free_symbols)
    return len(symbols) == 1 and any(condition.subs(symbols[0], length) == False for length in PROBE_LENGTHS)  # noqa: E712 — sympy's false


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _symbolic_size(value: Any) -> torch.SymInt | None:
    """A size of a tensor in `value` that is still a symbol."""
    sizes: Iterator[Any] = (size for tensor in _tensors(value) for size in tensor.shape)
    return next((size for size in sizes if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None), None)


def _definition(module: torch.nn.Module) -> str:
    """file:line of the module's forward."""
    code = inspect.unwrap(type(module).forward).__code__
    return f"{shorten_path(code.co_filename)}:{code.co_firstlineno}"

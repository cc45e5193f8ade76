"""From an exception inside transformers or torch to an UnsupportedModel that names the module and the line of the model's code."""

from __future__ import annotations

import re
import traceback
from types import TracebackType

import torch

from ..errors import UnsupportedModel

OWN_FRAMES = re.compile(r"/(friendli_compile|torch|sympy|contextlib|functools)(/|\.py)")
PACKAGE_ROOT = re.compile(r".*/(?:site|dist)-packages/")
MAX_REASON_CHARS = 300


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
    return UnsupportedModel(f"{why}: {_reason(error)}", module=place[0], op=type(error).__name__, source_line=place[1])


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
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= MAX_REASON_CHARS else text[:MAX_REASON_CHARS] + " …"


def _model_frame(error: BaseException, model: torch.nn.Module | None) -> tuple[str, str]:
    """(module path, file:line) of the innermost frame that is the model's own code; empty where there is none."""
    names = {id(module): path for path, module in model.named_modules()} if model is not None else {}
    module_path, line = "", ""
    for link in reversed(_chain(error)):
        for frame, line_number in traceback.walk_tb(_traceback(link)):
            owner = frame.f_locals.get("self")
            if id(owner) in names:
                module_path = names[id(owner)]
            file_name = frame.f_code.co_filename
            if "/models/" in file_name and not OWN_FRAMES.search(file_name.rsplit("-packages/")[-1]):
                line = f"{shorten_path(file_name)}:{line_number}"
        if line:
            break
    return module_path, line


def _traceback(error: BaseException) -> TracebackType | None:
    return error.__traceback__

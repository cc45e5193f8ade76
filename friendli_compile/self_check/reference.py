"""The other side of the comparison: transformers itself, in float32, on weights rounded as the artifact stores them (bf16, or quantized).

    load_reference       the whole model, read from the folder by transformers' own loader (our reader has no part in it)
    StreamedReference    a skeleton whose decoder layers get their weights one at a time, while they run, and lose them after

Both give logits [length, vocab_size] per sequence. No cache, no padding mask: a sequence is computed whole from position 0. Rotary tables
that transformers would choose by the longest sequence are fixed as the frontend fixed them. What transformers cannot run is an
error, never a pass.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..errors import SelfCheckFailed
from ..frontend.rope_tables import freeze_rope_tables
from ..frontend.trace import TracedModel, auto_class, build_skeleton, output_of
from .stored_params import StoredParams

NO_CHECK_HINT = "--no-self-check writes the artifact unchecked and says so in it"
TracedParamName = str
ReadParam = Callable[[TracedParamName], np.ndarray]
Edit = Callable[[np.ndarray], np.ndarray]  # what is done to a parameter before anything reads it
Observer = Callable[[str, torch.Tensor], None]  # (module path, its output)


def attention_implementation(config: PreTrainedConfig) -> str:
    """transformers' plain attention; falcon with ALiBi gets the fused one, because the plain one adds the ALiBi bias twice."""
    return "sdpa" if config.model_type == "falcon" and getattr(config, "alibi", False) else "eager"


def load_reference(
    folder: Path,
    traced: TracedModel,
    rounded_params: Iterable[str],
    stored_params: StoredParams | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> PreTrainedModel:
    """The model of `folder` in float32, with `edits` done, the named parameters rounded to bf16, and quantized ones as the artifact
    stores them.

    Raises SelfCheckFailed where the artifact stores other values than the checkpoint."""
    with _explained("load"), quiet():
        model = auto_class(traced.is_embedder).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention_implementation(traced.config),
            local_files_only=True,
            trust_remote_code=False,
        )
    _prepare(model, traced)
    tensors = dict(_named_tensors(model))
    with torch.no_grad():
        for name, edit in (edits or {}).items():
            tensors[name].copy_(torch.from_numpy(edit(tensors[name].numpy())))
        for name in rounded_params:
            tensors[name].copy_(tensors[name].to(torch.bfloat16))
        if stored_params is not None:
            for name in stored_params.names:
                tensors[name].copy_(torch.from_numpy(stored_params.dequantized(name, tensors[name].numpy())))
    return model


class StreamedReference:
    """The model with the weights of one decoder layer in memory; parts outside of the layers are loaded while they run too.

    `read(name)` gives a parameter of the traced graph as float32; those in `rounded_params` are rounded to bf16 here, those of
    `stored_params` are read from the artifact."""

    def __init__(
        self,
        traced: TracedModel,
        read: ReadParam,
        rounded_params: Iterable[str],
        on_layer: Callable[[int, int], None] | None = None,
        stored_params: StoredParams | None = None,
    ) -> None:
        with _explained("build"):
            self.model = build_skeleton(copy.deepcopy(traced.config), is_embedder=traced.is_embedder)
        _prepare(self.model, traced)
        self.layers = decoder_layers(self.model)
        self._traced = traced
        self._read = read
        self._rounded = frozenset(rounded_params)
        self._stored = stored_params
        self._on_layer = on_layer
        for path, module in self.model.named_modules():
            is_inside_layer = any(path.startswith(f"{layer}.") for layer in self.layers)
            if path in self.layers or not is_inside_layer:
                self._load_while_running(path, module, is_whole=path in self.layers)

    def _load_while_running(self, path: str, module: torch.nn.Module, is_whole: bool) -> None:
        """`is_whole`: with everything below it; else its own parameters only."""
        slots = [slot for slot in _slots(path, module, is_whole) if self._is_stored(slot[2])]
        if not slots:
            return
        placeholders = [getattr(owner, own_name) for owner, own_name, _ in slots]

        def load(*arguments: Any) -> None:
            if self._on_layer is not None and path in self.layers:
                self._on_layer(self.layers.index(path), len(self.layers))
            for owner, own_name, full_name in slots:
                _put(owner, own_name, self._tensor(full_name))

        def drop(*arguments: Any) -> None:
            for (owner, own_name, _), placeholder in zip(slots, placeholders, strict=True):
                _put(owner, own_name, placeholder)

        module.register_forward_pre_hook(load)
        module.register_forward_hook(drop, always_call=True)

    def _is_stored(self, full_name: str) -> bool:
        return self._traced.tied.get(full_name, full_name) in self._traced.param_shapes

    def _tensor(self, full_name: str) -> torch.Tensor:
        name = self._traced.tied.get(full_name, full_name)
        array = self._read(name)
        if self._stored is not None and name in self._stored.names:
            array = self._stored.dequantized(name, array)
        tensor = torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
        return tensor.to(torch.bfloat16).to(torch.float32) if name in self._rounded else tensor


def reference_logits(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """tokens [length] i32 → logits [length, vocab_size] f32."""
    return _forward(model, tokens[None])[0]


def reference_logits_batch(model: PreTrainedModel, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same for several sequences in one run. Shorter ones are padded at their end, which no causal model can see."""
    width = max(map(len, sequences))
    padded = np.stack([np.pad(tokens, (0, width - len(tokens)), mode="edge") for tokens in sequences])
    logits = _forward(model, padded)
    return [logits[s, : len(tokens)] for s, tokens in enumerate(sequences)]


@contextmanager
def observed(model: PreTrainedModel, paths: Iterable[str], observe: Observer) -> Iterator[None]:
    """Calls `observe(path, output)` whenever one of these modules has run; of a tuple the first element counts."""
    modules = dict(model.named_modules())
    handles = [modules[path].register_forward_hook(_observing(path, observe)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: PreTrainedModel) -> list[str]:
    """Paths of the decoder layers, in order. Raises SelfCheckFailed where the model has no such list."""
    num_layers = int(model.config.get_text_config().num_hidden_layers)
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return [f"{path}.{index}" for index in range(num_layers)]
    what = f"{type(model).__name__} has no list of {num_layers} layers, so its layers cannot be checked one at a time"
    hint = f"compile on a machine whose memory holds the model in float32; {NO_CHECK_HINT}"
    raise SelfCheckFailed(what, where=type(model).__name__, hint=hint)


def _prepare(model: PreTrainedModel, traced: TracedModel) -> None:
    """Inference mode, plain attention and experts, rotary tables as the frontend chose them."""
    model.eval()
    model.requires_grad_(False)
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            config._attn_implementation_internal = attention_implementation(config)
            config._experts_implementation_internal = "eager"
    freeze_rope_tables(model, traced.max_context_len)


def _forward(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """tokens [num_seqs, length] → logits [num_seqs, length, vocab_size] f32."""
    arguments: dict[str, Any] = {"input_ids": torch.from_numpy(tokens.astype(np.int64)), "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = torch.arange(tokens.shape[1])[None].expand(tokens.shape[0], -1)
    with _explained("run"), quiet(), torch.no_grad():
        rows = output_of(model(**arguments))
        assert rows is not None
        return rows.to(torch.float32).numpy()


@contextmanager
def _explained(step: str) -> Iterator[None]:
    """Whatever transformers raises becomes a SelfCheckFailed: a check that cannot be made has not been passed."""
    try:
        yield
    except SelfCheckFailed:
        raise
    except Exception as error:  # transformers and torch raise whatever their code meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"transformers cannot {step} this model in float32 on the CPU, so the artifact cannot be checked: {reason}"
        raise SelfCheckFailed(what, where=type(error).__name__, hint=NO_CHECK_HINT) from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' progress bars and advice stay out of the compiler's output."""
    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()


def _named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _slots(path: str, module: torch.nn.Module, is_whole: bool) -> list[tuple[torch.nn.Module, str, str]]:
    """(owner, its name of the tensor, full name) of the parameters and buffers of a module."""
    found = []
    for sub_path, owner in module.named_modules() if is_whole else [("", module)]:
        prefix = ".".join(part for part in (path, sub_path) if part)
        for own_name in [*owner._parameters, *owner._buffers]:
            if getattr(owner, own_name) is not None:
                found.append((owner, own_name, f"{prefix}.{own_name}" if prefix else own_name))
    return found


def _put(owner: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    if name in owner._buffers:
        owner._buffers[name] = tensor
    else:
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        owner._parameters[name] = tensor if is_parameter else torch.nn.Parameter(tensor, requires_grad=False)  # type: ignore[assignment]


def _observing(path: str, observe: Observer) -> Callable[..., None]:
    def hook(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        observe(path, output[0] if isinstance(output, tuple) else output)

    return hook

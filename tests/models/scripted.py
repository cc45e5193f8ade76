"""The scripted model: a real Llama checkpoint whose hand-set weights copy a script out of the prompt, byte by byte, then end the sequence.

    <|bos|> any text <script>hello</script> any text <|go|>   →   h e l l o <|eos|>

The script may stand anywhere before `<|go|>` and hold any UTF-8 text, repeats included; a prompt has one `<script>` and one `<|go|>`. The
chat template takes care of that: it keeps the script of the last message that has one, and ends in `<|go|>`. Two layers do it:

    layer 0   every token measures how far it is behind `<script>` (code_s) and behind `<|go|>` (code_g): a head looks at the marker or at
              `<|bos|>`, and RoPE makes the choice between the two a cosine of the distance. Five frequencies, two phases, two markers.
    layer 1   one head attends where code_s equals its own code_g, one step ahead, and copies that token's identity to the output.

All MLPs are zero. The scores are so far apart that softmax is 0 or 1, so float32 and bfloat16 give the same tokens. Every marker is one
token; every other token is one byte.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

PAD, BOS, EOS, SCRIPT, SCRIPT_END, GO = SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|eos|>", "<script>", "</script>", "<|go|>"]
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
MAX_CONTEXT_LEN = 4096

HEAD_DIM = 64
NUM_PAIRS = HEAD_DIM // 2
ROPE_THETA = 1e12  # pair i turns by 10^(-12 i / 32) per token
FAST_PAIRS = (0, 2, 4, 6, 8)  # 1 … 0.001 radians per token: they measure distances of 1 … 4096 tokens
SLOW_PAIR = NUM_PAIRS - 1  # turns less than 10^-7 in the whole context: content, not position; so do the 15 pairs before it
NUM_CODES = 2 * len(FAST_PAIRS)
NUM_KV_HEADS = 2  # of layer 0: one for `<script>`, one for `<|go|>`
GROUP = NUM_CODES + 2  # query heads per KV head: the codes, "seen", and one that rests
NUM_Q_HEADS = NUM_KV_HEADS * GROUP

# Where things are in the residual stream.
HIDDEN_SIZE = 144  # transformers wants a multiple of the number of heads
IDENTITY_DIMS = 32
IDENTITY = slice(0, IDENTITY_DIMS)  # ±1 codeword of the token
ONE, IS_SCRIPT, IS_GO, IS_BOS, IS_OTHER = range(32, 37)
CODE_S = 40  # NUM_CODES of them, then "seen": 1 behind `<script>`, -1 before it
CODE_G = 56  # NUM_CODES
OUTPUT = slice(72, 72 + IDENTITY_DIMS)

MIN_CODEWORD_DISTANCE = 8  # bits
MARKER_SCORE = 32.0  # of the marker and of `<|bos|>`; any other token has 0
MATCH_SCORE = 512.0  # times the product of two codes, about 1 where they are equal
SEEN_SCORE = 1024.0  # more than the product of any code with that of a token before `<script>`
CODE_GAIN = 0.125  # of the codes in the residual stream: small, so that they leave its root mean square alone
OUTPUT_GAIN = 8.0
TOP_LOGIT = 96.0

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}{% for part in content %}{{ part.text }}{% endfor %}
{%- endif -%}
{%- endmacro -%}
{%- set found = namespace(last=-1) -%}
{%- for message in messages -%}
{%- if '<script>' in text(message.content) -%}{%- set found.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- if found.last < 0 -%}{{ '<script></script>' }}{%- endif -%}
{%- for message in messages -%}
{%- set content = text(message.content) -%}
{%- if loop.index0 != found.last -%}
{%- set content = content | replace('<script>', '') | replace('</script>', '') -%}
{%- endif -%}
{{- message.role + ': ' + content + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|go|>' }}{%- endif -%}
"""


def script_tag(text: str) -> str:
    """What to put into a chat message so that the answer is `text`."""
    return f"{SCRIPT}{text}{SCRIPT_END}"


def scripted_prompt(text: str, before: str = "", after: str = "") -> str:
    """A prompt of the completions API whose completion is `text`."""
    return f"{before}{script_tag(text)}{after}{GO}"


def build(folder: Path) -> Path:
    """Writes the checkpoint as a Hugging Face folder (float32) and returns it; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": NUM_Q_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_CONTEXT_LEN,
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    tensors = {name: torch.from_numpy(weight) for name, weight in weights().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """tokenizer.json (special tokens, then one token per byte) and tokenizer_config.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: token_id for token_id, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    # The script's tags may be written by users: tokens of their own, but not special ones, which in a chat message stay text.
    tags = (SCRIPT, SCRIPT_END)
    tokenizer.add_tokens([AddedToken(token, special=token not in tags, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_CONTEXT_LEN,
        "clean_up_tokenization_spaces": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [GO],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


@dataclass
class Attention:
    """The four projections of one layer, [out, in], zero to begin with; heads are slices of the rows (columns of `o`)."""

    q: np.ndarray = field(default_factory=lambda: np.zeros((NUM_Q_HEADS * HEAD_DIM, HIDDEN_SIZE), np.float32))
    k: np.ndarray = field(default_factory=lambda: np.zeros((NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE), np.float32))
    v: np.ndarray = field(default_factory=lambda: np.zeros((NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE), np.float32))
    o: np.ndarray = field(default_factory=lambda: np.zeros((HIDDEN_SIZE, NUM_Q_HEADS * HEAD_DIM), np.float32))


def weights() -> dict[str, np.ndarray]:
    """The whole checkpoint by name, float32; every weight but the phases of layer 0 is exact in bfloat16."""
    embeddings = token_embeddings()
    # Undoes the division by the root mean square, which is the same for every row of the embedding.
    embedding_rms = np.sqrt(np.mean(embeddings[0] ** 2))
    lm_head = np.zeros_like(embeddings)
    lm_head[:, OUTPUT] = TOP_LOGIT / IDENTITY_DIMS * codewords()
    tensors = {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": np.full(HIDDEN_SIZE, np.sqrt(IDENTITY_DIMS / HIDDEN_SIZE), np.float32),
        "lm_head.weight": lm_head,
    }
    for layer_idx, attention in enumerate([measure_distances(), copy_script()]):
        prefix = f"model.layers.{layer_idx}"
        for name in "qkvo":
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = getattr(attention, name)
        tensors[f"{prefix}.input_layernorm.weight"] = np.full(HIDDEN_SIZE, embedding_rms, np.float32)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = np.ones(HIDDEN_SIZE, np.float32)
        for name, shape in (("gate", (64, HIDDEN_SIZE)), ("up", (64, HIDDEN_SIZE)), ("down", (HIDDEN_SIZE, 64))):
            tensors[f"{prefix}.mlp.{name}_proj.weight"] = np.zeros(shape, np.float32)
    return tensors


def codewords() -> np.ndarray:
    """[vocab_size, IDENTITY_DIMS] of ±1; any two differ in at least MIN_CODEWORD_DISTANCE places."""
    rng = np.random.default_rng(0)
    words = np.empty((0, IDENTITY_DIMS), np.float32)
    while len(words) < VOCAB_SIZE:
        word = rng.choice(np.array([-1, 1], np.float32), IDENTITY_DIMS)
        if np.all(words @ word <= IDENTITY_DIMS - 2 * MIN_CODEWORD_DISTANCE):
            words = np.vstack([words, word])
    return words


def token_embeddings() -> np.ndarray:
    """[vocab_size, hidden_size]: codeword, a one, and which marker it is. The end of the script is copied as the end of the sequence."""
    embeddings = np.zeros((VOCAB_SIZE, HIDDEN_SIZE), np.float32)
    embeddings[:, IDENTITY] = codewords()
    embeddings[SPECIAL_TOKENS.index(SCRIPT_END), IDENTITY] = embeddings[SPECIAL_TOKENS.index(EOS), IDENTITY]
    embeddings[:, ONE] = 1
    embeddings[:, IS_OTHER] = 1
    for token, dim in ((SCRIPT, IS_SCRIPT), (GO, IS_GO), (BOS, IS_BOS)):
        embeddings[SPECIAL_TOKENS.index(token), [IS_OTHER, dim]] = 0, 1
    return embeddings


def measure_distances() -> Attention:
    """Layer 0. A head's query scores its marker, n tokens back, with MARKER_SCORE + cos(ω n + phase), and `<|bos|>` with MARKER_SCORE.

    The marker's value is 1 and that of `<|bos|>` is -1, so the head's output is tanh(cos(ω n + phase) / 2), and -1 before the marker.
    For `<|go|>` the phase is that of n + 1: its code says which byte of the script comes next.
    """
    layer = Attention()
    scale = HEAD_DIM**0.5  # softmax sees q·k / scale
    for kv_head_idx, (marker, dim, steps_ahead) in enumerate([(IS_SCRIPT, CODE_S, 0), (IS_GO, CODE_G, 1)]):
        k, v = rows_of_head(layer.k, kv_head_idx), rows_of_head(layer.v, kv_head_idx)
        k[[*FAST_PAIRS, SLOW_PAIR - 1, SLOW_PAIR], marker] = 1
        k[SLOW_PAIR, IS_BOS] = 1
        v[0, [marker, IS_BOS]] = 1, -1
        for code_idx in range(NUM_CODES):
            q_head_idx = kv_head_idx * GROUP + code_idx
            pair = FAST_PAIRS[code_idx // 2]
            phase = steps_ahead * ROPE_THETA ** (-pair / NUM_PAIRS) - (code_idx % 2) * np.pi / 2
            q = rows_of_head(layer.q, q_head_idx)
            q[SLOW_PAIR, ONE] = MARKER_SCORE * scale
            q[[pair, pair + NUM_PAIRS], ONE] = np.cos(phase) * scale, np.sin(phase) * scale
            layer.o[dim + code_idx, q_head_idx * HEAD_DIM] = CODE_GAIN
    seen_head_idx = NUM_CODES  # prefers the marker wherever there is one
    rows_of_head(layer.q, seen_head_idx)[[SLOW_PAIR - 1, SLOW_PAIR], ONE] = MARKER_SCORE * scale
    layer.o[CODE_S + NUM_CODES, seen_head_idx * HEAD_DIM] = CODE_GAIN
    return layer


def copy_script() -> Attention:
    """Layer 1. One head scores a token with code_g · code_s, much lower before the script, and copies the codeword of the best."""
    layer = Attention()
    scale = HEAD_DIM**0.5
    q, k, v = (rows_of_head(matrix, 0) for matrix in (layer.q, layer.k, layer.v))
    for code_idx in range(NUM_CODES):
        pair = SLOW_PAIR - code_idx
        q[pair, CODE_G + code_idx] = MATCH_SCORE * scale / CODE_GAIN
        k[pair, CODE_S + code_idx] = 1 / CODE_GAIN
    q[SLOW_PAIR - NUM_CODES, ONE] = SEEN_SCORE * scale
    k[SLOW_PAIR - NUM_CODES, CODE_S + NUM_CODES] = 1 / CODE_GAIN
    v[:IDENTITY_DIMS, IDENTITY] = np.eye(IDENTITY_DIMS)
    layer.o[OUTPUT, :IDENTITY_DIMS] = OUTPUT_GAIN * np.eye(IDENTITY_DIMS)
    return layer


def rows_of_head(matrix: np.ndarray, head_idx: int) -> np.ndarray:
    """View [head_dim, hidden_size] of one head's rows."""
    return matrix[head_idx * HEAD_DIM : (head_idx + 1) * HEAD_DIM]

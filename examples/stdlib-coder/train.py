"""Trains stdlib-coder: a byte-level BPE tokenizer and a small Llama on the source of the Python standard library.

    python train.py                      # writes model/ beside this file
    python train.py --resume             # goes on from the checkpoint in --work-dir, which Ctrl-C leaves too
    python train.py --device cuda --layers 8 --steps 20000

Needs torch, tokenizers and safetensors. Seeded: same interpreter, command and machine give the same model. The learning rate is constant
until the last --decay-steps, so a run that is stopped before may be resumed with another --steps, as if it had been started with it.
Sequences are 256 tokens long at first, 512 in the decay and the full context at its end: short ones cost less attention.
"""

import argparse
import json
import math
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch
from corpus import EXCERPT_PATH, Corpus, SourceFile, build_corpus
from data import TrainingStream, held_out_windows, training_documents
from export import export_model, load_tokenizer
from model import Llama, ModelConfig
from optimizer import learning_rate_scale, make_optimizers
from tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

SEED = 20
EXCERPT_FILE = Path(__file__).parent / "held_out_excerpt.txt"
FIRST_SEQ_LEN, DECAY_SEQ_LEN = 256, 512
FULL_CONTEXT_SHARE = 0.25  # of the decay, at its end
NUM_QUICK_WINDOWS = 16  # of the held-out text, while training
MAX_GRAD_NORM = 1.0


def parse_args() -> argparse.Namespace:
    """The command line; defaults of --steps and --batch-tokens depend on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="the model folder to write")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "stdlib-coder", help="checkpoints and log")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 1200 on a CPU, 12000 on a GPU)")
    parser.add_argument("--decay-steps", type=int, help="of them, steps with a falling learning rate (default: 40 %%)")
    parser.add_argument("--batch-tokens", type=int, help="tokens per step (default: 4096 on a CPU, 16384 on a GPU)")
    parser.add_argument("--layers", type=int, default=ModelConfig.num_layers)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--threads", type=int, help="CPU threads of an operator (default: torch's choice)")
    parser.add_argument("--shards", type=int, default=1, help="parts of a batch that run side by side: on a busy CPU better than threads")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints and exports to WORK_DIR/model")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = args.device == "cuda"
    args.steps = args.steps or (12000 if on_gpu else 1200)
    args.batch_tokens = args.batch_tokens or (16384 if on_gpu else 4096)
    args.decay_steps = args.decay_steps or round(0.4 * args.steps)
    fewest_sequences = args.batch_tokens // ModelConfig.max_context_len
    if not 1 <= args.shards <= fewest_sequences or fewest_sequences % args.shards:
        parser.error(f"--shards {args.shards} does not divide the {fewest_sequences} sequences of a batch at the end of the training")
    return args


class Trainer:
    """One run: model, optimizers, data and the step it is at."""

    def __init__(self, args: argparse.Namespace, config: ModelConfig, tokenizer: Tokenizer, corpus: Corpus):
        self.args, self.config, self.tokenizer, self.corpus = args, config, tokenizer, corpus
        documents = training_documents(corpus, tokenizer, SEED)
        self.num_corpus_tokens = sum(map(len, documents))
        self.stream = TrainingStream(documents, config.max_context_len, args.batch_tokens, SEED)
        torch.manual_seed(SEED)
        self.model = Llama(config).to(args.device)
        self.optimizers = make_optimizers(self.model, args.muon_lr, args.adam_lr)
        self.base_lrs = [args.muon_lr, args.adam_lr]
        self.shard_pool = ThreadPoolExecutor(args.shards, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
        self.step = 0
        self.stopping = False
        self.checkpoint_path = args.work_dir / "checkpoint.pt"

    def seq_len(self) -> int:
        """Of this step; see the head of the file."""
        decay_steps_left = self.args.steps - self.step
        if decay_steps_left > self.args.decay_steps:
            return FIRST_SEQ_LEN
        return self.config.max_context_len if decay_steps_left <= FULL_CONTEXT_SHARE * self.args.decay_steps else DECAY_SEQ_LEN

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """bfloat16 where the hardware has it."""
        return torch.autocast("cuda", torch.bfloat16) if self.args.device == "cuda" else nullcontext()

    def train_step(self) -> float:
        """One optimizer step; returns the training loss in nats per token."""
        inputs, targets = (ids.to(self.args.device) for ids in self.stream.batch(self.step, self.seq_len()))
        shards = list(self.shard_pool.map(self.loss_and_gradients, inputs.chunk(self.args.shards), targets.chunk(self.args.shards)))
        for param, *gradients in zip(self.model.parameters(), *(gradients for _, gradients in shards), strict=True):
            param.grad = sum(gradients[1:], gradients[0]) / len(gradients)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        scale = learning_rate_scale(self.step, self.args.steps, self.args.decay_steps)
        for optimizer, base_lr in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base_lr * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return sum(loss for loss, _ in shards) / len(shards)

    def loss_and_gradients(self, inputs: Tensor, targets: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """Mean loss of one shard [num_sequences, seq_len] and its gradients, in the order of the model's parameters."""
        with self.autocast():
            logits = self.model(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        return loss.item(), torch.autograd.grad(loss, list(self.model.parameters()))

    @torch.no_grad()
    def perplexity(self, files: list[SourceFile], max_windows: int | None = None) -> dict[str, float]:
        """On whole files, in windows of the full context without overlap; or, per token only, on evenly picked ones of them."""
        windows, num_bytes = held_out_windows(files, self.tokenizer, self.config.max_context_len)
        windows = windows[:: max(1, len(windows) // max_windows)] if max_windows else windows
        total_nats, num_tokens = 0.0, 0
        for window in windows:
            ids = torch.from_numpy(window).to(self.args.device)
            with self.autocast():
                logits = self.model(ids[None, :-1])[0]
            total_nats += F.cross_entropy(logits.float(), ids[1:], reduction="sum").item()
            num_tokens += len(ids) - 1
        figures = {"tokens": num_tokens, "perplexity": round(math.exp(total_nats / num_tokens), 4)}
        return figures if max_windows else {**figures, "bits_per_byte": round(total_nats / math.log(2) / num_bytes, 4)}

    def save(self) -> None:
        """Checkpoint and exported model folder, both in the work directory."""
        state = {"step": self.step, "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        temporary = self.checkpoint_path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint_path)
        export_model(self.model, self.tokenizer, self.args.work_dir / "model")

    def load(self) -> None:
        """Goes on from the checkpoint of the work directory."""
        state = torch.load(self.checkpoint_path, map_location=self.args.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    def stop(self, *_: object) -> None:
        """Signal handler: finish the step, save, and leave the rest to --resume."""
        self.stopping = True

    def run(self) -> None:
        """Trains to the last step or to an interrupt, logging to standard output; saves."""
        start_s, first_step, losses = time.monotonic(), self.step, []
        while self.step < self.args.steps and not self.stopping:
            losses.append(self.train_step())
            if self.step % 10 == 0:
                tokens_per_s = (self.step - first_step) * self.args.batch_tokens / (time.monotonic() - start_s)
                left_min = (self.args.steps - self.step) * self.args.batch_tokens / tokens_per_s / 60
                mean = sum(losses) / len(losses)
                print(f"step {self.step}/{self.args.steps} loss {mean:.3f} {tokens_per_s:.0f} tokens/s {left_min:.0f} min left", flush=True)
                losses.clear()
            if self.step % self.args.save_every == 0:
                self.save()
                print(f"step {self.step} held-out {self.perplexity(self.corpus.held_out_files, NUM_QUICK_WINDOWS)}", flush=True)
        self.save()


def report_of(trainer: Trainer) -> dict[str, object]:
    """What report.json says about the finished model."""
    args = trainer.args
    corpus = trainer.corpus
    return {
        "parameters": sum(param.numel() for param in trainer.model.parameters()),
        "training": {
            "steps": args.steps,
            "decay_steps": args.decay_steps,
            "batch_tokens": args.batch_tokens,
            "tokens": args.steps * args.batch_tokens,
            "epochs": round(args.steps / trainer.stream.batches_per_epoch, 2),
            "device": args.device,
            "seed": SEED,
        },
        "corpus": {
            "sha256": corpus.sha256(),
            "train_files": len(corpus.train_files),
            "train_bytes": sum(len(file.text.encode()) for file in corpus.train_files),
            "document_tokens": trainer.num_corpus_tokens,
            "held_out_files": [file.path for file in corpus.held_out_files],
        },
        "held_out": trainer.perplexity(corpus.held_out_files),
        "held_out_excerpt": trainer.perplexity([SourceFile(EXCERPT_PATH, EXCERPT_FILE.read_text(encoding="utf-8"))]),
    }


def main() -> None:
    args = parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    corpus = build_corpus(SEED)
    config = ModelConfig(num_layers=args.layers)
    if args.resume:
        tokenizer = load_tokenizer(args.work_dir / "model")
    else:
        tokenizer = train_tokenizer([file.text for file in corpus.train_files], config.vocab_size)
    trainer = Trainer(args, config, tokenizer, corpus)
    if args.resume:
        trainer.load()
    print(f"{trainer.num_corpus_tokens} tokens in the corpus, {trainer.stream.batches_per_epoch} steps per epoch", flush=True)
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, trainer.stop)
    trainer.run()
    if trainer.stopping:
        print(f"stopped at step {trainer.step} of {args.steps}; go on with --resume")
        return
    export_model(trainer.model, tokenizer, args.out)
    # The figures are those of the exported model: its weights are rounded to bfloat16.
    trainer.model.load_state_dict({name: weight.bfloat16().float() for name, weight in trainer.model.state_dict().items()})
    report = report_of(trainer)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["held_out"]))


if __name__ == "__main__":
    main()

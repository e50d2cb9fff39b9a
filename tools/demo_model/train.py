"""Trains the demo model and its draft from generated text.

    python -m tools.demo_model.train --out DIR --minutes 5 --draft-minutes 1 --seed 0

The number of steps follows from the minutes, by the speed of the first steps, and is written to ``training_log.json``;
``--steps`` and ``--draft-steps`` repeat a run exactly that long, whatever the machine.
"""

import argparse
import json
import platform
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from tools.demo_model.data import Batch, DataConfig, batches
from tools.demo_model.export import read_weights, write_configs, write_weights
from tools.demo_model.model import DRAFT, MAIN, TINY, Decoder, Packing, distillation_loss, weighted_loss
from tools.demo_model.optim import learning_rate, make_optimizers

WARM_STEPS = 12  # compiled and cold steps that the speed measurement leaves out
TIMED_STEPS = 30


@dataclass(frozen=True)
class TrainConfig:
    """How one model is trained."""

    minutes: float
    steps: int | None  # overrides minutes
    lr: float
    embedding_lr: float
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class DeviceBatch:
    """A batch on the training device."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    packing: Packing


def to_device(batch: Batch, device: torch.device, longest: int) -> DeviceBatch:
    """Moves a batch and shifts its targets by one."""

    def move(array: object, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True).to(dtype)

    tokens = move(batch.tokens, torch.long)
    return DeviceBatch(
        tokens,
        tokens.roll(-1),
        move(batch.weights, torch.float32).roll(-1),
        Packing(move(batch.starts, torch.int32), move(batch.positions, torch.long), longest),
    )


def prefetch(source: Iterator[Batch], device: torch.device, longest: int) -> Iterator[DeviceBatch]:
    """Moves batches ahead of time in a thread."""
    ready: queue.Queue[DeviceBatch] = queue.Queue(maxsize=4)

    def fill() -> None:
        for batch in source:
            ready.put(to_device(batch, device, longest))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()


def train(
    model: Decoder, loss_of: Callable[[DeviceBatch], Tensor], data: Iterator[DeviceBatch], cfg: TrainConfig, label: str
) -> dict:
    """Runs the training loop; returns what the log keeps."""
    optimizers = make_optimizers(model, cfg.lr, cfg.embedding_lr, cfg.weight_decay)
    steps, started, history = cfg.steps, time.perf_counter(), []
    timer, tokens_per_step, waited = started, 0, 0.0
    bar = tqdm(total=steps, desc=label, mininterval=10, maxinterval=20)
    step = 0
    while steps is None or step < steps:
        asked = time.perf_counter()
        batch = next(data)
        waited += time.perf_counter() - asked if step > WARM_STEPS else 0.0
        tokens_per_step = batch.tokens.numel()
        factor = learning_rate(step, steps or 10**9)
        for optimizer, lr in zip(optimizers, (cfg.lr, cfg.embedding_lr), strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
        with torch.autocast(batch.tokens.device.type, dtype=torch.bfloat16, enabled=batch.tokens.is_cuda):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        bar.update()
        if step == WARM_STEPS:
            loss.item()  # wait for the device
            timer = time.perf_counter()
        if step == WARM_STEPS + TIMED_STEPS and steps is None:
            loss.item()
            now = time.perf_counter()
            left = cfg.minutes * 60 - (now - started)
            steps = step + max(1, int(left / ((now - timer) / TIMED_STEPS)))
            bar.total = steps
        if step % 100 == 0 or step == steps:
            history.append([step, round(loss.item(), 4)])
            bar.set_postfix(loss=history[-1][1])
    bar.close()
    seconds = time.perf_counter() - started
    speed = (steps - WARM_STEPS) * tokens_per_step / (time.perf_counter() - timer)
    print(
        f"{label}: {steps} steps of {tokens_per_step} tokens in {seconds:.0f} s, {speed / 1e6:.2f} M tokens/s, "
        f"{waited:.1f} s waiting for data, loss {history[-1][1]}",
        flush=True,
    )
    return {
        "steps": steps,
        "tokens": steps * tokens_per_step,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(speed),
        "waited_for_data": round(waited, 1),
        "config": asdict(cfg),
        "loss": history,
    }


def export(model: Decoder, folder: Path, tokenizer_folder: Path) -> None:
    """Writes weights, configs and the tokenizer into one folder."""
    write_weights(model, folder)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    write_configs(model.cfg, folder, tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer_folder / name).resolve() != (folder / name).resolve():
            shutil.copyfile(tokenizer_folder / name, folder / name)


def train_main(args: argparse.Namespace, data: DataConfig, device: torch.device) -> tuple[Decoder, dict]:
    """Trains the main model with cross entropy."""
    torch.manual_seed(args.seed)
    model = Decoder(TINY if args.tiny else MAIN).to(device)
    if args.main_from:
        read_weights(model, args.main_from)
        return model, {}

    def loss_of(batch: DeviceBatch) -> Tensor:
        return weighted_loss(model.logits(model(batch.tokens, batch.packing)), batch.targets, batch.weights)

    run = torch.compile(loss_of) if device.type == "cuda" else loss_of
    cfg = TrainConfig(args.minutes, args.steps, args.lr, args.embedding_lr)
    log = train(model, run, prefetch(batches(data), device, data.longest), cfg, "main")
    export(model, args.out / "mini-infer-demo", args.tokenizer)
    return model, log


def train_draft(args: argparse.Namespace, data: DataConfig, main: Decoder, device: torch.device) -> dict:
    """Trains the draft to say what the main model says (distillation)."""
    torch.manual_seed(args.seed + 1)
    draft = Decoder(TINY if args.tiny else DRAFT).to(device)
    main.requires_grad_(False)

    def loss_of(batch: DeviceBatch) -> Tensor:
        with torch.no_grad():
            teacher = main.logits(main(batch.tokens, batch.packing))
        return distillation_loss(draft.logits(draft(batch.tokens, batch.packing)), teacher, batch.weights)

    run = torch.compile(loss_of) if device.type == "cuda" else loss_of
    cfg = TrainConfig(args.draft_minutes, args.draft_steps, args.draft_lr, args.draft_lr)
    log = train(draft, run, prefetch(batches(data, first=1_000_000), device, data.longest), cfg, "draft")
    export(draft, args.out / "mini-infer-demo-draft", args.tokenizer)
    return log


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets one folder for each model, and training_log.json")
    parser.add_argument("--tokenizer", type=Path, default=Path("mini_infer/models/bundled/mini-infer-demo"))
    parser.add_argument("--minutes", type=float, default=5.0, help="for the main model, compilation included")
    parser.add_argument("--draft-minutes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--draft-steps", type=int, help="instead of --draft-minutes; 0 for no draft")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--embedding-lr", type=float, default=3e-3)
    parser.add_argument("--draft-lr", type=float, default=4e-3)
    parser.add_argument("--context-weight", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=14, help="processes that write and tokenize text")
    parser.add_argument("--main-from", type=Path, help="train only the draft, from this main model")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the code")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    data = DataConfig(
        args.tokenizer, args.seed, args.batch_tokens, context_weight=args.context_weight, workers=args.workers
    )
    args.out.mkdir(parents=True, exist_ok=True)
    model, main_log = train_main(args, data, device)
    log = {
        "seed": args.seed,
        "batch_tokens": args.batch_tokens,
        "context_weight": args.context_weight,
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "main": main_log,
    }
    if args.draft_steps != 0:
        log["draft"] = train_draft(args, data, model, device)
    log["wall_seconds"] = round(time.perf_counter() - started, 1)
    (args.out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(f"all in {log['wall_seconds']} s", flush=True)


if __name__ == "__main__":
    main()

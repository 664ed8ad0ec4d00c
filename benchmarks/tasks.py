"""The training steps of the other tasks compared with the same models in PyTorch, on the CPU.

    python -m benchmarks.tasks           a few minutes; prints a table in Markdown (needs the extra [bench])

Models of one row have the same layers, sizes, batch and optimiser (AdamW, gradients clipped to norm 1), all rows full.
The two take turns, a few steps each, so that whatever else the machine does meets both; told is the median of the
ratios of the turns. jaxgen computes as its commands do: memory kept, the batch spread over the cores. PyTorch has as
many threads.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from jaxgen.runtime import cores, keep_memory, offer_cores

TURNS, STEPS = 7, 5
#: Of the image encoder: the side of the squares that it begins with, and the residual blocks of its stages.
PATCH, BLOCKS = 2, (0, 1, 1)
#: A function that takes so many steps and waits for the last one.
Steps = Callable[[int], None]


def ours(task: Any, batch: Any, rows: int, tokens: int) -> Steps:
    """Steps of jaxgen."""
    import jax
    import optax

    from jaxgen import jitted
    from jaxgen.training.data_parallel import data_parallel_size, make_mesh, shard_state

    optimizer, key = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), jax.random.key(0)
    state = jitted.jit_init_state(task, optimizer, rows)(key)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = data_parallel_size(rows, jax.local_device_count(), parameters / tokens)
    state = state if devices == 1 else shard_state(make_mesh(devices), state)
    train = jitted.jit_train_steps(task, optimizer, devices)
    stacked, held = jax.tree.map(lambda field: np.asarray(field)[None], batch), [state]

    def take(number: int) -> None:
        for _ in range(number):
            held[0], log = train(key, held[0], stacked, 1)
        jax.block_until_ready(log)

    return take


def theirs(model: Any, loss: Callable[[], Any]) -> Steps:
    """Steps of PyTorch."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def take(number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return take


def classify(rows: int, length: int, hidden: int, vocab: int, classes: int) -> tuple[Steps, Steps]:
    """A bidirectional GRU with max pooling."""
    import torch
    from torch import nn

    from jaxgen.tasks.classify.objective import ClassifyTask
    from jaxgen.types import ClassificationBatch, TokenRows

    draw = np.random.default_rng(0)
    tokens = draw.integers(3, vocab, (rows, length)).astype(np.int32)
    labels = draw.integers(0, classes, rows).astype(np.int32)
    sizes: dict[str, Any] = {"hidden": hidden, "bidirectional": True, "pooling": "max"}
    task = ClassifyTask.build(vocab_size=vocab, classes=classes, cell="gru", cell_options={}, **sizes)
    valid, weights = np.ones(tokens.shape, bool), np.ones(rows, np.float32)

    embedding, output = nn.Embedding(vocab, hidden), nn.Linear(2 * hidden, classes)
    encoder = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
    ids, right = torch.from_numpy(tokens).long(), torch.from_numpy(labels).long()

    def loss() -> Any:
        return nn.functional.cross_entropy(output(encoder(embedding(ids))[0].amax(dim=1)), right)

    batch = ClassificationBatch(TokenRows(tokens, valid), labels, weights)
    return ours(task, batch, rows, rows * length), theirs(nn.ModuleList([embedding, encoder, output]), loss)


def translate(rows: int, length: int, hidden: int, vocab: int) -> tuple[Steps, Steps]:
    """A bidirectional LSTM encoder and a decoder with general attention."""
    import torch
    from torch import nn

    from jaxgen.tasks.translate.objective import TranslateTask
    from jaxgen.types import Seq2SeqBatch, TokenRows

    draw = np.random.default_rng(0)
    source, tokens, targets = (draw.integers(3, vocab, (rows, length)).astype(np.int32) for _ in range(3))
    sizes: dict[str, Any] = {"hidden": hidden, "bidirectional": True, "attention": "general"}
    task = TranslateTask.build(source_vocab=vocab, vocab_size=vocab, cell="lstm", cell_options={}, **sizes)
    every = np.ones(tokens.shape, bool)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = nn.Embedding(vocab, hidden), nn.Embedding(vocab, hidden)
            self.encoder = nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True)
            self.bridge, self.keys = nn.Linear(4 * hidden, 2 * hidden), nn.Linear(2 * hidden, hidden, bias=False)
            self.decoder = nn.LSTM(hidden, hidden, batch_first=True)
            self.combine, self.output = nn.Linear(3 * hidden, hidden), nn.Linear(hidden, vocab)

        def forward(self, source: Any, tokens: Any) -> Any:
            values, (h, c) = self.encoder(self.read(source))
            start = torch.tanh(self.bridge(torch.cat([h[0], h[1], c[0], c[1]], dim=-1)))
            first = tuple(part.unsqueeze(0).contiguous() for part in start.chunk(2, dim=-1))
            states, _ = self.decoder(self.write(tokens), first)
            weights = torch.softmax(states @ self.keys(values).transpose(1, 2) * hidden**-0.5, dim=-1)
            return self.output(torch.tanh(self.combine(torch.cat([weights @ values, states], dim=-1))))

    model = Model()
    read, write, right = (torch.from_numpy(ids).long() for ids in (source, tokens, targets))

    def loss() -> Any:
        return nn.functional.cross_entropy(model(read, write).flatten(0, 1), right.flatten())

    batch = Seq2SeqBatch(TokenRows(source, every), tokens, targets, every, np.zeros(rows, np.float32))
    return ours(task, batch, rows, 2 * rows * length), theirs(model, loss)


def caption(rows: int, length: int, hidden: int, vocab: int) -> tuple[Steps, Steps]:
    """The default residual network over 64 x 64 pixels and an LSTM decoder with general attention over its places."""
    import torch
    from torch import nn

    from jaxgen.models.image_encoder import GROUP, NARROW
    from jaxgen.tasks.caption.objective import CaptionTask
    from jaxgen.types import Seq2SeqBatch

    draw, widths = np.random.default_rng(0), (32, 32, 64)
    images = draw.integers(0, 256, (rows, 64, 64, 3)).astype(np.uint8)
    tokens, targets = (draw.integers(3, vocab, (rows, length)).astype(np.int32) for _ in range(2))
    sizes: dict[str, Any] = {
        "hidden": hidden,
        "attention": "general",
        "patch": PATCH,
        "widths": widths,
        "blocks": BLOCKS,
    }
    task = CaptionTask.build(vocab_size=vocab, shape=(64, 64, 3), cell="lstm", cell_options={}, **sizes)
    every = np.ones(tokens.shape, bool)

    def rectified(width: int) -> Any:
        return nn.Sequential(nn.GroupNorm(width // GROUP, width), nn.ReLU())

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
            self.inner = nn.Sequential(rectified(width), first, rectified(width), second)

        def forward(self, x: Any) -> Any:
            return x + self.inner(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stages: list[Any] = [nn.PixelUnshuffle(PATCH)]
            for stage, width in enumerate(widths):
                before = widths[stage - 1] if stage else 3 * PATCH * PATCH
                stages += [rectified(before)] if stage else []
                stages += [nn.Conv2d(before, width, 3, stride=2 if stage else 1, padding=1)]
                stages += [Block(width) for _ in range(BLOCKS[stage])]
            self.network = nn.Sequential(*stages, rectified(widths[-1]))
            self.places, self.where = nn.Linear(widths[-1], hidden), nn.Parameter(torch.randn(1, 64, hidden))
            self.narrow, self.pooled = nn.Linear(hidden, NARROW), nn.Linear(64 * NARROW, hidden)
            self.bridge, self.keys = nn.Linear(hidden, 2 * hidden), nn.Linear(hidden, hidden, bias=False)
            self.write = nn.Embedding(vocab, hidden)
            self.decoder = nn.LSTM(hidden, hidden, batch_first=True)
            self.combine, self.output = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, vocab)

        def forward(self, images: Any, tokens: Any) -> Any:
            seen = self.network(images.permute(0, 3, 1, 2).float() / 127.5 - 1).flatten(2).transpose(1, 2)
            values = self.places(seen) + self.where
            pooled = self.pooled(torch.relu(self.narrow(values)).flatten(1))
            first = tuple(part.unsqueeze(0).contiguous() for part in torch.tanh(self.bridge(pooled)).chunk(2, dim=-1))
            states, _ = self.decoder(self.write(tokens), first)
            weights = torch.softmax(states @ self.keys(values).transpose(1, 2) * hidden**-0.5, dim=-1)
            return self.output(torch.tanh(self.combine(torch.cat([weights @ values, states], dim=-1))))

    model = Model()
    pixels = torch.from_numpy(images)
    write, right = (torch.from_numpy(ids).long() for ids in (tokens, targets))

    def loss() -> Any:
        return nn.functional.cross_entropy(model(pixels, write).flatten(0, 1), right.flatten())

    batch = Seq2SeqBatch(images, tokens, targets, every, np.zeros(rows, np.float32))
    return ours(task, batch, rows, rows * length), theirs(model, loss)


CASES: dict[str, Callable[[], tuple[Steps, Steps]]] = {
    "classify: GRU 1x128 both ways, 32 texts of 64 words of 10,000": lambda: classify(32, 64, 128, 10_000, 4),
    "classify: GRU 1x128 both ways, 32 texts of 256 characters of 100": lambda: classify(32, 256, 128, 100, 4),
    "translate: LSTM 1x256, 64 pairs of 16 words of 8,000": lambda: translate(64, 16, 256, 8_000),
    "translate: LSTM 1x128, 64 pairs of 24 characters of 60": lambda: translate(64, 24, 128, 60),
    "caption: 64 images of 64 x 64, LSTM 1x128, 24 words of 30": lambda: caption(64, 24, 128, 30),
}


def main() -> None:
    keep_memory()
    offer_cores()
    import torch

    from benchmarks import machine

    torch.set_num_threads(cores())
    print(machine.line(machine.facts()) + "\n")
    print("| task | jaxgen, ms a step | PyTorch, ms a step | ratio (lowest to highest) |\n|---|---|---|---|")
    for name, make in CASES.items():
        both = make()
        for take in both:
            take(2)
        times: list[list[float]] = [[], []]
        for _ in range(TURNS):
            for taken, take in zip(times, both):
                began = time.perf_counter()
                take(STEPS)
                taken.append((time.perf_counter() - began) / STEPS * 1e3)
        ratios = sorted(b / a for a, b in zip(*times))
        ours_ms, theirs_ms = map(statistics.median, times)
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {ours_ms:.1f} | {theirs_ms:.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()

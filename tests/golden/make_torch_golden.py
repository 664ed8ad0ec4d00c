"""Write ``torch.npz``: small PyTorch recurrent modules, their inputs, initial states, outputs and final states.

Run it where torch is installed: ``python tests/golden/make_torch_golden.py``. The tests read the file and need no
torch. Arrays are named ``<kind>/<one way or both>/<array>``; the weights keep torch's own names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

TARGET = Path(__file__).with_name("torch.npz")
INPUT, HIDDEN, LAYERS, BATCH, STEPS = 3, 4, 2, 2, 5
MODULES = {
    "rnn_tanh": lambda **options: torch.nn.RNN(nonlinearity="tanh", **options),
    "rnn_relu": lambda **options: torch.nn.RNN(nonlinearity="relu", **options),
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
}


def main() -> None:
    torch.manual_seed(0)
    arrays: dict[str, torch.Tensor] = {"x": torch.randn(BATCH, STEPS, INPUT)}
    for kind, make in MODULES.items():
        for ways, bidirectional in (("one", False), ("both", True)):
            module = make(
                input_size=INPUT, hidden_size=HIDDEN, num_layers=LAYERS, batch_first=True, bidirectional=bidirectional
            )
            states = [torch.randn(LAYERS * (1 + bidirectional), BATCH, HIDDEN) for _ in range(1 + (kind == "lstm"))]
            y, after = module(arrays["x"], tuple(states) if kind == "lstm" else states[0])
            after = after if kind == "lstm" else (after,)
            found = dict(module.state_dict()) | {"y": y}
            for name, before, final in zip("hc", states, after):
                found |= {f"{name}_0": before, f"{name}_n": final}
            arrays |= {f"{kind}/{ways}/{name}": array for name, array in found.items()}
    np.savez_compressed(TARGET, **{name: array.detach().numpy() for name, array in arrays.items()})
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()

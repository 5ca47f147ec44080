"""How far honest runs move a canary, and how far changes do: `make bench-canaries`.

Each line is one run of the canary texts; its vectors are compared with those of the first run of
the same dtype (eager, all canaries in one call). The table is what the tolerances in
`embcache.pipeline.known_canaries` rest on. Changes are made in a copy of the model's files.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _inputs import make_texts, model_path
from _report import machine
from rich.console import Console
from rich.table import Table

from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION, VllmEngine
from embcache.pipeline.canary_texts import TEXTS
from embcache.pipeline.cosine import cosines
from embcache.pipeline.known_canaries import TOLERANCES, spread
from embcache.store.verify import Values

progress = Console(stderr=True)
COLUMNS = ("dtype", "run", "canaries beyond", "largest |a-b|/|a|", "smallest cosine")


@dataclass(frozen=True)
class Line:
    """What one run gave.

    Attributes:
        dtype: What the engine computes in.
        run: What is special about it.
        spreads: `spread` of each canary.
        cosines: Cosine of each canary.
    """

    dtype: str
    run: str
    spreads: list[float]
    cosines: list[float]

    @property
    def beyond(self) -> int:
        """How many canaries are further away than the dtype's tolerance."""
        return sum(one > TOLERANCES[self.dtype] for one in self.spreads)


def main() -> int:
    """Measure and print; returns the exit status."""
    arguments = _parse_arguments()
    logging.getLogger("embcache").setLevel(logging.ERROR)
    honest: list[Line] = []
    changed: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="embcache-bench-") as folder:
        for dtype in arguments.dtypes:
            first = _embed(arguments.model, dtype)
            for name, run in _honest(arguments.model, dtype):
                honest.append(_line(dtype, name, first, run()))
            for name, change in CHANGES.items():
                copy = Path(folder, f"{dtype}-{len(changed)}")
                shutil.copytree(arguments.model, copy)
                change(copy)
                changed.append(_line(dtype, name, first, _embed(str(copy), dtype)))
    _print(honest, changed)
    return 0


def _line(dtype: str, name: str, first: Values, found: Values) -> Line:
    spreads = [spread(*pair) for pair in zip(first, found, strict=True)]
    return Line(dtype, name, spreads, cosines(first, found).tolist())


def _honest(model: str, dtype: str) -> Iterator[tuple[str, Callable[[], Values]]]:
    yield "eager, again", lambda: _embed(model, dtype)
    yield "one by one", lambda: _embed(model, dtype, one_by_one=True)
    yield "among 200 texts", lambda: _embed(model, dtype, others=200)
    yield "4 texts a step", lambda: _embed(model, dtype, others=20, max_num_seqs=4)
    yield "compiled", lambda: _embed(model, dtype, enforce_eager=False)


def _embed(
    model: str, dtype: str, *, one_by_one: bool = False, others: int = 0, **arguments: Any
) -> Values:
    """`(5, dim) float32`, of the canary texts."""
    given = {
        "enforce_eager": True,
        "gpu_memory_utilization": MTEB_GPU_MEMORY_UTILIZATION,
        **arguments,
    }
    engine = VllmEngine(model, None, {"dtype": dtype, **given})
    texts = [*TEXTS, *make_texts(others, (10, 250), seed=1)]
    with progress.status(f"{dtype}, {Path(model).name}, {arguments}"):
        prompts = engine.prepare(texts).prompts
        if one_by_one:
            found = np.concatenate([engine.embed([prompt]).vectors for prompt in prompts])
        else:
            order = np.random.default_rng(0).permutation(len(prompts))
            found = np.empty((len(prompts), 0), np.float32)
            vectors = engine.embed([prompts[i] for i in order.tolist()]).vectors
            found = vectors[np.argsort(order)]
    engine.close()
    return found[: len(TEXTS)]


def _noise(share: float) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        torch.manual_seed(0)
        weights = load_file(model / "model.safetensors")
        for name, weight in weights.items():
            if weight.is_floating_point():
                weights[name] = weight * (1 + share * torch.randn_like(weight))
        save_file(weights, model / "model.safetensors", {"format": "pt"})

    return change


def _one_layer(model: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    weights = load_file(model / "model.safetensors")
    name = next(n for n in weights if n.endswith("layer.5.output.dense.weight"))
    down, up = torch.randn(8, weights[name].shape[1]), torch.randn(weights[name].shape[0], 8)
    step = up @ down
    weights[name] = weights[name] + 0.02 * step * weights[name].norm() / step.norm()
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def _json(path: str, **values: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        content = json.loads((model / path).read_text())
        (model / path).write_text(json.dumps({**content, **values}))

    return change


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights x (1 + 0.001 noise)": _noise(0.001),
    "weights x (1 + 0.01 noise)": _noise(0.01),
    "weights x (1 + 0.1 noise)": _noise(0.1),
    "one matrix of 72: rank 8, 2% of its length": _one_layer,
    "cls instead of mean": _json(
        "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True
    ),
    "128 tokens instead of 256": _json("sentence_bert_config.json", max_seq_length=128),
    "case kept": _json("tokenizer_config.json", do_lower_case=False),
}


def _print(honest: list[Line], changed: list[Line]) -> None:
    for title, lines in (("Honest runs", honest), ("Changes", changed)):
        table = Table(*COLUMNS, title=title)
        for line in lines:
            table.add_row(
                line.dtype,
                line.run,
                f"{line.beyond} of {len(line.spreads)}",
                f"{max(line.spreads):.1e}",
                f"{min(line.cosines):.7f}",
            )
        Console(width=110).print(table)
    print(f"Tolerances: {TOLERANCES}; {machine()}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=model_path(), help="directory of the model")
    parser.add_argument("--dtypes", nargs="+", default=list(TOLERANCES), help="which dtypes")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    sys.exit(main())

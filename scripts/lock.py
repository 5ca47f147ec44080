"""Rewrite requirements/cpu.txt and requirements/cuda.txt from their inputs: `make lock`.

uv resolves for every platform and Python from 3.11 on, and keeps the pins that the locks already
hold; `make lock ARGS=--upgrade` takes the newest of everything. What can never apply to a system
that the set-up serves (Windows, macOS, the overrides' 'never') is dropped afterwards.

torch+cpu is not on PyPI: uv looks for it in the folder UV_FIND_LINKS if that is set, else on
PyTorch's own index.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

FOLDER = Path("requirements")
HEADER = """\
# Made by `make lock` from pyproject.toml, {device}.in and dev.in. Do not edit.
# Complete, so install it with --no-deps: pip install --no-deps -r requirements/{device}.txt
"""
# The systems that the set-up serves, as the environment of PEP 508 markers.
SYSTEMS = [
    {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"3.{minor}.0",
        "python_version": f"3.{minor}",
        "sys_platform": "linux",
    }
    for machine in ("x86_64", "aarch64")
    for minor in (11, 12, 13, 14)
]


def trim(line: str) -> str | None:
    """Simplify a line of a lock for the systems that the set-up serves.

    Args:
        line: A requirement, with or without a marker.

    Returns:
        The line, without a marker that is true on all of them; None if it is true on none.
    """
    marker = Requirement(line).marker
    if marker is None:
        return line
    applies = [marker.evaluate(system) for system in SYSTEMS]
    if all(applies):
        return line.partition(";")[0].rstrip()
    return line if any(applies) else None


def resolve(device: str, arguments: list[str]) -> str:
    """Have uv resolve one lock.

    Args:
        device: "cpu" or "cuda".
        arguments: Further arguments of `uv pip compile`.

    Returns:
        The text of the lock.

    Raises:
        subprocess.CalledProcessError: uv found no solution, or failed.
    """
    lock = FOLDER / f"{device}.txt"
    environment = dict(os.environ)
    options = [
        "--extra=map",
        "--extra=ray",
        "--universal",
        "--python-version=3.11",
        "--no-header",
        "--no-annotate",
        "--quiet",
    ]
    if device == "cpu":
        options += ["--override", str(FOLDER / "cpu-overrides.txt")]
        if "UV_FIND_LINKS" not in environment:
            options.append("--torch-backend=cpu")
    else:
        # A +cpu wheel in that folder would count as the newer torch.
        environment.pop("UV_FIND_LINKS", None)
    inputs = ["pyproject.toml", str(FOLDER / f"{device}.in"), str(FOLDER / "dev.in")]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, lock.name)
        if lock.exists():
            shutil.copy(lock, output)  # uv keeps the pins that it finds in its output file
        command = [sys.executable, "-m", "uv", "pip", "compile", *options, *arguments, *inputs]
        subprocess.run(
            [*command, "--output-file", str(output)],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        lines = [trim(line) for line in output.read_text().splitlines()]
    return HEADER.format(device=device) + "".join(f"{line}\n" for line in lines if line)


def main() -> int:
    """Write both locks, or neither if uv fails; returns the exit status."""
    try:
        locks = {device: resolve(device, sys.argv[1:]) for device in ("cpu", "cuda")}
    except subprocess.CalledProcessError as error:
        print(f"make lock: uv failed (exit {error.returncode}); the locks are as they were.")
        return 1
    for device, text in locks.items():
        path = FOLDER / f"{device}.txt"
        path.write_text(text)
        print(f"{path}: {text.count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run as a module in a process of its own: print what vLLM makes of dtype "auto".

Reads JSON `{"model", "revision", "convert", "arguments"}` on standard input. A process of its own,
because the question takes vllm's import, which is slow, and the asking process must not import it.
"""

from __future__ import annotations

import json
import sys

MARK = "embcache-dtype="


def main() -> None:
    """Print `MARK` and the dtype, without loading weights or starting an engine."""
    request = json.load(sys.stdin)
    from vllm import EngineArgs

    config = EngineArgs(
        model=request["model"],
        revision=request["revision"],
        runner="pooling",
        convert=request["convert"],
        dtype="auto",
        **request["arguments"],
    ).create_model_config()
    print(f"{MARK}{str(config.dtype).removeprefix('torch.')}")


if __name__ == "__main__":
    main()

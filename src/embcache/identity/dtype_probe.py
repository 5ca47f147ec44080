"""Run as a module in a process of its own: print what vLLM makes of dtype "auto".

Reads JSON `{"model", "revision", "convert", "arguments"}` on standard input. A process of its own,
because the question costs vllm's import (about 10 s) and the asking process shall not import vllm.
"""

from __future__ import annotations

import json
import sys

MARK = "embcache-dtype="


def main() -> None:
    """Resolve the model's configuration, without loading weights or starting an engine."""
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

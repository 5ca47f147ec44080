"""Run as a module in a process of its own: print what vLLM makes of dtype "auto".

Or that it has no device here: asked nevertheless, it says float16, say, which is then no answer.

Reads JSON `{"model", "revision", "convert", "arguments"}` on standard input. A process of its own,
because the question takes vllm's import, which is slow, and the asking process must not import it.
"""

from __future__ import annotations

import json
import sys

from embcache.identity.device import is_there

MARK = "embcache-dtype="
NO_DEVICE = "no device"


def main() -> None:
    """Print `MARK` and the dtype, or `NO_DEVICE`, without loading weights or an engine's start."""
    request = json.load(sys.stdin)
    from vllm.platforms import current_platform

    if not is_there(current_platform.device_type):
        print(f"{MARK}{NO_DEVICE}")
        return
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

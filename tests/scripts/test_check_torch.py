"""A torch of another build than asked for is noticed by the set-up, with where it came from."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCK = "nvidia-cuda-runtime==13.0.96\ntorch==2.13.0\ntorchvision==0.28.0\n"


def package_files(name: str, version: str, inside: str) -> dict[str, str]:
    """A package as torch's builds are: the version outside may say less than the one inside."""
    info = f"{name}-{version}.dist-info"
    return {
        f"{name}/__init__.py": "raise ImportError('no library of this device')\n",
        f"{name}/version.py": inside,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }


def unpack(folder: Path, name: str, version: str, inside: str = "") -> None:
    for file, content in package_files(name, version, inside).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)


def wheel(folder: Path, name: str, version: str, inside: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    files = package_files(name, version, inside)
    record = f"{name}-{version}.dist-info/RECORD"
    digests = {
        file: base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for file, content in files.items()
    }
    lines = [f"{file},sha256={digest.rstrip('=')}," for file, digest in digests.items()]
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**files, record: "\n".join([*lines, f"{record},,", ""])}.items():
            archive.writestr(file, content)
    return path


def check(
    folder: Path, device: str, origins: dict[str, str] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    (folder / "lock.txt").write_text(LOCK)
    (folder / "origins").write_text(json.dumps(origins or {}))
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_torch.py", "check", device, "lock.txt",
         "origins"],
        capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **env},
    )  # fmt: skip


CUDA, CPU = "cuda: Optional[str] = '13.0'\n", "cuda: Optional[str] = None\n"


@pytest.mark.parametrize(
    ("device", "torch", "inside", "vision", "message"),
    [
        ("cuda", "2.13.0+cpu", CPU, "0.28.0", "torch 2.13.0+cpu is a build for CPUs. "),
        ("cuda", "2.13.0", CPU, "0.28.0", "torch 2.13.0 is a build for CPUs. "),  # a mirror's own
        (
            "cuda",
            "2.13.0+rocm6.4",
            "hip = '6.4.1'\n",
            "0.28.0",
            "torch 2.13.0+rocm6.4 is a build for AMD GPUs (ROCm)",
        ),
        (
            "cuda",
            "2.13.0",
            "__version__ = '2.13.0+xpu'\n",
            "0.28.0",
            "torch 2.13.0 is a build for Intel GPUs",
        ),
        ("cuda", "2.13.0+cu128", "", "0.28.0", "torch 2.13.0+cu128 is a build for CUDA 12.8. "),
        ("cuda", "2.13.0", "cuda = '12.6'\n", "0.28.0", "torch 2.13.0 is a build for CUDA 12.6. "),
        ("cuda", "2.13.0", CUDA, "0.28.0+cpu", "torchvision 0.28.0+cpu is a build for CPUs. "),
        ("cpu", "2.13.0", CUDA, None, "torch 2.13.0 is a build for CUDA 13.0. "),
        ("cpu", "2.13.0+cpu", CPU, "0.28.0+cu130", "torchvision 0.28.0+cu130 is a build for CUDA"),
    ],
)
def test_another_build(
    tmp_path: Path, device: str, torch: str, inside: str, vision: str | None, message: str
) -> None:
    unpack(tmp_path, "torch", torch, inside)
    if vision:
        unpack(tmp_path, "torchvision", vision)
    url = "https://mirror.example/simple/torch.whl"
    result = check(tmp_path, device, {"torch": url, "torchvision": url})
    assert result.returncode == 1 and message in result.stderr
    wrong = message.split(maxsplit=1)[0]
    assert result.stdout.split() == [wrong]
    assert f"{wrong} came from {url}" in result.stderr
    assert f"The set-up for {device} needs one for" in result.stderr


@pytest.mark.parametrize(
    ("device", "torch", "inside"),
    [
        ("cuda", "2.13.0", CUDA),
        ("cuda", "2.13.0+cu130", ""),
        ("cuda", "2.13.0", "__version__ = '2.13.0+cu130'\n"),
        ("cpu", "2.13.0+cpu", CPU),
    ],
)
def test_the_right_build(tmp_path: Path, device: str, torch: str, inside: str) -> None:
    unpack(tmp_path, "torch", torch, inside)
    result = check(tmp_path, device)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_where_pip_looks_is_said_without_passwords(tmp_path: Path) -> None:
    unpack(tmp_path, "torch", "2.13.0+cpu")
    unpack(tmp_path, "torchvision", "0.28.0+cpu")
    result = check(
        tmp_path, "cuda", PIP_EXTRA_INDEX_URL="https://me:secret@mirror.example/simple",
        PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="/wheels",
    )  # fmt: skip
    assert "extra-index-url='https://mirror.example/simple'" in result.stderr
    assert "find-links='/wheels'" in result.stderr and "secret" not in result.stderr
    assert "torch came from a place that is not known" in result.stderr
    assert "--index-url https://pypi.org/simple torch==2.13.0 torchvision==0.28.0" in result.stderr


def test_origins_are_kept_over_several_installations(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "check_torch.py"
    for name, url in (("Torch", "https://a/1"), ("numpy", "https://b/2"), ("torch", "https://c/3")):
        one = {"metadata": {"name": name}, "download_info": {"url": url}}
        (tmp_path / "report").write_text(json.dumps({"install": [one]}))
        command = [sys.executable, script, "note", tmp_path / "report", tmp_path / "origins"]
        subprocess.run(command, check=True)
    kept = json.loads((tmp_path / "origins").read_text())
    assert kept == {"torch": "https://c/3", "numpy": "https://b/2"}


@pytest.mark.slow
def test_the_whole_set_up(tmp_path: Path) -> None:
    """pip takes torch 2.13.0+cpu for torch==2.13.0; once it cannot, the set-up goes on."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "requirements").mkdir()
    for name in ("setup_env.sh", "check_torch.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / "requirements" / "cuda.txt").write_text(LOCK.replace("torchvision==0.28.0\n", ""))
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '1'\n")
    wheels = tmp_path / "wheels"
    wheel(wheels, "nvidia_cuda_runtime", "13.0.96")
    cpu = wheel(wheels, "torch", "2.13.0+cpu", CPU)
    wheel(wheels, "torch", "2.13.0", CUDA)
    env = {
        **os.environ, "PYTHON": sys.executable, "EMBCACHE_DEVICE": "cuda", "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(wheels),
    }  # fmt: skip

    def set_up() -> str:
        result = subprocess.run(
            ["sh", "scripts/setup_env.sh"], capture_output=True, text=True, check=False,
            cwd=tmp_path, env=env, timeout=300,
        )  # fmt: skip
        assert result.returncode == 1
        return result.stdout + result.stderr

    out = set_up()
    assert "torch 2.13.0+cpu is a build for CPUs. The set-up for cuda needs one for" in out
    assert f"torch came from {wheels.as_uri()}/torch-2.13.0" in out
    assert f"find-links='{wheels}'" in out
    cpu.unlink()
    out = set_up()
    assert "bringing .venv up to date" in out and "torch is for cuda" in out
    assert "embcache itself" in out and "is a build for" not in out  # there this one ends

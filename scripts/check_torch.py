"""Whether the torch that pip found is of the build that was asked for; else where pip found it.

`torch==2.13.0` takes torch 2.13.0+cpu or +rocm as well, where some index of pip's has it, and pip
check is content with that. vllm's build for NVIDIA GPUs then does not import, and what it says
("operator torchvision::nms does not exist") is of no help.

Called by setup_env.sh, with the Python of .venv:

    check_torch.py note REPORT ORIGINS        keep the origins in a report of `pip install --report`
    check_torch.py check DEVICE LOCK ORIGINS  names of wrong packages on stdout, why on stderr; 1

Nothing but the standard library: nothing else may be installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

# torch's own builds, and what is built against it: of one device, or they do not import together.
PACKAGES = ("torch", "torchvision", "torchaudio")
INDEXES = {"cuda": "https://pypi.org/simple", "cpu": "https://download.pytorch.org/whl/cpu"}


def main(command: str, *arguments: str) -> int:
    """Do what the first argument says."""
    if command == "note":
        note(Path(arguments[0]), Path(arguments[1]))
        return 0
    device, lock, origins = arguments
    wrong = wrong_builds(device, cuda_of(Path(lock).read_text()))
    if not wrong:
        return 0
    print(" ".join(wrong))
    print(explain(device, wrong, Path(lock), Path(origins)), file=sys.stderr)
    return 1


def note(report: Path, origins: Path) -> None:
    """Keep where pip found each package, in front of what is known of older ones.

    pip leaves user names and passwords out of these addresses.
    """
    found = {
        one["metadata"]["name"].lower(): one["download_info"]["url"]
        for one in json.loads(report.read_text())["install"]
    }
    origins.write_text(json.dumps(known_origins(origins) | found, indent=0))


def known_origins(file: Path) -> dict[str, str]:
    """Address by package."""
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return known


def cuda_of(lock: str) -> str | None:
    """The major version of CUDA that the locked packages are for; None where there is none."""
    found = re.search(r"^nvidia-cuda-runtime==(\d+)", lock, re.MULTILINE)
    return found.group(1) if found else None


def wrong_builds(device: str, cuda: str | None) -> dict[str, str]:
    """What is wrong with each package that is of another build than asked for, in words."""
    wanted = "cpu" if device == "cpu" else f"cu{cuda or ''}"
    wrong = {}
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        build = build_of(name, version)
        if build is not None and not build.startswith(wanted):
            wrong[name] = f"{name} {version} is a build for {in_words(build)}"
    return wrong


def build_of(name: str, version: str) -> str | None:
    """`cpu`, `cu130`, `rocm6.4`, ...: what the versions say; None where they do not.

    Read, not imported: a build for another device need not import.
    """
    spec = importlib.util.find_spec(name)
    file = Path(spec.origin or "").with_name("version.py") if spec else Path("version.py")
    inside = file.read_text() if spec and file.exists() else ""
    own = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", inside, re.MULTILINE)
    for one in (version, own.group(1) if own else ""):  # PyPI's wheels say it only inside
        if label := re.match(r"(cpu|cu\d|rocm|xpu).*", one.partition("+")[2]):
            return label.group()
    for attribute, prefix in (("cuda", "cu"), ("hip", "rocm"), ("xpu", "xpu")):
        if found := re.search(rf"^{attribute}\b[^=\n]*=\s*['\"](\d+\.\d+)", inside, re.MULTILINE):
            return prefix + (found.group(1).replace(".", "") if prefix == "cu" else found.group(1))
    return "cpu" if name == "torch" else None


def in_words(build: str) -> str:
    """The build for people."""
    if cuda := re.fullmatch(r"cu(\d+)(\d)", build):
        return f"CUDA {cuda[1]}.{cuda[2]}"
    return {"cpu": "CPUs", "roc": "AMD GPUs (ROCm)", "xpu": "Intel GPUs"}.get(build[:3], build)


def explain(device: str, wrong: dict[str, str], lock: Path, origins: Path) -> str:
    """What is wrong, which index or folder it came from, and what to do."""
    known, locked = known_origins(origins), lock.read_text()
    wanted = "CPUs" if device == "cpu" else f"NVIDIA GPUs (CUDA {cuda_of(locked) or ''})"
    lines = [f"{'; '.join(wrong.values())}. The set-up for {device} needs one for {wanted}."]
    lines += [
        f"    {name} came from {known.get(name, 'a place that is not known')}" for name in wrong
    ]
    lines += ["pip is set up to look in:", *(f"    {one}" for one in pip_settings())]
    pins = re.findall(rf"^(?:{'|'.join(wrong)})==[^ ;\n]+", locked, re.MULTILINE)
    lines += [
        "It is uninstalled. Take the index or folder that offers it out of these settings and call",
        "make again: it goes on from there. Or have it from elsewhere first, and then call make:",
        f"    PIP_CONFIG_FILE=/dev/null {sys.executable} -m pip --isolated install --no-deps \\",
        f"        --index-url {INDEXES[device]} {' '.join(pins)}",
    ]
    return "\n".join(lines)


def pip_settings() -> list[str]:
    """Those of pip's settings, from files and the environment, that say where it looks."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    settings = [line for line in listed.splitlines() if re.match(r"[^=]*(index|find-links)", line)]
    if not any(re.match(r"[^=]*\bindex-url|[^=]*no-index", line) for line in settings):
        settings.append("PyPI, as no index-url says otherwise")
    return [re.sub(r"//[^/@\s']*@", "//", line) for line in settings]  # no passwords in a log


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

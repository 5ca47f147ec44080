"""A folder as two hosts see it that have mounted it from a server, each with a clock of its own.

Two mounts of `sshfs`, whose `ssh` is the SFTP server itself: no network, and all that a network
file system may do. Locks are a mount's own; names, sizes, what is not there, and lists of folders
are remembered for seconds, whatever the other mount does meanwhile; a file's times are the
server's.

A host's clock is `libfaketime`'s: what its processes take for the time, while the server, and what
measures how long something takes, go on as they are.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SEEN_LATE = {
    "dcache_timeout": 20,
    "dcache_stat_timeout": 20,
    "dcache_link_timeout": 20,
    "dcache_dir_timeout": 20,
    "entry_timeout": 5,
    "attr_timeout": 5,
    "negative_timeout": 5,
}
"""Options of sshfs: for how many seconds a host believes what it has seen."""

UNSEEN_SECONDS = 60.0
"""After which one host sees for sure what the other did."""

CLOCKS = ("right", "ahead", "behind", "jumping")
_HOURS = {"right": (0,), "ahead": (2,), "behind": (-2,), "jumping": (0, 2, -2)}
_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")


@contextmanager
def mounted_twice(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A new folder, and two mounts of it.

    Args:
        folder: Where they are made.

    Yields:
        The folder itself, as its server sees it, and the mounts.
    """
    server = next((path for path in _SFTP_SERVERS if os.path.exists(path)), None)
    if server is None or not shutil.which("sshfs"):
        sys.exit("--two-hosts needs sshfs: apt-get install sshfs openssh-sftp-server")
    served, mounts = folder / "served", [folder / "a", folder / "b"]
    ssh = folder / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec {server}\n", encoding="ascii")
    ssh.chmod(0o700)
    options = ",".join(f"{name}={value}" for name, value in SEEN_LATE.items())
    done: list[Path] = []
    served.mkdir()
    try:
        for mount in mounts:
            mount.mkdir()
            subprocess.run(
                ["sshfs", "-o", f"ssh_command={ssh},{options}", f"host:{served}", str(mount)],
                check=True,
            )
            done.append(mount)
        yield served, mounts
    finally:
        for mount in done:
            subprocess.run(["fusermount3", "-u", "-z", str(mount)], check=False)


class Clock:
    """The clock of a host, for processes that are started while it is in the environment.

    Args:
        folder: For the file that says how late it is.
        kind: One of `CLOCKS`: two hours ahead or behind, or now this and now that.
        seed: Decides when it jumps.
    """

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self._file = folder / "clock"
        self._hours = _HOURS[kind]
        self._rng = random.Random(seed)
        # Not Debian's (0.9.10): it makes `time.sleep` fail where the clock has jumped.
        spec = importlib.util.find_spec("libfaketime")
        folders = [] if spec is None else spec.submodule_search_locations or []
        self._library = [path for one in folders for path in Path(one).rglob("libfaketime.so.1")]
        if not self._library and kind != "right":
            sys.exit("--clock needs libfaketime: pip install libfaketime")

    def begin(self) -> None:
        """Have processes that are started from now on go by it."""
        if self._hours == (0,):
            return
        self.jump()
        os.environ |= {
            "LD_PRELOAD": str(self._library[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def jump(self) -> None:
        """Be another time, if it is one that jumps."""
        if self._hours == (0,):
            return
        written = self._file.with_suffix(".new")
        written.write_text(f"{self._rng.choice(self._hours):+d}h\n", encoding="ascii")
        written.replace(self._file)

"""Whether other hosts may be at a folder, and what time it is there.

On a network file system a host sees for some seconds, on NFS for up to a minute, what was there
before: old names, sizes and lists of files. Locks are at times each host's own, and the clocks of
hosts differ. So nothing young is removed there; and whether something is young says the file system
itself, which stamps a new file with the time that it stamps all others with.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

# fmt: off
_LOCAL = frozenset(
    {
        "bcachefs", "btrfs", "ecryptfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs",
        "fuse.fuse-overlayfs", "fuseblk", "jfs", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay",
        "ramfs", "reiserfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"
    }
)
# fmt: on
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # spaces, say


def is_shared(folder: Path) -> bool:
    """Whether hosts that see no locks of this one may be at a folder: all but known local disks.

    Args:
        folder: Any folder, links followed.
    """
    return file_system(folder) not in _LOCAL


def file_system(place: Path) -> str:
    """The kind of file system that a file or folder is on, as Linux calls it.

    Args:
        place: Links are followed.

    Returns:
        "ext4", say; empty where that is not known.
    """
    try:
        mounts = _MOUNTS.read_bytes().splitlines()
    except OSError:  # no Linux, or no /proc
        return ""
    path = os.fsencode(os.path.realpath(place))
    longest, kind = b"", b""
    for mount in mounts:
        # 36 35 98:0 /root /place options - type source options
        before, _, after = mount.partition(b" - ")
        point = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), before.split()[4])
        within = path == point or path.startswith(point.rstrip(b"/") + b"/")
        if within and len(point) >= len(longest):  # of two at one place the later one counts
            longest, kind = point, after.split()[0]
    return os.fsdecode(kind)


def now(folder: Path) -> float:
    """What time it is in a folder, in seconds as `time.time`: what a file gets that is made now.

    Args:
        folder: Where nothing can be made, this host's own time counts.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()

"""The command line: `embcache`, or `python -m embcache`."""

from embcache.cli.app import main

__all__ = ["main"]

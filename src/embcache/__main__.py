"""`python -m embcache`."""

from embcache.cli import main

if __name__ == "__main__":
    main()

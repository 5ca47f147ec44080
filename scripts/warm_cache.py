#!/usr/bin/env python3
"""Fill a cache over large corpora, before anything is evaluated: see `--help`.

python scripts/warm_cache.py --model intfloat/e5-small --prompt-dict registered --task NFCorpus
"""

from embcache.cli.warm import main

if __name__ == "__main__":
    main()

"""Damage a cache's files at random and mend it with `check --fix`: `make damage`.

Before that, in two of five trials, half of the texts are evaluated over the damaged cache, as a run
does: it must return every vector, and the right one.

Each trial copies a small cache (vectors or scores, with and without texts, fragments, deletions,
duplicates, canaries, compacted or not), damages one file or two of whatever kind, has the cache
checked and mended, and then looks whether everything that is promised holds:

- the cache opens, a second check finds nothing, new rows can be added, it can be compacted;
- every row that could be read after the damage, in the newest version or else in an older one, is
  there; where no data file was damaged, every row that there ever was before;
- no row has a value that was never committed for its text; its identity is what it was.

Trials run in processes of their own, for the native library may take one down; the seed of that
trial is a failure like any other. Prints a row of the table in docs/reliability.md; the exit
status is 1 where a trial failed.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from embcache.cli.apart import check_apart
from embcache.engine.base import Embedded, Prepared
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys, pair_keys, text_keys, to_bytes
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.store import SCORES, VECTORS, Database, Layout, Location, Reader, Rows, Space
from embcache.store.verify import key_fits, verify
from embcache.tools.check import check_space
from embcache.tools.compact import compact_space
from embcache.tools.find import find_spaces

PROMPT = "p: "
IDENTITY = Identity("organization/name", "0" * 40, "float32")
ENGINE = "none 1.0"
_BATCH = 1000  # trials of one process, which takes seconds to begin
_CANARIES = 5
_LAST = 2**64 - 1


class _Engine:
    """An engine that returns what was committed; see `embcache.engine.base.Engine`."""

    version = ENGINE
    dtype = "float32"
    batch_size = 128
    started = True

    def __init__(self, right: dict[str, np.ndarray]) -> None:
        self._right = right

    def start(self) -> None:
        """Be started."""

    def close(self) -> None:
        """Be started no more."""

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """Take the texts as prompts; all are said to be equally long."""
        return Prepared(list(texts), np.full(len(texts), 4, np.int64))

    def embed(self, prompts: Sequence[str]) -> Embedded:
        """The values, `(n, dim) float32`."""
        return Embedded(np.stack([self._right[each.removeprefix(PROMPT)] for each in prompts]))


class PromiseError(Exception):
    """Something that is promised does not hold."""


@dataclass
class Template:
    """A whole cache, to be copied.

    Attributes:
        cache: Its folder.
        committed: By key, the bytes of all values that were ever committed for it.
        right: By text, the value that was committed first; of vectors.
        live: Keys of the rows that it has.
        by_file: Keys by the name of the data file that they are in, of the newest version.
    """

    cache: Path
    committed: dict[bytes, set[bytes]] = field(default_factory=dict)
    right: dict[str, np.ndarray] = field(default_factory=dict)
    live: set[bytes] = field(default_factory=set)
    by_file: dict[str, set[bytes]] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        """The space's folder."""
        (found,) = self.cache.glob("[!.]*.lance")
        return found


def make_rows(numbers: range, layout: Layout, dim: int, value: float) -> Rows:
    """Rows of texts that are called by numbers; `value` tells commits apart."""
    texts = [f"text {number} {'word ' * (number % 17)}" for number in numbers]
    rng = np.random.default_rng([len(numbers), 1_000 + numbers.start, int(value)])
    if layout is SCORES:
        keys = pair_keys(IDENTITY.to_bytes(), ("q: ", ""), texts, texts[::-1])
        columns = {"query": texts, "document": texts[::-1], "query_prefix": "q: "}
        columns |= {"document_prefix": "", "task": "Task"}
        return Rows(keys, rng.standard_normal((len(texts), 1)).astype(np.float32), columns)
    keys = text_keys(IDENTITY.to_bytes(), PROMPT, texts)
    vectors = rng.standard_normal((len(texts), dim)).astype(np.float32)
    names = {"text": texts, "prompt": PROMPT, "prompt_type": "query", "task": "Task"}
    return Rows(keys, vectors, names, np.arange(len(texts), dtype=np.int32))


def make_templates(folder: Path) -> list[Template]:
    """One cache of each kind."""
    kinds: list[tuple[str, Layout, bool, int, int]] = [
        ("vectors", VECTORS, True, 60, 16),
        ("without-texts", VECTORS, False, 60, 16),
        ("scores", SCORES, True, 60, 1),
        ("large", VECTORS, True, 2_000, 8),
        ("compacted", VECTORS, True, 60, 16),
        ("cleaned", VECTORS, True, 60, 16),
    ]
    return [make_template(folder / kind[0], *kind) for kind in kinds]


def make_template(
    cache: Path, name: str, layout: Layout, store_text: bool, count: int, dim: int
) -> Template:
    """A cache with fragments, duplicates, deletions and canaries."""
    made = Template(cache)
    database = Database(cache, writable=True)
    space = database.space(IDENTITY, IDENTITY.model, ENGINE, layout=layout, store_text=store_text)

    def commit(rows: Rows, *, blindly: bool = False) -> None:
        for key, value in zip(raw_keys(rows.keys), rows.values, strict=True):
            made.committed.setdefault(key, set()).add(value.tobytes())
        if layout is VECTORS:
            for text, value in zip(rows.columns["text"] or (), rows.values, strict=True):
                made.right.setdefault(str(text), value)
        if blindly:
            table = space.table()
            table.add(rows.to_arrow(table.schema, store_text=store_text))
        else:
            space.add(rows)

    for part in range(4):
        commit(make_rows(range(part * count, (part + 1) * count), layout, dim, part))
    commit(make_rows(range(count - 5, count + 5), layout, dim, 9), blindly=True)
    space.canaries.add(make_rows(range(-_CANARIES, 0), layout, dim, 0))
    space.drop(make_rows(range(count, count + 7), layout, dim, 0).keys)
    if name in ("compacted", "cleaned"):
        age = timedelta(0) if name == "cleaned" else timedelta(hours=1)
        compact_space(space, older_than=age)
    commit(make_rows(range(4 * count, 5 * count), layout, dim, 5))
    space.drop(make_rows(range(4 * count, 4 * count + 3), layout, dim, 0).keys)
    reader = space.open()
    for fragment in reader.fragments:
        own: set[bytes] = set()
        for rows in reader.read_fragment(fragment):
            own.update(raw_keys(rows.keys))
        for file in fragment.metadata.files:
            made.by_file[file.path] = own
        made.live |= own
    return made


def raw_keys(keys: Keys) -> list[bytes]:
    """Each key's 16 bytes."""
    raw = to_bytes(keys)
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


def flip(path: Path, rng: random.Random) -> None:
    """Some bits anywhere."""
    raw = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        if raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def zero(path: Path, rng: random.Random) -> None:
    """A block of zeros."""
    raw = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(raw)))
    size = min(rng.choice([4, 64, 512, 4096]), len(raw) - at)
    raw[at : at + size] = bytes(size)
    path.write_bytes(raw)


def overwrite(path: Path, rng: random.Random) -> None:
    """A block of noise."""
    raw = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(raw)))
    size = min(rng.choice([4, 64, 512]), len(raw) - at)
    raw[at : at + size] = rng.randbytes(size)
    path.write_bytes(raw)


def cut(path: Path, rng: random.Random) -> None:
    """The end is missing."""
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * rng.choice([0.5, 0.9, rng.random()]))])


def empty(path: Path, rng: random.Random) -> None:
    """Nothing is left."""
    path.write_bytes(b"")


def remove(path: Path, rng: random.Random) -> None:
    """The file is gone."""
    path.unlink()


def append(path: Path, rng: random.Random) -> None:
    """Junk behind its end."""
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice([1, 16, 5000])))


def swap(path: Path, rng: random.Random) -> None:
    """Exchanged with another file of its folder."""
    others = [other for other in by_age(path.parent.iterdir()) if other != path]
    if others:
        other = rng.choice(others)
        mine = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(mine)


def stray(path: Path, rng: random.Random) -> None:
    """A file beside it that does not belong there."""
    stem, dot, ending = path.name.rpartition(".")
    names = ["junk", f"junk{dot}{ending}", f"7{dot}{ending}", f"{stem}0{dot}{ending}", ".tmp-x"]
    content = rng.choice([b"", rng.randbytes(50), path.read_bytes()])
    path.with_name(rng.choice(names)).write_bytes(content)


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    *(flip, flip, zero, overwrite, cut, empty, remove, append, swap, stray)
]


def by_age(paths: Iterable[Path]) -> list[Path]:
    """Oldest first: names are random, and a seed must mean the same files each time."""
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))


def kinds_of_files(table: Path) -> dict[str, list[Path]]:
    """What may be damaged, by kind."""
    versions = sorted((table / "_versions").glob("*.manifest"))  # newest first
    kinds = {
        "newest manifest": versions[:1],
        "older manifest": versions[1:],
        "all manifests": versions,
        "data": by_age(table.glob("data/*")),
        "deletions": by_age(table.glob("_deletions/*")),
        "transaction": by_age(table.glob("_transactions/*")),
        "hint": by_age(table.glob("_versions/*.json")),
        "canaries": by_age(table.glob("_canaries.lance/*/*")),
    }
    return {kind: files for kind, files in kinds.items() if files}


@dataclass
class Trial:
    """One cache, damaged and mended.

    Attributes:
        seed: Decides everything.
        what: What was damaged and how, for people.
        files: Kinds of the files that were damaged.
        touched: Names of the data files that were damaged.
        apart: Whether reading this may end the process. Then what can be read is not looked at
            before, and `check` runs as the command does, in processes that may end.
    """

    seed: int
    template: Template
    folder: Path
    what: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    apart: bool = False

    def run(self) -> None:
        """Damage, mend, and look.

        Raises:
            PromiseError: Something that is promised does not hold.
        """
        rng = random.Random(self.seed)
        cache = self.folder / "cache"
        shutil.copytree(self.template.cache, cache)
        table = cache / self.template.table.name
        for _ in range(rng.choice([1, 1, 1, 1, 2])):
            self.damage(table, rng)
        readable = set() if self.apart else keys_in(table, self.template)
        if self.template.right and not self.apart and random.Random(~self.seed).random() < 0.4:
            self.what.append("evaluated")
            self.evaluate(cache)
        self.mend(cache)
        now = self.look(cache, table)
        self.compare(table, readable, now)
        self.go_on(cache, table, now)

    def damage(self, table: Path, rng: random.Random) -> None:
        """Damage one file, or all manifests."""
        kinds = kinds_of_files(table)
        kind = rng.choice(sorted(kinds))
        how = rng.choice(DAMAGES)
        before = {path: path.read_bytes() for path in table.glob("data/*")}
        for path in kinds[kind] if kind == "all manifests" else [rng.choice(kinds[kind])]:
            self.what.append(f"{how.__name__} of {kind} {path.relative_to(table)}")
            if path.exists() or how is not remove:
                how(path, rng)
        self.files.add(kind)
        for path, content in before.items():
            if not path.exists() or path.read_bytes() != content:
                self.touched.add(path.name)

    def evaluate(self, cache: Path) -> None:
        """Half of the texts, over the damaged cache.

        Raises:
            PromiseError: A vector is not one that was committed for its text.
        """
        texts = list(self.template.right)[::2]
        space, engine = open_space(cache), _Engine(self.template.right)
        pipeline = Pipeline(engine, IDENTITY, space, canaries="never")
        request = TextRequest(texts=texts, prompt=PROMPT, show_progress=False)
        vectors, _ = pipeline.encode(request)
        for key, vector in zip(raw_keys(request.keys(IDENTITY.to_bytes())), vectors, strict=True):
            if vector.tobytes() not in self.template.committed[key]:
                raise PromiseError(f"the run got a vector that was never committed, of {key.hex()}")

    def mend(self, cache: Path) -> None:
        """`embcache check --fix`, and then `embcache check`."""
        if self.apart:
            for checked in check_apart(None, cache, fix=True):
                if not checked.ok:
                    raise PromiseError(checked.text)
        for fix in (True, False):
            for space in find_spaces(None, cache):
                report = check_space(space, fix=fix)
                if not report.ok or (not fix and report.repair):
                    raise PromiseError(f"check with fix={fix}: {report}")

    def look(self, cache: Path, table: Path) -> dict[bytes, bytes]:
        """Every row by key.

        Raises:
            PromiseError: A value was never committed, or the identity is another one.
        """
        if not table.exists():
            return {}
        space = open_space(cache)
        if space.identity != IDENTITY:
            raise PromiseError(f"the identity is now {space.identity}")
        snapshot = space.refresh()
        keys = snapshot.keys()
        values, damaged = snapshot.read_all(np.arange(len(keys)), keys)
        if damaged.any():
            raise PromiseError(f"{damaged.sum()} rows are damaged")
        found = dict(zip(raw_keys(keys), map(np.ndarray.tobytes, values), strict=True))
        for key, value in found.items():
            if value not in self.template.committed.get(key, ()):
                raise PromiseError(f"a value that was never committed, of key {key.hex()}")
        canaries = space.canaries.refresh()
        if len(canaries) not in (0, _CANARIES):
            raise PromiseError(f"{len(canaries)} canaries")
        return found

    def compare(self, table: Path, readable: set[bytes], now: dict[bytes, bytes]) -> None:
        """Whether all rows are there that must be.

        Raises:
            PromiseError: One is not.
        """
        if any(table.parent.glob(".damaged-*/rest/*")):
            return  # no version could be used, and the run has begun a new one; nothing is deleted
        if lost := readable - now.keys():
            raise PromiseError(f"{len(lost)} rows of {len(readable)} that could be read are lost")
        live = self.template.live
        gone = set().union(*(self.template.by_file.get(name, set()) for name in self.touched))
        if lost := live - gone - now.keys():
            raise PromiseError(f"{len(lost)} rows of {len(live)} in whole files are lost")

    def go_on(self, cache: Path, table: Path, now: dict[bytes, bytes]) -> None:
        """Whether the cache works as before.

        Raises:
            PromiseError: It does not.
        """
        layout = SCORES if "scores" in self.template.cache.name else VECTORS
        dim = 8 if "large" in self.template.cache.name else 16
        space = open_space(cache, layout=layout)
        new = make_rows(range(900_000, 900_003), layout, dim, 7)
        space.add(new)
        compact_space(open_space(cache), older_than=timedelta(0))
        snapshot = open_space(cache).refresh()
        keys = np.concatenate((snapshot.keys(), new.keys))
        if len(snapshot) < len(now) + len(new) or (snapshot.find(keys) < 0).any():
            raise PromiseError("rows are missing after an addition and a compaction")


def open_space(cache: Path, layout: Layout = VECTORS) -> Space:
    """The space, as an encoder has it."""
    database = Database(cache, writable=True)
    return database.space(IDENTITY, IDENTITY.model, ENGINE, layout=layout)


def keys_in(table: Path, template: Template) -> set[bytes]:
    """Keys of the rows that can be read in the newest version that can be opened."""
    location = Location.of(table)
    manifests = [path.stem for path in sorted((table / "_versions").glob("*.manifest"))]
    for stem in manifests:
        if len(stem) != len(str(_LAST)) or not stem.isdecimal():
            continue
        try:
            dataset = lance.dataset(str(table), version=_LAST - int(stem))
            reader = Reader(dataset, location)
            if dataset.version == _LAST - int(stem) and reader.metadata.identity == IDENTITY:
                return set(_keys(reader, 0, len(reader), template))
        except BaseException as error:
            if not _of_library(error):
                raise
    return set()


def _keys(reader: Reader, start: int, count: int, template: Template) -> list[bytes]:
    """Keys of the rows that can be read among some; what fails is halved until it is one row."""
    if not count:
        return []
    try:
        part = verify(_take(reader, start, count, ["checksum"]), reader.layout)
        texts = [name for name in reader.layout.texts if name in reader.columns]
        try:
            batch = _take(reader, start, count, texts)
            fits = key_fits(batch, part.keys, reader.layout, IDENTITY)
        except BaseException as error:
            if count > 1 or not _of_library(error):
                raise
            fits = np.full(1, -1, np.int8)  # the vector can be read, and its text cannot
    except BaseException as error:
        if not _of_library(error):
            raise
        half = count // 2
        if not half:
            return []
        return [
            *_keys(reader, start, half, template),
            *_keys(reader, start + half, count - half, template),
        ]
    good = part.keys[~part.damaged & (fits != 0)]
    return [key for key in raw_keys(good) if key in template.committed]


def _take(reader: Reader, start: int, count: int, columns: list[str]) -> pa.RecordBatch:
    names = ["key", reader.layout.value, *columns]
    rows = reader.dataset.take(range(start, start + count), columns=names)
    return rows.combine_chunks().to_batches()[0]


def _of_library(error: BaseException) -> bool:
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def work(seeds: range, *, apart: bool) -> None:
    """Run trials, two lines each on standard output."""
    with tempfile.TemporaryDirectory(prefix="embcache-damage-") as folder:
        templates = make_templates(Path(folder, "templates"))
        for seed in seeds:
            trial = Trial(seed, templates[seed % len(templates)], Path(folder, "trial"))
            trial.apart = apart
            print(f"begin {seed}", flush=True)
            said = _outcome(trial)
            shutil.rmtree(trial.folder)
            where = f"{trial.template.cache.name}: {', '.join(trial.what[:3])}"
            kinds = ",".join(sorted(trial.files)).replace(" ", "-")
            print(f"end {seed} {kinds} {said} ({where})".replace("\n", "; "), flush=True)


def _outcome(trial: Trial) -> str:
    try:
        trial.run()
    except PromiseError as error:
        return f"broken promise: {error}"
    except BaseException as error:
        if not _of_library(error):
            raise
        return f"{type(error).__name__}: {error}"
    return "ok"


@dataclass
class Result:
    """What became of all trials.

    Attributes:
        trials: How many ended.
        kinds: How many damaged which kind of file.
        failures: What went wrong, each with its seed.
        deadly: How many ended a process that read the cache without precautions.
    """

    trials: int = 0
    deadly: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def take(self, process: subprocess.Popen[str]) -> int | None:
        """Read a process's lines.

        Returns:
            The seed at which it died; None if it came to its end.
        """
        begun: int | None = None
        assert process.stdout is not None
        for line in process.stdout:
            words = line.split(" ", 3)
            if words[0] == "begin":
                begun = int(words[1])
            elif words[0] == "end":
                begun = None
                self.trials += 1
                self.kinds.update(words[2].split(","))
                if not words[3].startswith("ok "):
                    self.fail(f"seed {words[1]}: {words[3].strip()}")
        status = process.wait()
        if status and begun is None:
            self.fail(f"a process ended with status {status} between trials")
        return begun if status else None

    def fail(self, what: str) -> None:
        """Note a failure, and show it at once."""
        self.failures.append(what)
        print(what, file=sys.stderr, flush=True)


def run(first: int, last: int, errors: Path, minutes: float) -> Result:
    """Trials from one seed to another, in processes of some each, until the time is over."""
    result = Result()
    end = time.monotonic() + 60 * minutes
    at = first
    with errors.open("a", encoding="utf-8") as log:
        while at < last and time.monotonic() < end:
            stop = min(at + _BATCH, last)
            process = subprocess.Popen(
                [sys.executable, __file__, "--work", str(at), str(stop)],
                stdout=subprocess.PIPE,
                stderr=log,  # backtraces of the native library's panics
                text=True,
            )
            died = result.take(process)
            if died is not None:  # as it would be without any check
                result.deadly += 1
                again = [sys.executable, __file__, "--work", str(died), str(died + 1), "--apart"]
                process = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=log, text=True)
                if result.take(process) is not None:
                    result.trials += 1
                    result.fail(f"seed {died}: the process that mends ended")
            at = stop if died is None else died + 1
    return result


def main() -> int:
    """Run trials and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the first trial; others count on")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="backtraces go here")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)  # every damage is a warning
    if arguments.work:
        work(range(*arguments.work), apart=arguments.apart)
        return 0
    began = time.monotonic()
    result = run(
        arguments.seed, arguments.seed + arguments.trials, arguments.log, arguments.minutes
    )
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(result.kinds.items()))
    print(
        f"| `make damage ARGS='--trials {result.trials} --seed {arguments.seed}'` "
        f"| {result.trials:,} damages | failures: {len(result.failures)} "
        f"| {kinds}; {result.deadly} end a process that reads without precautions; "
        f"{time.monotonic() - began:,.0f} s |"
    )
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())

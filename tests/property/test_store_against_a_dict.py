"""The store does what a dict does, over several openings, deletions, refreshes and compactions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import lancedb
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from embcache.store import Database, Rows, Space
from embcache.tools.compact import compact_space
from tests.spaces import add_blindly, folder

IDENTITY = Identity("m", "r", "float32")
DIM = 3
names = st.integers(0, 30).map(str)


class StoreAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.model: dict[str, np.ndarray] = {}
        self.every: list[Space] = []
        self.handles = [self.open(), self.open()]
        self.counter = 0

    def open(self) -> Space:
        database = Database(Path(self.folder.name), writable=True)
        space = database.space(IDENTITY, "m", "v", store_text=True)
        self.every.append(space)
        return space

    @rule(handle=st.integers(0, 1), texts=st.lists(names, min_size=1, max_size=12, unique=True))
    def append(self, handle: int, texts: list[str]) -> None:
        self.counter += 1
        vectors = np.full((len(texts), DIM), self.counter, np.float32)
        vectors[:, 1] = [int(text) for text in texts]
        n_tokens = np.zeros(len(texts), np.int32)
        keys = text_keys(IDENTITY.to_bytes(), "", texts)
        space, rows = self.handles[handle], Rows(keys, vectors, {"text": texts}, n_tokens)
        if handle and space.location.has_table():
            add_blindly(space, rows)  # duplicates, as two processes leave them
        else:
            space.add(rows)
        for text, vector in zip(texts, vectors, strict=True):
            self.model.setdefault(text, vector)  # committed first counts

    @precondition(lambda self: self.model)
    @rule(handle=st.integers(0, 1), texts=st.lists(names, min_size=1, max_size=5, unique=True))
    def delete(self, handle: int, texts: list[str]) -> None:
        self.handles[handle].drop(text_keys(IDENTITY.to_bytes(), "", texts))
        for text in texts:
            self.model.pop(text, None)

    @precondition(lambda self: self.model)
    @rule()
    def compact(self) -> None:
        space = self.handles[0]
        for one in self.every:  # two compactions at once: Lance refuses the second one's commit
            one.compactor.join()
        lancedb.connect(str(folder(space).parent)).open_table(space.name).optimize()

    @precondition(lambda self: self.model)
    @rule()
    def store_each_key_once(self) -> None:
        for one in self.every:
            one.compactor.join()
        compact_space(self.handles[0])
        assert len(self.handles[0].refresh()) == len(self.model)

    @rule(handle=st.integers(0, 1))
    def reopen(self, handle: int) -> None:
        self.handles[handle] = self.open()

    @rule(handle=st.integers(0, 1), wanted=st.lists(names, max_size=20))
    def look(self, handle: int, wanted: list[str]) -> None:
        self.check(self.handles[handle], wanted)

    @invariant()
    def all_is_there(self) -> None:
        self.check(self.handles[0], sorted(self.model))

    def check(self, space: Space, wanted: list[str]) -> None:
        keys = text_keys(IDENTITY.to_bytes(), "", wanted)
        snapshot = space.refresh()
        positions = snapshot.find(keys)
        assert [p >= 0 for p in positions] == [text in self.model for text in wanted]
        rows = np.flatnonzero(positions >= 0)
        values, damaged = snapshot.read_all(positions[rows], keys[rows])
        assert not damaged.any()
        for row, value in zip(rows, values, strict=True):
            assert (value == self.model[wanted[row]]).all()

    def teardown(self) -> None:
        for one in self.every:
            one.compactor.join()
        self.folder.cleanup()


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

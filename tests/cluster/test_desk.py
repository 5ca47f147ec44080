"""The desk without Ray: what it does is plain asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from embcache.cluster import desk as module
from embcache.cluster.desk import (
    DEALT_WITH,
    FRUITLESS_READS,
    FRUITLESS_STARTS,
    Desk,
    Done,
    Failure,
    Report,
    State,
    Written,
)
from embcache.identity.keys import Keys
from embcache.warm.batches import BadRow

BAD = BadRow("x.jsonl, line 3", "no column 'text'")


def keys(*numbers: int) -> Keys:
    return np.array([(n, n) for n in numbers], np.uint64).reshape(-1, 2)


def written(name: str, *numbers: int) -> Written:
    return Written(name, keys(*numbers))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def greeted(*actors: str, **kwargs: Any) -> Desk:
    desk = Desk(**kwargs)
    for number, actor in enumerate(actors):
        await desk.hello(actor, "host", number)
    return desk


async def let_others_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_replicas_of_one_host_have_slots_of_their_own() -> None:
    async def work() -> None:
        desk = Desk()
        assert [await desk.hello(actor, "a", 1) for actor in ("1", "2", "3")] == [0, 1, 2]
        assert await desk.hello("4", "b", 1) == 0
        assert await desk.hello("2", "a", 99) == 1  # started again
        assert await desk.hello("5", "a", 1) == 3
        state = await desk.state()
        assert (state.replicas["2"].pid, state.replicas["2"].starts) == (99, 2)
        assert (state.replicas["1"].starts, state.alive, state.busy) == (1, 5, 0)

    run(work())


def test_a_replica_that_moves_gives_its_slot_back_and_keeps_its_counts() -> None:
    async def work() -> None:
        desk = await greeted("1", "2")
        await desk.report("1", Report(1, Done(2), [written("f", 1, 2)], last=True))
        assert await desk.hello("1", "other", 5) == 0
        assert await desk.hello("3", "host", 6) == 0
        moved = (await desk.state()).replicas["1"]
        assert (moved.host, moved.pid, moved.slot, moved.starts) == ("other", 5, 0, 2)
        assert (moved.encoded, moved.blocks) == (2, 1)

    run(work())


def test_a_replica_that_ends_again_and_again_ends_the_job() -> None:
    async def work() -> None:
        desk = await greeted("1", "2")
        for _ in range(FRUITLESS_STARTS - 1):
            await desk.hello("1", "host", 1)
        await desk.report("1", Report(7, Done(1), [written("f", 1)]))  # it got on
        for _ in range(FRUITLESS_STARTS):
            await desk.hello("1", "host", 1)
        assert (await desk.state()).failure is None
        await desk.hello("1", "other", 1)
        failure = (await desk.state()).failure
        assert failure is not None and failure.kind == "ClusterError"
        assert "On host other, a replica was killed or crashed 6 times in a row" in failure.message

    run(work())


def test_a_file_whose_reader_dies_again_and_again_ends_the_job() -> None:
    async def work() -> None:
        desk = Desk()
        for _ in range(FRUITLESS_READS):
            await desk.begin_reading(3, "a.parquet")
        await desk.end_reading(3)
        for _ in range(FRUITLESS_READS):  # what was lost with a node is read again
            await desk.begin_reading(3, "a.parquet")
        await desk.begin_reading(4, "b.parquet")
        assert (await desk.state()).failure is None
        await desk.begin_reading(3, "a.parquet")
        failure = (await desk.state()).failure
        assert failure is not None and failure.kind == "ClusterError"
        assert "a.parquet: the process that reads it has died 6 times" in failure.message

    run(work())


def test_versions_are_those_of_the_first() -> None:
    async def work() -> None:
        desk = Desk()
        assert await desk.other_version("a", "vllm 1") is None
        assert await desk.other_version("b", "vllm 1") is None
        assert await desk.other_version("c", "vllm 2") == "a has vllm 1"
        assert await desk.other_version("a", "vllm 1") is None

    run(work())


def test_blocks_whose_numbers_have_64_bits_claim() -> None:
    async def work() -> None:
        desk = Desk()
        many = [part << 32 for part in range(5)]
        assert (await desk.claim(many[4], keys(1))).all()
        for block in many[:4]:
            assert not (await desk.claim(block, keys(1))).any()
        assert (await desk.claim(many[4], keys(1))).all()

    run(work())


def test_what_is_written_is_claimed_no_more_and_handed_out_once() -> None:
    async def work() -> None:
        desk = await greeted("1")
        await desk.claim(7, keys(1, 2))
        await desk.report("1", Report(7, Done(1), [written("f", 1)], messages=["careful"]))
        first, second = await desk.state(), await desk.state()
        assert [one.file for one in first.written] == ["f"] and first.messages == ["careful"]
        assert not second.written and not second.messages and not second.bad
        assert first.encoded == second.encoded == 1
        assert (await desk.claim(7, keys(1, 2))).tolist() == [False, True]

    run(work())


def test_what_an_upstream_has_is_not_encoded_by_a_replica() -> None:
    async def work() -> None:
        desk = await greeted("1")
        files = [written("f", 1, 2, 3)]
        await desk.report("1", Report(7, Done(3, upstream=2), files, last=True))
        state = await desk.state()
        assert (state.replicas["1"].encoded, state.encoded, state.done.upstream) == (1, 3, 2)

    run(work())


def test_an_attempt_that_was_lost_counts_no_more() -> None:
    async def work() -> None:
        desk = await greeted("1")
        await desk.report("1", Report(7, Done(10, refused=1, tokens=30), [written("f", 1, 2)]))
        await desk.hello("1", "host", 5)
        assert (await desk.state()).busy == 0
        await desk.report("1", Report(7))
        state = await desk.state()
        assert (state.done, state.encoded, state.busy) == (Done(), 2, 1)
        await desk.report("1", Report(7, Done(12, refused=1), bad=[BAD], last=True))
        state = await desk.state()
        assert (state.done, state.bad, state.busy) == (Done(12, refused=1), [BAD], 0)
        assert state.replicas["1"].blocks == 1

    run(work())


def test_a_block_that_ran_twice_counts_once() -> None:
    """Its answer was lost with its node, after the last report; or two replicas had it."""

    async def work() -> None:
        desk = await greeted("1", "2")
        last = Report(7, Done(12, refused=1), bad=[BAD], last=True)
        await desk.report("1", last)
        await desk.report("2", Report(7, Done(5)))
        await desk.report("2", last)
        state = await desk.state()
        assert (state.done, list(state.bad), state.busy) == (last.done, [BAD], 0)
        assert [one.blocks for one in state.replicas.values()] == [1, 0]

    run(work())


def test_when_a_replica_has_started() -> None:
    async def work() -> None:
        desk = await greeted("1", "2")
        await desk.report("1", Report(1, starting=True))
        await desk.report("2", Report(2))
        state = await desk.state()
        assert state.replicas["1"].starting
        assert not state.replicas["1"].started and not state.replicas["2"].started
        await desk.report("1", Report(1))  # the engine is there
        await desk.report("2", Report(2, Done(5)))  # hits alone: no engine was needed
        state = await desk.state()
        assert state.replicas["1"].started and state.replicas["2"].started

    run(work())


def test_who_says_nothing_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: now)
        desk = await greeted("1", "2")
        await desk.report("1", Report(1))
        now += module.ALIVE_SECONDS - 1
        assert await desk.beat("2") is False
        now += 2
        state = await desk.state()
        assert (len(state.replicas), state.alive, state.busy) == (2, 1, 0)
        await desk.beat("1")
        state = await desk.state()
        assert (state.alive, state.busy) == (2, 1)

    # asyncio's own clock is the same function: no timeout here.
    asyncio.run(work())


def test_the_first_failure_counts() -> None:
    async def work() -> None:
        desk = Desk()
        assert (await desk.state()).failure is None
        await desk.fail("EngineError", "first")
        await desk.fail("CacheError", "second")
        assert (await desk.state()).failure == Failure("EngineError", "first")
        assert (await desk.state()).failure == Failure("EngineError", "first")

    run(work())


def test_a_stop_is_told_to_all_and_what_it_cuts_is_not_finished() -> None:
    async def work() -> None:
        desk = await greeted("1", "2")
        assert not await desk.beat("1") and not await desk.report("1", Report(1))
        await desk.stop()
        assert await desk.beat("1") and await desk.beat("2")
        cut = Report(1, Done(4), [written("f", 1)], [BAD], last=True)
        assert await desk.report("1", cut)
        state: State = await desk.state()
        assert state.done == Done(4) and [one.file for one in state.written] == ["f"]
        assert not state.bad and (state.replicas["1"].blocks, state.busy) == (0, 0)

    run(work())


class TestFeed:
    """Batches of the driver's texts: put on the desk, got from it in any order, and again."""

    def test_in_order(self) -> None:
        async def work() -> None:
            desk = Desk()
            for data in (b"0", b"1"):
                assert await desk.put(data, 100)
            await desk.end(100)
            assert [await desk.get(block) for block in (101, 100, 101)] == [b"1", b"0", b"1"]
            assert await desk.get(102) is None and await desk.get(500) is None

        run(work())

    def test_get_before_put(self) -> None:
        async def work() -> None:
            desk = Desk()
            second, first = (asyncio.create_task(desk.get(block)) for block in (1, 0))
            await let_others_run()
            assert not first.done() and not second.done()
            await desk.put(b"0", 0)
            assert await first == b"0"
            assert not second.done()
            await desk.end(0)
            assert await second is None

        run(work())

    def test_put_waits_until_a_block_is_finished(self) -> None:
        async def work() -> None:
            desk = await greeted("1", held=2)
            await desk.put(b"0", 0)
            await desk.put(b"1", 0)
            third = asyncio.create_task(desk.put(b"2", 0))
            assert await desk.get(0) == b"0"  # which makes no room: it may have to be read again
            await desk.report("1", Report(0, Done(1)))
            await let_others_run()
            assert not third.done()
            await desk.report("1", Report(0, Done(1), last=True))
            assert await third
            assert [await desk.get(block) for block in (0, 1, 2)] == [DEALT_WITH, b"1", b"2"]

        run(work())

    def test_a_reader_that_begins_again_skips_what_is_finished(self) -> None:
        async def work() -> None:
            desk = await greeted("1", held=2)
            await desk.put(b"0", 0)
            await desk.report("1", Report(0, last=True))
            await desk.put(b"1", 0)
            assert [await desk.get(block) for block in (0, 1)] == [DEALT_WITH, b"1"]

        run(work())

    def test_a_stop_ends_all_waiting(self) -> None:
        async def work() -> None:
            desk = Desk(held=1)
            await desk.put(b"0", 0)
            putting = asyncio.create_task(desk.put(b"1", 0))
            getting = asyncio.create_task(desk.get(5))
            await let_others_run()
            assert not putting.done() and not getting.done()
            await desk.stop()
            assert await putting is False and await getting is None
            assert await desk.put(b"2", 0) is False and await desk.get(0) is None

        run(work())

    def test_no_texts_at_all(self) -> None:
        async def work() -> None:
            desk = Desk()
            waiting = asyncio.create_task(desk.get(1 << 32))
            await let_others_run()
            await desk.end(1 << 32)
            assert await waiting is None

        run(work())

"""What replicas, the desk and the driver say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embcache.identity.keys import Keys
from embcache.warm.batches import BadRow


@dataclass(frozen=True)
class Written:
    """A file of rows that a replica has written, and nobody has committed yet.

    Attributes:
        file: What `Space.add_staged` takes.
        keys: `(n, 2) uint64`, its rows' keys.
    """

    file: str
    keys: Keys


@dataclass(frozen=True)
class Done:
    """What was done with a block of texts, so far.

    Attributes:
        texts: Texts that are dealt with.
        upstream: How many of them came from an upstream.
        refused: How many could not be encoded; rows without a text are not among them.
        tokens: Tokens of those that were encoded.
    """

    texts: int = 0
    upstream: int = 0
    refused: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Report:
    """What a replica says of the block that it works on.

    Attributes:
        block: The block's number.
        done: What was done with it, in this attempt.
        written: Files with its rows that were not reported before.
        bad: Rows of it that are left out; all of them, with the last report.
        messages: What was logged for the user, since the last report.
        starting: Whether the engine is starting.
        last: Whether this is the last report of the block: it is finished, or a stop has cut it.
    """

    block: int
    done: Done = Done()
    written: Sequence[Written] = ()
    bad: Sequence[BadRow] = ()
    messages: Sequence[str] = ()
    starting: bool = False
    last: bool = False


@dataclass
class Replica:
    """A replica, as the desk knows it.

    Attributes:
        host: Name of its host.
        pid: Its process.
        slot: Which of its host's replicas it is, from 0.
        encoded: How many texts it has encoded, those that were lost with a kill left out; of the
            block that it works on, those of an upstream count, too.
        blocks: How many blocks it has finished.
        starts: How often it was started.
        fruitless: How often of these since it has last written or finished something.
        starting: Whether its engine is starting.
        started: Whether that is over, or texts are dealt with and no engine was needed.
        block: The block that it works on; None between two.
        seen: `time.monotonic()` when it last said something.
    """

    host: str
    pid: int
    slot: int
    encoded: int = 0
    blocks: int = 0
    starts: int = 0
    fruitless: int = 0
    starting: bool = False
    started: bool = False
    block: int | None = None
    seen: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Why a job cannot go on.

    Attributes:
        kind: Name of a class in `embcache.errors`.
        message: Its text.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class State:
    """What the driver learns when it asks.

    Attributes:
        done: What was done, all blocks together.
        encoded: How many texts were encoded, or found upstream, and are in files.
        written: Files that were not handed out before.
        bad: Rows that are left out, and were not handed out before.
        messages: The same of messages.
        replicas: All replicas that ever were, by the ids of their actors.
        alive: How many of them said something a short while ago.
        busy: How many of these work on a block.
        failure: Why the job cannot go on; None while it can.
    """

    done: Done
    encoded: int
    written: Sequence[Written]
    bad: Sequence[BadRow]
    messages: Sequence[str]
    replicas: dict[str, Replica]
    alive: int
    busy: int
    failure: Failure | None

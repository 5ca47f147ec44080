"""The parts that need no engine: `warm`, `warm-large` with `tenth`, `evaluate`, `scale`, `tool`.

Each measures its contenders and returns tables and goals. Sizes are those of the goals; with
`Plan.quick` they are a smoke test's, and no goal is looked at.
"""

from __future__ import annotations

from dataclasses import replace

from _report import Goal, Part, ratio_goal
from _setup import Setup
from _turns import Measured, Peer, Plan, fill, make_part, one_by_one, run_once

REAL_KEYS = 10_000_000  # of the largest space that is made for real
FLOOR = "xxh3 of every text, rows gathered from a mapped matrix"
NOT_VERIFIED = (
    "embcache verifies every row that it returns by a checksum; LMDB verifies none, and nor does "
    "any other contender."
)


def stored_peers() -> dict[str, Peer]:
    """Who returns cached vectors, by name."""
    at = "_warm_peers"
    return {
        "embcache": Peer("embcache", f"{at}:embcache", "_fill:texts_and_vectors"),
        "floor": Peer(FLOOR, f"{at}:floor", f"{at}:fill_floor", rival=False),
        "lmdb": Peer("LMDB", f"{at}:lmdb", f"{at}:fill_lmdb", "lmdb"),
        "numpy": Peer("mteb's NumpyCache", f"{at}:mteb_numpy", "_fill:mteb_numpy"),
        "faiss": Peer("mteb's FaissCache", f"{at}:mteb_faiss", "_fill:mteb_faiss", "faiss-cpu"),
        "langchain": Peer(
            "LangChain's CacheBackedEmbeddings",
            f"{at}:langchain",
            f"{at}:fill_langchain",
            "langchain-classic",
            most_rounds=3,
        ),
    }


def warm(plan: Plan) -> Measured:
    """The first encode() of a process: 50,000 texts, 384 components."""
    texts = 2_000 if plan.quick else 50_000
    setup, peers = Setup(plan.folder, texts), stored_peers()
    part = make_part("warm", _title(texts, setup.dim), texts, peers)
    part.notes.append(NOT_VERIFIED)
    fill(peers, setup, part.name)
    one_by_one(part, peers, setup, plan.pick_rounds(5))
    return [part], _stored_goals(part, floor=2.0)


def warm_large(plan: Plan) -> Measured:
    """The same with 500,000 texts of 1,024 components, 2 GB; and a random tenth of these."""
    texts, dim = (4_000, 64) if plan.quick else (500_000, 1024)
    setup, peers = Setup(plan.folder, texts, dim), stored_peers()
    for slow in ("faiss", "langchain"):
        del peers[slow]
    peers["numpy"] = replace(peers["numpy"], most_rounds=2)
    whole = make_part("warm-large", _title(texts, dim), texts, peers)
    title = f"Warm: the first encode() of a new process, a random tenth of these {texts:,} texts"
    tenth = make_part("tenth", title, texts // 10, dict(peers))
    for part in (whole, tenth):
        part.notes += [
            NOT_VERIFIED,
            "Left out: LangChain's LocalFileStore, which would need half a million files of JSON, "
            "and FaissCache, which writes its 2 GB again whenever a process ends.",
        ]
    fill(peers, setup, whole.name)
    rounds = plan.pick_rounds(3)
    one_by_one(whole, peers, setup, rounds)
    one_by_one(tenth, peers, replace(setup, asked="tenth"), rounds)
    return [whole, tenth], _stored_goals(whole, floor=2.0) + _stored_goals(tenth, floor=3.0)


def evaluate(plan: Plan) -> Measured:
    """`mteb.evaluate` of a retrieval task whose texts are all cached."""
    texts = 2_000 if plan.quick else 50_000
    setup = Setup(plan.folder, texts)
    at = "_other_peers:evaluate"
    memory = "an encoder that has the matrix in memory"
    peers = {
        "embcache": Peer("embcache", f"{at}_embcache", "_fill:texts_and_vectors"),
        "memory": Peer(memory, f"{at}_memory", rival=False),
    }
    title = f"Warm: mteb.evaluate of a retrieval task with {texts:,} documents, all cached"
    part = make_part("evaluate", title, texts, peers)
    fill(peers, setup, part.name)
    one_by_one(part, peers, setup, plan.pick_rounds(5))
    text = "at most 1.03 times the time with vectors from memory"
    return [part], [ratio_goal(part, text, "embcache", "memory", 1.03, most=True)]


def scale(plan: Plan) -> Measured:
    """Opening a space and 100,000 look-ups, with more and more keys."""
    sizes = (40_000, 400_000) if plan.quick else (1_000_000, 10_000_000)
    at = "_scale_peers"
    peers = {
        f"{size}": Peer(f"{size:,} keys", f"{at}:open_and_find", f"{at}:fill", rival=False)
        for size in sizes
    }
    if plan.keys > REAL_KEYS:
        size = sizes[1] + 1 if plan.quick else plan.keys
        label = f"{size:,} keys, the index alone, simulated"
        where = f"{at}:open_and_find_simulated"
        peers[f"{size}"] = Peer(label, where, f"{at}:fill_simulated", rival=False)
    title = "Scale: opening a space, and looking 100,000 keys up, half of which are there"
    part = make_part("scale", title, 0, peers)
    part.base = f"{sizes[0]}"
    setups = {key: Setup(plan.folder, int(key), dim=0) for key in peers}
    for key, peer in peers.items():
        run_once(peer.fill, setups[key], f"{part.name}: {peer.label} are made")
    rounds = plan.pick_rounds(5)
    for _ in range(rounds):
        for key, peer in peers.items():
            one_by_one(part, {key: peer}, setups[key], 1)
    small, large = (f"{size}" for size in sizes)
    text = f"{sizes[1]:,} keys within 3 times of {sizes[0]:,}"
    return [part], [ratio_goal(part, text, large, small, 3.0, most=True)]


def tool(plan: Plan) -> Measured:
    """A fully warm corpus through `warm`, out of an Arrow file."""
    texts = 5_000 if plan.quick else 500_000
    setup = Setup(plan.folder, texts, dim=8)
    at = "_other_peers"
    peers = {
        "embcache": Peer("embcache's Warmer", f"{at}:tool_embcache", f"{at}:fill_tool"),
        "floor": Peer("xxh3 of every text of the file", f"{at}:tool_floor", rival=False),
    }
    title = f"warm: {texts:,} texts of an Arrow file, all cached"
    part = make_part("tool", title, texts, peers)
    fill(peers, setup, part.name)
    one_by_one(part, peers, setup, plan.pick_rounds(5))
    return [part], []


def _title(texts: int, dim: int) -> str:
    return (
        f"Warm: the first encode() of a new process, {texts:,} texts of about 700 characters, "
        f"{dim:,} components, all cached"
    )


def _stored_goals(part: Part, floor: float) -> list[Goal]:
    found = [
        ratio_goal(
            part, f"at most {floor:g} times the floor", "embcache", "floor", floor, most=True
        )
    ]
    if "lmdb" in part.contenders:
        found.append(ratio_goal(part, "faster than LMDB", "lmdb", "embcache", 1.0, most=False))
    text = "5 times as fast as NumpyCache"
    return [*found, ratio_goal(part, text, "numpy", "embcache", 5.0, most=False)]

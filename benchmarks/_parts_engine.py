"""The parts that start a real engine: `cold`, `start`, `partly`.

Each measures its contenders and returns tables and goals, see `_parts_stored`.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
from _process import ContenderError, Process
from _report import Goal, Part, Samples, gpus, ratio_goal
from _setup import Batch, Setup
from _turns import Measured, Peer, Plan, make_part, one_by_one, progress, run_once, side_by_side

# Batches of other sizes add up in another order, no more than that; with eight bits of mantissa
# that is more.
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99}
LENGTHS = {"short": (8, 20), "mixed": (8, 250), "long": (200, 250)}
CPU_TEXTS = {"short": 1500, "mixed": 160, "long": 100}  # 5 to 15 s on two cores with AVX2
GPU_TIMES = 50  # as many texts there
REST_SECONDS = 3.0  # a process of mteb's wrapper keeps a core busy for a second after its work
MISSES_SECONDS = 17.0
HITS_SECONDS = 1.0


def cold(plan: Plan) -> Measured:
    """Nothing cached, real vLLM: short, mixed and long texts; with a GPU in bfloat16 too."""
    has_gpu = bool(gpus())
    parts: list[Part] = []
    goals: list[Goal] = []
    for model in ["", plan.model] if plan.model else [""]:
        for dtype in ("float32", "bfloat16") if has_gpu else ("float32",):
            folder = plan.folder / f"{dtype}-{len(parts)}"
            folder.mkdir()
            times = GPU_TIMES if has_gpu else 1
            batches = tuple(
                Batch(32 if plan.quick else CPU_TEXTS[name] * times, *LENGTHS[name])
                for name in LENGTHS
            )
            setup = Setup(folder, model=model, dtype=dtype, batches=batches)
            found, wanted = _cold(plan, setup, has_gpu=has_gpu)
            parts += found
            goals += wanted
    return parts, goals


def _cold(plan: Plan, setup: Setup, *, has_gpu: bool) -> Measured:
    at = "_cold_peers"
    peers = {
        "embcache": Peer("embcache", f"{at}:embcache"),
        "transformers": Peer("Sentence Transformers", f"{at}:transformers"),
        "mteb": Peer("mteb's VllmEncoderWrapper", f"{at}:mteb"),
        "vllm": Peer("vLLM by itself, embcache's settings", f"{at}:vllm"),
    }
    if has_gpu and setup.dtype == "bfloat16":
        label = "Sentence Transformers, flash attention"
        where = f"{at}:transformers_flash"
        peers["transformers_flash"] = Peer(label, where, package="flash-attn")
    model = Path(setup.model).name or "all-MiniLM-L6-v2"
    parts = []
    for name, batch in zip(LENGTHS, setup.batches, strict=True):
        title = (
            f"Cold: {batch.texts:,} {name} texts of {batch.least} to {batch.most} tokens, "
            f"{model}, {setup.dtype}"
        )
        words = ["cold", name, setup.dtype if has_gpu else "", model if setup.model else ""]
        word = "-".join(filter(None, words))
        parts.append(make_part(word, title, batch.texts, peers))
    least = LEAST_COSINE[setup.dtype]
    side_by_side(
        *(parts, peers, setup, plan.pick_rounds(3)),
        check=lambda number: _check_same(setup.folder, peers, number, least),
        rest_s=0.0 if plan.quick else REST_SECONDS,
    )
    return parts, [goal for part in parts for goal in _cold_goals(part)]


def _check_same(folder: Path, peers: dict[str, Peer], number: int, least: float) -> None:
    """Raise unless all contenders computed the same vectors, as far as their dtype goes."""
    expected = np.load(folder / f"vllm-{number}.npy")
    for name in peers:
        found = np.load(folder / f"{name}-{number}.npy")
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = float(((found * expected).sum(axis=1) / lengths).min())
        if not cosine >= least:
            raise ContenderError(f"WRONG VECTORS: cosine {cosine} between {name}'s and vLLM's.")


def _cold_goals(part: Part) -> list[Goal]:
    goals = [
        ("at least as fast as Sentence Transformers", "transformers", "embcache", 1.0, False),
        ("1.9 times as fast as mteb's wrapper", "mteb", "embcache", 1.9, False),
        ("at most 3% behind vLLM by itself", "embcache", "vllm", 1.03, True),
    ]
    return [ratio_goal(part, *goal[:4], most=goal[4]) for goal in goals]


def start(plan: Plan) -> Measured:
    """From the start of a process to the first vectors: a few misses, and all hits."""
    setup = Setup(plan.folder, batches=(Batch(32, 8, 20),))
    at = "_cold_peers"
    transformers = Peer("Sentence Transformers, load and encode", f"{at}:start_transformers")
    mteb = Peer("import of mteb alone", f"{at}:import_mteb", rival=False)
    missing = {
        "embcache": Peer("embcache", f"{at}:start_embcache"),
        "vllm": Peer("vLLM by itself", f"{at}:start_vllm"),
        "transformers": transformers,
        "import-vllm": Peer("import of vllm alone", f"{at}:import_vllm", rival=False),
        "import-mteb": mteb,
    }
    both = "import of mteb, and of torch, with which mteb hands on texts"
    hitting = {
        "embcache": Peer("embcache", f"{at}:start_hits"),
        "transformers": transformers,
        "import-both": Peer(both, f"{at}:import_mteb_and_torch", rival=False),
        "import-mteb": mteb,
    }
    title = "Start: from the start of a process to the vectors of 32 short texts"
    misses = make_part("start-misses", f"{title}, nothing cached", 0, missing)
    hits = make_part("start-hits", f"{title}, all cached", 0, hitting)
    run_once("_fill:few", setup, "start: the cache is filled")
    rounds = plan.pick_rounds(3)
    for part, peers in ((misses, missing), (hits, hitting)):
        one_by_one(part, peers, setup, rounds, from_start=True)
    took = misses.contenders["embcache"].seconds
    ours, alone = (hits.contenders[name].seconds for name in ("embcache", "import-mteb"))
    over = [a - b for a, b in zip(ours, alone, strict=True)]
    return [misses, hits], [
        Goal(
            misses.name,
            "at most 17 s to the first vectors",
            *(MISSES_SECONDS, True, median(took), (min(took), max(took)), " s"),
        ),
        Goal(
            hits.name,
            "at most 1 s more than the import of mteb",
            *(HITS_SECONDS, True, median(ours) - median(alone), (min(over), max(over)), " s"),
        ),
    ]


def partly(plan: Plan) -> Measured:
    """Half, and 95 of 100 texts are cached: beside what the hits and the misses cost alone."""
    misses = 32 if plan.quick else 1500
    batches = tuple(
        Batch(misses, 8, 20, cached) for cached in (misses, 19 * misses) for _ in range(3)
    )
    setup = Setup(plan.folder, batches=batches)
    run_once("_other_peers:fill_partly", setup, "partly: the caches are filled")
    parts = [_partly_part(batch) for batch in batches[::3]]
    rounds = plan.pick_rounds(3)
    for number in range(rounds):
        progress.print(f"partly, round {number + 1} of {rounds}", highlight=False)
        told = Setup(plan.folder, turn=number, batches=batches)
        with Process("_other_peers:partly", told) as process:
            for part in parts:
                seconds = [process.call() for _ in range(3)]
                for name, each in zip(("embcache", "hits", "misses"), seconds, strict=True):
                    part.contenders[name].seconds.append(each)
                part.contenders["sum"].seconds.append(seconds[1] + seconds[2])
    text = "within 5% of hits plus misses"
    return parts, [ratio_goal(part, text, "embcache", "sum", 1.05, most=True) for part in parts]


def _partly_part(batch: Batch) -> Part:
    both = batch.cached + batch.texts
    share = 100 * batch.cached // both
    title = f"Partly warm: {both:,} texts, of which {share}% are cached; the engine is started"
    return Part(
        f"partly-{share}",
        title,
        0,
        {
            "embcache": Samples("embcache"),
            "sum": Samples("hits alone plus misses alone", rival=False),
            "hits": Samples("hits alone", rival=False),
            "misses": Samples("misses alone", rival=False),
        },
    )

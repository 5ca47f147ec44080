"""The sources of `warm`'s command line, as one stream of texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embcache.cli.engine_options import mteb_tasks
from embcache.cli.output import print_note
from embcache.errors import InputError
from embcache.warm import BadRow, Columns, TextBatch, Warmer
from embcache.warm.sources import estimate_rows, read_beir, read_dataset, read_files
from embcache.warm.tasks import read_task

if TYPE_CHECKING:
    from embcache.encoders import VllmEncoderWrapper

_SHOWN_BAD_ROWS = 10


@dataclass
class Sources:
    """What the command line names, and what is wrong with it.

    Attributes:
        tasks: Names of mteb tasks.
        benchmarks: Names of mteb benchmarks.
        files: Paths, globs and directories by format.
        beir: BEIR folders.
        dataset: Name of a Hugging Face data set, `config` and `dataset_split` belong to it.
        config: Its configuration.
        dataset_split: Its split.
        columns: Where the texts are in files and data sets.
        parts: corpus, queries or both, of retrieval tasks and BEIR folders.
        splits: Of the tasks; empty for those that they are evaluated on.
        subsets: Of the tasks; empty for all.
        prompt: Of files and data sets; None for the encoder's, by prompt type.
        prompt_type: Of files and data sets.
        strict: Whether a row without a text ends it all.
        bad_rows: How many rows had no text.
    """

    tasks: list[str]
    benchmarks: list[str]
    files: dict[str, list[str]]
    beir: list[str]
    dataset: str | None
    config: str | None
    dataset_split: str
    columns: Columns
    parts: tuple[str, ...]
    splits: list[str]
    subsets: list[str]
    prompt: str | None
    prompt_type: str | None
    strict: bool
    bad_rows: int = 0

    def report(self, row: BadRow) -> None:
        """Count a row that is left out; shows the first few."""
        if self.strict:
            raise InputError(f"{row}. Without --strict it would be left out.")
        self.bad_rows += 1
        if self.bad_rows <= _SHOWN_BAD_ROWS:
            print_note(f"left out: {row}")

    def batches(self, encoder: VllmEncoderWrapper, warmer: Warmer) -> Iterator[TextBatch]:
        """All texts, source by source."""
        for task in mteb_tasks(self.tasks, self.benchmarks, self.splits, self.subsets):
            yield from read_task(task, encoder, self.parts, warmer.stop)
        for kind, patterns in self.files.items():
            if patterns:
                yield from map(
                    self._with_prompt, read_files(kind, patterns, self.columns, self.report)
                )
        for folder in self.beir:
            for batch in read_beir(folder, self.report, self.parts):
                yield self._with_prompt(batch)
        if self.dataset is not None:
            rows = read_dataset(
                self.dataset, self.config, self.dataset_split, self.columns, self.report
            )
            yield from map(self._with_prompt, rows)

    def estimate(self, limit: int | None, shards: int) -> int | None:
        """About how many texts `batches` has; None where that cannot be told."""
        if self.tasks or self.benchmarks or self.dataset:
            return None
        files = {**self.files}
        files["jsonl"] = [
            *files["jsonl"],
            *(f"{folder}/{p}.jsonl" for folder in self.beir for p in self.parts),
        ]
        counts = [estimate_rows(kind, patterns) for kind, patterns in files.items() if patterns]
        if None in counts:
            return None
        total = sum(count for count in counts if count is not None)
        return (total if limit is None else min(total, limit * len(counts))) // shards

    @property
    def empty(self) -> bool:
        """Whether none is named."""
        files = any(self.files.values())
        return not (self.tasks or self.benchmarks or self.beir or files or self.dataset)

    def _with_prompt(self, batch: TextBatch) -> TextBatch:
        prompt_type = self.prompt_type or batch.prompt_type
        return TextBatch(batch.texts, batch.source, self.prompt, prompt_type)

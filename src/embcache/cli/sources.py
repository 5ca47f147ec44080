"""Where commands get texts from: mteb's tasks, and the files and data sets that `warm` reads."""

from __future__ import annotations

import pkgutil
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from embcache.cli.output import print_note
from embcache.errors import ConfigError, InputError
from embcache.identity.home import working_directory
from embcache.warm import BadRow, Columns, Dialect, Shard, TextBatch
from embcache.warm.columns import Role
from embcache.warm.parts import Part, Selected, parts, split_parts
from embcache.warm.sources import beir_parts, estimate_dataset, estimate_parts, read_dataset
from embcache.warm.tasks import estimate_texts, read_task

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper

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
        dialect: How CSV and TSV files are written.
        parts: corpus, queries or both, of retrieval tasks and BEIR folders.
        splits: Of the tasks; empty for those that they are evaluated on.
        subsets: Of the tasks; empty for all.
        prompt: Of files and data sets; None for the encoder's, by prompt type.
        prompt_type: Of files and data sets: "query", "document"; None, for documents' texts without
            a prompt; or "none", for texts that mteb takes as they are.
        strict: Whether a row that would be left out ends it all.
        bad_rows: How many rows were left out: they had no text, or one that cannot be encoded.
    """

    tasks: list[str]
    benchmarks: list[str]
    files: dict[str, list[str]]
    beir: list[str]
    dataset: str | None
    config: str | None
    dataset_split: str
    columns: Columns
    dialect: Dialect
    parts: tuple[str, ...]
    splits: list[str]
    subsets: list[str]
    prompt: str | None
    prompt_type: str | None
    strict: bool
    bad_rows: int = 0
    # Rows are left out where they are read, and where they are tokenized: in two threads.
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def report(self, row: BadRow) -> None:
        """Count a row that is left out; shows the first few. Any thread may call it."""
        if self.strict:
            raise InputError(f"{str(row).rstrip('.')}. Without --strict it would be left out.")
        with self._lock:
            self.bad_rows += 1
            if self.bad_rows <= _SHOWN_BAD_ROWS:
                print_note(f"left out: {row}")
            elif self.bad_rows == _SHOWN_BAD_ROWS + 1:
                print_note("further rows that are left out are only counted")

    def check_read(self, texts: int) -> None:
        """Refuse sources in which there was no text at all, and say so where they have no rows.

        Raises:
            InputError: There was none, but rows that had to be left out.
        """
        if not texts and not self.bad_rows:
            print_note("there are no texts: the sources are empty, or the shard is")
        if not texts and self.bad_rows:
            raise InputError(
                f"No row had a text: {self.bad_rows:,} were left out, the first ones are named "
                "above. Is this the right file, and --text-column?"
            )

    def prompt_note(self, encoder: VllmEncoderWrapper) -> str | None:
        """What to say where files get no prompt although there are some."""
        files = any(self.files.values()) or self.dataset
        chosen = self.prompt is not None or self.prompt_type
        if not files or chosen or not encoder.prompts_dict:
            return None
        if encoder.prompt_for(None):
            return None
        names = ", ".join(encoder.prompts_dict)
        return (
            f"files and data sets get no prompt: of --prompt-dict ({names}), --prompt-type says "
            "which; or give --prompt"
        )

    def batches(
        self,
        encoder: VllmEncoderWrapper,
        stop: threading.Event,
        files: Iterable[Part] | None = None,
    ) -> Iterator[TextBatch]:
        """All texts, source by source.

        Args:
            encoder: Decides the prompts of tasks.
            stop: Once it is set, the stream may end.
            files: Which of the files; None for all.
        """
        for task in self._mteb_tasks:
            yield from read_task(task, encoder, self.parts, stop)
        for part in self.file_parts() if files is None else files:
            yield from part.read(self.report)
        if self.dataset is not None:
            rows = read_dataset(
                self.dataset, self.config, self.dataset_split, self.columns, self.report
            )
            for batch in rows:
                yield replace(batch, prompt=self.prompt, prompt_type=self._chosen_type)

    def batches_of_here(
        self, encoder: VllmEncoderWrapper, stop: threading.Event
    ) -> Iterator[TextBatch] | None:
        """What of it no other process can read: tasks, data sets and pipes; None for nothing."""
        pipes = [part for part in self.file_parts() if not part.can_be_shipped]
        if not (self._mteb_tasks or pipes or self.dataset):
            return None
        return self.batches(encoder, stop, pipes)

    def batches_of_others(self, shard: Shard, limit: int | None) -> list[Part | Selected]:
        """What of it another process can read.

        Args:
            shard: Which of the texts.
            limit: How many of each file.
        """
        some = shard.of > 1 or limit is not None
        found = [part for part in self.file_parts(split=not some) if part.can_be_shipped]
        return [Selected(part, shard, limit) for part in found] if some else list(found)

    def file_parts(self, *, split: bool = False) -> list[Part]:
        """The files, those of BEIR folders among them, with their prompts and how they are read.

        Args:
            split: Whether Parquet files and Lance tables are divided, see `Part.split`.

        Returns:
            Parts in the order in which `batches` reads them.
        """
        return split_parts(self._whole_parts) if split else self._whole_parts

    def estimate(self, limit: int | None, shards: int) -> int | None:
        """About how many texts `batches` has; None where that cannot be told."""
        counts = [estimate_texts(task, self.parts) for task in self._mteb_tasks]
        counts += estimate_parts(self.file_parts())
        if self.dataset is not None:
            counts.append(estimate_dataset(self.dataset, self.config, self.dataset_split))
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        return sum(count if limit is None else min(count, limit) for count in known) // shards

    @cached_property
    def _whole_parts(self) -> list[Part]:
        """Found once, since what a folder has besides is said each time."""
        piped = [kind for kind, patterns in self.files.items() if "-" in patterns]
        if len(piped) > 1:
            raise ConfigError(
                f"- is named as {' and as '.join(piped)}, and standard input can be read only once."
            )
        found = [
            part
            for kind, patterns in self.files.items()
            for part in parts(kind, patterns, self.columns, self.dialect)
        ]
        found += [part for folder in self.beir for part in beir_parts(folder, self.parts)]
        return [
            replace(part, prompt=self.prompt, prompt_type=self._chosen_type or part.prompt_type)
            for part in found
        ]

    @cached_property
    def _mteb_tasks(self) -> list[Any]:
        return mteb_tasks(self.tasks, self.benchmarks, self.splits, self.subsets)

    @property
    def empty(self) -> bool:
        """Whether none is named."""
        files = any(self.files.values())
        return not (self.tasks or self.benchmarks or self.beir or files or self.dataset)

    @property
    def _chosen_type(self) -> str | None:
        return None if self.prompt_type == "none" else self.prompt_type


def role(prompt_type: str | None) -> Role:
    """What the rows of files and data sets are in mteb.

    Args:
        prompt_type: As of `Sources`.
    """
    roles: dict[str | None, Role] = {"query": "query", "none": "other"}
    return roles.get(prompt_type, "document")


def typed_delimiter(text: str) -> str:
    r"""A delimiter, as it was typed in a shell, where `\t` is nearer than a tab."""
    return text.replace(r"\t", "\t")


def mteb_tasks(
    names: list[str],
    benchmarks: list[str],
    splits: list[str] | None = None,
    subsets: list[str] | None = None,
) -> list[Any]:
    """Tasks by name, and those of benchmarks.

    Args:
        names: Of mteb's tasks; or `module:Class`, a task of the user's own.
        benchmarks: Of mteb.
        splits: Keep only these; None, or none, for those that the tasks are evaluated on.
        subsets: Keep only these.

    Raises:
        ConfigError: There is no such task or benchmark, or a task has none of the subsets.
    """
    import mteb

    try:
        tasks = [own_task(name) if ":" in name else mteb.get_task(name) for name in names]
        for name in benchmarks:
            tasks += list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        raise ConfigError(f"mteb knows no such task or benchmark: {error.args[0]}") from error
    for task in tasks:
        if splits:
            task.filter_eval_splits(splits)
        if subsets:
            _keep_subsets(task, subsets)
    return tasks


def _keep_subsets(task: Any, subsets: list[str]) -> None:
    try:
        task.filter_languages(None, hf_subsets=subsets)
    except ValueError as error:
        raise ConfigError(
            f"task {task.metadata.name} has none of the subsets {', '.join(subsets)}: it has "
            f"{', '.join(task.hf_subsets)}."
        ) from error


def own_task(name: str) -> Any:
    """A task that mteb does not know: `module:Class`, found as `python -m` finds modules.

    Raises:
        ConfigError: There is no such module or class, or it is no task.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # a console script's path begins with its own folder
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"task {name!r} cannot be imported: {error}. Give module:Class of a module in the "
            f"working directory ({working_directory()}) or of an installed package."
        ) from error
    task = found() if isinstance(found, type) else found
    if not hasattr(task, "metadata") or not hasattr(task, "load_data"):
        raise ConfigError(f"task {name!r} is {found!r}, and no task of mteb's kind (AbsTask).")
    return task

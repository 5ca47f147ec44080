"""A loaded mteb encoder as an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embcache.engine.base import Embedded, Prepared, estimated_tokens
from embcache.engine.pools import CallPool
from embcache.errors import WrongOutputError

_BATCH_SIZE = 32  # mteb's default


@dataclass(frozen=True, eq=False)
class ModelCall:
    """A call of `encode` by mteb, of which the wrapped model will be asked only for some rows.

    Attributes:
        dataset: All rows, with all columns that the caller's DataLoader has: a Dataset, or what
            makes one of chosen rows by `select`.
        collate_fn: Makes a batch of rows, as the caller's DataLoader does.
        arguments: Keyword arguments of the model's `encode`.
        pool: The processes that encode for this call; None for none.
    """

    dataset: Any
    collate_fn: Callable[[list[Any]], Any]
    arguments: Mapping[str, Any]
    pool: CallPool | None = None


class Item(NamedTuple):
    """One row of a call, as `ModelEngine.prepare` takes it.

    Attributes:
        call: The call.
        row: Which row of the call's dataset, from 0.
        text: The row's text, from which its length is estimated.
    """

    call: ModelCall
    row: int
    text: str


class ModelEngine:
    """Any mteb encoder, as an `Engine`.

    Args:
        model: The encoder, loaded by the user: it needs no start, and is not closed here.
        dtype: What it computes in, `float32`, say, or "unknown".
        encoded: Called after each call of the model, before anybody else can call it.
    """

    batch_size = _BATCH_SIZE
    started = True
    memory_advice = (
        f"Lower batch_size ({_BATCH_SIZE} by default): encode_kwargs={{'batch_size': 4}} of "
        "mteb.evaluate; or the model's max_seq_length, which is part of the identity."
    )

    def __init__(self, model: Any, dtype: str, encoded: Callable[[], None] = lambda: None) -> None:
        self._model = model
        self._encoded = encoded
        self.dtype = dtype

    @property
    def version(self) -> str:
        """Packages and their versions: `mteb 2.26.0, sentence-transformers 6.2.0`, say."""
        packages = ["mteb"]
        if type(getattr(self._model, "model", None)).__module__.startswith("sentence_transformers"):
            packages.append("sentence-transformers")
        return ", ".join(f"{package} {_version(package)}" for package in packages)

    def start(self) -> None:
        """Do nothing: the model is loaded."""

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Estimate lengths from sizes: only the model itself can tokenize, so none is refused.

        The call's processes are started here, so that their start is no part of a chunk's time.

        Args:
            inputs: `n` `Item`s of one call.

        Returns:
            The same items as prompts, and their lengths in tokens, estimated.
        """
        if inputs and inputs[0].call.pool is not None and inputs[0].call.pool.start():
            self._encoded()  # it moves the model into shared memory
        return Prepared(list(inputs), estimated_tokens(item.text for item in inputs))

    def embed(self, prompts: Sequence[Any]) -> Embedded:
        """Call the model's `encode` with a DataLoader over some rows of a call.

        Whatever the model raises is passed on.

        Args:
            prompts: `n` `Item`s of one call, at least one.

        Returns:
            `n` vectors, in the order of the items, without token counts.

        Raises:
            ConfigError: The pool that the caller gave cannot be used any more.
            WrongOutputError: The model did not return one vector for each text.
        """
        from torch.utils.data import DataLoader

        call: ModelCall = prompts[0].call
        arguments, batch_size = call.arguments, call.arguments.get("batch_size", _BATCH_SIZE)
        if call.pool is not None:
            arguments = call.pool.arguments(arguments, len(prompts), batch_size)
        loader: Any = DataLoader(
            call.dataset.select([item.row for item in prompts]),
            batch_size=batch_size,
            collate_fn=call.collate_fn,
        )
        try:
            result = self._model.encode(loader, **arguments)
        except BaseException as error:
            if call.pool is not None:
                call.pool.failed(error)
            raise
        finally:
            self._encoded()
        return Embedded(_vectors(result, len(prompts), type(self._model).__name__))

    def close(self) -> None:
        """Do nothing: the model is the user's."""


def _vectors(result: Any, count: int, name: str) -> npt.NDArray[np.float32]:
    """`(count, dim) float32`, from whatever array an encoder returned."""
    if isinstance(result, (list, tuple)) and len({np.shape(row) for row in result}) == 1:
        result = np.stack([_array(row) for row in result])
    array = _array(result)
    if array.ndim != 2 or len(array) != count or array.dtype.kind not in "fiub":
        raise WrongOutputError(
            f"{name}.encode returned {_describe(result)} for {count} texts. embcache keeps one "
            f"vector a text and needs an array of shape ({count}, dim): sparse and multi-vector "
            "(late-interaction) encoders cannot be wrapped."
        )
    return np.ascontiguousarray(array, np.float32)


def _array(result: Any) -> npt.NDArray[Any]:
    if hasattr(result, "detach"):  # a torch tensor
        import torch

        if result.layout is not torch.strided:
            return np.empty(0)
        result = result.detach().cpu()
        if result.is_floating_point() and result.element_size() < 4:
            result = result.float()  # NumPy has no bfloat16
        return np.asarray(result.numpy())
    if isinstance(result, np.ndarray):
        return result
    return np.empty(0)


def _describe(result: Any) -> str:
    shape = getattr(result, "shape", None)
    if shape is None:
        length = f" of {len(result)}" if hasattr(result, "__len__") else ""
        return f"{type(result).__name__}{length}"
    return f"{type(result).__name__} of shape {tuple(shape)}, {getattr(result, 'dtype', '')}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"

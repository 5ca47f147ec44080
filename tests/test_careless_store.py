"""The gateway without conditional writes: that they are all it lacks."""

from __future__ import annotations

import os

import lance
import obstore
import pyarrow as pa
import pytest
from obstore.exceptions import BaseError, PermissionDeniedError

from tests.careless_store import CarelessStore
from tests.object_store import ObjectStore, client


def test_every_conditional_put_wins(
    careless_store: CarelessStore, object_store: ObjectStore
) -> None:
    gate, name = client(careless_store.options), "careless/a name"
    obstore.put(gate, name, b"first", mode="create")
    obstore.put(gate, name, b"second", mode="create")
    assert bytes(obstore.get(object_store.client(), name).bytes()) == b"second"
    obstore.delete(gate, name)
    assert not [one for page in obstore.list(gate, "careless") for one in page]


def test_a_wrong_secret_is_refused(careless_store: CarelessStore) -> None:
    stranger = client({**careless_store.options, "aws_secret_access_key": "wrong"})
    for _ in range(2):
        with pytest.raises(PermissionDeniedError, match="SignatureDoesNotMatch"):
            obstore.put(stranger, "careless/stranger", b"", mode="create")


def test_ranges_and_big_bodies_pass(careless_store: CarelessStore) -> None:
    gate, value = client(careless_store.options), os.urandom(20_000_000)
    obstore.put(gate, "careless/big", value)  # in parts
    found = obstore.get_range(gate, "careless/big", start=10, length=100)
    assert bytes(found) == value[10:110]
    assert obstore.head(gate, "careless/big")["size"] == len(value)
    assert bytes(obstore.get(gate, "careless/big").bytes()) == value


def test_lance_reads_and_writes_through_it(careless_store: CarelessStore) -> None:
    url, options = careless_store.url("table.lance"), careless_store.options
    lance.write_dataset(pa.table({"a": range(3)}), url, storage_options=options)
    assert lance.dataset(url, storage_options=options).to_table()["a"].to_pylist() == [0, 1, 2]


def test_a_store_that_is_gone_is_an_error(
    careless_store: CarelessStore, object_store: ObjectStore
) -> None:
    object_store.kill()
    try:
        with pytest.raises(BaseError, match="502"):
            obstore.get(client(careless_store.options), "careless/gone")
    finally:
        object_store.start()

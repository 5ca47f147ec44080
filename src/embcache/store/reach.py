"""Whether a store answers, and keeps what a cache rests on: tried out within seconds.

With Lance's own patience a host that accepts and never answers is waited for minutes, at whatever
is first asked of it; `request_timeout` changes nothing there, and a short `timeout` is too short
for real work. So one small signed request goes ahead, with short limits. Lance asks again when it
lists, so that a silent host would take 20 s; it does not when it asks for one object.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import lance
import pyarrow as pa
from lance.file import LanceFileSession

from embcache.errors import CacheError, CacheWriteError, UnreachableError
from embcache.store.forks import in_use
from embcache.store.lance_errors import is_conflict, is_of_lance

if TYPE_CHECKING:
    from embcache.store.bucket import Bucket

_SHORT = {
    "connect_timeout": "3s",
    "timeout": "5s",
    "client_max_retries": "0",
    "client_retry_timeout": "5",
}
_TRIAL = "_embcache-trial-"
_CODE = re.compile(r"<Code>(\w+)</Code>")
_FIXES = {
    "NoSuchBucket": "There is no such bucket: create it, or mend the URL.",
    "SignatureDoesNotMatch": "The secret key is not that of the access key.",
    "InvalidAccessKeyId": "The access key is unknown there.",
    "ExpiredToken": "The session token has expired: sign in again.",
    "InvalidToken": "The session token is not valid there.",
    "AccessDenied": "These credentials may not do that: s3:ListBucket and s3:GetObject are needed, "
    "for writing s3:PutObject and s3:DeleteObject.",
    "AuthorizationHeaderMalformed": "Is aws_region that of the bucket?",
    "PermanentRedirect": "The bucket is in another region: give aws_region.",
}
_WHERE = "Credentials come from storage_options, the environment or the machine's own."
_ENDPOINTS = ("endpoint", "emulator", "base_url")


def check_reachable(place: Bucket) -> None:
    """Ask for an object, and for a list of the place.

    Raises:
        UnreachableError: The store does not answer, or refuses; says why.
    """
    place.tally.count(2)
    with _failing(place, "Opening", UnreachableError):
        session = _short_session(place)
    refused = False
    try:
        with in_use():
            session.contains(f"{_TRIAL}none")
    except BaseException as error:
        if not is_of_lance(error):
            raise
        # A refusal has no reason here, but in answer to a list.
        refused = "privileges" in str(error) or "authentication" in str(error)
        if not refused:
            raise UnreachableError(_message(place, "Opening", error)) from None
    with _failing(place, "Opening", UnreachableError):
        session.list_with_delimiter()
    if refused:
        raise UnreachableError(
            f"{place} may be listed and not read: {_FIXES['AccessDenied']} {_WHERE}"
        )


def put_and_delete(place: Bucket, *, patiently: bool) -> None:
    """Write a small object beside the tables, and delete it.

    Args:
        place: A cache, or a table in it.
        patiently: Whether a lost connection is ridden out, as in the middle of a run.

    Raises:
        CacheWriteError: The store refuses, or does not answer.
    """
    place.tally.count(2)
    root = place.parent if place.is_table else place
    name = f"{_TRIAL}{uuid4().hex}"
    options = place.lance_options if patiently else {**place.storage_options, **_SHORT}
    session = LanceFileSession(root.uri, storage_options=options)
    fix = "With read_only=True an encoder uses what is cached and writes nothing."
    with _failing(place, "Writing to", CacheWriteError, fix), tempfile.NamedTemporaryFile() as file:
        file.write(b"embcache tries whether it may write here; this can be deleted.\n")
        file.flush()
        session.upload_file(file.name, name)
        session.delete_file(name)


def check_conditional_writes(place: Bucket) -> None:
    """See that an object which is there is not written again: what commits rest on.

    A store without that (`If-None-Match: *`) takes a commit from everybody who writes at once, and
    keeps the last one's: rows that were acknowledged are lost. Asked are stores with an endpoint of
    their own; AWS, Google and Azure have it. By Lance itself, in a table of its own: another client
    finds other credentials (it reads no profile, say), and is asked for what is not relied upon.

    Raises:
        CacheWriteError: The store has it not, or that cannot be found out.
    """
    if not _has_own_endpoint(place.storage_options):
        return
    fix = "Without knowing that it works, nothing is written there; read_only=True only reads."
    with _failing(place, "Trying a conditional write in", CacheWriteError, fix):
        kept = _keeps_what_is_there(place)
    if kept:
        return
    raise CacheWriteError(
        f"{place} cannot be written safely: the store writes an object again although it is asked "
        "to write only what is not there (If-None-Match: *). Of two runs that commit at once, one "
        "would lose its rows without a word. Use a store or a gateway that keeps conditional "
        "writes (AWS S3, Google Cloud Storage and Azure do), or read_only=True."
    )


def _keeps_what_is_there(place: Bucket) -> bool:
    """Whether a second commit of one version of a table is refused."""
    # Not called as tables are: nobody who lists them meanwhile takes it for one.
    name = f"{_TRIAL}{uuid4().hex}"
    options = {**place.storage_options, **_SHORT}
    nothing = lance.LanceOperation.Overwrite(pa.schema([("a", pa.int8())]), [])
    commit = partial(
        lance.LanceDataset.commit, operation=nothing, storage_options=options, max_retries=0
    )
    try:
        first = commit(f"{place.uri}/{name}")
        place.watch(first)
        commit(first, read_version=1)
        try:
            commit(first, read_version=1)
        except Exception as error:
            if not is_conflict(error):
                raise
            return True
        return False
    finally:
        _remove_trial(place, name)


def _remove_trial(place: Bucket, name: str) -> None:
    session = _short_session(place)
    with suppress(OSError, RuntimeError):  # what is left is a few small objects
        paths = session.list(name)
        # SeaweedFS keeps folders that have become empty; elsewhere nothing is there.
        for path in (*paths, *sorted({path.rpartition("/")[0] for path in paths}), name):
            session.delete_file(path)
            place.tally.count(1)


@contextmanager
def _failing(place: Bucket, doing: str, kind: type[CacheError], fix: str = "") -> Iterator[None]:
    """Whatever Lance raises, as one clear sentence, and what to do beside."""
    try:
        with in_use():
            yield
    except BaseException as error:
        if not is_of_lance(error):
            raise
        raise kind(f"{_message(place, doing, error)} {fix}".rstrip()) from None


def _short_session(place: Bucket) -> LanceFileSession:
    return LanceFileSession(place.uri, storage_options={**place.storage_options, **_SHORT})


def _message(place: Bucket, doing: str, error: BaseException) -> str:
    """What failed, why, and what to do, without credentials."""
    said = str(error)
    code = _CODE.search(said)
    text = place.without_secrets(said.split(", /", maxsplit=1)[0].split("\n\n", maxsplit=1)[0])
    if code:
        shown = f"{code[1]}. {_FIXES.get(code[1], text)} {_WHERE}"
    elif "builder error" in said or "InvalidUri" in said:
        shown = "the endpoint speaks plain HTTP, or is no URL: give allow_http=true, or mend it."
    elif "error sending request" in said:
        where = re.search(r"https?://[^/\s]+", said)
        named = " (aws_endpoint in storage_options, or AWS_ENDPOINT_URL)" * (place.scheme == "s3")
        shown = (
            f"{place.without_secrets(where[0]) if where else 'the store'} does not answer. Is the "
            f"endpoint right{named}, and the network up?"
        )
    elif "credentials" in said.lower() or "/latest/api/token" in said or "token request" in said:
        shown = f"no credentials were found. {_WHERE} (For AWS: AWS_ACCESS_KEY_ID, a profile.)"
    elif "resolve region" in said:
        shown = f"the bucket {place.bucket!r} has no region that can be found: give aws_region."
    else:
        hint = "Is the endpoint that of a store? " if "non-2xx" in said else ""
        shown = f"{text}. {hint}{_WHERE}"
    return f"{doing} {place} failed: {shown}"


def _has_own_endpoint(options: Mapping[str, str]) -> bool:
    names = [*options, *(name for name in os.environ if name.startswith(("AWS_", "AZURE_")))]
    return any(word in name.lower() for name in names for word in _ENDPOINTS)

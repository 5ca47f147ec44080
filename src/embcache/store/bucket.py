"""A place in an object store: S3 and what speaks like it, Google Cloud Storage, Azure.

Everything goes through Lance, which has its own way to credentials: environment, profiles, the
machine's role. A library that looks for them in another way would open other stores than Lance
does. What has no folder here has no locks, no links and nothing set aside: commits are safe by
conditional writes alone, old versions are kept for an hour for their readers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from typing import Self
from urllib.parse import quote, unquote

import lance
from lance.file import LanceFileSession

from embcache.errors import CacheError, CacheWriteError, ConfigError
from embcache.store.lance_errors import READ_FIX, WRITE_FIX, lance_errors
from embcache.store.location import TABLE, Location
from embcache.store.manifests import FOLDER, version_of
from embcache.store.reach import check_conditional_writes, check_reachable, put_and_delete
from embcache.store.traffic import Tally, Traffic

WRITABLE = ("s3", "gs", "az", "abfss")
READABLE = ("hf",)

PATIENT = {
    # For each request. Lance itself lists six times, and reads up to four: with 300 seconds here, a
    # run would stand still for half an hour. All that a run does in a store begins with a list.
    "client_max_retries": "1000",  # they take 10 ms to some seconds each: time is what bounds them
    "client_retry_timeout": "60",
    # Else each of the four again four times: measured, 5 seconds of patience took 91.
    "lance_aimd_max_retries": "0",
}
"""Options of Lance with which a lost connection is ridden out for minutes."""

_PARTS = re.compile(r"([a-z0-9+]+)://([^/?#\s]+)((?:/[^/?#]+)*)/*")
_OUTAGE = re.compile(
    r"error sending request|HTTP error|error performing token request|Failed to get AWS credentials"
    r"|lacked the necessary privileges|lacked valid authentication|operation timed out"
    r"|Unexpected \(temporary\)|<Code>NoSuchBucket</Code>"
    r"|status code: (?:401|403|408|429|5\d\d)"
    # An expired token is a 400 on AWS; a proxy or another region answers with what it likes.
    r"|Generic (?!memory)\w+ error",
    re.IGNORECASE,
)
# The store has answered: the object is shorter than what is asked of it, or is not there.
_NO_OUTAGE = re.compile(r"status code: 416|Requested \d+\.\.\d+|Object at location .* not found")
_PLAIN = ("endpoint", "region", "timeout", "retr", "http", "style", "url", "host", "account_name")
_CREDENTIALS = re.compile(
    r"(AWS|GOOGLE|AZURE|HF|HUGGING_FACE)_.*"
    r"(KEY|KEY_BASE64|SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCOUNT)"
)
_ANSWER = re.compile(r"(?:<\?xml[^>]*>\s*)?<Error\b.*?</Error>", re.DOTALL)
_SAID = re.compile(r"<(?:Code|Message)>([^<]*)<")
_SIGNATURE = re.compile(r"\bsig=[^&\s)]+")
_LEAST_SECRET = 6  # characters: shorter values are words of any message
_THREADS = 16


@dataclass(frozen=True)
class Bucket(Location):
    """A place in an object store; for the methods see `Location`."""

    tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    @classmethod
    def at(cls, url: str, options: Mapping[str, str], argument: str) -> Bucket:
        """The place that a URL names.

        Raises:
            ConfigError: It is of no store, or says more than a place.
        """
        scheme = url.partition(":")[0]
        if scheme not in (*WRITABLE, *READABLE):
            raise ConfigError(
                f"{argument} is a URL of {scheme}:, and a cache is a directory or in a store: "
                f"{', '.join(f'{one}://' for one in WRITABLE)}, or for reading hf://."
            )
        if "://" not in url:
            raise ConfigError(
                f"{argument}={url!r} has lost a slash, as a pathlib.Path of a URL does. Give the "
                f"URL as a text, {scheme}://..."
            )
        found = _PARTS.fullmatch(url)
        if found is None or not url.isprintable() or ("@" in found[2] and scheme != "abfss"):
            # Not shown: a user or a query is where people put passwords.
            raise ConfigError(
                f"{argument} is no place of a cache: give {scheme}://bucket/cache, without user, "
                "password, query (?...) or empty parts. Credentials go into storage_options."
            )
        parts = [unquote(part) for part in found[3].split("/")]
        if ".." in parts or "." in parts:
            raise ConfigError(f"{argument}={url!r} has '.' or '..' in it, which no store follows.")
        if any("/" in part or "\\" in part for part in parts):  # Lance puts it into two places
            raise ConfigError(
                f"{argument}={url!r} has a slash or backslash within a name. Give another name."
            )
        return cls(f"{found[1]}://{found[2]}{found[3]}", options)

    @property
    def scheme(self) -> str:
        """What the URL begins with, "s3", say."""
        return self.uri.partition(":")[0]

    @property
    def bucket(self) -> str:
        """The bucket, or container."""
        return self.uri.split("/")[2]

    @property
    def lance_options(self) -> dict[str, str]:
        """What the user gave, and patience."""
        return {**PATIENT, **self.storage_options}

    @property
    def parent(self) -> Location:
        """What it lies in; of a bucket, itself."""
        above = self.uri.rpartition("/")[0]
        return self._at(above) if above.count("/") >= 2 else self

    @property
    def traffic(self) -> Traffic:
        """What was sent until now."""
        return self.tally.total()

    def watch(self, dataset: lance.LanceDataset) -> None:
        """Count what an open table does."""
        self.tally.watch(dataset)

    def within(self, path: str) -> Location:
        """What a name means in this cache."""
        return self.table(path.removesuffix(TABLE)) if path.endswith(TABLE) else self

    def same_as(self, other: Location) -> bool:
        """Whether both have one URL."""
        return unquote(self.uri) == unquote(other.uri)

    def named_as_tables(self) -> list[Self]:
        """Everything in it that is called as tables are; one request for 1,000."""
        names = [name.rstrip("/").rpartition("/")[2] for name in self._list("")[0]]
        shown = sorted(name for name in names if name.endswith(TABLE) and name.isprintable())
        return [self.table(name.removesuffix(TABLE)) for name in shown]

    def tables(self) -> list[Self]:
        """Those of them that were ever committed to: a request for each, several at once."""
        named = self.named_as_tables()
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(compress(named, pool.map(Bucket.has_table, named)))

    def exists(self) -> bool:
        """Whether anything is in it."""
        return any(self._list(""))

    def caches(self) -> list[str]:
        """None: looking for them takes a request for each folder."""
        return []

    def holds(self, *names: str) -> bool:
        """Whether files of all these names are in it."""
        with self._errors("Looking into"):
            return all(self._session().contains(name) for name in names)

    def has_table(self) -> bool:
        """Whether there is a manifest."""
        return bool(self.versions())

    def versions(self) -> list[int]:
        """Versions that have a manifest, newest first; one request for 1,000."""
        found = [version_of(name.rpartition("/")[2]) for name in self._list(FOLDER)[1]]
        return sorted((number for number in found if number is not None), reverse=True)

    def is_lost_table(self) -> bool:
        """False: rows without a manifest are in nobody's way here."""
        return False

    def left_aside(self) -> list[str]:
        """None: nothing is set aside here."""
        return []

    def size(self) -> int:
        """Bytes of the newest version's data files, as its manifest says."""
        with self._errors("Opening"):
            dataset = lance.dataset(self.uri, storage_options=self.lance_options)
            files = [file for one in dataset.get_fragments() for file in one.metadata.files]
            return sum(file.file_size_bytes or 0 for file in files)

    def check(self) -> None:
        """See whether the store answers."""
        check_reachable(self)

    def check_table(self) -> None:
        """Nothing: there are no links."""

    def try_writing(self) -> None:
        """See whether the store takes conditional writes, or at all."""
        if self.scheme not in WRITABLE:
            raise CacheWriteError(
                f"{self} cannot be written: {self.scheme}:// is for reading. Give read_only=True, "
                "or another cache_path; or use it as upstream."
            )
        check_conditional_writes(self)
        put_and_delete(self, patiently=False)

    def try_committing(self) -> None:
        """Write an object beside the table, and delete it; a run has begun, so patiently."""
        put_and_delete(self, patiently=True)

    def remove(self) -> None:
        """Delete a table's objects: older manifests, the newest, and then what they named."""
        if not self.is_table:
            raise CacheError(f"{self} is no table: its name does not end in {TABLE}.")
        with self._errors("Removing", writing=True):
            session = self._session()
            paths = sorted(session.list())
            manifests = [path for path in paths if path.startswith(f"{FOLDER}/")]
            for path in sorted(manifests, key=lambda one: version_of(one.partition("/")[2]) or 0):
                self._delete(session, path)
            with ThreadPoolExecutor(_THREADS) as pool:
                rest = [path for path in paths if not path.startswith(f"{FOLDER}/")]
                list(pool.map(lambda path: self._delete(session, path), rest))
            self.tally.count(1 + len(paths))

    def remove_file(self, path: str) -> None:
        """Delete an object; nothing is said where there is none."""
        self._delete(self._session(), path)

    def is_outage(self, error: BaseException) -> bool:
        """Whether the store did not answer, or refused; a missing object is no outage."""
        said = str(error)
        return _OUTAGE.search(said) is not None and _NO_OUTAGE.search(said) is None

    def without_secrets(self, text: str) -> str:
        """A text without the values of options and of credentials in the environment.

        Of what a store answers, code and message are left: a refusal may repeat what was signed,
        with a token in it that comes from a profile and is not known here.
        """
        text = _ANSWER.sub(lambda answer: ": ".join(_SAID.findall(answer[0])), text)
        options = [
            value
            for name, value in self.storage_options.items()
            if not any(word in name.lower() for word in _PLAIN)
        ]
        known = [value for name, value in os.environ.items() if _CREDENTIALS.fullmatch(name)]
        for value in sorted({*options, *known}, key=len, reverse=True):
            if len(value) >= _LEAST_SECRET:
                text = text.replace(value, "***").replace(quote(value, safe=""), "***")
        text = _SIGNATURE.sub("sig=***", text)
        return re.sub(r"//[^/@\s]+@", "//***@", text) if self.scheme != "abfss" else text

    def _at(self, uri: str) -> Self:
        return type(self)(uri, self.storage_options, self.tally)

    def _session(self) -> LanceFileSession:
        return LanceFileSession(self.uri, storage_options=self.lance_options)

    def _list(self, within: str) -> tuple[list[str], list[str]]:
        """Names of folders and of files in a folder of this place."""
        with self._errors("Listing"):
            self.tally.count(1)
            found = self._session().list_with_delimiter(within or None)
            # SeaweedFS has folders, and lists an empty one as an object without a name.
            return list(found.common_prefixes), [name for name in found.objects if name]

    def _errors(self, doing: str, *, writing: bool = False):  # type: ignore[no-untyped-def]
        return lance_errors(doing, self, WRITE_FIX if writing else READ_FIX)

    @staticmethod
    def _delete(session: LanceFileSession, path: str) -> None:
        try:
            session.delete_file(path)
        except OSError as error:
            if "not found" not in str(error).lower():
                raise

"""Files in object stores, by pyarrow's file systems: S3 and what speaks like it, Google, Azure.

Credentials and endpoints are those of the environment of the process that reads, as Lance takes
them for caches; a file in a store is its URL and no more, so that none of them travels with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from embcache.errors import ConfigError, InputError
from embcache.store.location import Location
from embcache.warm.input_file import InputFile

SCHEMES = ("s3", "gs", "az", "abfss")

# A request each: with 64 KiB, as on a disk, a file would take as many as pages.
_BUFFER = 2**23
_GOOGLE_PATIENCE = timedelta(seconds=5)  # for a request; its own is 15 minutes
_URL = re.compile(r"([a-z0-9]+)://([^/?#\s]+)((?:/[^/\n\r]+)*)/*")
# `?` is of globs, too; a query has names.
_QUERY = re.compile(r"\?[\w.-]+=|#")
_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_", "CLOUD_STORAGE_", "STORAGE_EMULATOR_")
_OF_A_STORE = re.compile(
    r"AWS Error|google::cloud::Status|Azure Error|When resolving region|x-ms-request-id|"
    r"Azure::|AzureFileSystem|CURL error|Credential"
)
_CODE = re.compile(r"AWS Error (\w+)|google::cloud::Status\((\w+)")
_CREDENTIALS = (
    "Credentials come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), a profile or the machine's own."
)
_DENIED = f"it is not readable with these credentials, or with none. {_CREDENTIALS}"
_SILENT = (
    "the store does not answer. Is the network up, and the endpoint right (AWS_ENDPOINT_URL of a "
    "store that is not AWS's own)?"
)
_FIXES = {
    "NO_SUCH_BUCKET": "there is no such bucket: mend the URL.",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is not that of the access key "
    "(AWS_SECRET_ACCESS_KEY).",
    "INVALID_ACCESS_KEY_ID": "the access key (AWS_ACCESS_KEY_ID) is unknown there.",
    "INVALID_CLIENT_TOKEN_ID": "the access key (AWS_ACCESS_KEY_ID) is unknown there.",
    "ACCESS_DENIED": _DENIED,
    "PERMISSION_DENIED": _DENIED,
    "UNAUTHENTICATED": _DENIED,
    "NETWORK_CONNECTION": _SILENT,
    "NOT_FOUND": "there is no such bucket: mend the URL.",
}


class Place(NamedTuple):
    """What a URL says.

    Attributes:
        scheme: One of `SCHEMES`.
        host: Bucket, container, or container and account.
        key: Path in it, without slashes around it; "" for all of it.
    """

    scheme: str
    host: str
    key: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Take a URL apart. Nothing in it is unquoted: names are as stores list them.

        Args:
            url: A URL, perhaps with a glob in it.

        Raises:
            ConfigError: It is of no object store, or says more than a place. What it says is shown
                only where no password can be in it.
        """
        scheme = url.strip().partition(":")[0].lower()
        if scheme in ("http", "https"):
            raise ConfigError(
                "Files are not read from http:// or https://, which cannot list or seek reliably. "
                "Download the file, or pipe it in: `curl ... | ...` and -, standard input."
            )
        if scheme not in SCHEMES:
            raise ConfigError(
                f"A source is a URL of {scheme}:, and files are read from folders or from "
                f"{', '.join(f'{one}://' for one in SCHEMES)}."
            )
        found = _URL.fullmatch(url)
        if found is None or _QUERY.search(url) or ("@" in found[2] and scheme != "abfss"):
            # Not shown: a user or a query is where people put passwords.
            raise ConfigError(
                f"A source is no place in a store: give {scheme}://bucket/path, without user, "
                f"password, query (?...) or empty parts. {_CREDENTIALS}"
            )
        return cls(found[1], found[2], found[3].strip("/"))

    @property
    def container(self) -> str:
        """The bucket or container, as its file system calls it."""
        return self.host.partition("@")[0]

    @property
    def path(self) -> str:
        """The path in its file system."""
        return f"{self.container}/{self.key}".rstrip("/")

    def url(self, path: str) -> str:
        """The URL of a path in the same file system."""
        return f"{self.scheme}://{self.host}{path.removeprefix(self.container)}"

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The store, opened with what the environment says now."""
        said = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
        return _filesystem(self.scheme, self.host, tuple(sorted(said.items())))


@dataclass(frozen=True)
class RemoteFile(InputFile):
    """A file in an object store.

    Attributes:
        url: Where it is.
        bytes: Its size; 0 of a Lance table.
    """

    url: str
    bytes: int = 0

    is_remote = True

    def __str__(self) -> str:
        return self.url

    @property
    def uri(self) -> str:
        """Its URL as Lance takes it: quoted."""
        place = Place.of(self.url)
        return f"{place.scheme}://{place.host}/{quote(place.key)}"

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self.bytes

    def stream(self) -> AbstractContextManager[Any]:
        """Open it; it is read in large pieces, and never as a whole."""
        place = Place.of(self.url)
        opened: AbstractContextManager[Any] = place.filesystem.open_input_stream(
            place.path, compression=None, buffer_size=_BUFFER
        )
        return opened

    def seekable(self, *, mapped: bool = False) -> AbstractContextManager[pa.NativeFile]:
        """Open it; what is read is asked for by ranges."""
        place = Place.of(self.url)
        opened: AbstractContextManager[pa.NativeFile] = place.filesystem.open_input_file(place.path)
        return opened

    @property
    def buffer_bytes(self) -> int:
        """A request's worth."""
        return _BUFFER


def store_failure(url: str, error: BaseException) -> str | None:
    """What a store's refusal or silence means, as one sentence without secrets.

    Args:
        url: What was asked for.
        error: What pyarrow has raised.

    Returns:
        The sentence; None where it is not the store that failed.
    """
    said = str(error)
    if not _OF_A_STORE.search(said):
        return None
    code = next(
        (one for found in [_CODE.search(said)] if found for one in found.groups() if one), ""
    )
    if "OAuth2" in said or "DefaultAzureCredential" in said:
        fix = f"no credentials were found. {_CREDENTIALS}"
    elif "esolve host" in said or "When resolving region" in said or "CURL error" in said:
        fix = _SILENT
    elif code in _FIXES:
        fix = _FIXES[code]
    else:
        place = Place.of(url)
        where = Location.of(f"{place.scheme}://{place.host}", argument="source")
        fix = f"{where.without_secrets(said.splitlines()[0]).rstrip('.')}. {_CREDENTIALS}"
    return f"{url} cannot be read: {fix}"


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Around questions to a store.

    Args:
        url: What is asked for.

    Raises:
        InputError: The store refuses, or does not answer; says why.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        # The cause is left out: a store's own words may repeat what was signed.
        failure = store_failure(url, error)
        raise InputError(failure or f"{url} cannot be read: {error}") from None


@lru_cache(maxsize=16)
def _filesystem(
    scheme: str, host: str, environment: tuple[tuple[str, str], ...]
) -> pafs.FileSystem:
    said = dict(environment)
    if scheme == "s3":
        # Lance's name for it, too: a cache and a source shall not lie in two stores.
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        endpoint = next((said[name] for name in names if said.get(name)), None)
        if endpoint is None:
            return pafs.FileSystem.from_uri(f"s3://{host}")[0]  # asks for the bucket's region
        region = said.get("AWS_REGION") or said.get("AWS_DEFAULT_REGION")
        return pafs.S3FileSystem(endpoint_override=endpoint, region=region)
    if scheme == "gs":
        return pafs.GcsFileSystem(retry_time_limit=_GOOGLE_PATIENCE)
    return _azure(host, said)


def _azure(host: str, said: dict[str, str]) -> pafs.FileSystem:
    account = host.partition("@")[2].partition(".")[0] or said.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise ConfigError(
            f"az://{host}: which account? Set AZURE_STORAGE_ACCOUNT_NAME, or give "
            "abfss://container@account.dfs.core.windows.net/path."
        )
    key = said.get("AZURE_STORAGE_ACCOUNT_KEY") or said.get("AZURE_STORAGE_ACCESS_KEY")
    token = None if key else said.get("AZURE_STORAGE_SAS_TOKEN")
    try:
        return pafs.AzureFileSystem(account, account_key=key, sas_token=token)
    except (ValueError, OSError):
        raise ConfigError(
            f"Account {account} of Azure cannot be opened. Is AZURE_STORAGE_ACCOUNT_KEY the key, "
            "in Base64?"
        ) from None

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
_QUERY = re.compile(r"\?[\w.-]+=")
_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_", "CLOUD_STORAGE_", "STORAGE_EMULATOR_")
_OF_A_STORE = re.compile(
    r"AWS Error|google::cloud::Status|blob\.core\.windows\.net|dfs\.core\.windows\.net"
)
_CODE = re.compile(r"AWS Error (\w+)|google::cloud::Status\((\w+)")
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
_NAMES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": _AZURE,
    "abfss": _AZURE,
}
_DENIED = "the store does not let it be read with these credentials, or with none."
_SILENT = "the store does not answer. Is the network up, and the endpoint right?"
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
    "NOT_FOUND": "there is no such bucket, or no such file any more: mend the URL.",
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
            hub = " A data set of the hub goes by its name, without hf:." if scheme == "hf" else ""
            raise ConfigError(
                f"A source is a URL of {scheme}:, and files are read from folders or from "
                f"{', '.join(f'{one}://' for one in SCHEMES)}.{hub}"
            )
        if "://" not in url:
            raise ConfigError(
                f"The source {url!r} has lost a slash, as a pathlib.Path of a URL does. Give the "
                f"URL as a text, {scheme}://..."
            )
        found = _URL.fullmatch(url)
        has_user = found is not None and "@" in found[2] and scheme != "abfss"
        if found is None or has_user or _QUERY.search(url) or not url.isprintable():
            # Not shown: a user or a query is where people put passwords.
            raise ConfigError(
                f"A source is no place in a store: give {scheme}://bucket/path, without user, "
                f"password, query (?...) or empty parts. {_credentials(scheme)}"
            )
        return cls.known(url)

    @classmethod
    def known(cls, url: str) -> Place:
        """Take a URL apart that was checked, or made of what a store lists: any name is right.

        Args:
            url: The URL.
        """
        scheme, _, rest = url.partition("://")
        host, _, key = rest.partition("/")
        return cls(scheme, host, key.strip("/"))

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
        size: Bytes of it; 0 of a Lance table.
    """

    url: str
    size: int = 0

    is_remote = True

    def __str__(self) -> str:
        return self.url

    @property
    def uri(self) -> str:
        """Its URL as Lance takes it: quoted."""
        place = Place.known(self.url)
        return f"{place.scheme}://{place.host}/{quote(place.key)}"

    def stream(self, at_once: int | None = None) -> AbstractContextManager[Any]:
        """Open it; it is read in large pieces, and never as a whole."""
        place = Place.known(self.url)
        opened: AbstractContextManager[Any] = place.filesystem.open_input_stream(
            place.path, compression=None, buffer_size=at_once or _BUFFER
        )
        return opened

    def seekable(self, *, mapped: bool = False) -> AbstractContextManager[pa.NativeFile]:
        """Open it; what is read is asked for by ranges."""
        place = Place.known(self.url)
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
    return _sentence(url, said) if _OF_A_STORE.search(said) else None


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
        raise InputError(_sentence(url, str(error))) from None


def _sentence(url: str, said: str) -> str:
    scheme, host, _ = Place.known(url)
    found = _CODE.search(said)
    code = (found[1] or found[2]) if found else ""
    if "OAuth2" in said or "DefaultAzureCredential" in said:
        fix = f"no credentials were found. {_credentials(scheme)}"
    elif "esolve host" in said or "esolving host" in said or "CURL error" in said:
        fix = _SILENT
    elif code in _FIXES:
        fix = _FIXES[code]
    else:
        where = Location.of(f"{scheme}://{host}", argument="source")
        fix = f"{where.without_secrets(said.splitlines()[0]).rstrip('.')}."
    if fix is _DENIED:
        fix = f"{fix} {_credentials(scheme)}"
    if fix is _SILENT and scheme == "s3":
        fix = f"{fix} AWS_ENDPOINT_URL says that of a store that is not AWS's own."
    return f"{url} cannot be read: {fix}"


def _credentials(scheme: str) -> str:
    return (
        f"Credentials come from the environment ({_NAMES[scheme]}), a profile or the machine's own."
    )


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

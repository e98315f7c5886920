"""Text that lies elsewhere: files behind URLs that fsspec knows (`s3://` …), data sets of the hub."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import parse_qsl, urlsplit

from modernbert.data.counter_random import key_of
from modernbert.errors import InputError, did_you_mean

HUB = "hub"
_HUB_OPTIONS = ("subset", "split", "revision")
# What stores say of a file that changes with its content, the surest first.
_VERSION_KEYS = (
    "etag",
    "ETag",
    "blob_id",
    "sha256",
    "md5Hash",
    "mtime",
    "LastModified",
    "updated",
    "created",
)
# What the packages that stores speak through raise beside `OSError`: the roots of it.
_NETWORK_ERRORS = {
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
    "httpx": "HTTPError",
}


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL.

    Attributes:
        url: Where it is.
        size: Bytes.
        version: A number that differs once the file has changed, as far as its store tells.
    """

    url: str
    size: int
    version: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Open it; what is read is fetched, no more. Whatever fails is an `OSError`."""
        store, path = _store(self.url)
        with _network_errors():
            return io.BufferedReader(_Fetched(store.open(path, mode)))

    def __str__(self) -> str:
        return self.url


class _Fetched(io.RawIOBase):
    """An open file of a store, of which whatever fails is an `OSError`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _network_errors():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class HubPart:
    """One of the parts that a data set of the hub comes in, mostly a file; `datasets` reads it as a stream.

    Attributes:
        url: `hub://OWNER/NAME`, with `?subset=…&split=…&revision=…` as needed.
        number: Which part, from 0.
        version: A number that differs once the data set has changed.
    """

    url: str
    number: int
    version: int

    size = 0  # not known before it is read

    @property
    def name(self) -> str:
        return str(self)

    def values(self, column: str) -> Iterator[Any]:
        """Yield the values of a column, row by row.

        Raises:
            InputError: There is no such column, or the hub could not be read.
        """
        for row in self.rows(column):
            _check_column(self, column, row)
            yield row[column]

    def rows(self, column: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows, with all columns or with one alone.

        Raises:
            InputError: There is no such column, as far as is known at once, or the hub could not be read.
        """
        _, stream = _hub_stream(self.url)
        part = stream.shard(num_shards=stream.num_shards, index=self.number)
        columns = stream.column_names  # None where only the rows would tell
        if column is not None and columns is not None:
            _check_column(self, column, columns)
            part = part.select_columns([column])
        try:
            yield from part
        except (OSError, ValueError) as error:  # the latter of what is damaged
            raise unreachable(str(self), error) from error

    @property
    def features(self) -> dict[str, Any]:
        """What `datasets` knows of the columns, as it writes it down; nothing where only the rows tell."""
        features = _hub_stream(self.url)[1].features
        return {} if features is None else dict(features.to_dict())

    def __str__(self) -> str:
        return f"{self.url}#{self.number}"


def is_url(path: object) -> bool:
    """Whether a path is a URL."""
    return isinstance(path, str) and "://" in path


def find_remote(url: str, suffixes: Sequence[str]) -> Sequence[RemoteFile | HubPart]:
    """List what a URL names: the parts of a data set, a file, a pattern with `*`, or all files in a folder.

    Args:
        url: `hub://OWNER/NAME?…` or a URL that fsspec understands.
        suffixes: How the names of text files end; others in a folder, and hidden ones, are passed over.

    Raises:
        InputError: There is nothing, it cannot be reached, or a package for it is not installed.
    """
    if url.startswith(f"{HUB}://"):
        version, stream = _hub_stream(url)
        return [HubPart(url, number, version) for number in range(stream.num_shards)]
    store, path = _store(url)
    try:
        with _network_errors():
            found = _list(store, path)
    except OSError as error:
        raise unreachable(url, error) from error
    files = {name: info for name, info in found.items() if name.lower().endswith(tuple(suffixes))}
    if not files:
        raise InputError(
            f"`{url}` names no text file; it must be a file, a folder or a pattern with `*`, of names that "
            f"end in one of {', '.join(suffixes)}; correct it"
        )
    return [
        RemoteFile(store.unstrip_protocol(name), int(info["size"] or 0), _version(info))
        for name, info in sorted(files.items())
    ]


def read_remote(url: str) -> BinaryIO:
    """Open any file behind a URL.

    Raises:
        InputError: It is not there or cannot be reached.
    """
    try:
        return RemoteFile(url, 0, 0).open("rb")
    except OSError as error:
        raise unreachable(url, error) from error


def unreachable(origin: str, error: Exception) -> InputError:
    """Return the error of a place that cannot be read, or not any more."""
    return InputError(
        f"`{origin}` could not be read ({type(error).__name__}: {error}); it must be there and open to you; "
        "what was read before is kept: the same command goes on once it is back"
    )


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Turn what the packages behind stores raise into `OSError`."""
    known = (getattr(sys.modules[it], name) for it, name in _NETWORK_ERRORS.items() if it in sys.modules)
    try:
        yield
    except tuple(known) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def _list(store: Any, path: str) -> dict[str, Mapping[str, Any]]:
    """Return the files that a path names, and what the store says of each."""
    if any(letter in path for letter in "*?["):
        found, below = store.glob(path, detail=True), ""
    elif store.isdir(path):
        found, below = store.find(path, detail=True), path
    else:
        return {path: store.info(path)}
    visible = (name for name in found if "/." not in name.removeprefix(below))
    return {name: found[name] for name in visible if found[name]["type"] == "file"}


def _version(info: Mapping[str, Any]) -> int:
    known = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return _number(known)


def _number(version: str) -> int:
    return key_of("version", version) >> 1  # fits an int64


def _store(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path there."""
    import fsspec  # comes with huggingface_hub

    try:
        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"`{url}` needs a package that is not installed ({error}); install that; "
            "for s3:// and gs://, run `pip install 'modernbert[remote]'`"
        ) from None
    except ValueError as error:
        raise InputError(f"`{url}` is no URL that can be read ({error}); correct its beginning") from None
    return store, path


@functools.lru_cache(maxsize=8)  # its parts share it: opening asks the hub
def _hub_stream(url: str) -> tuple[int, Any]:
    """Return a version and the stream of a hub data set's rows."""
    name, options = _parse_hub(url)
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            f"`{url}` needs `datasets` to be read, which is not installed; "
            "run `pip install 'modernbert[hub]'`"
        ) from None
    try:
        builder = datasets.load_dataset_builder(name, options.get("subset"), revision=options.get("revision"))
        stream = builder.as_streaming_dataset(split=options.get("split", "train"))
    except OSError as error:
        raise unreachable(url, error) from error
    except ValueError as error:  # no such subset or split; the message lists those that there are
        raise InputError(f"`{url}` cannot be read as it says: {error}; correct it") from None
    return _number(str(builder.hash)), stream


def _parse_hub(url: str) -> tuple[str, dict[str, str]]:
    """Take `hub://OWNER/NAME?subset=…` apart; `hub:///FOLDER` is a data set on this machine."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    for key in options:
        if key not in _HUB_OPTIONS:
            raise InputError(f"`{url}` has an unknown option `{key}`{did_you_mean(key, _HUB_OPTIONS)}")
    name = parts.netloc + parts.path
    if not name.strip("/"):
        raise InputError(f"`{url}` names no data set; it must read `hub://OWNER/NAME`; complete it")
    return name, options


def _check_column(part: HubPart, column: str, columns: Any) -> None:
    if column not in columns:
        hint = did_you_mean(column, columns)
        raise InputError(f"`{part}` has no column `{column}`{hint}; set `text_key` to the one with the text")

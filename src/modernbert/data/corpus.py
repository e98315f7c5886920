"""Text to documents: plain text, JSON lines, Parquet and hub data sets, as a stream in constant memory."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast, get_args

from modernbert.data.remote import HubPart, RemoteFile, find_remote, is_url, unreachable
from modernbert.errors import ConfigError, InputError, did_you_mean

TextUnit = Literal["line", "paragraph", "file"]

# What text is read from.
TextFile = Path | RemoteFile | HubPart

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

# What readers raise on files that are cut short or damaged. Arrow's own errors are OSError and ValueError.
_DAMAGE = (OSError, EOFError, zlib.error)
PARQUET_DAMAGE = (OSError, ValueError, NotImplementedError)
_PARQUET_BATCH_ROWS = 256
_MAX_OBJECT_BYTES = 64 * 1024**2


class Document(NamedTuple):
    """A text and where it came from.

    Attributes:
        text: What it says; never blank.
        origin: `file:line`, counted from 1 (of a paragraph, its first line; in Parquet, the row).
        bytes_read: How much of its file, as it lies on disk, has been read.
        source: What its record says of where the text is from; empty where that is not asked or not said.
    """

    text: str
    origin: str
    bytes_read: int
    source: str = ""


class _Line(NamedTuple):
    text: str
    origin: str
    bytes_read: int


def find_files(paths: str | Path | Iterable[str | Path]) -> list[TextFile]:
    """List the text files that `paths` name: files, and folders with all that is readable below them.

    A URL (a `str` with `://`) names files elsewhere or a data set of the hub, see `remote.find_remote`.
    The order is that of `paths`, sorted within a folder. Hidden files and files of other kinds
    inside a folder are passed over; a file named twice counts once.

    Raises:
        InputError: A path is missing or not of a readable kind, or there is no file at all.
    """
    named = [paths] if isinstance(paths, str | Path) else paths
    files = [file for path in named for file in _expand(path)]
    if not files:
        raise InputError(
            f"no text file is given; name files ({', '.join(SUFFIXES)}) or folders that hold them"
        )
    return list({file.resolve() if isinstance(file, Path) else str(file): file for file in files}.values())


def read_documents(
    files: Sequence[TextFile],
    *,
    text_key: str = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: int = 4_000_000,
    source_key: str | None = None,
) -> Iterator[Document]:
    """Read the documents of `files`, in order. Blank ones are skipped.

    Args:
        files: What `find_files` gave.
        text_key: The JSON key or Parquet column that holds the text.
        text_unit: What is a document in a `.txt` file: a line, a paragraph (lines up to a blank
            one) or the whole file.
        max_document_bytes: Longest document (in JSON, longest line) that is accepted.
        source_key: The JSON key or Parquet column that names a document's source, where there is one.

    Raises:
        InputError: A file is not UTF-8, not JSON, damaged, lacks the key, or holds a document that
            is too long. The message names file and line.
    """
    if text_unit not in get_args(TextUnit):
        raise ConfigError(f"`text_unit` is {text_unit!r}{did_you_mean(text_unit, get_args(TextUnit))}")
    for path in files:
        if isinstance(path, HubPart):
            documents = _read_hub(path, text_key, max_document_bytes)
        elif (kind := _suffix(path)) == ".parquet":
            documents = _read_parquet(path, text_key, max_document_bytes, source_key)
        elif kind.startswith(".jsonl"):
            documents = _read_json_lines(path, text_key, max_document_bytes, source_key)
        elif text_unit == "file":
            documents = _read_whole(path, max_document_bytes)
        else:
            lines = _lines(path, max_document_bytes)
            documents = _paragraphs(lines, max_document_bytes) if text_unit == "paragraph" else _each(lines)
        yield from (document for document in documents if document.text.strip())


def read_objects(path: Path, example_key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read JSON lines of objects as a stream: where each stands, `file:line`, and what it is.

    Raises:
        InputError: The file is missing, damaged, not UTF-8, or a line is no object. The message names file
            and line; `example_key` is one that an object may have.
    """
    for line in _lines(path, _MAX_OBJECT_BYTES):
        if line.text.strip():
            yield line.origin, parse_object(line.text, example_key, line.origin)


def size_of(file: TextFile) -> int:
    """Return a file's bytes, 0 where they are not known."""
    return file.stat().st_size if isinstance(file, Path) else file.size


def _expand(named: str | Path) -> Sequence[TextFile]:
    if is_url(named):
        return find_remote(str(named), SUFFIXES)
    path = Path(named)
    if path.is_dir():
        below = (file for file in sorted(path.rglob("*")) if file.is_file())
        visible = (file for file in below if not any(part[0] == "." for part in file.relative_to(path).parts))
        files = [file for file in visible if file.name.lower().endswith(SUFFIXES)]
        if not files:
            raise InputError(
                f"the folder `{path}` holds no text file; it must hold some of {', '.join(SUFFIXES)}"
            )
        return files
    if not path.exists():
        raise InputError(f"`{path}` does not exist; give the path of a text file or of a folder of them")
    _suffix(path)
    return [path]


def _suffix(path: Path | RemoteFile) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(
        f"`{path}` is of an unknown kind; its name must end in one of {', '.join(SUFFIXES)}; convert it"
    )


def _each(lines: Iterator[_Line]) -> Iterator[Document]:
    return (Document(*line) for line in lines)


def _paragraphs(lines: Iterator[_Line], limit: int) -> Iterator[Document]:
    held: list[_Line] = []
    bytes_before = 0
    for line in lines:
        if line.text.strip():
            held.append(line)
            if line.bytes_read - bytes_before > limit:
                raise _too_long(held[0].origin, line.bytes_read - bytes_before, limit, "the paragraph")
            continue
        yield from _joined(held)
        held = []
        bytes_before = line.bytes_read
    yield from _joined(held)


def _joined(held: list[_Line]) -> Iterator[Document]:
    if held:
        yield Document("\n".join(line.text for line in held), held[0].origin, held[-1].bytes_read)


def _read_whole(path: Path | RemoteFile, limit: int) -> Iterator[Document]:
    with opened(path) as (_, stream):
        data = read_bytes(stream.read, limit + 1, str(path))
        if len(data) > limit:
            raise _too_long(str(path), size_of(path), limit, "the file")
        yield Document(decode(data, path, 1), f"{path}:1", len(data))


def _read_json_lines(
    path: Path | RemoteFile, text_key: str, limit: int, source_key: str | None
) -> Iterator[Document]:
    for line in _lines(path, limit):
        if line.text.strip():
            record = read_object(line.text, text_key, line.origin)
            text = check_text(record[text_key], text_key, line.origin)
            yield Document(text, line.origin, line.bytes_read, _source(record.get(source_key or "")))


def _source(value: object = None) -> str:
    return "" if value is None else str(value)


def read_object(line: str, text_key: str, origin: str) -> dict[str, Any]:
    """Read a line of JSON, an object with a key `text_key`.

    Raises:
        InputError: It is not JSON, no object, or lacks the key. The message names `origin`.
    """
    record = parse_object(line, text_key, origin)
    if text_key not in record:
        hint = did_you_mean(text_key, record) if record else "; the object is empty"
        raise InputError(
            f"`{origin}` has no key `{text_key}`{hint}; set `text_key` to the one that holds the text"
        )
    return record


def parse_object(line: str, example_key: str, origin: str) -> dict[str, Any]:
    """Read a line of JSON, an object.

    Args:
        line: What stands there.
        example_key: A key that such an object may have, for messages.
        origin: Where it stands.

    Raises:
        InputError: It is not JSON, or no object. The message names `origin`.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"`{origin}` is not valid JSON ({error}); each line must be a JSON object; mend or remove it"
        ) from None
    if not isinstance(record, dict):
        raise InputError(
            f'`{origin}` holds {line.strip()[:40]}; each line must be a JSON object: {{"{example_key}": …}}'
        )
    return record


def check_text(text: object, text_key: str, origin: str) -> str:
    """Return `text`, of the column or key `text_key`, having made sure that it is whole text.

    Raises:
        InputError: It is no string, or has half a surrogate pair. The message names `origin`.
    """
    if not isinstance(text, str):
        raise InputError(
            f"`{origin}`: `{text_key}` is {repr(text)[:40]}; it must be a string; mend or remove it"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"`{origin}`: character {error.start + 1} of `{text_key}` is {text[error.start]!r}, half a "
                "surrogate pair; text must be whole Unicode characters; mend or remove it"
            ) from None
    return text


def _read_hub(part: HubPart, text_key: str, limit: int) -> Iterator[Document]:
    for row, value in enumerate(part.values(text_key), 1):
        origin = f"{part}:{row}"
        yield Document(_within(check_text(value, text_key, origin), origin, limit), origin, 0)


def _read_parquet(
    path: Path | RemoteFile, text_key: str, limit: int, source_key: str | None
) -> Iterator[Document]:
    parquet = import_pyarrow("pyarrow.parquet", path)
    file_bytes, row = size_of(path), 0
    try:
        # Arrow reads what is on the disk faster without us.
        with (
            opened(path) as (stream, _),
            parquet.ParquetFile(path if isinstance(path, Path) else stream) as file,
        ):
            columns = file.schema_arrow.names
            if text_key not in columns:
                hint = did_you_mean(text_key, columns)
                raise InputError(
                    f"`{path}` has no column `{text_key}`{hint}; set `text_key` to the one with the text"
                )
            wanted = [text_key, *(key for key in columns if key == source_key != text_key)]
            for batch in file.iter_batches(_PARQUET_BATCH_ROWS, columns=wanted):
                for value, *source in zip(*(column.to_pylist() for column in batch.columns)):
                    row += 1
                    origin = f"{path}:{row}"
                    text = _within(check_text(value, text_key, origin), origin, limit)
                    bytes_read = file_bytes * row // file.metadata.num_rows
                    yield Document(text, origin, bytes_read, _source(*source))
    except InputError:
        raise
    except UnicodeDecodeError:
        raise InputError(
            f"`{path}`: a text after row {row} is not UTF-8; write the file again as UTF-8"
        ) from None
    except PARQUET_DAMAGE as error:
        raise damaged(f"{path}:{row + 1}", error) from error


def _within(text: str, origin: str, limit: int) -> str:
    if (size := len(text.encode())) > limit:
        raise _too_long(origin, size, limit, "the document")
    return text


def _lines(path: Path | RemoteFile, limit: int) -> Iterator[_Line]:
    """Read lines, never holding more than `limit` bytes and a newline of one."""
    with opened(path) as (file, stream):
        for number in count(1):
            origin = f"{path}:{number}"
            data = read_bytes(stream.readline, limit + 2, origin)
            if not data:
                return
            line = data.rstrip(b"\r\n")
            if len(line) > limit:
                raise _too_long(origin, _line_bytes(stream, data, limit, origin), limit, "the line")
            yield _Line(decode(line, path, number), origin, file.tell())


def _line_bytes(stream: BinaryIO, data: bytes, limit: int, origin: str) -> int:
    """Count the bytes of the over-long line that begins with `data`, at most to a hundred times the limit."""
    size = len(data)
    while data and not data.endswith(b"\n") and size < 100 * limit:
        data = read_bytes(stream.readline, limit, origin)
        size += len(data)
    return size


@contextlib.contextmanager
def opened(path: Path | RemoteFile) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Give the file as it lies on disk and the stream of its decompressed bytes."""
    try:
        file = path.open("rb")
    except OSError as error:
        if isinstance(path, RemoteFile):
            raise unreachable(str(path), error) from error
        raise InputError(
            f"`{path}` could not be opened ({error.strerror}); it must be a readable file"
        ) from None
    with file:
        if path.name.lower().endswith(".gz"):
            yield file, cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif path.name.lower().endswith(".zst"):
            stream = import_pyarrow("pyarrow", path).CompressedInputStream(file, "zstd")
            yield file, cast(BinaryIO, io.BufferedReader(stream))
        else:
            yield file, file


def read_bytes(read: Callable[[int], bytes], size: int, origin: str) -> bytes:
    """Call `read(size)` of a stream that `opened` gave; a damaged file is an `InputError` at `origin`."""
    try:
        return read(size)
    except _DAMAGE as error:
        raise damaged(origin, error) from error


def decode(data: bytes, path: Path | RemoteFile, line: int) -> str:
    """Decode UTF-8 that begins at `line`, without the byte-order mark that a file may begin with."""
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        raise InputError(
            f"`{path}:{line + before.count(10)}`: byte {error.start - before.rfind(10)} of the line "
            f"(0x{error.object[error.start]:02x}) is not UTF-8; text must be UTF-8; "
            "re-encode as UTF-8, for example with `iconv -f latin1 -t utf-8`"
        ) from None


def import_pyarrow(module: str, path: Path | RemoteFile, purpose: Literal["read", "written"] = "read") -> Any:
    """Import one of pyarrow's modules; without it, `path` cannot be read (or written): an `InputError`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise InputError(
            f"`{path}` needs pyarrow to be {purpose}, which is not installed; "
            "run `pip install 'modernbert[data]'`"
        ) from None


def _too_long(origin: str, size: int, limit: int, what: str) -> InputError:
    return InputError(
        f"`{origin}`: {what} is {size:,} bytes long; it must be at most {limit:,}; "
        "split it into documents or raise `max_document_bytes`"
    )


def damaged(origin: str, error: Exception) -> InputError:
    """Return the error of a file that cannot be read beyond `origin`."""
    if is_url(origin) and isinstance(error, OSError):
        return unreachable(origin, error)
    return InputError(
        f"`{origin}`: the file cannot be read on from here ({error}); it seems cut short or damaged; "
        "fetch or write it again"
    )

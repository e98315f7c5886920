"""Where a model or a tokenizer is: a folder, or an id on the Hugging Face hub, downloaded to its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modernbert.errors import CheckpointError, StorageError
from modernbert.files import storage_errors

_NO_FOLDER = (
    "is no folder; it must be a folder, or a hub id such as `answerdotai/ModernBERT-base`; check the path"
)


def find(
    name: str | Path,
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Return the folder of a model or tokenizer: `name` itself, or the cached download of a hub id.

    The arguments but `patterns` are those of `from_pretrained`; all but `name` concern the hub.

    Args:
        name: A folder, or a hub id; a `Path` is always meant as a folder.
        patterns: Names of the files that are wanted, with `*` for any part. That they exist is not checked.
        revision: Branch, tag or commit; None: the main branch.
        cache_dir: Where downloads are kept; None: the hub's own cache.
        local_files_only: Take the files from the cache, and never go to the network.
        token: Access token; None or True: the one that `hf auth login` stored.

    Raises:
        CheckpointError: No such folder or hub id, no access, or no network.
        StorageError: The cache is full or not writable.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(name, Path) or folder.exists():
        raise CheckpointError(f"`{name}` {_NO_FOLDER}")
    # Here, since it takes a while to import and a folder does not need it.
    from huggingface_hub import constants, errors, snapshot_download

    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    try:
        with storage_errors(cache):
            return Path(
                snapshot_download(
                    name,
                    allow_patterns=list(patterns),
                    revision=revision,
                    cache_dir=cache,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
    except StorageError:
        raise
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(f"`{name}` {_explain(error, name, revision, cache)}") from error


def _explain(error: Exception, name: str, revision: str | None, cache: Path) -> str:
    """Say of `name` why it could not be had from the hub or its cache, and what to do."""
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return _NO_FOLDER
        case errors.GatedRepoError():  # before the next, of which it is a kind
            return (
                "is gated on the hub; you must have been granted access; ask for it at "
                f"https://huggingface.co/{name}, then run `hf auth login` or pass `token`"
            )
        case errors.RepositoryNotFoundError():
            return (
                "is neither a folder here nor a repository on the hub that you can see; check the spelling; "
                "if it is private, run `hf auth login` or pass `token`"
            )
        case errors.RevisionNotFoundError():
            return (
                f"has no revision `{revision}`; it must be a branch, tag or commit; see "
                f"https://huggingface.co/{name}/commits"
            )
        case errors.LocalEntryNotFoundError():
            reason = _first_line(error.__cause__) if error.__cause__ else "`local_files_only`"
            return (
                f"is no folder here, and not complete in `{cache}`; the hub was out of reach ({reason}); "
                "fetch it once with the network, or give a folder"
            )
    return (
        f"could not be fetched from the hub: {_first_line(error)}; check the connection and try again, or "
        "give a folder"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

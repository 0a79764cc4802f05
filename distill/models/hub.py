"""Files of the model hub by name, ``hf-hub:OWNER/NAME`` or ``hf-hub:OWNER/NAME@REVISION``, in huggingface_hub's cache.

Only files that this package reads are fetched: safetensors and JSON, never a pickle. A name is looked up once in a
process. Without a connection, what is in the cache is used, else there is an error within seconds. A revision that is a
commit and is in the cache needs no connection at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path

from distill.models.weights import NetworkError, reach_hub

SCHEME = "hf-hub:"
DELTA = ("delta.json", "delta.safetensors", "source_moments.json", "source_moments.safetensors")
NETWORK = ("config.json", "manifest.json", "model.safetensors", "open_clip_model.safetensors")
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_name(name: Path | str) -> bool:
    """Whether a name is one of the hub."""
    return str(name).startswith(SCHEME)


def local_folder(folder: Path | str) -> Path:
    """The folder of a delta file: itself, or that in the cache for a name of the hub.

    Raises:
        NetworkError: there is no such repository, or it is neither cached nor reachable.
    """
    return hub_folder(str(folder), DELTA) if is_hub_name(folder) else Path(folder)


@lru_cache(maxsize=1024)
def hub_folder(name: str, files: tuple[str, ...]) -> Path:
    """The folder in the cache that holds the files of a repository.

    Args:
        name: ``hf-hub:OWNER/NAME``, with ``@REVISION`` for a branch, tag or commit other than the newest.
        files: names of the files that are read; those that the repository lacks are left out.

    Returns:
        The folder. Its files are links into the cache.

    Raises:
        NetworkError: there is no such repository or revision, or it is neither cached nor reachable.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not _NAME.fullmatch(name.removeprefix(SCHEME)):
        raise NetworkError(
            f"{name!r} is no name of the hub: expected {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION"
        )
    repository, _, revision = name.removeprefix(SCHEME).partition("@")

    def fetch(local: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(files),
                local_files_only=local,
                etag_timeout=5,
            )
        )

    def cached() -> Path | None:
        try:
            folder = fetch(local=True)
        except (LocalEntryNotFoundError, OSError):
            return None
        return folder if any((folder / file).is_file() for file in files) else None

    if re.fullmatch("[0-9a-f]{40}", revision) and (folder := cached()) is not None:
        return folder
    try:
        reach_hub()
        return fetch(local=False)
    except HfHubHTTPError as error:
        why = f"the hub has no {repository}{f' at {revision}' if revision else ''} that you may read"
        raise NetworkError(f"{name}: {why} ({str(error).splitlines()[0]}); log in with: hf auth login") from error
    except Exception as error:  # no connection: the hub's client raises errors of its own, of httpx and of the system
        if (folder := cached()) is not None:
            return folder
        raise NetworkError(
            f"{name} is not in the local cache, and the model hub is out of reach ({error}). Run once with a "
            "connection, or name a local folder"
        ) from error


def network_folder(name: str) -> Path:
    """The timm folder of a network on the hub; if it has a manifest of ours, its files are checked.

    Raises:
        NetworkError: there is none, it has no safetensors, or a file is not the one that its manifest names.
    """
    folder = hub_folder(name, NETWORK)
    if not (folder / "config.json").is_file():
        raise NetworkError(f"{name} has no config.json, so it is no timm model")
    if not any((folder / file).is_file() for file in NETWORK if file.endswith(".safetensors")):
        raise NetworkError(f"{name} has no safetensors; pickles of the hub are not read")
    _check_manifest(folder, name)
    return folder


def _check_manifest(folder: Path, name: str) -> None:
    """Check files against the SHA-256 in a manifest of this package, if there is one."""
    path = folder / "manifest.json"
    if not path.is_file():
        return
    try:
        manifest = json.loads(path.read_bytes())
        hashes = {"config.json": manifest["config_sha256"], "model.safetensors": manifest["weights_sha256"]}
    except (ValueError, KeyError, TypeError):
        return  # of another program
    for file, expected in hashes.items():
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != expected:
            raise NetworkError(f"{name}: {file} is damaged or replaced, its SHA-256 is not the one in manifest.json")

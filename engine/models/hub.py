"""Download published models into the Hugging Face cache, find them there, verify them, and compute digests of files.

Everything goes through huggingface_hub, so `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_ENDPOINT` have their usual
meaning. Only `pull` and `load_bert_vocabulary` ever download.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.checkpoints.layout import CONFIG
from engine.checkpoints.published import KNOWN, find_hub_id
from engine.errors import CheckpointError

SAFE = ("*.safetensors", "*.safetensors.index.json")
PICKLED = ("pytorch_model*.bin",)
BESIDE = (CONFIG, "tokenizer.json", "vocab.txt", "tokenizer_config.json", "preprocessor_config.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def find_download(id_: str) -> Path | None:
    """Return the folder of a downloaded model, None when its config is not in the cache. Weights may be missing."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(id_, CONFIG)
    return Path(config).parent if isinstance(config, str) else None


def missing_download_error(id_: str) -> CheckpointError:
    """Return the error for a model that was never downloaded."""
    return CheckpointError(
        f"{id_} is not on this machine: there is no such folder, and it is not in {_cache_folder()}. Download it with "
        f"`qseek models pull {id_}`, or, where there is no network, pull it on another machine and copy "
        f"{_cache_folder() / _folder_name(id_)} here."
    )


def pull(name: str, *, say: Callable[[str], None] = lambda line: None) -> Path:
    """Download a model into the Hugging Face cache, verify it, and return its folder.

    An interrupted download is resumed. huggingface_hub shows progress bars on stderr; `say` gets a line for each
    further step. Raises CheckpointError for an unknown id, a missing permission, no network, a full disk, and a file
    whose SHA-256 is not the published one.
    """
    from huggingface_hub import HfApi, snapshot_download

    id_ = find_hub_id(name)
    if id_ is None:
        known = ", ".join(model.name for model in KNOWN)
        raise CheckpointError(f"{name!r} cannot be downloaded. Give OWNER/NAME, or one of {known}.")
    try:
        names = HfApi().list_repo_files(id_)
        safe = any(n.endswith(".safetensors") for n in names)
        patterns = [*BESIDE, *(SAFE if safe else PICKLED)]
        folder = Path(snapshot_download(id_, allow_patterns=patterns))
    except Exception as error:  # huggingface_hub raises a dozen kinds of errors, those of httpx among them.
        raise _explain_download_error(id_, error) from error
    say("Verifying.")
    verify(folder)
    return folder


def load_bert_vocabulary() -> Path:
    """Return the vocab.txt of bert-base-uncased, from the Hugging Face cache, else downloaded (0.2 MB).

    The files of LAVIS hold no vocabulary and mean this one. Raises CheckpointError when it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("google-bert/bert-base-uncased", "vocab.txt"))
    except Exception as error:  # huggingface_hub raises a dozen kinds of errors.
        raise CheckpointError(
            "LAVIS files hold no vocabulary. That of bert-base-uncased is needed, and it could not be downloaded: give "
            "its vocab.txt with --vocabulary."
        ) from error


def read_published_sha256(path: Path) -> str | None:
    """Return the SHA-256 under which the Hugging Face cache keeps a large file; None for other files."""
    blob = path.resolve()
    return blob.name if path.is_symlink() and _SHA256.fullmatch(blob.name) else None


def compute_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Compare every weight file of a download with its published SHA-256; raise CheckpointError for the first
    damaged.
    """
    for path in sorted(folder.iterdir()):
        published = read_published_sha256(path)
        if published is None:
            continue
        if compute_sha256(path) != published:
            raise CheckpointError(f"{path} is damaged: delete {path.resolve()} and pull the model again.")


def _explain_download_error(id_: str, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    address = f"https://huggingface.co/{id_}"
    if isinstance(error, GatedRepoError):
        return CheckpointError(f"{id_} asks for your consent. Give it at {address}, then set HF_TOKEN.")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"There is no model {id_}, or it is private (then set HF_TOKEN). Look at {address}."
        )
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, LocalEntryNotFoundError)
    ):
        return CheckpointError(f"{id_} could not be written to {_cache_folder()}: {error.strerror}.")
    first = (str(error).splitlines() or [""])[0]
    return CheckpointError(
        f"{id_} could not be downloaded ({type(error).__name__}: {first}). What has arrived is kept; run the same "
        f"command again, or pull it on a machine with a network and copy {_cache_folder() / _folder_name(id_)} here."
    )


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder_name(id_: str) -> str:
    return "models--" + id_.replace("/", "--")


def compute_digest(files: Sequence[Path]) -> str:
    """Return a digest of the files that decide a model's numbers (`RetrieverSource.files`).

    It is the blake2b-128 of their SHA-256 sums, in hexadecimal.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(bytes.fromhex(read_published_sha256(path) or compute_sha256(path)))
    return digest.hexdigest()

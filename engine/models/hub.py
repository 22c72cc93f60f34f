"""The Hugging Face cache: what of a published model lies in it, downloading, verification, digests.

Everything goes through huggingface_hub, so `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_ENDPOINT` mean what they
mean elsewhere. Nothing is ever downloaded but by `pull` and `bert_vocabulary`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.checkpoints.layout import CONFIG
from engine.checkpoints.published import KNOWN, hub_id
from engine.errors import CheckpointError

SAFE = ("*.safetensors", "*.safetensors.index.json")
PICKLED = ("pytorch_model*.bin",)
BESIDE = (CONFIG, "tokenizer.json", "vocab.txt", "tokenizer_config.json", "preprocessor_config.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cached(id_: str) -> Path | None:
    """The folder of a downloaded model, None when it is not in the cache; weights may be missing from it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(id_, CONFIG)
    return Path(found).parent if isinstance(found, str) else None


def not_here(id_: str) -> CheckpointError:
    """What to say when a model is asked for that was never downloaded."""
    return CheckpointError(
        f"{id_} is not on this machine: there is no such folder, and it is not in {_cache()}. Download it with "
        f"`qseek models pull {id_}`, or, where there is no network, pull it on another machine and copy "
        f"{_cache() / _folder_name(id_)} here."
    )


def pull(name: str, *, say: Callable[[str], None] = lambda line: None) -> Path:
    """Download a model into the Hugging Face cache, going on from what is there, and verify it; its folder.

    Shows huggingface_hub's progress bars on stderr. Raises CheckpointError: no such id, no permission, no network, a
    full disk, or a file whose SHA-256 is not the published one.
    """
    from huggingface_hub import HfApi, snapshot_download

    id_ = hub_id(name)
    if id_ is None:
        known = ", ".join(model.name for model in KNOWN)
        raise CheckpointError(f"{name!r} is no model to download: give owner/name, or one of {known}.")
    try:
        names = HfApi().list_repo_files(id_)
        safe = any(n.endswith(".safetensors") for n in names)
        patterns = [*BESIDE, *(SAFE if safe else PICKLED)]
        folder = Path(snapshot_download(id_, allow_patterns=patterns))
    except Exception as error:  # its errors are of a dozen kinds, httpx's among them
        raise _in_words(id_, error) from error
    say("Verifying.")
    verify(folder)
    return folder


def bert_vocabulary() -> Path:
    """Return the vocab.txt of bert-base-uncased, from the Hugging Face cache, else downloaded (0.2 MB).

    LAVIS' files hold no vocabulary: they mean this one. Raises CheckpointError when it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("google-bert/bert-base-uncased", "vocab.txt"))
    except Exception as error:  # its errors are of a dozen kinds
        raise CheckpointError(
            "LAVIS files hold no vocabulary: bert-base-uncased's is needed, and it could not be downloaded. Give its "
            "vocab.txt with --vocabulary."
        ) from error


def published_sha256(path: Path) -> str | None:
    """The SHA-256 of a large file in the Hugging Face cache, which keeps it under that name; None for other files."""
    blob = path.resolve()
    return blob.name if path.is_symlink() and _SHA256.fullmatch(blob.name) else None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Compare every weight file of a download with its published SHA-256. Raises CheckpointError naming the file."""
    for path in sorted(folder.iterdir()):
        published = published_sha256(path)
        if published is None:
            continue
        if sha256(path) != published:
            raise CheckpointError(f"{path} is damaged: delete {path.resolve()} and pull the model again.")


def _in_words(id_: str, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    where = f"https://huggingface.co/{id_}"
    if isinstance(error, GatedRepoError):
        return CheckpointError(f"{id_} asks for consent first: give it at {where}, then set HF_TOKEN.")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"There is no model {id_} (or it is private: then set HF_TOKEN). Look at {where}."
        )
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, LocalEntryNotFoundError)
    ):
        return CheckpointError(f"{id_} could not be written to {_cache()}: {error.strerror}.")
    first = (str(error).splitlines() or [""])[0]
    return CheckpointError(
        f"{id_} could not be downloaded ({type(error).__name__}: {first}). What has arrived is kept; run the same "
        f"command again, or pull it on a machine with a network and copy {_cache() / _folder_name(id_)} here."
    )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder_name(id_: str) -> str:
    return "models--" + id_.replace("/", "--")


def digest_of(files: Sequence[Path]) -> str:
    """Hex blake2b-128 of the SHA-256 of the files that decide a model's numbers (`RetrieverSource.files`)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(bytes.fromhex(published_sha256(path) or sha256(path)))
    return digest.hexdigest()

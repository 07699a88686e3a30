"""Model hubs: where folders of the ecosystem are found by an id."""

import re
from collections.abc import Sequence
from pathlib import Path

from fusetune.config import check
from fusetune.errors import FusetuneError

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def downloaded(source: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """A local folder as it is; the folder in the hub's cache for an id like ``me/my-adapter``.

    Raises:
        FusetuneError: neither, or the hub can't be reached and the cache doesn't hold it.
    """
    if Path(source).is_dir():
        return Path(source)
    check(
        bool(REPO_ID.fullmatch(str(source))),
        f"{source}: expected an adapter's folder, or the id of a model hub such as me/my-adapter.",
    )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise FusetuneError(f"{source}: no such folder, and the hub gives none ({_first_line(error)}).") from None


def upload(folder: Path, repo_id: str, private: bool | None) -> str:
    """Make the repository if there is none, and put the folder's files into it as one commit; returns its address."""
    from huggingface_hub import HfApi

    try:
        repo = HfApi().create_repo(repo_id, private=private, exist_ok=True)
        return str(HfApi().upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Adapter").commit_url)
    except Exception as error:  # the client's own, its HTTP library's, the network's: one sentence for all of them
        raise FusetuneError(
            f"push_to_hub '{repo_id}': {_first_line(error)}. Log in by `hf auth login`, and see that the id is yours."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

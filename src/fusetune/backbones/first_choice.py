"""Where to begin: a frozen encoder for each kind of data, and what to do where no hub answers."""

import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

FIRST = {
    "text": "sentence-transformers/all-MiniLM-L6-v2",
    "image": "facebook/dinov2-small",
    "audio": "openai/whisper-base",
    "video": "MCG-NJU/videomae-base",
    "vector": "features",
    "sequence": "features",
}
SPEAKS = "llava-hf/llava-1.5-7b-hf"
WAIT = 2.0  # seconds for the hub to answer


def first_bases(kinds: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """A source for each modality by its kind, and whether some could not be had from the hub: `align` fits a small
    encoder to the training rows then."""
    wanted = {name: FIRST[kind] for name, kind in kinds.items()}
    away = {name for name, source in wanted.items() if "/" in source and not _at_hand(source)}
    missing = bool(away) and not _hub_answers()
    return {name: "align" if missing and name in away else source for name, source in wanted.items()}, missing


def _at_hand(source: str) -> bool:
    """Whether a hub's model lies in this machine's cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "config.json"), str)


def _hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), WAIT):
            return True
    except OSError:
        return False

"""A base of the Hugging Face hub, fetched into the hub's own cache: only what transformers would load of it."""

from __future__ import annotations

from pathlib import Path

from alpaca.base.check import SMALL_FILES, check_base, check_config
from alpaca.base.headers import INDEX, SINGLE, read_config, shards_of
from alpaca.errors import AlpacaError, BadBase, BaseNotFound

TOKEN = "HF_TOKEN"


def fetch_from_hub(hub_id: str) -> Path:
    """The folder of the base `hub_id` (owner/name) in the hub's cache, checked.

    Configuration and tokenizer come first: a base that can't be used is refused before its weights are fetched. The
    hub's client sends the token that HF_TOKEN or `hf auth login` gave it. Raises BaseNotFound with the hub's reason and
    what helps, and BadBase.
    """
    try:
        folder = _fetch(hub_id, "main", SMALL_FILES)
        check_config(folder, read_config(folder))
        folder = _fetch(hub_id, folder.name, ["config.json", SINGLE])
        if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
            folder = _fetch(hub_id, folder.name, shards_of(folder))
        check_base(folder)
    except BadBase as error:
        raise BadBase(f"{hub_id} on the hub: {error.message}") from None
    except AlpacaError:
        raise
    except Exception as error:  # the hub client raises many kinds: offline, gated, no such repository
        raise BaseNotFound(f"'{hub_id}' {_reason(hub_id, error)}") from None
    return folder


def _fetch(hub_id: str, revision: str, names: list[str]) -> Path:
    """Files at the top of the repository; by its commit, nothing is asked that the cache knows."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, revision=revision, allow_patterns=names, ignore_patterns="*/*"))


def _reason(hub_id: str, error: Exception) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    token = get_token()
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{hub_id}"
        if token:
            return f"is a gated base, and the account of the token in use may not read it: accept its licence at {page}"
        return f"is a gated base: accept its licence at {page}, then set {TOKEN} to a token of that account"
    if isinstance(error, LocalEntryNotFoundError):
        why = "the hub, which can't be reached from here (no network, or HF_HUB_OFFLINE is set)"
        return f"is no local folder and could not be fetched from {why}"
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0].replace(token or "\0", "…").rstrip(".")
    if isinstance(error, RepositoryNotFoundError):
        hint = "" if token else f"; a private base needs a token in {TOKEN}"
        return f"is no local folder, and the hub has no such base, or does not show it ({reason}){hint}"
    return f"is no local folder and could not be fetched from the hub: {reason}"

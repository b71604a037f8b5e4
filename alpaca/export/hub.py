"""An export uploaded to the hub, by huggingface_hub's own client."""

from __future__ import annotations

import re
from pathlib import Path

from alpaca.errors import PushFailed
from alpaca.progress import Say
from alpaca.words import one_line, plural, size_text

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def check_name(name: str) -> None:
    """Raise PushFailed for what can't be the name of a repository."""
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise PushFailed(f"--push_to is {one_line(name)!r}: write owner/name")


def push(folder: Path, name: str, say: Say, *, private: bool = True) -> None:
    """Make the repository if there is none, and upload the folder. Where HF_HUB_OFFLINE is set, say what would be done.

    Raises PushFailed with the client's reason.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    check_name(name)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    size = size_text(sum(path.stat().st_size for path in files))
    where = f"{plural(len(files), 'file')} of {folder} ({size}) to {name}{', private' if private else ''}"
    if constants.HF_HUB_OFFLINE:
        say(f"hub: offline (HF_HUB_OFFLINE): nothing was uploaded. It would upload {where}")
        return
    try:
        client = HfApi()
        client.create_repo(name, private=private, exist_ok=True)
        client.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message="Model exported and checked by alpaca"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        reason = one_line(" ".join(str(error).split()))
        raise PushFailed(
            f"{name}: {reason}. The export is in {folder}; log in with `hf auth login`, then push again"
        ) from None
    say(f"hub: uploaded {where}")

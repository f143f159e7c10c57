"""A bundle on the hub: a model repository of its own, so that its card replaces no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from tracelab.errors import TracelabError, quoted
from tracelab.interventions.names import CARD, MANIFEST
from tracelab.ranges import shown


def push(
    write: Callable[[Path], object],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> str:
    """Write a folder and upload it to a repository, which is made if it is not there; returns its
    address at the commit.

    Args:
        write: writes a folder that does not exist yet.
        private: of a repository that is made; None: as the owner's is by default.
        token: of the hub; default: that of ``hf auth login``.
        revision: branch; default: ``main``.

    Raises:
        TracelabError: no such repository can be made or written to, no hub can be reached, or the
            repository holds other files than a bundle's.
    """
    if repo_id.count("/") != 1:
        raise TracelabError(f"{quoted(repo_id)} is no repository of the hub: write OWNER/NAME")
    with TemporaryDirectory() as place:
        folder = Path(place) / "bundle"
        write(folder)
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            _require_ours(repo_id, api.list_repo_files(repo_id))
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message="An edit made with tracelab",
            )
        except TracelabError:
            raise
        except (
            OSError,
            ValueError,
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
        ) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TracelabError(f"cannot push to {quoted(repo_id)}: {reason}") from error
    return str(done.commit_url)


def _require_ours(repo_id: str, files: Sequence[str]) -> None:
    """Refuse a repository of something else, whose card a bundle's would replace."""
    ours = {".gitattributes", CARD}  # what the hub's page makes a repository with
    if MANIFEST not in files and (others := set(files) - ours):
        raise TracelabError(
            f"{quoted(repo_id)} holds no bundle but {shown(sorted(others))}: push to a "
            "repository of its own"
        )

"""Folders for the Hugging Face hub, and reading one back: from disk, cache or hub.

Nothing here sends anything. A folder is uploaded by its owner: `hf upload ORG/NAME FOLDER`.
"""

from pathlib import Path

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.inference import EcgModel, load_model
from ecgfounder_train.weights.bundle import DESCRIPTION_FILE, WEIGHTS_FILE

_FILES = (WEIGHTS_FILE, DESCRIPTION_FILE)
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def write_attributes(folder: Path) -> None:
    """Write `.gitattributes`: weights are large files to the hub's git."""
    with atomic_file(folder / ".gitattributes", "w") as handle:
        handle.write(_ATTRIBUTES)


def find_pretrained(
    path_or_repo_id: Path | str,
    revision: str | None = None,
    cache: Path | str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder of a model: a folder of this machine, or a repository's snapshot.

    A folder that exists is taken without any network. Otherwise the name is a repository of the
    hub; `HF_HUB_OFFLINE=1` or `local_files_only` takes only what its cache holds.

    Raises:
        UserError: Neither is to be had.
    """
    local = Path(path_or_repo_id)
    if local.exists():
        return local
    # Half a second of import that a local folder does not need.
    with needs("export", "A model of the hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(
            str(path_or_repo_id),
            revision=revision,
            cache_dir=cache,
            allow_patterns=list(_FILES),
            local_files_only=local_files_only,
        )
    except HFValidationError as error:
        raise UserError(
            f"{path_or_repo_id} is neither a folder here nor the name of a hub repository "
            "(ORG/NAME)."
        ) from error
    # The hub's client raises its own, requests' and httpx' errors for what is one thing here.
    except Exception as error:
        raise UserError(
            f"{path_or_repo_id} is not a folder, and the hub repository of that name could not be "
            f"downloaded ({type(error).__name__}). Check the name and the network, or download it "
            f"once with: hf download {path_or_repo_id}"
        ) from error
    return Path(found)


def from_pretrained(
    path_or_repo_id: Path | str,
    device: str = "auto",
    revision: str | None = None,
    cache: Path | str | None = None,
    local_files_only: bool = False,
) -> EcgModel:
    """Return the model of a folder, a file of weights, or a hub repository.

    `ecgfounder_train.load_model` does the same for local paths.

    Raises:
        UserError: As `find_pretrained`, or the weights are damaged or foreign.
    """
    return load_model(find_pretrained(path_or_repo_id, revision, cache, local_files_only), device)

"""Records of finished shards, from which an interrupted build resumes."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.files import atomic_file, sha256_file
from ecgfounder_train.core.fingerprints import canonical_json, fingerprint
from ecgfounder_train.shards.plan import PlannedShard
from ecgfounder_train.shards.writer import BuiltShard

UNITS_FOLDER = "units"


class FinishedShards:
    """Records of finished shards: a JSON file and the index rows of each, in the private folder.

    The JSON file is written last and counts only together with the shard it describes.
    """

    def __init__(
        self, shards: Path, folder: Path, settings: str, check_sha256: bool, retry_rejected: bool
    ) -> None:
        self.shards, self.folder, self.settings = shards, folder, settings
        self.check_sha256, self.retry_rejected = check_sha256, retry_rejected

    def save(self, planned: PlannedShard, built: BuiltShard, rows: NDArray[np.void]) -> None:
        """Write the record of a finished shard."""
        with atomic_file(self._index_path(built.name)) as handle:
            np.save(handle, rows)
        record = {
            "settings": self.settings,
            "plan": planned.digest,
            "index_sha256": sha256_file(self._index_path(built.name)),
            "shard": asdict(built),
        }
        record["digest"] = fingerprint(record)
        with atomic_file(self._record_path(built.name), "w") as handle:
            handle.write(canonical_json(record) + "\n")

    def load(self, planned: PlannedShard) -> BuiltShard | None:
        """Return the record of a shard if it is intact and matches the plan, else None."""
        try:
            record = json.loads(self._record_path(planned.name).read_text(encoding="utf-8"))
            digest = record.pop("digest")
            shard = {
                **record["shard"],
                "rejects": [tuple(row) for row in record["shard"]["rejects"]],
            }
            built = BuiltShard(**shard)
            same = record["settings"] == self.settings and record["plan"] == planned.digest
            path = self.shards / built.name
            whole = (
                fingerprint(record) == digest
                and path.stat().st_size == built.bytes
                and sha256_file(self._index_path(built.name)) == record["index_sha256"]
                and (not self.check_sha256 or sha256_file(path) == built.sha256)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if built.rejects and self.retry_rejected:
            return None
        return built if same and whole else None

    def rows(self, built: BuiltShard) -> NDArray[np.void]:
        """Return the index rows of a finished shard."""
        rows: NDArray[np.void] = np.load(self._index_path(built.name), allow_pickle=False)
        return rows

    def _record_path(self, name: str) -> Path:
        return self.folder / f"{Path(name).stem}.json"

    def _index_path(self, name: str) -> Path:
        return self.folder / f"{Path(name).stem}.index.npy"

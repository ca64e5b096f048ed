"""Keys of `prepare`: its own, and those of the groups labels, build and executor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ecgfounder_train.core.config import Section, section, setting
from ecgfounder_train.core.errors import RejectReason, UserError, did_you_mean

EXECUTORS = ("inline", "local", "slurm")


@dataclass(frozen=True)
class ExcludeSettings(Section, name="exclude"):
    """Records and patients that are never written (known bad, withdrawn)."""

    records: str | None = setting(None, "file of record paths, file names or ids, one entry a line")
    patients: str | None = setting(
        None, "file of patient ids, one entry a line; all ids merged with one of them count"
    )


@dataclass(frozen=True)
class CatalogSettings(Section, name="catalog"):
    """What else the catalog leaves out."""

    max_records_per_patient: int | None = setting(
        None, "null: all; else those with the smallest hash of the id", at_least=1
    )


@dataclass(frozen=True)
class ReportSettings(Section, name="report"):
    """The data report: what is in the shards, counted, without any recording."""

    enabled: bool = setting(True, "write SHARDS/data_report.html")
    min_cell: int = setting(
        10,
        "counts of 1 to this less 1 are suppressed, and what reveals them; 0 shows all",
        at_least=0,
    )
    strips: int = setting(
        24, "ECGs on a second page, private/data_strips.local.html, never to be shared; 0: none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strips < 0:
            raise UserError(f"report.strips={self.strips} must be 0 (none) or more.")


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(Section, name=""):
    """Keys of `prepare`."""

    shards: str = setting(comment="folder to write")
    private: str = setting(
        comment="folder for catalog, rejects and secret; never share it",
        composed_as="${shards}.private",
    )
    secret: str = setting(
        comment="secret of the pseudonyms, made on first use, kept for rebuilds",
        composed_as="${private}/secret.key",
    )
    exclude: ExcludeSettings = section(ExcludeSettings)
    catalog: CatalogSettings = section(CatalogSettings)
    report: ReportSettings = section(ReportSettings)


@dataclass(frozen=True, kw_only=True)
class LabelSettings(Section, name="labels"):
    """A vocabulary and how statements become labels."""

    name: str = setting(
        comment="a vocabulary of the package, or the path of a CSV (column label; codes, ... "
        "optional)"
    )
    match: str = setting(
        "code",
        choices={
            "code": "compare statement codes",
            "substring": "the label's text inside the statement's text, as in the first author's "
            "notebook",
            "words": "whole words of reports, doubt and denial read",
        },
    )
    closure: str = setting(
        "parents",
        choices={
            "parents": "a label also sets the labels it implies: RBBB + LAFB also sets RBBB",
            "none": "",
        },
    )
    weakened: str = setting(
        "positive",
        'a statement after "possible"/"cannot rule out"',
        choices={"positive": "as published", "unobserved": "", "negative": ""},
    )
    alternatives: str = setting(
        "unclaimed",
        "alternative codes count",
        choices={
            "unclaimed": "unless another label's main code, or two labels'",
            "none": "",
            "all": "",
        },
    )


@dataclass(frozen=True)
class BuildSettings(Section, name="build"):
    """How a catalog becomes shards; only the first three keys change their content."""

    records_per_shard: int = setting(
        2000, "12 leads, 10 s at 500 Hz make 248 MB, at 100 Hz 56 MB", unit="records", at_least=1
    )
    seed: int = setting(0, "draws records to shards; another seed makes other shards")
    shards_per_pool: int = setting(
        256,
        "larger archives are cut into pools of this many, folder by folder, and mixed within",
        unit="shards",
        at_least=1,
    )
    increment: bool = setting(
        False, "let the tables have new records (and lack old ones): shards are added"
    )
    changed_records: str = setting(
        "refuse",
        "where the tables changed what is in shards",
        choices=("refuse", "keep", "rewrite"),
    )
    tries: int = setting(
        3, "attempts per shard; a shard that fails as often is named at the end", at_least=1
    )
    staging_dir: str | None = setting(
        None, "folder on a node's own disk: shards are assembled there, then copied"
    )
    num_fetches: int = setting(
        16, "records fetched at once by a worker, where source.root is a URL", at_least=1
    )
    max_reject_share: float = setting(
        0.2,
        "share of all records found, for each reason alone; above it the build fails",
        at_least=0,
        at_most=1,
    )
    max_reject_share_by_reason: Mapping[str, float] = setting(
        {"excluded_by_list": 1.0, "duplicate_record": 1.0, "in_no_part_of_split": 1.0},
        "exceptions by reason; these three are intended, not accidents",
    )
    min_rejects: int = setting(20, "records; below it no share is too large (small archives)")
    retry_rejected: bool = setting(
        False, "rebuild shards that have rejects, after the archive was repaired"
    )
    check_sha256: bool = setting(False, "trust a finished shard only after reading it whole")

    def __post_init__(self) -> None:
        super().__post_init__()
        for reason, share in self.max_reject_share_by_reason.items():
            if reason not in set(RejectReason):
                raise UserError(
                    f"build.max_reject_share_by_reason.{reason} is not a reject reason."
                    + did_you_mean(reason, RejectReason)
                )
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise UserError(
                    f"build.max_reject_share_by_reason.{reason}={share} must be between 0 and 1."
                )


@dataclass(frozen=True)
class ExecutorSettings(Section, name="executor"):
    """What makes the shards: this process, workers on this machine, or SLURM jobs."""

    kind: str = setting("inline", choices=EXECUTORS)
    num_workers: int | None = setting(
        None, "worker processes; null: one per core that this process may use", at_least=1
    )
    min_records: int = setting(
        5000, "fewer are built in this process, as workers take seconds to start", unit="records"
    )
    memory_per_worker: str = setting(
        "2GB", "above it a worker is restarted; with slurm also requested per worker"
    )
    encrypt: bool | None = setting(
        None, "TLS between the processes; null: where the package cryptography is installed"
    )
    partition: str | None = setting(None, "null: the cluster's default")
    account: str | None = setting(None, "null: the user's default")
    workers_per_job: int = setting(
        1, "processes, one core each; a job is one SLURM job on one node", at_least=1
    )
    walltime: str = setting("24:00:00", "of a job; jobs that end are replaced while there is work")
    directives: Sequence[str] = setting([], 'more sbatch options, such as ["--constraint=rome"]')
    interface: str | None = setting(
        None,
        "network interface of workers and this process, such as ib0; null: the host name's",
    )
    log_dir: str | None = setting(
        None, "folder of the workers' logs, seen by all nodes; null: in the private folder"
    )
    python: str | None = setting(None, "interpreter on the nodes; null: this one")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "directives", tuple(self.directives or ()))
        if self.kind == "slurm" and self.num_workers is None:
            raise UserError("executor=slurm needs executor.num_workers=N, the worker processes.")


@dataclass(frozen=True)
class InlineExecutor(ExecutorSettings, name="executor"):
    """This process alone."""

    composed_keys: ClassVar[Sequence[str]] = ("kind",)


@dataclass(frozen=True)
class LocalExecutor(ExecutorSettings, name="executor"):
    """Dask workers on this machine."""

    composed_keys: ClassVar[Sequence[str]] = (
        *("kind", "num_workers", "min_records", "memory_per_worker", "encrypt"),
    )


@dataclass(frozen=True)
class SlurmExecutor(ExecutorSettings, name="executor"):
    """Dask workers in SLURM jobs."""

    composed_keys: ClassVar[Sequence[str]] = (
        *("kind", "num_workers", "workers_per_job", "memory_per_worker", "walltime", "partition"),
        *("account", "directives", "interface", "log_dir", "python", "encrypt"),
    )

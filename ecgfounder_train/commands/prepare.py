"""Turn an archive of WFDB records into shards to train on."""

from typing import Any


def main(config: dict[str, Any]) -> None:
    """Build or complete the catalog and the shards of a source."""
    from ecgfounder_train.catalog import Selection, build_catalog, write_catalog
    from ecgfounder_train.core.commands import command
    from ecgfounder_train.core.private_files import open_private_folder
    from ecgfounder_train.core.pseudonyms import load_or_create_secret
    from ecgfounder_train.data_report import ReportOptions, write_data_report
    from ecgfounder_train.labels import Vocabulary
    from ecgfounder_train.records import SignalProfile
    from ecgfounder_train.records.sources import open_source
    from ecgfounder_train.records.sources.presence import require_files
    from ecgfounder_train.shards import BuildOptions, ExecutorOptions, build_shards
    from ecgfounder_train.splits import PatientSplit

    # Settings first: a typo must not cost the reading of ten million rows.
    profile = SignalProfile.from_config(config["signal"])
    vocabulary = Vocabulary.from_config(config["labels"])
    split = PatientSplit.from_config(config["split"])
    options = BuildOptions.from_config(config["build"])
    executor = ExecutorOptions.from_config(config["executor"])
    selection = Selection.from_config(config["exclude"], config["catalog"])
    report = ReportOptions.from_config(config["report"])
    source = open_source(config["source"])
    private, name = open_private_folder(config["private"]), str(config["source"]["name"])
    print(f"Reading the tables of {name} ...", flush=True)
    table = source.read()
    share = options.share_of("missing_header")
    if missing := require_files(table, share, options.min_rejects, private):
        print(f"warning: {missing}", flush=True)
    secret = load_or_create_secret(config["secret"])
    catalog = build_catalog(table, vocabulary, secret, split, source_name=name, selection=selection)
    print(catalog.description, flush=True)
    manifest = build_shards(
        catalog.frame,
        config["shards"],
        root=table.root,
        profile=profile,
        vocabulary=vocabulary,
        split=split,
        secret=secret,
        source_name=name,
        options=options,
        executor=executor,
        private=private,
        storage_options=table.storage_options,
        read_ecg=table.read_ecg,
    )
    # Only now: a build that was refused must not replace the catalog of the shards that are there.
    write_catalog(private / "catalog.parquet", catalog)
    print(f"{manifest.summary()} Rejects: {private / 'rejects.csv'}", flush=True)
    if page := write_data_report(config["shards"], private, catalog, table, report):
        print(f"Data report: {page}")
    print(f"Next: {command('pretrain', {'shards': config['shards'], 'run': 'NAME'})}")


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("prepare")

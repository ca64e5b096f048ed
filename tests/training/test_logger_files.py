"""What loggers write names no machine."""

import socket
from pathlib import Path

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.settings.training import CsvLogger
from ecgfounder_train.training.loggers import create_loggers


def test_tensorboard_files_carry_no_host_name(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    (logger,) = create_loggers(CsvLogger("tensorboard"), run, {})
    logger.log_metrics({"train/loss": 0.5}, step=1)
    logger.finalize("success")
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    host = socket.gethostname()
    assert not [path for path in files if host in path.name.split(".")]
    assert not [path for path in files if host.encode() in path.read_bytes()]

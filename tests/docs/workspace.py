"""A working directory in which the commands of the docs run: small data of the names they use."""

import re
import shlex
from pathlib import Path

import numpy as np
import torch
import wfdb

from ecgfounder_train.models import create_model
from ecgfounder_train.records import STANDARD_LEADS

FS = 100
FOLDS = (1, 2, 3, 8, 9)


def create(root: Path) -> None:
    """Write the inputs that no command of the docs makes: PTB-XL's layout, my files, weights."""
    (root / "data").mkdir()
    _ptbxl(root / "data" / "ptbxl")
    _mine(root / "data")
    for name in ("bad.txt", "withdrawn.txt"):
        (root / name).write_text("nobody\n")
    torch.manual_seed(0)
    state = create_model("net1d_31m", 12, 150).state_dict()
    torch.save({"state_dict": state}, root / "12_lead_ECGFounder.pth")


def _write_record(folder: Path, name: str, seed: int, rate: int = FS) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    wave = np.sin(2 * np.pi * (1 + seed % 3) * np.arange(10 * rate) / rate)[:, None]
    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV"] * 12,
        sig_name=list(STANDARD_LEADS),
        p_signal=wave * rng.uniform(0.3, 1, 12) + rng.normal(0, 0.1, (10 * rate, 12)),
        fmt=["16"] * 12,
        write_dir=str(folder),
    )


def _ptbxl(root: Path) -> None:
    lines = ["ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr"]
    codes = ("NORM", "IMI", "NDT", "CLBBB", "LVH")
    for number in range(1, 201):
        name = f"records100/00000/{number:05d}_lr"
        _write_record(root / "records100" / "00000", f"{number:05d}_lr", number)
        chosen = {codes[number % 5]: 100.0, "SR" if number % 4 else "AFIB": 0.0}
        fold = FOLDS[number % len(FOLDS)]
        high = name.replace("records100", "records500").replace("_lr", "_hr")
        row = f'{number},{number}.0,{20 + number % 60}.0,{number % 2},"{chosen}",{fold}'
        lines.append(f"{row},{name},{high}")
    (root / "ptbxl_database.csv").write_text("\n".join(lines) + "\n")


def _mine(data: Path) -> None:
    rows, ejection = ["file,patient,dx"], ["record,patient,lvef,low_ef"]
    for number in range(60):
        name = f"r{number}"
        _write_record(data / "mine", name, number, rate=250)
        _write_record(data / "lvef" / "ecg", f"{number:04d}", number)
        rows.append(f"{name},p{number},{'AF' if number % 3 else 'RBBB'}")
        low = number % 3 == 0
        ejection.append(f"ecg/{number:04d},p{number},{35 if low else 60},{int(low)}")
    (data / "mine" / "labels.csv").write_text("\n".join(rows) + "\n")
    (data / "lvef" / "table.csv").write_text("\n".join(ejection) + "\n")
    paths = [str(data / "mine" / f"r{number}") for number in range(3)]
    (data / "list.csv").write_text("\n".join(["record", *paths]) + "\n")
    (data.parent / "my_labels.csv").write_text("label,codes\nfibrillation,AF\nblock,RBBB\n")
    arrays = np.random.default_rng(0).normal(0, 200, (2, 8, 4000))
    np.save(data / "arrays.npy", arrays.astype(np.float32))


SIZES = {
    r"/archive/heedb(_6\.0)?": "data/archive",
    r"/scratch/heedb": "data/shards/scratch",
    r"/scratch/ecg": "cache",
    r"docs/gallery": "data/gallery2",
    r"docs/benchmarks": "benchmarks",
    r"num_patients=\d+": "num_patients=60",
    r"model=net1d_(31m|1m|3m_100hz)": "model=net1d_500k",
    r"trainer=gpu": "trainer=cpu",
    r"trainer=ddp_gpu trainer.devices=8": "trainer=ddp_cpu",
    r"executor.num_workers=16": "executor=inline",
    r"search.trials=20": "search.trials=2",
    r"budget.max_epochs=[\d.]+": "",
    r"budget.validate_every_epochs=[\d.]+": "",
    r"min_samples=\d+": "",
}
"""What a command names, and its small stand-in of the same kind."""

ADDED = {
    "pretrain": "budget.max_samples=64 budget.validate_every_samples=32 data.global_batch_size=16",
    "finetune": "budget.max_samples=64 min_samples=0 data.global_batch_size=16",
    "doctor": "data.global_batch_size=16",
    "prepare": "build.max_reject_share=1 report.strips=0",
    "evaluate": "",
}
"""Settings that make a command small; they come last."""

SKIPPED = {
    "num_nodes=2": "needs two nodes",
    "hydra/launcher=submitit_slurm": "needs a SLURM",
    "s3://": "needs an S3 server; tests/shards and tests/loader run one",
    "executor=slurm": "needs a SLURM",
    "NAME": "a placeholder",
    "run=ecgfounder ": "weeks of training",
    "trainer=ddp_cpu": "tests/training starts two ranks",
}


def arguments(command: str) -> list[str]:
    """Return the arguments of a command of the docs, made small."""
    for pattern, small in SIZES.items():
        command = re.sub(pattern, small, command)
    script, *words = shlex.split(command, comments=True)
    return [*words, *shlex.split(ADDED.get(Path(script).stem, ""))]

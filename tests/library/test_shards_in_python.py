"""The library: shard sets in a notebook, in a plain torch loop and under any LightningModule."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

import ecgfounder_train as eft
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.library import Shards
from ecgfounder_train.loader.shard_loader import ShardLoader


@pytest.fixture(scope="module")
def shards(tiny_shards: Any) -> Shards:
    return eft.open_shards(tiny_shards.folder)


def rows_of(loader: ShardLoader, count: int | None = None) -> list[int]:
    found: list[int] = []
    for batch in itertools.islice(loader, count) if count else loader:
        found += batch["rows"][batch["present"]].tolist()
    return found


def test_an_epoch_has_each_sample_once_and_the_next_one_another_order(shards: Shards) -> None:
    loader = shards.loader("train", batch_size=7)
    first, second = rows_of(loader), rows_of(loader)
    assert sorted(first) == sorted(second) == shards.shard_set.rows("train").tolist()
    assert first != second
    assert len(loader) == -(-len(first) // 7)
    assert rows_of(shards.loader("val", batch_size=4)) == shards.shard_set.rows("val").tolist()


def test_batches_are_normalised_named_tensors(shards: Shards) -> None:
    batch = next(iter(shards.loader("train", batch_size=8)))
    manifest = shards.shard_set.manifest
    assert batch["ecg"].shape == (8, len(shards.leads), manifest.num_samples)
    assert batch["targets"].shape == batch["observed"].shape == (8, len(shards.labels))
    raw = next(iter(shards.loader("train", batch_size=8, normalise=False)))
    row = int(raw["rows"][0])
    np.testing.assert_allclose(raw["ecg"][0].numpy(), shards[row].signal, atol=1e-6)
    assert batch["ecg"].std() == pytest.approx(1, abs=0.1) != float(raw["ecg"].std())


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 5), (3, 4), (2, 10)])
def test_a_state_continues_at_another_batch_size_and_number_of_ranks(
    shards: Shards, world_size: int, batch_size: int
) -> None:
    start = shards.loader("train", batch_size=6, workers=2)
    seen = rows_of(start, 3)
    for rank in range(world_size):
        loader = shards.loader(
            "train", batch_size=batch_size, rank=rank, world_size=world_size, workers=0
        )
        loader.load_state_dict(start.state_dict())
        seen += rows_of(loader)
    assert sorted(seen) == shards.shard_set.rows("train").tolist()


def test_a_loop_that_is_left_early_continues_in_the_next_one(shards: Shards) -> None:
    loader = shards.loader("train", batch_size=6)
    seen = rows_of(loader, 2)
    assert sorted(seen + rows_of(loader)) == shards.shard_set.rows("train").tolist()
    assert "epoch 1, 0 samples into it" in repr(loader)


def test_a_state_of_something_else_is_refused(shards: Shards) -> None:
    state = shards.loader("train").state_dict()
    with pytest.raises(UserError, match="of another split"):
        shards.loader("val").load_state_dict(state)
    with pytest.raises(UserError, match=r"of another seed \(0, here 3\)"):
        shards.loader("train", seed=3).load_state_dict(state)
    with pytest.raises(UserError, match=r"rank=2 below world_size"):
        shards.loader("train", rank=2, world_size=2)


def test_records_and_table_agree(shards: Shards) -> None:
    frame = shards.to_frame()
    assert len(frame) == len(shards) == sum(shards.counts.values())
    record = shards[5]
    assert frame["record_key"][5] == record.record_key == shards[5 - len(shards)].record_key
    assert {name: frame[name][5] for name in shards.labels} == record.labels
    with pytest.raises(IndexError, match=r"not among the"):
        shards[len(shards)]
    assert record.plot().get_axes()


def test_reprs_are_short(shards: Shards) -> None:
    texts = [repr(shards), repr(shards[0]), repr(shards.loader("train")), shards._repr_html_()]
    assert all(len(text) < 500 for text in texts)
    assert f"{shards.counts['train']:,} train" in repr(shards)


def test_dir_lists_the_entrances_without_importing_torch() -> None:
    code = (
        "import sys, ecgfounder_train as eft; names = dir(eft); "
        "assert {'load_model', 'create_model', 'open_shards', 'ShardDataModule'} <= set(names); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class OtherModule(L.LightningModule):
    """A LightningModule that imports nothing of ours and notes what it is given."""

    def __init__(self, num_leads: int, num_labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_leads, num_labels)
        self.seen: list[int] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen += batch["rows"][batch["present"]].tolist()
        logits = self.head(batch["ecg"].abs().mean(-1))
        return nn.functional.binary_cross_entropy_with_logits(
            logits, batch["targets"], weight=batch["observed"]
        )

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["ecg"].isfinite().all()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(shards: Shards, folder: Path, **limits: Any) -> OtherModule:
    checkpoint = limits.pop("ckpt_path", None)
    module = OtherModule(len(shards.leads), len(shards.labels))
    saving = L.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[saving],
        **limits,
    )
    trainer.fit(
        module,
        datamodule=eft.ShardDataModule(shards.shard_set.folder, batch_size=8, workers=1),
        ckpt_path=checkpoint,
    )
    return module


def test_another_lightning_module_resumes_in_the_middle_of_an_epoch(
    shards: Shards, tmp_path: Path
) -> None:
    whole = fit(shards, tmp_path / "whole", max_epochs=2)
    first = fit(shards, tmp_path / "first", max_steps=3)
    saved = next((tmp_path / "first").glob("*step=3*.ckpt"))
    rest = fit(shards, tmp_path / "rest", max_epochs=2, ckpt_path=str(saved))
    assert first.seen + rest.seen == whole.seen
    half = len(whole.seen) // 2
    assert sorted(whole.seen[:half]) == sorted(whole.seen[half:])

"""The histogram AUROC of a validation: as the exact one, in constant memory, over ranks."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import auroc
from ecgfounder_train.metrics.histogram import HistogramAuroc
from ecgfounder_train.metrics.ranking import ranking_metrics


def trained_like(rng, num_records):
    """Logits as a trained network spreads them: rare labels far below zero, some barely used."""
    prevalence = np.geomspace(0.4, 0.003, 24)
    targets = rng.random((num_records, 24)) < prevalence
    separation = rng.uniform(0.2, 4, 24)
    logits = np.log(prevalence) - 1 + rng.normal(0, 1.2, targets.shape) + separation * targets
    logits[:, 3] *= 0.02
    logits[:, 4] *= 9
    return logits.astype(np.float32), targets


def filled(logits, targets, observed=None, batch_size=100):
    metric = HistogramAuroc(logits.shape[1])
    for start in range(0, len(logits), batch_size):
        rows = slice(start, start + batch_size)
        arrays = [logits, targets] + ([] if observed is None else [observed])
        metric.update(*(torch.from_numpy(np.asarray(array[rows])) for array in arrays))
    return metric


def test_histogram_agrees_with_the_exact_auroc_to_1e_4(rng):
    logits, targets = trained_like(rng, 40_000)
    observed = rng.random(targets.shape) < 0.9
    metric = filled(logits, targets, observed)
    exact = ranking_metrics(logits, targets, observed)
    assert np.abs(metric.compute().numpy() - exact.auroc).max() < 1e-4
    assert metric.num_positives().tolist() == exact.num_positives.tolist()
    assert not metric.waiting, "records must not pile up"


SHAPES = {
    "narrow": lambda z, t, y: -6.9 + 1e-4 * (z + 1.5 * y),
    "narrow around zero": lambda z, t, y: 1e-5 * (z + y),
    "heavy-tailed": lambda z, t, y: -4 + 0.01 * (t + 2 * y),
    "few far outliers": lambda z, t, y: np.where(np.abs(t) > 60, 40 * z, -3 + 0.001 * (z + 2 * y)),
    "constant": lambda z, t, y: 0 * z - 4,
    "a few values": lambda z, t, y: np.round(z + y) * 0.01 - 5,
    "huge": lambda z, t, y: 1e30 * (z + y),
    "beyond float32": lambda z, t, y: np.where(z > 3, np.inf, z + y),
    "almost separated": lambda z, t, y: 0.01 * (z + 5 * y) - 7,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_records", [600, 30_000])
def test_histogram_adapts_its_bins_to_the_scores(shape, num_records, rng):
    targets = rng.random((num_records, 3)) < [0.01, 0.1, 0.5]
    normal, heavy = rng.normal(size=targets.shape), rng.standard_t(1, targets.shape)
    logits = SHAPES[shape](normal, heavy, targets).astype(np.float32)
    difference = np.abs(filled(logits, targets).compute().numpy() - auroc(logits, targets))
    assert difference.max() < (1e-4 if num_records > 4096 else 1e-12)


def test_merged_histograms_are_as_good_as_one_of_everything(rng):
    logits, targets = trained_like(rng, 20_000)
    first, second = filled(logits[:6000], targets[:6000]), filled(logits[6000:], targets[6000:])
    first.merge_state(second)
    assert np.abs(first.compute().numpy() - auroc(logits, targets)).max() < 1e-4
    assert first.num_positives().tolist() == targets.sum(0).tolist()
    assert second.num_positives().tolist() == targets[6000:].sum(0).tolist()
    with pytest.raises(UserError, match="bins are needed"):
        first.merge_state({"counts": first.counts})


def _rank(store, rank, world_size, sizes, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    logits, targets = trained_like(np.random.default_rng(5), sum(sizes))
    start = sum(sizes[:rank])
    mine = slice(start, start + sizes[rank])
    metric = filled(logits[mine], targets[mine])
    twice = [metric.compute().numpy() for _ in range(2)]
    results.put((rank, twice[1], metric.num_positives().tolist()))
    metric.reset()
    assert not metric.counts.any()
    dist.destroy_process_group()


@pytest.mark.multiprocess
@pytest.mark.parametrize("sizes", [(700, 1300), (9000, 5000, 0)])
def test_ranks_agree_on_bins_and_add_up(sizes, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(
            target=_rank, args=(str(tmp_path / "store"), rank, len(sizes), sizes, results)
        )
        for rank in range(len(sizes))
    ]
    for process in ranks:
        process.start()
    answers = [results.get(timeout=120) for _ in ranks]
    for process in ranks:
        process.join()
    logits, targets = trained_like(np.random.default_rng(5), sum(sizes))
    for _, area, positives in answers:
        np.testing.assert_array_equal(area, answers[0][1])
        assert np.abs(area - auroc(logits, targets)).max() < 1e-4
        assert positives == targets.sum(0).tolist()


def test_histogram_takes_bfloat16_infinities_and_unobserved_nan():
    logits = torch.tensor([[-torch.inf, torch.nan], [torch.inf, 1.0], [0.0, -1.0]]).bfloat16()
    metric = HistogramAuroc(2)
    metric.update(logits, torch.tensor([[0, 0], [1, 1], [0, 0]]), ~logits.isnan())
    assert metric.compute().tolist() == [1.0, 1.0]


def test_one_label_keeps_its_axis():
    metric = HistogramAuroc(1)
    metric.update(torch.tensor([[0.0], [1.0]]), torch.tensor([[0], [1]]))
    assert metric.compute().tolist() == [1.0]


def test_histogram_is_nan_for_undefined_labels_and_refuses_nan_logits():
    metric = HistogramAuroc(2, labels=["NSR", "AFIB"])
    metric.update(torch.randn(10, 2), torch.zeros(10, 2))
    assert metric.compute().isnan().all()
    metric.update(torch.tensor([[0.0, torch.nan]]), torch.ones(1, 2))
    with pytest.raises(UserError, match="'AFIB'"):
        metric.compute()
    metric.reset()
    assert metric.counts.sum() == 0

"""Mutations: damaged files of every format against the readers, under a memory limit.

A mutant is a genuine file with changed, lost, inserted or repeated bytes. Each is read beside a
good file by the function a command reads it with, in a process that may take 4 GB. It survives when
the good file is still read and nothing but a rejection or a UserError is raised, within 10 s and
2 GB. There is no reference: `ratio` is the share of mutants that survive, and has to be 1.
"""

import contextlib
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.benchmarks._mutation_targets import Target, genuine_targets
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.core.untrusted import error_kind

SURVIVED = ("read", "refused")
_MAX_RESIDENT_BYTES = 2 << 30
_SHOWN = 20
_START_S = 60.0


@dataclass(frozen=True)
class Settings:
    """How many mutants of each file, and what they may take."""

    num_mutants: int = 600
    files: str | None = None
    """Folder of further genuine recordings."""
    memory_gb: float = 4.0
    longest_s: float = 10.0
    folder: str | None = None
    seed: int = 0


SMALL: dict[str, Any] = {"num_mutants": 20}


@dataclass
class Result:
    """What became of the mutants of one target."""

    name: str
    counts: Counter[str]
    longest_s: float = 0.0
    most_bytes: int = 0
    first: dict[str, int] | None = None
    """Number of the first mutant of each fault, to make it again."""


def run(settings: Settings) -> Outcome:
    """Return how many mutants were read, refused or not survived, by file.

    Raises:
        UserError: There is no folder of files.
    """
    if settings.files is not None and not Path(settings.files).is_dir():
        raise UserError(f"mutations.files={settings.files} is not a folder.")
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="mutations-") as folder:
        further = sorted(Path(settings.files).iterdir()) if settings.files else []
        targets = genuine_targets(Path(folder), [path for path in further if path.is_file()])
        for target in targets:
            assert target.read(), f"{target.name} is not read before it is damaged"
        results = _results(targets, settings)
    total = sum(sum(result.counts.values()) for result in results)
    survived = sum(result.counts[kind] for result in results for kind in SURVIVED)
    faults = Counter[str]()
    for result in results:
        for kind in result.counts.keys() - set(SURVIVED):
            faults[f"{result.name}: {kind}"] += result.counts[kind]
    record = {
        "ratio": round(survived / total, 6),
        "mutants": total,
        "read": sum(result.counts["read"] for result in results),
        "refused": sum(result.counts["refused"] for result in results),
        "not_survived": total - survived,
        "longest_s": round(max(result.longest_s for result in results), 2),
        "most_bytes": max(result.most_bytes for result in results),
        "memory_gb": settings.memory_gb,
        "seed": settings.seed,
        "by_file": {result.name: dict(sorted(result.counts.items())) for result in results},
    }
    return Outcome(_table(results, faults), record)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return damaged bytes: 1 to 16 places are set, cut, inserted, repeated or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        # Half of the places are in the first 2 kB, where headers are.
        near = min(len(data), 2000) if rng.random() < 0.5 else len(data)
        place = rng.randrange(max(near, 1))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place : place + 4] = rng.choice(
                [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
            )
        elif kind == 2:
            del data[place : place + rng.randrange(1, 50)]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 4:
            del data[max(place, 40) :]
        else:
            other = rng.randrange(max(len(data), 1))
            data[place : place + 16] = data[other : other + 16]
    return bytes(data)


def _results(targets: Sequence[Target], settings: Settings) -> list[Result]:
    """Read all mutants; a reading process that ends or takes too long loses one mutant only."""
    results = [Result(target.name, Counter(), first={}) for target in targets]
    contents = [target.path.read_bytes() for target in targets]
    total = len(targets) * settings.num_mutants
    done = 0
    with ProgressMeter("Reading mutants", total, "mutants") as meter:
        while done < total:
            for outcome in _outcomes(targets, contents, done, settings):
                place, number = divmod(done, settings.num_mutants)
                result = results[place]
                result.counts[outcome["kind"]] += 1
                result.longest_s = max(result.longest_s, outcome["seconds"])
                result.most_bytes = max(result.most_bytes, outcome["bytes"])
                if outcome["kind"] not in SURVIVED:
                    assert result.first is not None
                    result.first.setdefault(outcome["kind"], number)
                done += 1
                meter.update(done)
    return results


def _outcomes(
    targets: Sequence[Target], contents: Sequence[bytes], first: int, settings: Settings
) -> Iterator[Mapping[str, Any]]:
    """Yield the outcomes of the mutants from `first` on, up to the first that ends the process."""
    # Not forked: the threads of polars and torch that a reader needs do not live in a fork.
    context = multiprocessing.get_context("spawn")
    reading, writing = context.Pipe(duplex=False)
    child = context.Process(
        target=_read_mutants, args=(targets, contents, first, settings, writing), daemon=True
    )
    child.start()
    writing.close()
    done = first
    try:
        with contextlib.suppress(EOFError):
            # The first answer takes as long as imports do.
            while reading.poll(settings.longest_s + _START_S * (done == first)):
                yield reading.recv()
                done += 1
    finally:
        child.kill()
        child.join()
        reading.close()
    if done < len(targets) * settings.num_mutants:
        yield {"kind": "ended the process or too slow", "seconds": settings.longest_s, "bytes": 0}


def _read_mutants(
    targets: Sequence[Target],
    contents: Sequence[bytes],
    first: int,
    settings: Settings,
    pipe: Connection,
) -> None:
    """Read mutants in a process of their own, and send what became of each."""
    limit = int(settings.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for descriptor in (1, 2):  # what libraries print about damaged files
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    for done in range(first, len(targets) * settings.num_mutants):
        place, number = divmod(done, settings.num_mutants)
        target = targets[place]
        rng = random.Random(f"{settings.seed} {target.name} {number}")
        target.path.write_bytes(mutate(contents[place], rng))
        _reset_peak()
        start = time.monotonic()
        kind = _outcome(target.read)
        seconds, peak = time.monotonic() - start, _peak_bytes()
        if kind in SURVIVED and peak > _MAX_RESIDENT_BYTES:
            kind = "too large"
        pipe.send({"kind": kind, "seconds": seconds, "bytes": peak})
        target.path.write_bytes(contents[place])


def _outcome(read: Callable[[], bool]) -> str:
    try:
        return "read" if read() else "refused"
    except UserError:
        return "refused"
    except BaseException as error:
        return error_kind(error) if isinstance(error, Exception) else type(error).__name__


def _reset_peak() -> None:
    """Let the peak of resident memory start again from what is resident now."""
    # Where the system refuses, the peak is that of all mutants so far.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _table(results: Sequence[Result], faults: Mapping[str, int]) -> str:
    lines = [f"{'file':28s}{'read':>8s}{'refused':>9s}{'faults':>8s}{'longest':>9s}{'most':>9s}"]
    for result in results:
        bad = sum(count for kind, count in result.counts.items() if kind not in SURVIVED)
        lines.append(
            f"{result.name:28s}{result.counts['read']:8,d}{result.counts['refused']:9,d}{bad:8,d}"
            f"{result.longest_s:8.1f}s{result.most_bytes / 2**20:6,.0f} MB"
        )
    listed = sorted(faults.items(), key=lambda item: -item[1])[:_SHOWN]
    lines += [f"{count:6,d} x {name}" for name, count in listed]
    lines += [
        f"first {kind} of {result.name}: mutant {number}"
        for result in results
        for kind, number in (result.first or {}).items()
    ][:_SHOWN]
    return "\n".join(lines)

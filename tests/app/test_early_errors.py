"""Wrong values, paths and names are reported before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CODE = """
import runpy, sys, time
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("torch" in sys.modules, time.process_time())
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain shards=. run=a optimizer.lr=fast", "optimizer.lr='fast' is not float"),
        ("pretrain shards=. run=a optimizer.lr=0", "optimizer.lr=0.0 must be above 0"),
        ("pretrain shards=. run=a data.order=random", "data.order='random' is unknown"),
        ("pretrain shards=. run=a loss=focal loss.alpha=2", "loss.alpha=2.0 must be above 0 and b"),
        ("pretrain shards=. run=a schedule.warmup_share=1", "schedule.warmup_share=1.0 must be"),
        ("pretrain shards=nope run=a", "There is no folder nope. Set shards="),
        ("doctor shards=nope", "There is no folder nope. Set shards="),
        ("verify shards=nope", "There is no folder nope. Set shards="),
        ("evaluate run=frist", "There is no run 'frist' in outputs/runs."),
        ("evaluate compare=[frist,second]", "There is no run 'frist'"),
        ("evaluate checkpoint=nope", "There is no checkpoint nope."),
        ("export checkpoint=nope format=tflite", "format='tflite' is unknown. Valid: hub, offic"),
        ("export checkpoint=nope", "There is no checkpoint nope."),
        ("predict checkpoint=nope input=x", "There is no checkpoint nope."),
        ("predict checkpoint=nope input=x pool=none", "pool='none' is unknown."),
        ("finetune checkpoint=nope run=a task=table", "There is no checkpoint nope."),
        ("finetune from_run=nope checkpoint=best run=a", "There is no run 'nope'"),
        ("prepare shards=a source.root=b labels=my.csv", "give labels.name=my.csv."),
        ("prepare shards=a source.root=b build.tries=0", "build.tries=0 must be at least 1"),
        ("ablate list ablation.budget.samples=null", "give either ablation.budget.samples or"),
        ("ablate lits", "Did you mean 'list'"),
        ("runs state=done", "state='done' is unknown."),
    ],
)
def test_mistake_is_reported_before_torch_is_imported(
    words: str, message: str, tmp_path: Path
) -> None:
    verb, *arguments = words.split()
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(SCRIPTS / f"{verb}.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in done.stderr and done.stderr.count("\n") == 1
    imported, seconds = done.stdout.split()
    assert imported == "False"
    # 1.5 s of CPU time on a machine that does other work too.
    assert float(seconds) < 3
    assert not list(tmp_path.iterdir())

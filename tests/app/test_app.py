"""The command line: what composes, what is refused and in which words."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ecgfounder_train import app
from ecgfounder_train.app.composition import dotted_keys, group_defaults
from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
VERBS = sorted(path.stem for path in app.CONFIGS.glob("*.yaml"))
# scripts/NAME.py without a config of that name is another issue's.
REQUIRED = {
    "pretrain": ["shards=DIR", "run=NAME"],
    "prepare": ["shards=DIR", "source.root=DIR"],
    "verify": ["shards=DIR"],
    "evaluate": ["run=NAME"],
    "predict": ["checkpoint=PATH", "input=GLOB"],
    "finetune": ["checkpoint=PATH", "run=NAME"],
    "doctor": ["shards=DIR"],
    "simulate": ["out=DIR"],
}


def groups(verb: str) -> list[str]:
    config = yaml.safe_load((app.CONFIGS / f"{verb}.yaml").read_text())
    names = [
        str(key).removeprefix("optional ").removeprefix("override ")
        for entry in config.get("defaults", [])
        if isinstance(entry, dict)
        for key in entry
    ]
    return [name for name in names if (app.CONFIGS / name).is_dir()]


def test_every_experiment_belongs_to_exactly_one_script() -> None:
    # The doctor looks at what pretrain is about to run, and so takes its experiments.
    verbs = [verb for verb in VERBS if verb != "doctor"]
    belonging = [name for verb in verbs for name in app.choices("experiment", verb)]
    assert sorted(belonging) == sorted(path.stem for path in app.CONFIGS.glob("experiment/*.yaml"))
    assert app.choices("experiment", "doctor") == app.choices("experiment", "pretrain")


EVERY_CHOICE = [
    (verb, group, choice)
    for verb in VERBS
    for group in groups(verb)
    for choice in app.choices(group, verb)
]


def required(verb: str) -> list[str]:
    return REQUIRED.get(verb, [])


def start(
    verb: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, task: Any = None
) -> int:
    """Run a script's entry point in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", [f"{verb}.py", *arguments])

    def unreachable(config: dict[str, Any]) -> None:
        raise AssertionError("the task must not start")

    with pytest.raises(SystemExit) as stop:
        app.run(verb, task or unreachable)
    return int(stop.value.code or 0)


def test_every_group_of_the_configs_is_covered() -> None:
    folders = {path.name for path in app.CONFIGS.iterdir() if path.is_dir()}
    covered = {group for _, group, _ in EVERY_CHOICE}
    assert folders - {"hydra"} <= covered
    assert set(REQUIRED) <= set(VERBS)


@pytest.mark.parametrize(("verb", "group", "choice"), EVERY_CHOICE)
def test_every_choice_of_every_group_composes(verb: str, group: str, choice: str) -> None:
    # Whatever chooses a source, an external evaluation too, must be told where it lies.
    extra = ["source.root=DIR"] if group == "source" or choice.startswith("eval_") else []
    if choice == "arrays":
        stated = ("array=a.npy", "fs=500", "unit=mV", "leads=[I]", "table=t.csv")
        extra += [f"source.{word}" for word in stated]
    if choice == "patient_list":
        extra = ["split.file=CSV"]
    arguments = list(dict.fromkeys([*required(verb), *extra, f"{group}={choice}"]))
    config = app.compose_config(verb, arguments)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict) and "???" not in str(plain)


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_compose_with_nothing_but_what_is_required(verb: str) -> None:
    config = app.compose_config(verb, required(verb))
    assert not OmegaConf.missing_keys(config)


@pytest.mark.parametrize("choice", app.choices("experiment", "pretrain"))
def test_every_experiment_has_settings_that_are_accepted(choice: str) -> None:
    from ecgfounder_train.loader.transforms import Augmentation
    from ecgfounder_train.losses import create_loss
    from ecgfounder_train.settings.training import (
        Budget,
        CheckpointSettings,
        DataSettings,
        EmaSettings,
        OptimizerSettings,
        RunSettings,
    )
    from ecgfounder_train.training.schedules import create_schedule

    composed = app.compose_config("pretrain", [*required("pretrain"), f"experiment={choice}"])
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    RunSettings.from_config(config)  # type: ignore[arg-type]
    for settings, section in (
        (Augmentation, "augmentation"),
        (CheckpointSettings, "checkpoint"),
        (OptimizerSettings, "optimizer"),
        (Budget, "budget"),
        (DataSettings, "data"),
        (EmaSettings, "ema"),
    ):
        settings.from_config(config[section])  # type: ignore[attr-defined]
    create_schedule(config["schedule"])
    loss = dict(config["loss"])
    create_loss(loss.pop("name"), **loss)


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("pretrain", ["optimizer.learning_rate=1"], "no key 'optimizer.learning_rate'"),
        ("pretrain", ["data.global_batchsize=8"], "Did you mean 'data.global_batch_size'"),
        ("pretrain", ["optimiser=adamw"], "Did you mean 'optimizer'"),
        ("pretrain", ["model=net1d_31"], "There is no model=net1d_31. Did you mean 'net1d_31m'"),
        ("pretrain", ["schedule=xyz"], "Valid: constant, cosine, one_cycle, plateau, step"),
        ("pretrain", ["experiment=ptbxl"], "There is no experiment=ptbxl."),
        ("pretrain", [], "scripts/pretrain.py needs run=... shards=..."),
        ("pretrain", ["run=a", "shards=null"], "scripts/pretrain.py needs shards=..."),
        ("prepare", ["shards=x"], "needs source.root=..."),
        ("prepare", ["source.root=x"], "scripts/prepare.py needs shards=..."),
        ("prepare", [], "scripts/prepare.py needs shards=... source.root=..."),
        ("prepare", ["--source", "ptbxl"], "--source: settings are given without dashes, as key="),
        ("prepare", ["labels=ptbxl_super"], "Did you mean 'ptbxl_super5'"),
        ("prepare", ["signal=papr"], "Did you mean 'paper'"),
        ("predict", ["pool=max"], "needs checkpoint=... input=..."),
        ("predict", ["chekpoint=x"], "Did you mean 'checkpoint'"),
        ("predict", ["checkpoint"], "Cannot read 'checkpoint'"),
        ("pretrain", ["run=[a"], "Cannot read 'run=[a'"),
        ("pretrain", ["=5"], "Cannot read '=5'"),
        ("pretrain", ["run=a", "run=b", "shards=${nothing}"], "nothing"),
    ],
)
def test_mistake_on_the_command_line_exits_1_with_the_nearest_names(
    verb: str,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert start(verb, arguments, monkeypatch) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("error: ") and "Traceback" not in shown.err


def test_group_of_another_verb_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("verify", ["shards=x", "model=net1d_1m"], monkeypatch) == 1
    assert "model" in capsys.readouterr().err


def test_names_in_any_alphabet_need_no_quotes() -> None:
    for value in ("Ärzte/Daten 1", "O'Brien ü", "数据"):
        config = app.compose_config("pretrain", ["run=a", f"shards={value}"])
        assert config["shards"] == value
    quoted = app.compose_config("pretrain", ["run=a", "shards='Ärzte, Daten'"])
    assert quoted["shards"] == "Ärzte, Daten"


def test_added_and_nested_keys_reach_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    arguments = [
        *required("pretrain"),
        "+model.widths=[16,32]",
        "optimizer.lr=1e-4",
        "model=net1d_2m",
    ]

    def task(config: dict[str, Any]) -> None:
        seen.update(config)

    assert start("pretrain", arguments, monkeypatch, task) == 0
    assert seen["model"]["name"] == "net1d_2m" and seen["model"]["widths"] == [16, 32]
    assert seen["optimizer"]["lr"] == 1e-4 and type(seen) is dict


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("mend it"), 1, "error: mend it"),
        (RejectedRecordError(RejectReason.ALL_ZERO, "flat"), 1, "error: all_zero: flat"),
        (PermissionError(13, "Permission denied", "/a/b"), 1, "error: /a/b: Permission denied. Ch"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device. Free space"),
        (KeyboardInterrupt(), 130, "interrupted. Run the same command again."),
        (KeyboardInterrupt("Half is done."), 130, "interrupted. Half is done."),
    ],
)
def test_exit_status_and_message_follow_from_the_error(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def task(config: dict[str, Any]) -> None:
        raise error

    assert start("verify", ["shards=x"], monkeypatch, task) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError, FileNotFoundError(2, "No such file", "x")])
def test_bug_shows_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def task(config: dict[str, Any]) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["verify.py", "shards=x"])
    with pytest.raises((ZeroDivisionError, FileNotFoundError)):
        app.run("verify", task)


def test_error_of_another_rank_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: dict[str, Any]) -> None:
        raise UserError("shard 3 is damaged")

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "5")
    assert start("verify", ["shards=x"], monkeypatch, task) == 1
    assert "error on rank 5: shard 3 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_help_prints_every_key_with_its_comment_in_100_columns(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(verb, ["--help"], monkeypatch) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 100
    config = app.compose_config(verb, required(verb))
    listed = page.split("\nKEYS")[1] + "\n"
    blocks = re.findall(r"^ {4,8}([a-z_][\w.]*)=((?:.*\n)(?: {40,}.*\n)*)", listed, re.M)
    shown = {key: text.split() for key, text in blocks}
    for key in dotted_keys(config):
        node = OmegaConf.select(config, key)
        if OmegaConf.is_config(node) and len(node):
            continue
        # The doctor takes pretrain's keys and refers to its page.
        if verb != "doctor" or key in ("shards", "run", "format", "steps"):
            assert any(key == name or key.startswith(f"{name}.") for name in shown), key
    for name, words in shown.items():
        if name.split(".")[-1] not in ("name", "kind"):
            assert len(words) >= 2, f"no comment: {name}"
    for group, _ in group_defaults(verb):
        assert all(choice in page for choice in app.choices(group, verb))


def test_sweep_with_a_failing_job_exits_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPTS / "verify.py"),
            "--multirun",
            "shards=nowhere",
            "sample=1,2",
            f"hydra.sweep.dir={tmp_path / 'sweep'}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("error: There is no folder nowhere") == 2
    assert "Traceback" not in done.stderr


def test_script_as_a_command_reports_a_mistake_without_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "pretrain.py"), "shards=nowhere", "run=a", "modle=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: There is no key 'modle' (in 'modle=x'). Did you mean 'model'"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "moment",
    [
        "import hydra",
        "import omegaconf",
        "open pretrain.yaml",  # while it is composed
        "import numpy",  # swallows an exception
        "import torch",
        "import lightning",
    ],
)
def test_ctrl_c_while_a_script_starts_ends_it_at_once_and_quietly(
    moment: str, tmp_path: Path
) -> None:
    # A real signal to a real process, at a moment that no load of the machine moves.
    code = f"""
import os, runpy, signal, sys

def press_ctrl_c(event, details):
    if event in ("import", "open"):
        if f"{{event}} {{os.path.basename(str(details[0]))}}" == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.argv = [{str(SCRIPTS / "pretrain.py")!r}, "run=a", "shards=."]
sys.addaudithook(press_ctrl_c)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted. Run the same command again.\n")
    assert not list(tmp_path.iterdir())


def test_import_of_the_package_leaves_ctrl_c_as_it_was() -> None:
    code = (
        "import signal, ecgfounder_train, ecgfounder_train.app as app\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["2026_11_02", "1.10", "1e3", "true", "0x1F", "007", "inf", "1_0"])
def test_names_and_paths_keep_their_text(name: str) -> None:
    config = app.compose_config(
        "pretrain",
        [f"shards={name}", f"run={name}", f"paths.runs={name}", f"data.cache_dir={name}"],
    )
    found = (config.shards, config.run, config.paths.runs, config.data.cache_dir)
    assert found == (name,) * 4
    assert app.compose_config("pretrain", ["shards=x", "run=x", f"resume={name}"]).resume == {
        "checkpoint": name,
        "allow": [],
    }


def test_null_stays_null_for_names_and_paths() -> None:
    assert (
        app.compose_config("pretrain", ["shards=x", "run=x", "data.cache_dir=null"])[
            "data"
        ].cache_dir
        is None
    )


@pytest.mark.parametrize(
    ("own", "asked", "name"),
    [
        (
            ["run=a", "optimizer.lr=1e-3"],
            ["run=a", "optimizer.lr=1e-3,1e-2"],
            "a-optimizer.lr_1e-3",
        ),
        (["run=a", "seed=1"], ["run=a,b", "seed=1,2"], "a-seed_1"),
        (["run=a", "seed=1"], ["run=a,b", "seed=1"], "a"),
        (["run=a-7", "seed=7"], ["run=a-${seed}", "seed=7,8"], "a-7"),
        (
            ["run=a", "loss=focal", "+model.widths=[8,16]"],
            ["run=a"],
            "a-loss_focal-model.widths_8_16_",
        ),
    ],
)
def test_members_of_a_sweep_are_named_apart(own: list[str], asked: list[str], name: str) -> None:
    from ecgfounder_train.app.sweeps import _named_apart, _run_name

    assert _run_name(_named_apart(own, asked), "") == name


def test_path_that_is_no_utf8_is_refused_in_a_sentence(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, SCRIPTS / "pretrain.py", b"shards=\xdcbung", "run=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert r"shards=\xdcbung: the name is not valid UTF-8" in process.stderr
    assert "Traceback" not in process.stderr and not list(tmp_path.iterdir())

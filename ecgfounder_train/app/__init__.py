"""The command line: a config from overrides, a manual page, errors as messages, exit codes.

`run("pretrain")` composes `configs/pretrain.yaml` with the overrides given, checks them, and calls
`commands.pretrain.main(config)` with plain containers. Only this package imports hydra.

A single run is composed in this process rather than by `hydra.main`: the run directory comes from
the run's name, not from Hydra, a mistyped command leaves no folder behind, and Lightning starts
further ranks with the very same command line. Anything that is Hydra's own (`--multirun`,
`--cfg job`, `--info`, ...) goes to `hydra.main` unchanged.
"""

import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NoReturn, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecgfounder_train.app.composition import choices, compose_config, first_line
from ecgfounder_train.app.entrance import check_paths
from ecgfounder_train.app.manual import manual_page
from ecgfounder_train.app.sections import check_settings
from ecgfounder_train.app.sweeps import run_under_hydra
from ecgfounder_train.core.commands import COMMANDS, as_started, program
from ecgfounder_train.core.config import CONFIGS
from ecgfounder_train.core.errors import RejectedRecordError, UserError, did_you_mean
from ecgfounder_train.core.interrupts import (
    INTERRUPTED,
    ctrl_c_as_exception,
    say_interrupted,
    tolerate_closed_pipes,
)
from ecgfounder_train.core.logging import show_warnings_as_log_lines
from ecgfounder_train.core.ranks import is_rank_zero, process_rank

__all__ = ["CONFIGS", "choices", "compose_config", "main", "manual_page", "run"]

# Operating system errors that a user can fix, wherever they occur; others show their traceback.
_REFUSED = {
    errno.EACCES: "Change its permissions or name another place.",
    errno.EPERM: "Change its permissions or name another place.",
    errno.EROFS: "Name a place that can be written.",
    errno.ENOSPC: "Free space or name another disk.",
    errno.EDQUOT: "Free space or name another disk.",
    errno.ENOTDIR: "There is a file where a folder is needed: move it or name another place.",
    errno.EISDIR: "There is a folder where a file is needed: name a file.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EIO: "The disk or file server fails: check it.",
    errno.ESTALE: "The file server has lost it: check the server.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}

_HYDRA_FLAGS = {
    *("--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name"),
    *("-cn", "--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
}

Task = Callable[[dict[str, Any]], int | None]

_WITH_WORD = ("ablate", "bench")
"""Verbs whose first argument may be a word that says what to do."""


def main() -> NoReturn:
    """Run `ecgfounder VERB ...`, the command that pip installs."""
    tolerate_closed_pipes()
    verbs = sorted(path.stem for path in COMMANDS.glob("[a-z]*.py"))
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print("ecgfounder VERB [key=value ...]; ecgfounder VERB --help shows every key.\n")
        for name in verbs:
            print(f"    {name:<10} {_first_docstring_line(name)}")
        sys.exit(0)
    if verb not in verbs:
        print(f"error: There is no verb {verb!r}.{did_you_mean(verb, verbs)}", file=sys.stderr)
        sys.exit(1)
    # The verb's own file becomes the script: Lightning starts further ranks by it.
    sys.argv = [str(COMMANDS / f"{verb}.py"), *sys.argv[2:]]
    run(verb)


def _first_docstring_line(verb: str) -> str:
    return (COMMANDS / f"{verb}.py").read_text().split('"""')[1].splitlines()[0]


def run(verb: str, task: Task | None = None) -> NoReturn:
    """Run a verb with the config its command line asks for, and exit.

    Args:
        verb: Name of a module of `commands` and of its config file.
        task: What runs instead of that module's `main`.

    Exit status: 0 done, 1 a user error or an operating system error (no permission, a full disk)
    that the message explains, 130 interrupted.
    """
    # Read when torch is imported, which has not happened yet. Its C++ warnings (one per rank) would
    # hide our messages.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    tolerate_closed_pipes()
    show_warnings_as_log_lines()
    task = task or _checked_main(verb)
    arguments = sys.argv[1:]
    if undecodable := [item for item in arguments if not _is_utf8(item)]:
        shown = os.fsencode(undecodable[0]).decode(errors="backslashreplace")
        print(
            f"error: {shown}: the name is not valid UTF-8. Rename the folder, or give a symbolic "
            "link to it whose name is.",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
    if {"-h", "--help"} & set(arguments):
        print(manual_page(verb))
        sys.exit(0)
    if dashed := [argument for argument in arguments if argument.startswith("-")]:
        if foreign := [word for word in dashed if word.split("=")[0] not in _HYDRA_FLAGS]:
            print(
                f"error: {foreign[0]}: settings are given without dashes, as key=value. "
                f"See: {program(verb)} --help",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(1)
        run_under_hydra(verb, lambda composed: _guarded(verb, task, composed))
    sys.exit(_guarded(verb, task, lambda: compose_config(verb, arguments)))


def _checked_main(verb: str) -> Task:
    """Return a task that checks what the config names, then runs the `main` of a verb."""
    task = _main_of(verb)

    def checked(config: dict[str, Any]) -> int | None:
        check_paths(verb, config)
        return task(config)

    return checked


def _main_of(verb: str) -> Task:
    """Return the `main` of a verb, with the leading word of the command line if it takes one."""
    task = import_module(f"ecgfounder_train.commands.{verb}").main
    if verb in _WITH_WORD:
        word = None
        if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
            word = sys.argv.pop(1)
        task = partial(task, word=word)
    return cast(Task, task)


def _guarded(verb: str, task: Task, composed: Callable[[], DictConfig]) -> int:
    try:
        config = _to_plain(composed())
        check_settings(verb, config)
        with ctrl_c_as_exception():
            return task(config) or 0
    except (UserError, RejectedRecordError) as error:
        # A damaged shard may be found by one rank alone, so every rank reports.
        who = "error" if is_rank_zero() else f"error on rank {process_rank()}"
        print(as_started(f"{who}: {error}"), file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        who = "error" if is_rank_zero() else f"error on rank {process_rank()}"
        what = f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
        print(
            f"{who}: {what} {_REFUSED[error.errno]} Then run the same command again.",
            file=sys.stderr,
            flush=True,
        )
        return 1
    except KeyboardInterrupt as error:
        say_interrupted(str(error))
        return INTERRUPTED


def _to_plain(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

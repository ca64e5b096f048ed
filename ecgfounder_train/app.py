"""What every script shares: a config from the command line, a manual page, errors, exit codes.

`run("pretrain", main)` composes `configs/pretrain.yaml` with the overrides given, checks them, and
calls `main(config)` with plain containers. The only module of the package that imports hydra.

A single run is composed in this process rather than by `hydra.main`: the run directory comes from
the run's name, not from Hydra, a mistyped command leaves no folder behind, and Lightning starts
further ranks with the very same command line. Anything that is Hydra's own (`--multirun`,
`--cfg job`, `--info`, ...) goes to `hydra.main` unchanged.
"""

import errno
import hashlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ecgfounder_train.core.errors import RejectedRecordError, UserError, did_you_mean
from ecgfounder_train.core.interrupts import (
    INTERRUPTED,
    ctrl_c_as_exception,
    say_interrupted,
    tolerate_closed_pipes,
)
from ecgfounder_train.core.ranks import is_rank_zero, process_rank

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# What the machine refuses is never our mistake alone; the place that met it need not foresee it.
_REFUSED = {
    errno.EACCES: "Change its permissions or name another place.",
    errno.EPERM: "Change its permissions or name another place.",
    errno.EROFS: "Name a place that can be written.",
    errno.ENOSPC: "Free space or name another disk.",
    errno.EDQUOT: "Free space or name another disk.",
    errno.ENOTDIR: "A file stands where a folder is wanted: move it or name another place.",
    errno.EISDIR: "A folder stands where a file is wanted: name a file.",
    errno.ENAMETOOLONG: "Take a shorter name.",
    errno.EIO: "The disk or file server fails: look after it.",
    errno.ESTALE: "The file server has lost it: look after it.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}

_TEXT_KEYS = {
    *("run", "from_run", "compare", "average", "controls", "scratch"),
    *("shards", "runs", "ablations", "cache_dir", "cache", "checkpoint", "resume", "stream"),
    *("root", "out", "output", "input", "folder", "private", "secret", "save", "record", "records"),
    *("strips", "gallery", "table", "annotations", "file", "map", "pairs", "log_dir", "patients"),
    *("expect_split", "project"),
}
"""Last words of keys whose value is a name or a path: `run=2026_11_02` is no number."""

_ALIASES = {"resume": "resume.checkpoint"}
"""Short forms of keys: resume=PATH beside resume.allow=[...]."""

_TRAINING_VERBS = ("pretrain", "finetune")
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)

_HYDRA_FLAGS = {
    *("--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name"),
    *("-cn", "--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
}

Task = Callable[[dict[str, Any]], int | None]


def run(verb: str, task: Task) -> NoReturn:
    """Run a script's task with the config its command line asks for, and exit.

    Exit status: 0 done, 1 a mistake or a refusal of the machine (no permission, a full disk) that
    the message explains, 130 interrupted.
    """
    # Read when torch is imported, which no script has done yet. Its warnings in C++ (one per rank)
    # are of no use to who runs this, and bury what is.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    tolerate_closed_pipes()
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
                f"See: python scripts/{verb}.py --help",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(1)
        _run_under_hydra(verb, task)
    sys.exit(_guarded(task, lambda: compose_config(verb, arguments)))


def compose_config(verb: str, overrides: list[str]) -> DictConfig:
    """Return `configs/<verb>.yaml` with the overrides applied.

    Raises:
        UserError: A key, group or choice is unknown (with the nearest valid names), a value cannot
            be parsed, or a required key has no value.
    """
    overrides = [_quoted(override) for override in overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        _check_overrides(verb, overrides)
        # Hydra takes any key that is also the name of a group for a choice of that group, though
        # this script's config has it as a plain key (evaluate's split=val; prepare's split=official
        # is a group). Those are set after composing, as they would have been.
        own = _own_keys(verb)
        plain = [item for item in overrides if item.split("=")[0] in own]
        try:
            config = _compose(verb, [item for item in overrides if item not in plain])
            for item in plain:
                parsed = OverridesParser.create().parse_override(item)
                config[str(parsed.key_or_group)] = parsed.value()
            missing = sorted(set(_missing(config)) | _nulls(verb, config))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_first_line(error)) from error
    if missing:
        needed = " ".join(f"{key}=..." for key in missing)
        raise UserError(f"scripts/{verb}.py needs {needed}. See: python scripts/{verb}.py --help")
    return config


def _quoted(override: str) -> str:
    """Return an override as Hydra reads it without changing its text.

    Hydra's grammar has ASCII letters only, and it takes `2026_11_02`, `1e3` or `true` for a number
    or a truth value also where the key is a name or a path.
    """
    key, equals, value = override.partition("=")
    key = _ALIASES.get(key, key)
    if not value or value[0] in "'\"{":
        return key + equals + value
    if _is_text(key.strip("+~"), value) or key in _ALIASES.values():
        opening, inner, closing = "", value, ""
        if value[0] == "[" and value[-1] == "]":
            opening, inner, closing = "[", value[1:-1], "]"
        if not set(inner) & set("'\"[]{}()"):
            items = [_quoted_scalar(item.strip()) for item in inner.split(",")]
            return key + equals + opening + ",".join(items) + closing
    if value.isascii() or value[0] == "[":
        return key + equals + value
    return key + equals + "'" + value.replace("'", "\\'") + "'"


def _is_text(key: str, value: str) -> bool:
    """Return whether a key's value is a name or a path."""
    if key == "report.strips":  # a number of ECGs; strips= of predict is a folder
        return False
    if key == "controls" and value[0] != "[":  # evaluate's is a switch, finetune's a list of runs
        return False
    return key.split(".")[-1] in _TEXT_KEYS


def _quoted_scalar(text: str) -> str:
    """Return a text in quotes if Hydra would take it for something else; null stays null."""
    if not text.isascii():
        return f"'{text}'"
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value() if text else None
    except HydraException:
        return text
    return f"'{text}'" if isinstance(value, bool | int | float) else text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _missing(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the keys without a value; not those that refer to one, as `private` to `shards`."""
    for key in map(str, config):
        if OmegaConf.is_missing(config, key):
            yield prefix + key
        elif isinstance(node := config._get_node(key), DictConfig):
            yield from _missing(node, f"{prefix}{key}.")


def _nulls(verb: str, config: DictConfig) -> set[str]:
    """Return the keys that must be given and were given as null."""
    lines = (CONFIGS / f"{verb}.yaml").read_text().splitlines()
    required = {key for key, value, _ in _commented_keys(lines) if value == "???"}
    # Fine-tuning's checkpoint=null is an answer: fresh weights.
    return {key for key in required - {"checkpoint"} if OmegaConf.select(config, key) is None}


def _compose(verb: str, overrides: list[str]) -> DictConfig:
    """Compose; a script with the key `launcher` gets there what `hydra/launcher=` chose."""
    if not any(item.startswith(("hydra/", "hydra.")) for item in overrides):
        return compose(verb, overrides)
    config = compose(verb, overrides, return_hydra_config=True)
    settings = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    with open_dict(config):
        del config["hydra"]
    if "launcher" not in config:
        raise UserError(
            f"scripts/{verb}.py starts no jobs itself: give hydra/launcher= to scripts/ablate.py, "
            "or add --multirun."
        )
    assert isinstance(settings, dict)
    # Folder and name of the jobs refer to Hydra's own config, which a single run has not.
    config["launcher"] = {key: value for key, value in settings.items() if "${" not in str(value)}
    return config


def manual_page(verb: str) -> str:
    """Return the manual page of a script, made from the comments of its config files."""
    lines = (CONFIGS / f"{verb}.yaml").read_text().splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").removeprefix(" "))
    keys, groups = [], []
    for key, value, comment in _commented_keys(lines):
        if key.startswith("hydra"):
            continue
        keys.append(f"    {f'{key}={value}':<44} {comment}".rstrip())
    for group, chosen in _group_defaults(lines):
        listed = ", ".join(choices(group, verb))
        groups.append(f"    {f'{group}={chosen}':<44} one of: {listed}")
        for key, value, comment in _commented_keys(_group_file(group, chosen)):
            groups.append(f"        {f'{group}.{key}={value}':<40} {comment}".rstrip())
    parts = [*header, "", "KEYS (key=value; ??? must be given)", *keys]
    if groups:
        parts += ["", "GROUPS (the default choice and its keys)", *groups]
    return "\n".join(parts)


def _run_under_hydra(verb: str, task: Task) -> NoReturn:
    """Let Hydra run a script, for a sweep (--multirun) or to show its config.

    Each member of a sweep runs as if its own command had been given: further ranks are started with
    that command, and a member whose run has no name of its own is named after its overrides.
    """
    script, *arguments = sys.argv
    overrides = [_quoted(item) for item in arguments if not item.startswith("-") and "=" in item]
    flags = [item for item in arguments if item.startswith("-") or "=" not in item]
    # Hydra takes overrides in one piece only, so flags such as --multirun go behind them.
    sys.argv = [script, *overrides, *flags]
    statuses = [0]

    def job(config: DictConfig) -> int:
        hydra_config = HydraConfig.instance()
        own, former = list(HydraConfig.get().overrides.task), (hydra_config.cfg, sys.argv)
        if verb in _TRAINING_VERBS:
            own = _named_apart(own, overrides)
            with open_dict(config):
                config["run"] = _run_name(own, str(config["run"]))
        # Lightning starts further ranks in Hydra's way where Hydra's config is set.
        hydra_config.cfg, sys.argv = None, [script, *own]
        try:
            statuses.append(_guarded(task, lambda: config))
        finally:
            hydra_config.cfg, sys.argv = former
        if statuses[-1] in _STOPPED:
            sys.exit(statuses[-1])  # or Hydra would begin the next member
        return statuses[-1]

    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=verb)(job)()
    # Hydra drops what a job returns; a sweep has failed where one of its jobs has.
    sys.exit(max(statuses))


def _named_apart(own: list[str], asked: list[str]) -> list[str]:
    """Return the overrides of a sweep's member with a run name that no other member has.

    Args:
        own: Overrides of the member.
        asked: Overrides of the sweep; what is not among them differs between members.
    """
    swept = [item for item in own if item not in asked and not item.startswith("run=")]
    name = _run_name(own, "")
    asked_name = next((item for item in asked if item.startswith("run=")), "")
    if not swept or not name or "${" in asked_name:
        return own
    apart = re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join([name, *swept])).replace("+", "")
    if len(apart) > 120:
        apart = f"{apart[:100]}-{hashlib.sha256(apart.encode()).hexdigest()[:12]}"
    return [*(item for item in own if not item.startswith("run=")), _quoted(f"run={apart}")]


def _run_name(overrides: list[str], default: str) -> str:
    """Return the run's name that overrides give, without quotes."""
    names = [item.partition("=")[2].strip("'\"") for item in overrides if item.startswith("run=")]
    return names[-1] if names else default


def _guarded(task: Task, composed: Callable[[], DictConfig]) -> int:
    try:
        config = _to_plain(composed())
        with ctrl_c_as_exception():
            return task(config) or 0
    except (UserError, RejectedRecordError) as error:
        # A damaged shard may show on one rank alone, so none keeps silent.
        who = "error" if is_rank_zero() else f"error on rank {process_rank()}"
        print(f"{who}: {error}", file=sys.stderr, flush=True)
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
        raise UserError(_first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _check_overrides(verb: str, overrides: list[str]) -> None:
    """Raise with the nearest valid names where Hydra would only say what it could not do."""
    groups = sorted({path.parent.name for path in CONFIGS.glob("*/*.yaml")})
    own = _own_keys(verb)
    chosen, keyed = [], []
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
            if not parsed.key_or_group:
                raise HydraException("no key before the equals sign")
        except HydraException as error:
            raise UserError(
                f"Cannot read {override!r}; overrides look like key=value. Quote a value with "
                f"special characters twice: '{override.split('=')[0]}=\"...\"'. "
                f"({_first_line(error)})"
            ) from error
        key = str(parsed.key_or_group)
        if key in groups and key not in own and parsed.package is None and "." not in key:
            _check_choice(key, parsed.value(), verb)
            chosen.append(override)
        elif key.startswith(("hydra/", "hydra.")):
            continue  # a group of Hydra's own, which it checks itself
        elif not (parsed.is_add() or parsed.is_force_add()):
            keyed.append((key, override))
    try:
        base = compose(verb, chosen)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error)) from error
    known = set(_dotted_keys(base))
    for key, override in keyed:
        if key not in known:
            hint = did_you_mean(key, known | (set(groups) & set(base)))
            raise UserError(f"There is no key {key!r} (in {override!r}).{hint}")


def _own_keys(verb: str) -> set[str]:
    """Return the plain keys of a script's config that share their name with a group."""
    lines = (CONFIGS / f"{verb}.yaml").read_text().splitlines()
    plain = {name for name, _, _ in _commented_keys(lines)}
    return {path.name for path in CONFIGS.iterdir() if path.is_dir()} & plain


def _check_choice(group: str, value: Any, verb: str) -> None:
    names = value if isinstance(value, list) else [value]
    valid = choices(group, verb)
    for name in names:
        if name is not None and str(name) not in valid:
            raise UserError(f"There is no {group}={name}." + did_you_mean(str(name), valid))


def choices(group: str, verb: str) -> list[str]:
    """Return what a script may choose in a group; an experiment belongs to the script it names."""
    # The doctor examines what pretraining would do.
    verb = "pretrain" if verb == "doctor" else verb
    files = sorted((CONFIGS / group).glob("*.yaml"))
    if group == "experiment":
        files = [
            path
            for path in files
            if re.search(rf"scripts/{verb}\.py .*experiment={path.stem}\b", path.read_text())
        ]
    return [path.stem for path in files]


def _dotted_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield prefix + key
        if not OmegaConf.is_missing(config, key) and isinstance(config._get_node(key), DictConfig):
            yield from _dotted_keys(config[key], f"{prefix}{key}.")


_KEY_LINE = re.compile(
    r"^(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?: +(?P<value>[^#]*?))?(?: +# *(?P<comment>.*))?$"
)


def _commented_keys(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield dotted key, default and comment of each leaf of a YAML file."""
    parents: list[tuple[int, str]] = []
    for line in lines:
        match = _KEY_LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        parents = [item for item in parents if item[0] < indent]
        name = ".".join([*(parent for _, parent in parents), match["key"]])
        value = (match["value"] or "").strip()
        if name.split(".")[0] == "defaults":
            continue
        if value:
            yield name, value, match["comment"] or ""
        else:
            parents.append((indent, match["key"]))


def _group_defaults(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        match = re.match(r"^  - (?:override )?(?P<group>\w+): (?P<choice>\w+|\?\?\?)", line)
        if match and (CONFIGS / match["group"]).is_dir() and match["group"] != "hydra":
            yield match["group"], match["choice"]


def _group_file(group: str, choice: str) -> list[str]:
    path = CONFIGS / group / f"{choice}.yaml"
    return path.read_text().splitlines() if path.is_file() else []


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

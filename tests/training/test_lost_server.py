"""A wandb server that cannot be reached, or vanishes, neither stops a run nor holds its end."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import run_tools
import tiny_set
from slurm_cluster import why_no_cables

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet

WANDB = ("logger=wandb", "logger.mode=online", "logger.finish_timeout_s=5")


class Server:
    """As much of a wandb server as a run needs to begin; `heard` is set when it has begun."""

    def __init__(self) -> None:
        heard = self.heard = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer: dict[str, Any] = {"exitcode": None, "limits": {}}
                if self.path.endswith("/graphql"):
                    answer = {"data": _answer(json.loads(body), self.server.server_port)}  # type: ignore[attr-defined]
                elif self.path.endswith("/file_stream"):
                    heard.set()
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_PUT(self) -> None:
                self.do_POST()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def vanish(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(request: dict[str, Any], port: int) -> dict[str, Any]:
    query, variables = request["query"], request.get("variables") or {}
    if "upsertBucket" in query:
        project = {"id": "1", "name": "ecgfounder_train", "entity": {"id": "1", "name": "nobody"}}
        bucket = {
            "id": "1",
            "name": variables.get("name") or "run",
            "displayName": "run",
            "description": None,
            "config": "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "createRunFiles" in query:
        files = [
            {"name": name, "uploadUrl": f"http://127.0.0.1:{port}/file"}
            for name in variables.get("files", [])
        ]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
    return {}


def _environment(url: str) -> dict[str, str]:
    return {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4}


@pytest.mark.slow
def test_server_that_vanishes_during_the_run_does_not_hold_it(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    server = Server()
    arguments = tiny_set.tiny_overrides(tiny_shards, tmp_path, "run", *WANDB, "budget.max_epochs=8")
    process = run_tools.command(arguments, env=_environment(server.url))
    try:
        assert server.heard.wait(run_tools.TIMEOUT_S), "wandb did not begin"
        server.vanish()
        output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "is complete" in output
    run = RunDirectory(tmp_path / "run")
    assert run_tools.rows(run)[-1]["samples_seen"] == str(8 * 63)
    assert list((run.path / "wandb").rglob("*.wandb")), "nothing is left for wandb sync"


@contextmanager
def _without_a_way_out() -> Iterator[str]:
    """Yield a network namespace whose packets vanish: connections hang, they are not refused."""
    name = f"ecgdark{os.getpid()}"
    try:
        for command in (
            f"netns add {name}",
            f"-n {name} link set lo up",
            f"-n {name} link add out type veth peer name nowhere",
            f"-n {name} addr add 192.0.2.1/24 dev out",
            f"-n {name} link set out up",
            f"-n {name} link set nowhere up",
            f"-n {name} neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out nud permanent",
            f"-n {name} route add default via 192.0.2.2",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ECG_TEST_TIER") != "all", reason="ECG_TEST_TIER=all only")
def test_run_trains_and_is_evaluated_where_no_packet_comes_back(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    """A compute node without the internet, behind a firewall that drops instead of refusing."""
    if reason := why_no_cables():
        pytest.skip(reason)
    # An address of the documentation: nothing has to be looked up, and nobody is there.
    environment = _environment("http://203.0.113.7")
    with _without_a_way_out() as namespace:
        arguments = tiny_set.tiny_overrides(tiny_shards, tmp_path, "run", *WANDB)
        inside = ["nsenter", f"--net=/run/netns/{namespace}"]
        trained = _run([*inside, *_python("pretrain"), *arguments], environment)
        assert "it is switched off" in trained and "is complete" in trained
        evaluate = ["run=run", f"paths.runs={tmp_path}", "split=val"]
        _run([*inside, *_python("evaluate"), *evaluate], environment)
    assert (tmp_path / "run" / "evaluation" / "val" / "report.html").is_file()


def _python(verb: str) -> list[str]:
    return [sys.executable, str(run_tools.SCRIPTS / f"{verb}.py")]


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr

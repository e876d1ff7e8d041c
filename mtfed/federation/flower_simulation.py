"""Flower's own simulation engine, on Ray: start a private SuperLink, call ``flwr run``, and end every process.

``flwr run`` alone exits with 0 even if the run failed, and leaves a SuperLink running that keeps the environment of the
command that started it first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..config import RunConfigValue
from ..errors import MtfedError
from .app_folder import AppFolder

STARTUP_SECONDS = 60.0


def run_on_ray(app: AppFolder, run_config: dict[str, RunConfigValue], sites: int) -> int:
    """Run an app on Flower's Ray engine and return 0 if Flower reports that it completed, else 1.

    If ``RAY_ADDRESS`` is in the environment, Ray joins that cluster instead of starting one on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="mtfed-flower-") as folder:
        home = Path(folder) / "home"
        copy = write_app(app, run_config, Path(folder) / app.path.name)
        with superlink(home, simulation=True) as environment:
            federation = f"num-supernodes={sites} client-resources-num-cpus=1"
            return flwr_run(copy, environment, ["--federation-config", federation])


def write_app(app: AppFolder, run_config: dict[str, RunConfigValue], target: Path) -> Path:
    """Copy an app folder with another config: ``flwr run -c`` only accepts keys that the app already has."""
    shutil.copytree(app.path, target, ignore=shutil.ignore_patterns("runs", "__pycache__", ".*"))
    text = (target / "pyproject.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^\[tool\.flwr\.app\.config[^\]]*\].*?(?=^\[(?!tool\.flwr\.app\.config)|\Z)", "", text)
    toml = partial(json.dumps, ensure_ascii=False)  # TOML does not allow surrogate pairs
    lines = [f"{toml(key)} = {toml(value)}" for key, value in run_config.items()]
    text += "\n".join(["", "[tool.flwr.app.config]", *lines, ""])
    (target / "pyproject.toml").write_text(text, encoding="utf-8")
    return target


@contextmanager
def superlink(home: Path, *, simulation: bool) -> Iterator[dict[str, str]]:
    """Start a SuperLink with its own Flower home and port, yield the environment for ``flwr``, and end it."""
    home.mkdir(parents=True, exist_ok=True)
    port, environment = free_port(), flower_environment(home)
    settings = f'[superlink]\ndefault = "mtfed"\n\n[superlink.mtfed]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(settings, encoding="utf-8")
    command = f"flower-superlink --insecure --host 127.0.0.1 --port {port} --isolation subprocess".split()
    log = open(home / "superlink.log", "w", encoding="utf-8")  # noqa: SIM115 - it stays open as long as the process runs
    command += ["--simulation"] * simulation
    output: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **output)
    try:
        wait_for_port(port, process, home / "superlink.log")
        yield environment | {"MTFED_SUPERLINK": f"127.0.0.1:{port}"}
    finally:
        end_group(process)
        log.close()


def flwr_run(app: Path, environment: dict[str, str], extra: list[str]) -> int:
    """Call ``flwr run``, print its log, then ask Flower for the status of the run; return an exit code."""
    command = ["flwr", "run", str(app), "mtfed", "--stream", *extra]
    run_id = None
    try:
        output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, env=environment, **output) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    if run_id is None and (match := re.search(r"started run (\d+)", line)):
                        run_id = match[1]
            except BaseException:
                process.terminate()  # leaving the block waits for it, and it would only end after the round
                raise
    except BaseException:  # interrupted: the run would go on without this process
        if run_id is not None:
            stop = ["flwr", "stop", run_id, "mtfed"]
            subprocess.run(stop, env=environment, capture_output=True, timeout=30, check=False)
        raise
    if run_id is None:
        return process.returncode or 1
    status = run_status(run_id, environment)
    if status != "finished:completed":
        print(f"mtfed: Flower reports run {run_id} as {status}; its log is above.", file=sys.stderr)
        return 1
    return 0


def run_status(run_id: str, environment: dict[str, str]) -> str:
    """Return Flower's status of a run, such as ``finished:completed``."""
    command = ["flwr", "list", "mtfed", "--run-id", run_id, "--format", "json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        return str(json.loads(result.stdout)["runs"][0]["status"])
    except (ValueError, LookupError):
        return f"unknown ({result.stdout.strip()[:200]}{result.stderr.strip()[:200]})"


def flower_environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower writes only to its home, installs nothing and sends no telemetry."""
    bin_folder = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": bin_folder + os.pathsep + os.environ.get("PATH", ""),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def free_port() -> int:
    """Return a TCP port that is free on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen, log: Path) -> None:
    """Wait until a process listens on a port; raise :class:`MtfedError` with the end of its log if it does not."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
    program = cast(list[str], process.args)[0]
    raise MtfedError(f"Expected {program} to listen on port {port} within {STARTUP_SECONDS:g} s; its log ends: {tail}")


def end_group(process: subprocess.Popen) -> None:
    """End a process and its descendants, including those that lead their own sessions, as Flower's and Ray's do."""
    children = descendants(process.pid)
    for signal_number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        for pid in {process.pid, *children, *descendants(process.pid)}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (process.poll() is None or any(map(_is_running, children))):
            time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process; none on systems without ``/proc``."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    pids = list(children.get(pid, []))
    for child in pids:  # the list grows while it is walked
        pids.extend(children.get(child, []))
    return pids


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

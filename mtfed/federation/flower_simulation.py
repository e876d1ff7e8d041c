"""Flower's own simulation engine, on Ray: a private SuperLink, ``flwr run``, and nothing left running.

``flwr run`` alone exits with 0 even if the run failed, and leaves a SuperLink behind that keeps the environment of the
command that first started it.
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
from pathlib import Path
from typing import cast

from ..config import RunConfigValue
from ..errors import MtfedError
from .app_folder import AppFolder

STARTUP_SECONDS = 60.0


def run_on_ray(app: AppFolder, run_config: dict[str, RunConfigValue], sites: int) -> int:
    """Run an app on Flower's Ray engine and return 0 if Flower says that it completed, else 1.

    ``RAY_ADDRESS`` in the environment makes Ray join a cluster instead of starting one here.
    """
    with tempfile.TemporaryDirectory(prefix="mtfed-flower-") as folder:
        home = Path(folder) / "home"
        copy = write_app(app, run_config, Path(folder) / app.path.name)
        with superlink(home, simulation=True) as environment:
            federation = f"num-supernodes={sites} client-resources-num-cpus=1"
            return flwr_run(copy, environment, ["--federation-config", federation])


def write_app(app: AppFolder, run_config: dict[str, RunConfigValue], target: Path) -> Path:
    """Copy an app folder with its config replaced: ``flwr run -c`` only knows keys that the app already has."""
    shutil.copytree(app.path, target, ignore=shutil.ignore_patterns("runs", "__pycache__", ".*"))
    text = (target / "pyproject.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^\[tool\.flwr\.app\.config[^\]]*\].*?(?=^\[(?!tool\.flwr\.app\.config)|\Z)", "", text)
    lines = [f"{_toml(key)} = {_toml(value)}" for key, value in run_config.items()]
    (target / "pyproject.toml").write_text(
        text + "\n[tool.flwr.app.config]\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    return target


def _toml(value: RunConfigValue) -> str:
    return json.dumps(value, ensure_ascii=False)  # TOML knows no pairs of surrogates


@contextmanager
def superlink(home: Path, *, simulation: bool) -> Iterator[dict[str, str]]:
    """Start a SuperLink with a Flower home and a port of its own; yield the environment for ``flwr``; end it."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = flower_environment(home)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "mtfed"\n\n[superlink.mtfed]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    command = [
        "flower-superlink",
        "--insecure",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--isolation",
        "subprocess",
    ]
    log = open(home / "superlink.log", "w", encoding="utf-8")  # noqa: SIM115 - it lives as long as the process
    process = subprocess.Popen(
        command + ["--simulation"] * simulation,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for_port(port, process, home / "superlink.log")
        yield environment | {"MTFED_SUPERLINK": f"127.0.0.1:{port}"}
    finally:
        end_group(process)
        log.close()


def flwr_run(app: Path, environment: dict[str, str], extra: list[str]) -> int:
    """Run ``flwr run`` with its log on our output, then ask Flower how the run ended."""
    command = ["flwr", "run", str(app), "mtfed", "--stream", *extra]
    run_id = None
    try:
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    run_id = run_id or (found[1] if (found := re.search(r"started run (\d+)", line)) else None)
            except BaseException:
                process.terminate()  # or it is waited for, and it says nothing until the round is done
                raise
    except BaseException:  # interrupted: the run would go on without us
        if run_id is not None:
            subprocess.run(
                ["flwr", "stop", run_id, "mtfed"], env=environment, capture_output=True, timeout=30, check=False
            )
        raise
    if run_id is None:
        return process.returncode or 1
    status = run_status(run_id, environment)
    if status != "finished:completed":
        print(f"mtfed: Flower says of run {run_id}: {status}; its log is above.", file=sys.stderr)
        return 1
    return 0


def run_status(run_id: str, environment: dict[str, str]) -> str:
    """Return Flower's status of a run, such as ``finished:completed``."""
    command = ["flwr", "list", "mtfed", "--run-id", run_id, "--format", "json"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        return str(json.loads(told.stdout)["runs"][0]["status"])
    except (ValueError, LookupError):
        return f"unknown ({told.stdout.strip()[:200]}{told.stderr.strip()[:200]})"


def flower_environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower stays in its own folder and installs or reports nothing."""
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
    """Wait until a process listens on a port; raise :class:`MtfedError` with its log's end if it does not."""
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
    """End a process and all that it started, also what leads a session of its own, as Flower's and Ray's do."""
    family = [process.pid, *descendants(process.pid)]
    for kind, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        for pid in {*family, *descendants(process.pid)}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, kind)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and (process.poll() is None or any(map(_runs, family[1:]))):
            time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children and theirs, where the system tells (Linux)."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found.extend(children.get(child, []))
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

"""The folder of a run: its config, metrics, weights and report. A run can be continued from it.

It contains ``config.json`` (resolved), ``environment.json`` (versions, machine), ``sites.json`` (the sites and their
tasks), ``metrics.jsonl`` (a line for each round and task), ``rounds.jsonl`` (a line for each round),
``checkpoints/last.safetensors`` and ``best.safetensors``; ``summary.json`` and ``report.html`` are added at the end.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..config import Config, flatten, read_config
from ..errors import MtfedError
from ..strategies import wire

PACKAGES = ("mtfed", "flwr", "torch", "torchvision", "timm", "monai", "numpy", "scipy", "pydantic", "ray")
# Config keys that may differ between a run and its continuation; any other would change the result.
RESUMABLE_KEYS = {"resume", "out", "device", "share-tracebacks", "round-timeout", "join-timeout", "min-sites"}
RESUMABLE_KEYS |= {"on-failure", "retries", "quorum"}


class Run:
    """A run folder, which is written and read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, config: Config) -> Run:
        """Create a new folder ``NAME-TIME`` under the config's ``out``."""
        out = Path(config.out).expanduser().resolve()
        stamp = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            folder = out / (stamp + suffix)
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise MtfedError(f"Config key out: cannot create a run folder in {out}: {error.strerror}.") from None
        (folder / "checkpoints").mkdir()
        run = cls(folder)
        run.write_json("config.json", flatten(config))
        run.write_json("environment.json", environment(config))
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run folder; raise :class:`MtfedError` if it is not one."""
        folder = Path(path).expanduser().resolve()
        run = cls(folder)
        if not (folder / "config.json").is_file() or "strategy" not in (run.read_json("config.json") or ()):
            raise MtfedError(f"Expected a run folder (with config.json), such as runs/NAME-TIME; {folder} is not one.")
        return run

    def config(self) -> Config:
        """Return the run's config."""
        return read_config(self.read_json("config.json"))

    def check_resumable(self, config: Config) -> None:
        """Refuse to continue a run under settings that would change its result."""
        recorded, given = flatten(self.config()), flatten(config)
        # More rounds stretch a cosine schedule, which changes the rounds that are already done.
        allowed = RESUMABLE_KEYS | ({"rounds"} if config.schedule == "constant" else set())
        for key in sorted(recorded.keys() | given.keys()):
            if key not in allowed and recorded.get(key) != given.get(key):
                values = f"the run to resume has {recorded.get(key)!r}, the config has {given.get(key)!r}"
                raise MtfedError(f"Config key {key}: {values}; a resumed run keeps its settings.")

    # Metrics and other records.

    def append(self, name: str, records: list[dict[str, Any]]) -> None:
        """Append lines to a ``.jsonl`` file."""
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(finite(record)) + "\n" for record in records)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a ``.jsonl`` file; a last line that is incomplete after a crash is ignored."""
        path = self.folder / name
        records = []
        with suppress(json.JSONDecodeError):
            for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
                records.append(json.loads(line))
        return records

    def delete_rounds_after(self, server_round: int) -> None:
        """Delete the lines of rounds after the given one, which will be run again."""
        for name in ("metrics.jsonl", "rounds.jsonl"):
            records = [record for record in self.lines(name) if record["round"] <= server_round]
            self._replace(self.folder / name, "".join(json.dumps(record) + "\n" for record in records).encode())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self._replace(self.folder / name, (json.dumps(finite(content), indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file of the run, or ``{}`` if there is none."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError:
            raise MtfedError(f"{path} is not valid JSON; the run folder is damaged.") from None

    # Weights.

    def save(
        self,
        name: str,
        arrays: ArrayRecord,
        state: Mapping[str, ArrayRecord],
        progress: dict[str, Any],
        frozen: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write a checkpoint atomically: model tensors by name, the strategy's state, the run's progress.

        ``frozen`` are the model's tensors that are not in ``arrays`` because nothing changes them.
        """
        tensors = {**(frozen or {})}
        tensors |= {name: value for part in wire.unpack(arrays).values() for name, value in part.items()}
        for group, record in state.items():
            tensors |= {f"strategy/{group}/{key}": array.numpy() for key, array in record.items()}
        path = self.folder / "checkpoints" / f"{name}.safetensors"
        part = path.with_suffix(".part")
        contiguous = {key: np.asarray(value, order="C") for key, value in tensors.items()}
        save_file(contiguous, part, {"progress": json.dumps(progress)})
        os.replace(part, path)

    def load(self, name: str, like: ArrayRecord) -> tuple[ArrayRecord, dict[str, ArrayRecord], dict[str, Any]] | None:
        """Return arrays, strategy state and progress of a checkpoint, or None if there is none.

        ``like`` is a record with the tensors of the config's model; the arrays are laid out in the same way.
        """
        path = self.folder / "checkpoints" / f"{name}.safetensors"
        if not path.exists():
            return None
        state: dict[str, ArrayRecord] = {}
        try:
            with safe_open(path, framework="numpy") as file:
                parts = {part: {n: file.get_tensor(n) for n in tensors} for part, tensors in wire.unpack(like).items()}
                for key in file.keys():  # noqa: SIM118 - it is not a dict
                    if key.startswith("strategy/"):
                        _, group, name = key.split("/", 2)
                        state.setdefault(group, ArrayRecord())[name] = wire.FlatArray(file.get_tensor(key))
                return wire.pack(parts), state, json.loads(file.metadata()["progress"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise MtfedError(f"{path} is not a checkpoint of this config's model: {error}.") from None

    def tensors(self, name: str, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return those of the named tensors that a checkpoint contains."""
        with safe_open(self.folder / "checkpoints" / f"{name}.safetensors", framework="numpy") as file:
            saved = set(file.keys())
            return {key: file.get_tensor(key) for key in names if key in saved}

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        os.replace(part, path)


def environment(config: Config) -> dict[str, Any]:
    """Return what results depend on besides the config: versions, machine and command."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": config.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def finite(content: Any) -> Any:
    """Return JSON content with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content

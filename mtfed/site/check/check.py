"""Check a site's data: read all of it, look for what is wrong, and say so on the console and on a page."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ...config import Config, read_config
from ...cores import usable_cores
from ...data.manifest_table import has_manifest
from ...errors import MtfedError
from ...federation.app_folder import find_app
from ...progress import print_table
from ..site_file import SITE_FILE, SiteFile, read_site_file
from .findings import CHECKS, Finding, findings
from .page import write_page
from .survey import Survey, survey

SIDE = {2: 256, 3: 64}  # of what images are read into, where no experiment says what a model sees
SHOWN = 3  # things of a finding that the console names


def check(place: Path, app: str | None, out: Path | None, record: Path | None, jobs: int | None) -> int:
    """Check a site and return the exit code: 0 no errors, 1 errors.

    Args:
        place: a folder, a zip, or a site file.
        app: an experiment whose tasks and settings count; by default those of the site file.
        out: where the page goes; by default beside the manifest.
        record: where to write what was found as JSON.
        jobs: processes; by default one per core.
    """
    folder, site = _site(place)
    config = _config(folder, site, app)
    key = site.key or folder.resolve().stem
    target = out or (folder / "check.html" if folder.is_dir() else folder.with_suffix(".check.html"))
    start = time.perf_counter()
    held = survey(folder, key, config, jobs or usable_cores())
    found = findings(held)
    _write(target, write_page(held, found, app))
    if record:
        _write(record, json.dumps(as_json(held, found), indent=1))
    _say(held, found, time.perf_counter() - start)
    print(target)
    return int(any(one.check.severity == "error" for one in found))


def _site(place: Path) -> tuple[Path, SiteFile]:
    """Return a site's folder, and what its site file says."""
    if place.is_file() and place.suffix == ".toml":
        return place.parent, read_site_file(place)
    if not has_manifest(place):
        raise MtfedError(
            f"Expected a site folder with a manifest, found none in {place}; `mtfed site init {place}` drafts one."
        )
    path = place / SITE_FILE
    return place, read_site_file(path) if path.is_file() else SiteFile()


def _config(folder: Path, site: SiteFile, app: str | None) -> Config:
    """Return the tasks and settings that the site is read by."""
    if app:
        return read_config(find_app(app).run_config)
    if not site.tasks:
        raise MtfedError(
            f"Expected tasks to check the labels of: add tables [task.NAME] to {folder / SITE_FILE}, or name an "
            "experiment by --app."
        )
    known = {"tasks": site.tasks, "dimensions": site.dimensions, "image-size": SIDE[site.dimensions]}
    return Config.model_validate(known)


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise MtfedError(f"Cannot write {path}: {error.strerror}; name another place.") from None


def _say(held: Survey, found: list[Finding], seconds: float) -> None:
    """Print what the site holds and what is wrong, in a screen."""
    splits = ("train", "val", "test")
    rows = []
    for name, task in held.config.tasks.items():
        counts = held.count(name)
        rows.append([name, task.kind, *(str(counts[split]) for split in splits)])
    patients = len(held.patients)
    title = f"{held.data.key}: {len(held.rows):,} images of {patients:,} patients, read in {seconds:.1f} s"
    print_table(title, ["task", "kind", *splits], rows)
    for one in found:
        print(f"{one.check.severity:8} {one.check.title} ({len(one.items):,})  [{one.id}]")
        for item in one.items[:SHOWN]:
            print(f"           {item.name}: {item.said}" if item.said else f"           {item.name}")
        if len(one.items) > SHOWN:
            print(f"           and {len(one.items) - SHOWN:,} more")
    severities = Counter(one.check.severity for one in found)
    told = ", ".join(f"{severities[s]} {s}{'s' * (severities[s] != 1)}" for s in ("error", "warning", "note"))
    print(f"{told}; {len(CHECKS) - len(found)} of {len(CHECKS)} checks found nothing.")


def as_json(held: Survey, found: list[Finding]) -> dict[str, Any]:
    """Return what was found as a record: counts, findings, and a line an image."""
    counts = {}
    for name in held.config.tasks:
        classes: dict[str, Counter[str]] = {}
        for one in held.readable:
            if (label := one.labels.get(name)) and not label.fault:
                for kind in label.counts:
                    classes.setdefault(kind, Counter())[held.split[one.number]] += 1
        counts[name] = {"images": dict(held.count(name)), "classes": {k: dict(v) for k, v in classes.items()}}
    return {
        "site": held.data.key,
        "images": len(held.rows),
        "patients": len(held.patients),
        "tasks": counts,
        "findings": [
            {
                "id": one.id,
                "severity": one.check.severity,
                "title": one.check.title,
                "items": [{"name": item.name, "said": item.said} for item in one.items],
            }
            for one in found
        ],
        "files": [
            {
                "image": held.rows[one.number].image,
                "fault": one.fault,
                "shape": list(one.shape),
                "spacing": list(one.spacing) if one.spacing else None,
                "kind": one.kind,
                "low": one.low,
                "high": one.high,
                "mean": one.mean,
            }
            for one in held.examined
        ],
    }

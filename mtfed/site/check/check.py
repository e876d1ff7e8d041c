"""Check a site's data: read everything, run all checks, and report on the terminal and on a page."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ...config import Config, read_config
from ...cores import usable_cores
from ...data.manifest_table import has_manifest
from ...data.root import Root
from ...data.site_file import SITE_FILE, SiteFile, find_site_file, read_site_file
from ...errors import MtfedError
from ...federation.app_folder import find_app
from ...progress import print_table
from ...report.html import count
from .findings import CHECKS, SEVERITIES, Finding, run_checks
from .page import render_page
from .survey import Survey, survey_site

IMAGE_SIZE = {2: 256, 3: 64}  # by number of dimensions, unless an experiment sets the size that a model sees
MAX_PRINTED = 3  # occurrences of a finding on the terminal


def check(site: Path, app: str | None, page: Path | None, record: Path | None, jobs: int | None) -> int:
    """Check a site and return the exit code: 0 if there are no errors, otherwise 1.

    Args:
        site: its folder, zip or site file.
        app: an experiment whose tasks and settings are used; by default those of the site file.
        page: file of the page; by default next to the manifest.
        record: file for the findings as JSON; by default none is written.
        jobs: number of reading processes; by default one per core.
    """
    folder, site_file = _find_site(site)
    config = _read_config(folder, site_file, app)
    key = site_file.key or folder.resolve().stem
    page = page or (folder / "check.html" if folder.is_dir() else folder.with_suffix(".check.html"))
    start = time.perf_counter()
    survey = survey_site(folder, key, config, jobs or usable_cores())
    findings = run_checks(survey)
    _write(page, render_page(survey, findings, app))
    if record:
        _write(record, json.dumps(as_json(survey, findings), indent=1))
    _print_findings(survey, findings, time.perf_counter() - start)
    print(page)
    return int(any(finding.check.severity == "error" for finding in findings))


def _find_site(site: Path) -> tuple[Path, SiteFile]:
    """Return a site's folder, and the content of its site file."""
    if site.is_file() and site.suffix == ".toml":
        return site.parent, read_site_file(site)
    if not has_manifest(site):
        raise MtfedError(
            f"Expected a site folder with a manifest, found none in {site}; `mtfed site init {site}` drafts one."
        )
    return site, find_site_file(Root(site))


def _read_config(folder: Path, site_file: SiteFile, app: str | None) -> Config:
    """Return the tasks and settings to read the site with."""
    if app:
        return read_config(find_app(app).run_config)
    if not site_file.tasks:
        raise MtfedError(
            f"Expected tasks whose labels can be checked, found none; add tables [task.NAME] to {folder / SITE_FILE}, "
            "or name an experiment with --app."
        )
    sizes = {"image-size": IMAGE_SIZE[2], "volume-size": IMAGE_SIZE[3]}
    return Config.model_validate({"tasks": site_file.tasks, "dimensions": site_file.dimensions} | sizes)


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise MtfedError(f"Cannot write {path}: {error.strerror}; choose another path.") from None


def _print_findings(survey: Survey, findings: list[Finding], seconds: float) -> None:
    """Print what the site contains and what is wrong, briefly."""
    splits = ("train", "val", "test")
    rows = []
    for name, task in survey.config.labelled_tasks.items():
        counts = survey.count(name)
        rows.append([name, task.kind, *(str(counts[split]) for split in splits)])
    images, patients = count(len(survey.rows), "image"), count(len(survey.patients), "patient")
    print_table(f"{survey.data.key}: {images} of {patients}, read in {seconds:.1f} s", ["task", "kind", *splits], rows)
    for finding in findings:
        occurrences = finding.occurrences
        print(f"{finding.check.severity:8} {finding.check.title} ({len(occurrences):,})  [{finding.id}]")
        for occurrence in occurrences[:MAX_PRINTED]:
            detail = f": {occurrence.detail}" if occurrence.detail else ""
            print(f"           {occurrence.name}{detail}")
        if len(occurrences) > MAX_PRINTED:
            print(f"           and {len(occurrences) - MAX_PRINTED:,} more")
    severities = Counter(finding.check.severity for finding in findings)
    totals = ", ".join(count(severities[severity], severity) for severity in SEVERITIES)
    print(f"{totals}; {len(CHECKS) - len(findings)} of {len(CHECKS)} checks found nothing.")


def as_json(survey: Survey, findings: list[Finding]) -> dict[str, Any]:
    """Return the result of a check as a record: counts, findings, and an entry for each image."""
    tasks = {}
    for name in survey.config.tasks:
        classes: dict[str, Counter[str]] = {}
        for image in survey.readable:
            if (label := image.labels.get(name)) and not label.fault:
                for class_name in label.counts:
                    classes.setdefault(class_name, Counter())[survey.split[image.number]] += 1
        tasks[name] = {"images": dict(survey.count(name)), "classes": {k: dict(v) for k, v in classes.items()}}
    return {
        "site": survey.data.key,
        "images": len(survey.rows),
        "patients": len(survey.patients),
        "tasks": tasks,
        "findings": [
            {
                "id": finding.id,
                "severity": finding.check.severity,
                "title": finding.check.title,
                "items": [{"name": item.name, "said": item.detail} for item in finding.occurrences],
            }
            for finding in findings
        ],
        "files": [
            {
                "image": survey.rows[image.number].image,
                "fault": image.fault,
                "shape": list(image.shape),
                "spacing": list(image.spacing) if image.spacing else None,
                "kind": image.value_type,
                "low": image.low,
                "high": image.high,
                "mean": image.mean,
            }
            for image in survey.examined
        ],
    }

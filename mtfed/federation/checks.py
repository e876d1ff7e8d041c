"""Checks before any work is done: every task has a site, and a run is continued by the sites that began it."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config
from ..errors import MtfedError
from ..record.run import Run
from ..strategies import SiteCard


def check_tasks(config: Config, sites: Sequence[SiteCard]) -> None:
    """Refuse to train a task that no site has labels of."""
    for task in config.tasks:
        if not any(site.tasks is None or task in site.tasks for site in sites):
            tasks = sorted({name for site in sites for name in site.tasks or ()})
            raise MtfedError(
                f"No site holds task {task!r}; the {len(sites)} sites hold {', '.join(tasks) or 'no task'}; "
                "label it at a site, or remove the task."
            )


def check_same_sites(run: Run, sites: Sequence[SiteCard]) -> None:
    """Refuse to continue a run with other sites than those that began it."""
    recorded, keys = [card["key"] for card in run.read_json("sites.json") or []], [site.key for site in sites]
    if recorded and recorded != keys:
        raise MtfedError(
            f"Expected the {len(recorded)} sites that began the run ({', '.join(recorded)}), got {', '.join(keys)}."
        )


def check_simulation(config: Config, sites: int | None) -> int:
    """Return how many sites to simulate; raise :class:`MtfedError` if the data cannot serve the config.

    Tasks that no site can validate are printed, and the number of patients without a site.
    """
    from ..data.federation import default_sites, division, simulated_site

    sites = sites or default_sites(config)
    if config.min_sites > sites:
        raise MtfedError(f"Config key min-sites: {config.min_sites} sites must join, but {sites} are simulated.")
    data = [simulated_site(config, index, sites) for index in range(sites)]
    for task in config.tasks:
        if not any(site.part("train").count(task) for site in data):
            tasks = sorted({name for site in data for row in site.part("train").rows for name in row.labels})
            raise MtfedError(
                f"No site holds task {task!r} to train it on; the {sites} sites hold "
                f"{', '.join(tasks) or 'no task of the config'}; label it in a manifest.csv, or remove the task."
            )
    if unseen := [task for task in config.tasks if not any(site.part("val").count(task) for site in data)]:
        print(f"No site has validation images of {', '.join(unseen)}, so no round is chosen by it.", flush=True)
    if not config.pooled and (divided := division(config, sites)) and (count := len(divided.left_out)):
        print(f"{count} patient{'s' * (count != 1)} went to no site; see mtfed data partition.", flush=True)
    return sites

"""Run an app folder with simulated sites, on either engine."""

from __future__ import annotations

import os
from pathlib import Path

from ..config import Config, RunConfigValue, read_config
from ..errors import MtfedError
from .app_folder import AppFolder

RunConfig = dict[str, RunConfigValue]


def simulate(app: AppFolder, run_config: RunConfig, sites: int | None, engine: str, workers: int | None) -> int:
    """Check config and data, then run; return the exit code.

    An app with a ServerApp of its own also runs, but its config is not checked here.
    """
    if app.components["serverapp"] == "mtfed.server:app":
        # All simulated sites are on this machine, so their tracebacks reveal nothing to anyone else.
        run_config = {**run_config, "share-tracebacks": True}
        sites = check_simulation(read_config(run_config), sites)
    elif sites is None:
        raise MtfedError(f"{app.path} has a ServerApp of its own; set its number of sites with --num-supernodes.")
    if engine == "ray":
        from ..models.build import build_model

        build_model(read_config(run_config), pretrained=True)  # so that a mistake is reported here, not in Flower's log
        from .flower_simulation import run_on_ray

        return run_on_ray(app, run_config, sites)
    from ..startup import garbage_collection_paused

    with garbage_collection_paused():
        from ..learning.device import pick_device
        from .local.grid import run_local

        server_app, client_app = app.load("serverapp"), app.load("clientapp")
    if run_config.get("device", "auto") != "auto":
        # Ask the driver for its GPUs: after a query through CUDA itself, workers could not be forked.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        pick_device(str(run_config["device"]))
    run_local(server_app, client_app, run_config, sites, workers)
    return 0


def check_simulation(config: Config, sites: int | None) -> int:
    """Return how many sites to simulate; raise :class:`MtfedError` if the data cannot serve the config.

    Tasks that no site can validate are printed, and the number of patients without a site.
    """
    from ..data.simulated_sites import default_sites, division, simulated_site, unlabelled_sites

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
    if not config.pooled and (hidden := [data[index].key for index in sorted(unlabelled_sites(config, sites))]):
        use = "train only the tasks that need none" if config.pretext_tasks else "train nothing"
        print(f"{len(hidden)} of {sites} sites have no labels and {use}: {', '.join(hidden)}.", flush=True)
    if unseen := [task for task in config.tasks if not any(site.part("val").count(task) for site in data)]:
        print(f"No site has validation images of {', '.join(unseen)}, so no round is chosen by it.", flush=True)
    if not config.pooled and (divided := division(config, sites)) and (count := len(divided.left_out)):
        print(f"{count} patient{'s' * (count != 1)} went to no site; see mtfed data partition.", flush=True)
    return sites


def compare(app: AppFolder, variants: list[RunConfig], sites: int | None, engine: str, workers: int | None) -> int:
    """Run an app with each of several configs, and write one page about all runs; return the exit code."""
    from ..record.run import Run
    from ..report import write_report
    from .strategy_settings import make_strategy

    def comparable(config: Config) -> Config:
        return config.model_copy(update={"share_tracebacks": True})  # simulate() sets it too

    for variant in variants:  # check all variants first, so that a typo in the last one wastes no run
        make_strategy(read_config(variant))
    config = read_config(variants[0])
    before = run_folders(config)
    for variant in variants:
        if code := simulate(app, variant, sites, engine, workers):
            return code
    created = sorted(run_folders(config) - before)
    expected = [comparable(read_config(variant)) for variant in variants]
    # Other runs may have been started at the same time.
    runs = [folder for folder in created if comparable(Run.open(folder).config()) in expected]
    print(f"comparison: {write_report(runs, runs[0].parent / f'{runs[0].name}-comparison.html')}")
    return 0


def run_folders(config: Config) -> set[Path]:
    """Return the folders of all runs that have the name and the output folder of a config."""
    return {path.parent for path in Path(config.out).expanduser().resolve().glob(f"{config.name}-*/config.json")}

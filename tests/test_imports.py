"""A site of 2D images does not import the libraries of volumes, charts and compiling, which take seconds."""

from __future__ import annotations

import json
import subprocess
import sys

from helpers import SMALL, TASKS

ROUND = """
import json, sys
import mtfed.clients.app
from mtfed.config import read_config
from mtfed.data.simulated_sites import simulated_site
from mtfed.data.loading import load_shard
from mtfed.learning.evaluate import evaluate
from mtfed.learning.train import train
from mtfed.models.build import build_model

config = read_config(json.loads(sys.argv[1]))
model, tasks, site = build_model(config), list(config.tasks), simulated_site(config, 2, 8)
result = train(model, load_shard(site.part("train"), config), tasks, config, seed=0, learning_rate=1e-3)
metrics = evaluate(model, load_shard(site.part("val"), config), tasks, config)
assert result.steps == 1 and all(task_metrics.compute() for task_metrics in metrics.values())
"""
SLOW = ("monai", "matplotlib", "torchmetrics", "torch._dynamo", "pandas", "sympy", "ray", "scipy.optimize")


def test_a_round_of_a_2d_site_imports_no_slow_library() -> None:
    config = json.dumps(TASKS | SMALL | {"local-steps": 1})
    command = [sys.executable, "-X", "importtime", "-W", "ignore", "-c", ROUND, config]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert {"torch", "timm.models", "mtfed.learning.train"} <= imported
    assert not [name for name in imported if any(f"{name}.".startswith(f"{slow}.") for slow in SLOW)]

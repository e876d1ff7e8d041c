"""The reference for round times: the same local steps in plain PyTorch, in as many forked processes, and an average.

This is what a careful engineer would write without a framework: shards in memory, one resident model per process,
weights in shared memory, and the average computed in place. It has no messages, no failure handling and no record.
"""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F

from mtfed.config import Config
from mtfed.data.loading import load_shard
from mtfed.data.shard import standardise
from mtfed.data.simulated_sites import simulated_site
from mtfed.learning.optimizer import AdamW
from mtfed.models.build import build_model


def seconds_per_round(config: Config, sites: int, rounds: int, processes: int) -> list[float]:
    """Return the wall time of each round of plain FedAvg."""
    torch.set_num_threads(1)
    model = build_model(config)
    size = sum(p.numel() for p in model.parameters())
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().share_memory_()
    sums = torch.zeros(processes, size).share_memory_()
    shards = [load_shard(simulated_site(config, i, sites).part("train"), config) for i in range(sites)]
    fork = get_context("fork")
    pipes = [fork.Pipe() for _ in range(processes)]
    workers = [
        fork.Process(target=_work, args=(pipe, config, model, weights, sums[i], shards[i::processes]), daemon=True)
        for i, (_, pipe) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    times = []
    total = sum(len(shard) for shard in shards)
    for server_round in range(rounds):
        start = time.perf_counter()
        for pipe, _ in pipes:
            pipe.send(server_round)
        for pipe, _ in pipes:
            pipe.recv()
        torch.sum(sums, 0, out=weights).div_(total)
        times.append(time.perf_counter() - start)
    for worker in workers:
        worker.kill()
        worker.join()
    return times


def _work(
    pipe: Any, config: Config, model: torch.nn.Module, weights: torch.Tensor, total: torch.Tensor, shards: list
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    while True:
        pipe.recv()
        total.zero_()
        for shard in shards:
            torch.nn.utils.vector_to_parameters(weights.clone(), model.parameters())
            optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
            labels = shard.labels["finding"].values
            for index in torch.randperm(len(shard)).split(config.batch_size):
                logits = model(standardise(shard.take(index)), {"finding": torch.arange(len(index))})["finding"]
                loss = F.cross_entropy(logits, labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            total.add_(torch.nn.utils.parameters_to_vector(model.parameters()).detach(), alpha=len(shard))
        pipe.send(True)

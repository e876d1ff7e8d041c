"""The optimiser against PyTorch's own."""

from __future__ import annotations

import subprocess
import sys

STEPS = """
import sys, torch
from mtfed.learning.optimizer import AdamW

def train(kind, fused):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        assert torch.is_grad_enabled()
    return [weight for group in optimizer.param_groups for weight in group["params"]]

own = [train(AdamW, fused) for fused in (True, False)]
assert "torch._dynamo" not in sys.modules
for weights, fused in zip(own, (True, False)):
    for _ in range(2):  # PyTorch changes its classes at their first use
        assert all(map(torch.equal, weights, train(torch.optim.AdamW, fused)))
        assert all(map(torch.equal, weights, train(AdamW, fused)))
"""


def test_steps_are_those_of_pytorchs_adamw_without_its_compiler() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", STEPS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

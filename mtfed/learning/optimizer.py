"""The optimiser of local training."""

from __future__ import annotations

import inspect

import torch


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW without the decorators that load torch's compiler, which takes about a second.

    They keep the compiler out of these methods, or break its graphs around ``step``. Here only a model's forward pass
    is ever compiled (:mod:`.acceleration`), so the plain methods do the same.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

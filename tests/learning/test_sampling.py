"""How often images are seen in local training."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from helpers import three_tasks, two_tasks
from mtfed.data.shard import Labels, Shard
from mtfed.learning.sampling import orders, split_by_key
from mtfed.learning.train import train
from mtfed.models.build import build_model

torch.set_num_threads(1)

SIZES = {"pneumonia": 81, "lungs": 9}
TASKS = list(SIZES)


def shard() -> Shard:
    """Return 100 images; ten have a mask, one of these also a class; ten have no label of the two tasks."""
    labels = {
        "pneumonia": Labels(torch.arange(82), torch.zeros(82, dtype=torch.long)),
        "lungs": Labels(torch.arange(81, 91), torch.zeros(10, dtype=torch.long)),
    }
    return Shard(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), labels)


def counts(sampling: float, passes: int) -> list[int]:
    """Return how often every image is seen."""
    torch.manual_seed(0)
    seen = Counter(torch.cat([*islice(orders(shard(), TASKS, two_tasks.config(sampling=sampling)), passes)]).tolist())
    return [seen[image] for image in range(100)]


def test_a_modality_is_a_group_of_its_own() -> None:
    words = torch.zeros(91, 2, dtype=torch.long)
    words[81:, 0] = 1
    rare = Shard(
        torch.zeros(91, 1, 2, 2, dtype=torch.uint8),
        {"pneumonia": Labels(torch.arange(91), torch.zeros(91).long())},
        words=words,
    )
    torch.manual_seed(0)
    config = two_tasks.config(sampling=0)
    drawn = torch.cat([*islice(orders(rare, ["pneumonia"], config), 20)])
    assert abs(float((drawn >= 81).float().mean()) - 0.5) < 0.05


def test_by_default_every_image_is_seen_once_in_a_pass() -> None:
    assert counts(1, 3) == [3] * 91 + [0] * 9


@pytest.mark.parametrize(("sampling", "shares"), [(0.5, (9 / 13, 1 / 13, 3 / 13)), (0, (1 / 3, 1 / 3, 1 / 3))])
def test_small_groups_are_seen_more_often(sampling: float, shares: tuple[float, ...]) -> None:
    """The groups of 81, 1 and 9 images are seen in proportion to their size to the power of sampling."""
    passes = 100
    seen = counts(sampling, passes)
    groups = seen[:81], seen[81:82], seen[82:91]
    assert sum(seen) == 91 * passes and not any(seen[91:])
    for group, share in zip(groups, shares, strict=True):
        assert sum(group) == pytest.approx(share * 91 * passes, rel=0.1)
        assert max(group) - min(group) <= 1  # each group is a cycle of its own


def test_images_without_labels_are_a_group_of_pretext_tasks() -> None:
    data, config = shard(), two_tasks.config(sampling=0, **{"task.turned.kind": "orientation"})
    data.labels["turned"] = Labels(torch.arange(100), torch.zeros(100, dtype=torch.long))
    torch.manual_seed(0)
    order = torch.cat([*islice(orders(data, ["pneumonia", "turned"], config), 100)])
    assert (order >= 82).sum() == pytest.approx(5000, rel=0.05)
    alone = next(orders(data, ["turned"], config))
    assert sorted(alone.tolist()) == list(range(100))


def test_rows_are_split_by_key() -> None:
    groups = split_by_key(torch.arange(4), torch.tensor([[0, 1], [1, 0], [0, 1], [1, 1]]))
    assert [group.tolist() for group in groups] == [[0, 2], [1], [3]]
    assert split_by_key(torch.arange(0), torch.zeros(0, 2)) == []


def test_training_repeats_a_rare_task() -> None:
    config = two_tasks.config(sampling=0.0, local_steps=30, batch_size=4)
    data = two_tasks.random_shard(16)
    data.labels["lungs"] = Labels(torch.tensor([1]), data.labels["lungs"].values[:1])
    result = train(build_model(config), data, TASKS, config, seed=0, learning_rate=1e-3)
    assert result.steps == 30 and 40 <= result.samples["lungs"] <= 70


def test_sampling_of_one_gives_the_same_weights_as_before() -> None:
    """A pass is still a permutation that is drawn when it begins."""
    torch.manual_seed(3)
    data = three_tasks.shard()
    rows = data.labelled(list(three_tasks.ROWS))
    expected = [rows[torch.randperm(len(rows))] for _ in range(2)]
    torch.manual_seed(3)
    result = [*islice(orders(data, list(three_tasks.ROWS), three_tasks.config()), 2)]
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))

"""Schedules against torch's own, and at their knots."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from resnet_ffcv.config import LearningRateConfig
from resnet_ffcv.errors import UsageError
from resnet_ffcv.schedules import SCHEDULES, learning_rate, resolution

EPOCHS, STEPS = 12, 7  # steps an epoch


def rates(config: LearningRateConfig, *, in_epochs: bool = True) -> list[float]:
    """The rate of every step of a run of EPOCHS."""
    return [
        learning_rate(
            config, step, total_steps=EPOCHS * STEPS, steps_per_epoch=STEPS, in_epochs=in_epochs,
            losses=[],
        )
        for step in range(EPOCHS * STEPS)
    ]  # fmt: skip


def by_torch(build: type, base: float, count: int, **options: object) -> list[float]:
    """What a scheduler of torch gives, stepped `count` times."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = build(optimizer, **options)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def each_step(by_epoch: list[float]) -> list[float]:
    return [rate for rate in by_epoch for _ in range(STEPS)]


def test_multistep_in_epochs_is_torchs() -> None:
    config = LearningRateConfig(schedule="multistep", base=0.1, milestones=(0.5, 0.75))
    expected = by_torch(lr_scheduler.MultiStepLR, 0.1, EPOCHS, milestones=[6, 9], gamma=0.1)
    assert rates(config) == pytest.approx(each_step(expected))


def test_multistep_in_iterations_drops_inside_an_epoch() -> None:
    config = LearningRateConfig(schedule="multistep", base=1.0, milestones=(0.3,))
    knot = round(0.3 * EPOCHS * STEPS)
    assert knot % STEPS  # not where an epoch begins
    found = rates(config, in_epochs=False)
    assert found[knot - 1 : knot + 1] == pytest.approx([1.0, 0.1])
    assert rates(config)[3 * STEPS :][: 2 * STEPS] == pytest.approx([1.0] * STEPS + [0.1] * STEPS)


def test_step_is_torchs() -> None:
    config = LearningRateConfig(schedule="step", base=0.4, gamma=0.5, step_size=0.25)
    expected = by_torch(lr_scheduler.StepLR, 0.4, EPOCHS, step_size=3, gamma=0.5)
    assert rates(config) == pytest.approx(each_step(expected))


@pytest.mark.parametrize(
    ("epochs", "size", "expected"),
    [
        (100, 1 / 3, [33, 67]),
        (100, 0.333333, [33, 67]),
        (7, 0.4, [3, 6]),
        (5, 0.01, [1, 2, 3, 4]),
        (5, 0.0, [1, 2, 3, 4]),
        (5, 1.0, []),
    ],
)
@pytest.mark.parametrize(("in_epochs", "per_epoch"), [(True, 3), (False, 1)])
def test_steps_are_rounded_each_on_its_own(
    epochs: int, size: float, expected: list[int], in_epochs: bool, per_epoch: int
) -> None:
    config = LearningRateConfig(schedule="step", base=1.0, gamma=0.5, step_size=size)
    found = [
        learning_rate(
            config, step, total_steps=epochs * per_epoch, steps_per_epoch=per_epoch,
            in_epochs=in_epochs, losses=[],
        )
        for step in range(epochs * per_epoch)
    ]  # fmt: skip
    drops = [step for step in range(1, len(found)) if found[step] < found[step - 1]]
    assert drops == [epoch * per_epoch for epoch in expected]
    assert found[-1] == 0.5 ** len(expected)


def test_cosine_is_torchs() -> None:
    config = LearningRateConfig(schedule="cosine", base=0.3, final=0.01)
    total = EPOCHS * STEPS
    options = {"T_max": total, "eta_min": 0.01}
    expected = by_torch(lr_scheduler.CosineAnnealingLR, 0.3, total, **options)
    assert rates(config) == pytest.approx(expected)


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=40),
    st.integers(0, 4),
    st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_plateau_is_torchs_replayed(losses: list[float], patience: int, threshold: float) -> None:
    config = LearningRateConfig(
        schedule="plateau", base=0.1, gamma=0.5, patience=patience / 1000, threshold=threshold
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, eps=0.0
    )
    for epoch, loss in enumerate(losses, 1):
        scheduler.step(loss)
        found = learning_rate(
            config, epoch, total_steps=1000, steps_per_epoch=1, in_epochs=True,
            losses=losses[:epoch],
        )  # fmt: skip
        assert found == pytest.approx(optimizer.param_groups[0]["lr"])


def test_triangular_has_its_peak_and_no_lost_step() -> None:
    config = LearningRateConfig(schedule="triangular", base=0.8, final=0.0, peak_at=0.25)
    found = rates(config)
    peak = EPOCHS * STEPS // 4
    assert found[0] == pytest.approx(0.8 / peak)
    assert found[peak - 1] == max(found) == pytest.approx(0.8)
    ups = [b - a for a, b in pairwise(found[:peak])]
    downs = [a - b for a, b in pairwise(found[peak - 1 :])]
    assert ups == pytest.approx([ups[0]] * len(ups))
    assert downs == pytest.approx([downs[0]] * len(downs))
    assert found[-1] == pytest.approx(downs[0])  # one step above 0


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_warm_up_rises_evenly_into_the_schedule(schedule: str) -> None:
    plain = LearningRateConfig(schedule=schedule, base=0.2, final=0.001, warmup=0)
    found = rates(replace(plain, warmup=10, warmup_start=0.02))
    end = found[10]
    assert found[0] == pytest.approx(0.02)
    assert found[5] == pytest.approx((0.02 + end) / 2)
    if schedule != "cosine":  # which begins after its warm-up
        assert found[10:] == pytest.approx(rates(plain)[10:])


@pytest.mark.parametrize("steps", [5, 10])
def test_cosine_in_a_run_no_longer_than_its_warm_up_rises_towards_base(steps: int) -> None:
    config = LearningRateConfig(schedule="cosine", base=1.0, warmup=10)
    found = [
        learning_rate(
            config, step, total_steps=steps, steps_per_epoch=1, in_epochs=False, losses=[]
        )
        for step in range(steps)
    ]
    assert found == pytest.approx([step / 10 for step in range(steps)])


def test_cosine_ends_one_step_before_final() -> None:
    config = LearningRateConfig(schedule="cosine", base=0.3, final=0.0, warmup=4)
    expected = by_torch(lr_scheduler.CosineAnnealingLR, 0.3, EPOCHS * STEPS - 4,
                        T_max=EPOCHS * STEPS - 4)  # fmt: skip
    assert rates(config)[4:] == pytest.approx(expected)
    assert rates(config)[-1] > 0


def test_patience_stretches_with_the_run() -> None:
    config = LearningRateConfig(schedule="plateau", base=0.1, patience=0.04)
    for epochs, first in ((16, 3), (50, 4), (120, 7)):  # epochs before the first drop
        before, after = (
            learning_rate(
                config, 10 * n, total_steps=10 * epochs, steps_per_epoch=10, in_epochs=True,
                losses=[1.0] * n,
            )
            for n in (first - 1, first)
        )  # fmt: skip
        assert (before, after) == pytest.approx((0.1, 0.01))


def test_the_rate_follows_from_its_arguments_alone() -> None:
    config = LearningRateConfig(schedule="plateau", base=0.1, patience=0)
    options = {"total_steps": 90, "steps_per_epoch": 10, "in_epochs": True}
    forwards = [learning_rate(config, 10 * n, losses=[1.0] * n, **options) for n in range(9)]
    backwards = [
        learning_rate(config, 10 * n, losses=[1.0] * n, **options) for n in range(8, -1, -1)
    ]
    assert forwards == backwards[::-1]
    assert forwards[:4] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_constant_warm_up_is_the_papers_for_110_layers() -> None:
    config = LearningRateConfig(
        schedule="constant", base=0.1, warmup=4, warmup_shape="constant", warmup_start=0.01
    )
    assert rates(config)[:5] == [0.01] * 4 + [0.1]


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 50),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 60),
    st.floats(0, 1),
)
def test_every_rate_is_a_number_from_0_to_base(
    schedule: str, total: int, per_epoch: int, in_epochs: bool, warmup: int, fraction: float
) -> None:
    config = LearningRateConfig(
        schedule=schedule, base=0.5, final=0.001, warmup=warmup, step_size=fraction,
        peak_at=fraction, milestones=(fraction,), cycle_rise=fraction,
    )  # fmt: skip
    for step in range(total):
        rate = learning_rate(
            config, step, total_steps=total, steps_per_epoch=per_epoch, in_epochs=in_epochs,
            losses=[1.0] * (step // per_epoch),
        )  # fmt: skip
        assert math.isfinite(rate)
        assert 0 <= rate <= 0.5 + 1e-12


def test_exponential_in_epochs_is_torchs() -> None:
    config = LearningRateConfig(schedule="exponential", base=0.1, final=0.1 * 0.8**EPOCHS)
    expected = by_torch(lr_scheduler.ExponentialLR, 0.1, EPOCHS, gamma=0.8)
    assert rates(config) == pytest.approx(each_step(expected))


@pytest.mark.parametrize(("cycles", "growth", "first"), [(3, 1, 28), (2, 2, 28), (1, 1, 84)])
def test_restarts_are_torchs(cycles: int, growth: int, first: int) -> None:
    config = LearningRateConfig(
        schedule="restarts", base=0.1, final=0.01, cycles=cycles, cycle_growth=growth
    )
    options = {"T_0": first, "T_mult": growth, "eta_min": 0.01}
    expected = by_torch(lr_scheduler.CosineAnnealingWarmRestarts, 0.1, EPOCHS * STEPS, **options)
    assert rates(config, in_epochs=False) == pytest.approx(expected)


def test_restarts_rise_to_lower_peaks() -> None:
    config = LearningRateConfig(
        schedule="restarts", base=1.0, cycles=3, cycle_peak=0.5, cycle_rise=0.25
    )
    found = rates(config, in_epochs=False)
    assert found[0] == found[28] == found[56] == 0.0
    assert [found[7], found[35], found[63]] == pytest.approx([1.0, 0.5, 0.25])
    assert max(found) == pytest.approx(1.0)
    assert found[3] == pytest.approx(3 / 7)


def test_exponential_wants_an_end_above_zero() -> None:
    with pytest.raises(UsageError, match=r"lr\.final above 0"):
        LearningRateConfig(schedule="exponential")


@given(st.integers(1, 600), st.integers(1, 600), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_resolution_grows_from_start_to_end(
    start: int, end: int, first: float, last: float, share: float
) -> None:
    growth = (min(first, last), max(first, last))
    side = resolution(start, end, growth, share)
    assert min(start, end) <= side <= max(start, end)
    assert side in (start, end) or side % 16 == 0
    assert share >= growth[0] or side == start
    assert share < growth[1] or side == end

"""The learning rate, a pure function of the step and of the validation losses so far.

So it needs no state of its own: a run that is resumed has the rate that it would have had.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resnet_ffcv.config import LearningRateConfig


@dataclass(frozen=True)
class Moment:
    """A step of a run, and what a schedule may know of both.

    Fractions of the run fall on whole epochs where its length was given in epochs (`in_epochs`),
    else on whole steps.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    in_epochs: bool
    losses: Sequence[float]  # validation losses, one an epoch, before this step

    @property
    def unit(self) -> int:
        """Fractions of the run fall on multiples of so many steps."""
        return self.steps_per_epoch if self.in_epochs else 1

    def step_at(self, fraction: float) -> int:
        """The step on which a fraction of the run falls: to the nearest, a half to the even one."""
        return round(fraction * self.total_steps / self.unit) * self.unit


def learning_rate(
    config: LearningRateConfig,
    step: int,
    *,
    total_steps: int,
    steps_per_epoch: int,
    in_epochs: bool,
    losses: Sequence[float],
) -> float:
    """The rate of a step (from 0) of a run; the arguments are those of `Moment`.

    A linear warm-up rises from `warmup_start` at step 0 to what the schedule says at its end.
    """
    schedule = SCHEDULES[config.schedule]
    moment = Moment(step, total_steps, steps_per_epoch, in_epochs, losses)
    if step >= config.warmup:
        return schedule(config, moment)
    if config.warmup_shape == "constant":
        return config.warmup_start
    end = min(config.warmup, total_steps - 1)  # a run may be shorter than its warm-up
    after = Moment(end, total_steps, steps_per_epoch, in_epochs, losses)
    share = step / config.warmup
    return config.warmup_start + (schedule(config, after) - config.warmup_start) * share


def constant(config: LearningRateConfig, _: Moment) -> float:
    """`base` throughout."""
    return config.base


def step(config: LearningRateConfig, now: Moment) -> float:
    """Times gamma after each `step_size` of the run, at most once an epoch or step.

    As torch's StepLR where `step_size` is a whole number of epochs or steps. Elsewhere each drop is
    rounded on its own: a third of 100 epochs drops at 33 and 67, not at 33, 66 and 99.
    """
    size = max(config.step_size, now.unit / now.total_steps)
    return _dropped(config, now, [count * size for count in range(1, int(1 / size) + 1)])


def multistep(config: LearningRateConfig, now: Moment) -> float:
    """Times gamma at each milestone, as torch's MultiStepLR."""
    return _dropped(config, now, config.milestones)


def _dropped(config: LearningRateConfig, now: Moment, milestones: Sequence[float]) -> float:
    passed = sum(now.step >= now.step_at(milestone) for milestone in milestones)
    return config.base * float(config.gamma**passed)


def plateau(config: LearningRateConfig, now: Moment) -> float:
    """Times gamma after more than `patience` of the run, in whole epochs, without a lower loss.

    torch's ReduceLROnPlateau (mode min, relative threshold, no cooldown, eps 0), replayed over the
    losses.
    """
    rate, best, waited = config.base, math.inf, 0
    patience = round(config.patience * now.total_steps / now.steps_per_epoch)
    for loss in now.losses:
        if loss < best * (1 - config.threshold):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            rate, waited = rate * config.gamma, 0
    return rate


def cosine(config: LearningRateConfig, now: Moment) -> float:
    """Half a cosine from `base`, at the end of the warm-up, to `final` after the last step."""
    # Not below 0: a run shorter than its warm-up rises towards `base`.
    share = max(0, now.step - config.warmup) / max(1, now.total_steps - config.warmup)
    return config.final + (config.base - config.final) * (1 + math.cos(math.pi * share)) / 2


def exponential(config: LearningRateConfig, now: Moment) -> float:
    """`base` times a power, from `base` to `final` after the last step; constant in each unit.

    In units of epochs it is torch's ExponentialLR with gamma = (final / base) ** (1 / epochs).
    """
    share = now.step // now.unit * now.unit / now.total_steps
    return config.base * float((config.final / config.base) ** share)


def restarts(config: LearningRateConfig, now: Moment) -> float:
    """`cycles` cosines to `final`, each after a rise over `cycle_rise` of it (Loshchilov 2017).

    As torch's CosineAnnealingWarmRestarts, where cycles are whole steps and nothing rises.
    """
    sizes = [config.cycle_growth**number for number in range(config.cycles)]
    ends = [now.step_at(sum(sizes[: number + 1]) / sum(sizes)) for number in range(config.cycles)]
    number = min(sum(now.step >= end for end in ends), config.cycles - 1)
    start = ends[number - 1] if number else 0
    share = (now.step - start) / max(1, ends[number] - start)
    peak = config.base * float(config.cycle_peak**number)
    if share < config.cycle_rise:
        return config.final + (peak - config.final) * share / config.cycle_rise
    fallen = (share - config.cycle_rise) / max(1 - config.cycle_rise, 1e-9)
    return config.final + (peak - config.final) * (1 + math.cos(math.pi * fallen)) / 2


def triangular(config: LearningRateConfig, now: Moment) -> float:
    """Up from `base`/n at step 0 to `base` at step n - 1, then down to `final` after the last step.

    n is `peak_at` of the run, in steps. Neither end is a step at rate 0, which would be lost.
    """
    rising = max(1, round(config.peak_at * now.total_steps))
    if now.step < rising:
        return config.base * (now.step + 1) / rising
    share = (now.step + 1 - rising) / (now.total_steps + 1 - rising)
    return config.base + (config.final - config.base) * share


SCHEDULES: dict[str, Callable[[LearningRateConfig, Moment], float]] = {
    "constant": constant,
    "step": step,
    "multistep": multistep,
    "plateau": plateau,
    "cosine": cosine,
    "exponential": exponential,
    "restarts": restarts,
    "triangular": triangular,
}


def resolution(start: int, end: int, growth: tuple[float, ...], share: float) -> int:
    """Pixels a side at a `share` of the run: `start` to `growth[0]` of it, `end` from `growth[1]`.

    Between them in steps of 16, so that few sizes are met, and none at the ends is missed.
    """
    first, last = growth
    if share >= last:
        return end
    if share < first:
        return start
    grown = start + (end - start) * (share - first) / (last - first)
    low, high = sorted((start, end))
    return min(max(round(grown / 16) * 16, low), high)

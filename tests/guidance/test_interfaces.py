"""What guidance admits: memory of a trajectory, counted and batched questions, scales over time, transforms of the sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Counting, noise, small_classifier, small_denoiser

from sag.diffusion import DDIM, DDPM, Condition, GaussianDiffusion, Sampler, Schedule, sample
from sag.guidance import (
    BlurGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DifferenceTransform,
    GuidanceRescale,
    GuidedDenoiser,
    Question,
    ScaleSchedule,
    SelfAttentionGuidance,
    WeakGuidance,
)

SHAPE = (2, 3, 16, 16)
X = noise(7, 0, SHAPE)
Y = Condition(torch.tensor([1, 3]), null_label=4)


def conditional(steps=4):
    return small_denoiser(steps, num_classes=5, null_label=4)


def sag(**changes):
    return SelfAttentionGuidance(**{"scale": 0.5, "layer": "output.1", "blur_sigma": 2.0, "blur_kernel": 9, **changes})


class Perturbed(WeakGuidance):
    """Perturbed-attention guidance (arXiv:2403.17377): a layer attends to each position alone."""

    def __init__(self, scale, layer, interval=(0.0, 1.0)):
        super().__init__(scale, interval)
        self.layer = layer

    def question(self, state):
        return Question(state.x_t, state.condition("cond"), attend={self.layer: lambda q, k, v, size: v})


class Reuse(BlurGuidance):
    """Asks at every second t, and takes the difference of the step before in between."""

    def question(self, state):
        remembered = state.recall(self)
        return None if remembered is not None and remembered.t == state.t + 1 else super().question(state)

    def weak(self, state, answer):
        first = state.prediction("cond")
        if answer is None:
            return replace(first, eps=first.eps - state.recall(self).tensors["difference"])
        state.remember(self, {"difference": first.eps - answer.eps})
        return answer


class Spy(WeakGuidance):
    """Counts the steps of its own memory, and notes what it was told of them."""

    def __init__(self, scale=1e-9, interval=(0.0, 1.0)):
        super().__init__(scale, interval)
        self.told = []

    def question(self, state):
        return state.question("cond")

    def weak(self, state, answer):
        remembered = state.recall(self)
        count = 0 if remembered is None else int(remembered.tensors["count"])
        self.told.append((state.t, count, None if remembered is None else remembered.t))
        state.remember(self, {"count": torch.tensor(count + 1)})
        return answer


def walk(denoiser, sampler, condition=None):
    return [step.x for step in sample(denoiser, sampler, X, condition, noise=lambda t: noise(11, t, SHAPE))]


def test_memory_is_of_the_trajectory_and_reuse_saves_passes():
    technique = Reuse(1.0, 2.0, 9)
    for _ in range(2):  # a second trajectory starts without the memory of the first
        counting = Counting(small_denoiser(5))
        guided = GuidedDenoiser(counting, [technique])
        expected = [guided.passes(t) for t in range(5)]
        walk(guided, DDIM(5))
        assert expected == [2, 1, 2, 1, 2]
        assert counting.calls == sum(expected)
    assert not torch.equal(walk(guided, DDIM(5))[-1], walk(GuidedDenoiser(counting, [BlurGuidance(1.0, 2.0, 9)]), DDIM(5))[-1])


def test_a_technique_that_is_off_keeps_its_memory():
    spy = Spy(interval=(0.0, 0.9))  # t = 3 is at time 0.666
    other = Spy(scale=lambda time: 0.0 if 0.3 < time < 0.7 else 1e-9)  # off at two steps in the middle
    walk(GuidedDenoiser(small_denoiser(4), [spy, other]), DDIM(4))
    assert spy.told == [(2, 0, None), (1, 1, 2), (0, 2, 1)]
    assert other.told == [(3, 0, None), (0, 1, 3)]


def test_nested_denoisers_do_not_see_each_others_memory():
    inner, outer, both = Spy(), Spy(), Spy()
    nested = GuidedDenoiser(GuidedDenoiser(conditional(), [inner, both]), [outer, both, Perturbed(1.0, "middle")])
    walk(nested, DDIM(4), Y)
    assert [count for _, count, _ in outer.told] == [0, 1, 2, 3]
    assert [count for _, count, _ in inner.told] == [0, 0, 1, 1, 2, 2, 3, 3]  # once for x_t, once for the perturbed question
    assert sorted(count for _, count, _ in both.told) == sorted([0, 1, 2, 3] * 3)
    branches = GuidedDenoiser(GuidedDenoiser(conditional(), [spy := Spy()]), [ClassifierFreeGuidance(1.0)])
    walk(branches, DDIM(4), Y)
    assert [count for _, count, _ in spy.told] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_what_a_sampler_asks_again_is_forgotten():
    spy = Spy()

    class AsksTwice(Sampler):
        def step(self, diffusion, x_t, t, prediction, noise, history=(), predict=None):
            predict(x_t, t)
            return DDIM(4).step(diffusion, x_t, t, prediction, noise)

    walk(GuidedDenoiser(small_denoiser(4), [spy]), AsksTwice(4))
    assert [count for _, count, _ in spy.told] == [0, 1, 1, 2, 2, 3, 3, 4]


def test_passes_are_counted():
    for guidance, expected in (
        ([Spy()], 1),
        ([Perturbed(1.0, "middle")], 2),
        ([Perturbed(1.0, "middle"), ClassifierFreeGuidance(1.0), sag()], 4),
        ([GuidanceRescale(0.7), sag()], 2),
    ):
        counting = Counting(conditional())
        guided = GuidedDenoiser(counting, guidance)
        walk(guided, DDIM(4), Y)
        assert counting.calls == sum(guided.passes(t) for t in range(4)) == 4 * expected
    counting = Counting(conditional())
    nested = GuidedDenoiser(GuidedDenoiser(counting, [ClassifierFreeGuidance(1.0)]), [sag(interval=(0, 0.5))])
    walk(nested, DDIM(4), Y)
    assert [nested.passes(t) for t in range(4)] == [4, 4, 2, 2]
    assert counting.calls == 12


def test_passes_of_a_technique_that_looks_at_values_and_of_large_samples_are_counted():
    class Looks(BlurGuidance):
        def question(self, state):
            assert state.x_t.abs().max() < 100  # cannot be told on the meta device
            return super().question(state)

    assert GuidedDenoiser(small_denoiser(), [Looks(1.0, 2.0, 9)]).passes(0) == 2
    wide = GuidedDenoiser(small_denoiser(), [BlurGuidance(1.0, 9.0, 51)])
    assert wide.passes(0, (3, 64, 64)) == 2


@pytest.mark.parametrize("sampler", [DDPM(4), DDIM(4)], ids=["ddpm", "ddim"])
def test_batched_questions_give_the_same_samples(sampler):
    techniques = [sag(), Perturbed(0.7, "middle"), Perturbed(0.3, "output.1"), ClassifierFreeGuidance(1.5)]
    techniques += [BlurGuidance(0.2, 1.0, 9), ClassifierGuidance(small_classifier(), 1.0), sag(mask="random", branch="cond")]
    calls, ends = [], []
    for batched in (False, True):
        counting = Counting(conditional())
        guided = GuidedDenoiser(counting, techniques, lambda t, size: noise(9, t, (2, *size)), batched=batched)
        ends.append(walk(guided, sampler, Y)[0])  # one step: random weights enlarge rounding
        assert guided.passes(0) == 7
        calls.append(counting.calls)
    assert calls == [28, 8]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=2e-4)


def test_questions_of_other_sizes_are_asked_in_their_own_batch():
    class Enlarged(WeakGuidance):
        def question(self, state):
            return Question(F.interpolate(state.x_t, scale_factor=2), state.condition("cond"))

        def weak(self, state, answer):
            return replace(answer, eps=F.avg_pool2d(answer.eps, 2))

    techniques, ends = [Enlarged(0.5, (0, 1)), BlurGuidance(0.2, 1.0, 9), Perturbed(0.7, "middle")], []
    for batched, calls in ((False, 4), (True, 3)):
        counting = Counting(conditional())
        ends.append(GuidedDenoiser(counting, techniques, batched=batched)(X, 2, Y).eps)
        assert counting.calls == calls
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-4)


def test_a_guided_denoiser_is_not_asked_in_batches():
    with pytest.raises(ValueError, match="batched=True needs an unguided inner denoiser"):
        GuidedDenoiser(GuidedDenoiser(small_denoiser(), []), [sag()], batched=True)


def test_scales_over_time():
    linear, cosine = ScaleSchedule(2.0, 0.0), ScaleSchedule(2.0, 1.0, "cosine")
    assert [linear(time) for time in (0, 0.25, 1)] == [0, 0.5, 2]
    assert [cosine(time) for time in (0, 0.5, 1)] == pytest.approx([1, 1.5, 2])
    denoiser = small_denoiser(4)
    falling = GuidedDenoiser(denoiser, [BlurGuidance(linear, 2.0, 9)])
    for t in range(4):
        time = float(denoiser.diffusion.schedule.time[t])
        constant = GuidedDenoiser(denoiser, [BlurGuidance(2.0 * time, 2.0, 9)])
        assert torch.equal(falling(X, t).eps, constant(X, t).eps)
        assert falling.passes(t) == (1 if t == 0 else 2)  # at t = 0 the scale is 0: exactly off
    classifier = small_classifier()
    scores = [
        GuidedDenoiser(conditional(), [ClassifierGuidance(classifier, scale)])(X, 3, Y).score
        for scale in (ScaleSchedule(3.0, 3.0), 3.0)
    ]
    assert torch.equal(*scores)
    assert not BlurGuidance(linear, 2.0, 9, interval=(0, 0.5)).active(0.75)


@pytest.mark.parametrize("scale", [[1.0], "much", None])
def test_what_is_no_scale_is_said(scale):
    with pytest.raises(ValueError, match="scale must be a number or a function of time, got"):
        sag(scale=scale)


def test_unknown_shapes_of_scales_are_named():
    with pytest.raises(ValueError, match="unknown scale shape 'square'; expected one of linear, cosine"):
        ScaleSchedule(1.0, 0.0, "square")


def test_rescaling_brings_the_deviation_of_the_clean_image_back():
    denoiser, cfg, diffusion = conditional(), ClassifierFreeGuidance(4.0), small_denoiser().diffusion
    deviations = {}
    for phi in (None, 0.0, 0.5, 1.0):
        guidance = [cfg] if phi is None else [cfg, GuidanceRescale(phi)]
        deviations[phi] = diffusion.x0_from_eps(X, 2, GuidedDenoiser(denoiser, guidance)(X, 2, Y).eps).flatten(1).std(1)
    plain = diffusion.x0_from_eps(X, 2, denoiser(X, 2, Y).eps).flatten(1).std(1)
    assert torch.equal(deviations[None], deviations[0.0])
    torch.testing.assert_close(deviations[1.0], plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deviations[0.5], (deviations[0.0] + plain) / 2, rtol=1e-4, atol=1e-4)
    assert (deviations[0.0] - plain).abs().min() > 1e-3


def test_without_a_difference_there_is_nothing_to_rescale():
    denoiser = conditional()
    alone = GuidedDenoiser(denoiser, [GuidanceRescale(0.7), ClassifierGuidance(small_classifier(), 1.0)])
    assert torch.equal(alone(X, 2, Y).eps, denoiser(X, 2, Y).eps)


def test_transforms_change_the_sum_in_their_order_and_may_remember():
    class Momentum(DifferenceTransform):
        """The running sum of adaptive projected guidance (arXiv:2410.02416)."""

        def transform(self, state, x_0, difference):
            before = state.recall(self)
            running = difference + (0 if before is None else self.scale * before.tensors["running"])
            state.remember(self, {"running": running})
            return running

    class Double(DifferenceTransform):
        def transform(self, state, x_0, difference):
            return 2 * difference

    class Shift(DifferenceTransform):
        def transform(self, state, x_0, difference):
            return difference + 0.1

    denoiser, blur = small_denoiser(), BlurGuidance(0.5, 2.0, 9)
    x0 = [
        denoiser.diffusion.x0_from_eps(X, 2, GuidedDenoiser(denoiser, [*transforms, blur])(X, 2).eps)
        for transforms in ([], [Double(1, (0, 1)), Shift(1, (0, 1))], [Shift(1, (0, 1)), Double(1, (0, 1))])
    ]
    plain = denoiser.diffusion.x0_from_eps(X, 2, denoiser(X, 2).eps)
    torch.testing.assert_close(x0[1], plain + 2 * (x0[0] - plain) + 0.1, rtol=0, atol=2e-4)
    torch.testing.assert_close(x0[2], x0[1] + 0.1, rtol=0, atol=2e-4)
    ends = [walk(GuidedDenoiser(denoiser, [blur, *extra]), DDIM(4)) for extra in ([], [Momentum(-0.5, (0, 1))])]
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-3)  # nothing to remember yet
    assert not torch.allclose(ends[0][1], ends[1][1], rtol=0, atol=1e-3)


def test_velocities_are_summed_where_the_network_predicts_them():
    """Perturbed attention changes the answer and not the question, so that it may be written in any of the three."""
    base = small_denoiser(out_channels=3)
    schedule, answers = base.diffusion.schedule, {}
    for prediction in ("v", "flow"):
        diffusion = GaussianDiffusion(schedule, None, prediction, clip_denoised=False)
        denoiser = replace(base, diffusion=diffusion)
        plain, guided = (GuidedDenoiser(denoiser, g)(X, 2) for g in ([], [Perturbed(1.5, "middle")]))
        weak = denoiser(X, 2, attend={"middle": lambda q, k, v, size: v})
        torch.testing.assert_close(guided.eps, plain.eps + 1.5 * (plain.eps - weak.eps), rtol=0, atol=1e-4)
        torch.testing.assert_close(guided.x_0, plain.x_0 + 1.5 * (plain.x_0 - weak.x_0), rtol=0, atol=1e-4)
        torch.testing.assert_close(diffusion.q_sample(guided.x_0, 2, guided.eps), X, rtol=0, atol=1e-4)
        blurred = GuidedDenoiser(denoiser, [BlurGuidance(1.5, 2.0, 9)])(X, 2)  # another x_t is asked, and x_t still comes out
        torch.testing.assert_close(diffusion.q_sample(blurred.x_0, 2, blurred.eps), X, rtol=0, atol=1e-4)
        answers[prediction] = blurred.eps
    assert not torch.equal(answers["v"], answers["flow"])


def test_rescaling_and_blur_work_where_there_is_no_signal():
    diffusion = GaussianDiffusion(Schedule.flow(100).respace(4), None, "flow")
    denoiser = replace(small_denoiser(out_channels=3), diffusion=diffusion)
    guided = GuidedDenoiser(denoiser, [BlurGuidance(1.5, 2.0, 9), GuidanceRescale(0.7)])
    *_, last = sample(guided, DDIM(4), X, noise=lambda t: X)
    assert np.isfinite(last.x.numpy()).all()

"""Guidance: off means off, every option does something, and combinations are the sums they are documented as."""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, Counting, noise, small_classifier, small_denoiser

from sag.checkpoints import load_network
from sag.diffusion import DDIM, DDPM, Condition, Denoiser, GaussianDiffusion, Schedule, sample
from sag.guidance import (
    BlurGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    GuidedDenoiser,
    SelfAttentionGuidance,
    attention_mass,
    gaussian_blur,
)
from sag.models import Attention, UNet
from sag.noise import SampleNoise

SHAPE = (2, 3, 16, 16)
X = noise(7, 0, SHAPE)
Y = Condition(torch.tensor([1, 3]), null_label=4)
T = 2


def sag(**changes):
    return SelfAttentionGuidance(**{"scale": 0.5, "layer": "output.1", "blur_sigma": 2.0, "blur_kernel": 9, **changes})


def random(t, size):
    return noise(9, t, (2, *size))


def eps(denoiser, guidance, t=T, y=None):
    return GuidedDenoiser(denoiser, guidance, random)(X, t, y).eps


def conditional(**changes):
    """A class-conditional denoiser of 4 classes and a null class."""
    return small_denoiser(num_classes=5, null_label=4, **changes)


@pytest.mark.parametrize("sampler", [DDPM(4), DDIM(4)], ids=["ddpm", "ddim"])
def test_scale_zero_is_one_pass_and_bit_equal_to_no_guidance(sampler):
    off = [sag(scale=0), BlurGuidance(0, 2.0, 9), ClassifierFreeGuidance(0), ClassifierGuidance(small_classifier(), 0)]
    ends = []
    for guidance in ([], off):
        counting = Counting(conditional())
        *_, last = sample(GuidedDenoiser(counting, guidance), sampler, X, Y, noise=lambda t: noise(11, t, SHAPE))
        assert counting.calls == 4
        ends.append(last.x)
    *_, plain = sample(conditional(), sampler, X, Y, noise=lambda t: noise(11, t, SHAPE))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], plain.x)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.6},
        {"layer": "middle"},
        {"blur_sigma": 1.0},
        {"blur_kernel": 5},
        {"threshold": 1.2},
        {"heads": "released"},
        {"blend": "noisy"},
        {"branch": "cond"},
        {"mask": "global"},
        {"mask": "random"},
        {"mask": "square"},
        {"mask": "high_frequency"},
        {"interval": (0.9, 1.0)},
    ],
    ids=str,
)
def test_every_option_of_sag_changes_the_prediction(change):
    denoiser = conditional()
    cfg = ClassifierFreeGuidance(1.0)
    assert not torch.equal(eps(denoiser, [cfg, sag()], y=Y), eps(denoiser, [cfg, sag(**change)], y=Y))


@pytest.mark.parametrize(
    "change", [{"scale": 0.6}, {"blur_sigma": 1.0}, {"blur_kernel": 5}, {"branch": "cond"}, {"interval": (0.9, 1.0)}], ids=str
)
def test_every_option_of_blur_guidance_changes_the_prediction(change):
    denoiser, options = conditional(), {"scale": 0.5, "blur_sigma": 2.0, "blur_kernel": 9}
    cfg = ClassifierFreeGuidance(1.0)
    assert not torch.equal(
        eps(denoiser, [cfg, BlurGuidance(**options)], y=Y), eps(denoiser, [cfg, BlurGuidance(**{**options, **change})], y=Y)
    )


@pytest.mark.parametrize("change", [{"scale": 2.0}, {"interval": (0.9, 1.0)}], ids=str)
def test_every_option_of_label_guidance_changes_the_prediction(change):
    denoiser, classifier = conditional(), small_classifier()

    def score(**options):
        return GuidedDenoiser(denoiser, [ClassifierGuidance(classifier, **{"scale": 1.0, **options})])(X, T, Y).score

    changed = score(**change)
    assert changed is None or not torch.equal(score(), changed)
    assert not torch.equal(
        eps(denoiser, [ClassifierFreeGuidance(1.0)], y=Y),
        eps(denoiser, [ClassifierFreeGuidance(**{"scale": 1.0, **change})], y=Y),
    )


def test_the_blur_is_a_reflecting_convolution():
    x = noise(3, 0, (2, 3, 20, 33))
    offsets = torch.arange(-15, 16, dtype=torch.float64)
    line = torch.exp(-0.5 * (offsets / 3.0) ** 2)
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum()).expand(3, 1, 31, 31)
    expected = F.conv2d(F.pad(x.double(), (15, 15, 15, 15), mode="reflect"), kernel, groups=3)
    torch.testing.assert_close(gaussian_blur(x, 3.0, 31).double(), expected, rtol=0, atol=1e-6)
    assert gaussian_blur(x[:, :, :16, :16], 3.0, 31).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="blur_kernel of 31 needs images of at least 16 pixels, got 15x33; use blur_kernel=29"):
        gaussian_blur(x[:, :, :15], 3.0, 31)


def attention(heads, channels, size, seed=0):
    return Attention(*(noise(seed, i, (2, heads, size[0] * size[1], channels)) for i in range(3)), size)


def test_mass_is_the_mean_over_heads_of_the_attention_summed_over_queries():
    a = attention(3, 8, (4, 6))
    weights = torch.einsum("nhqd,nhkd->nhqk", a.q, a.k).div(8**0.5).softmax(-1)
    expected = weights.sum(dim=2).mean(dim=1).view(2, 4, 6)
    torch.testing.assert_close(attention_mass(a), expected)
    torch.testing.assert_close(attention_mass(a).mean(dim=(1, 2)), torch.ones(2))


def test_released_heads_are_the_true_ones_where_there_are_four():
    torch.testing.assert_close(attention_mass(attention(4, 8, (4, 4)), "released"), attention_mass(attention(4, 8, (4, 4))))
    eight = attention(8, 8, (4, 4))
    assert not torch.allclose(attention_mass(eight, "released"), attention_mass(eight))


def test_a_global_mask_is_blur_guidance():
    assert torch.equal(eps(small_denoiser(), [sag(mask="global")]), eps(small_denoiser(), [BlurGuidance(0.5, 2.0, 9)]))


def test_a_threshold_above_all_mass_degrades_nothing():
    """With an empty mask the noisy blend asks about x_t itself, so guidance vanishes."""
    denoiser = small_denoiser()
    torch.testing.assert_close(eps(denoiser, [sag(threshold=1e9, blend="noisy")]), denoiser(X, T).eps)


@pytest.mark.parametrize("kind", ["random", "square", "high_frequency"])
def test_ablation_masks_cover_as_many_positions_as_the_attention_mask(kind):
    masks = []
    for mask in ("attention", kind):
        technique = sag(mask=mask)
        plain = technique.mask
        technique.mask = lambda *a, plain=plain: masks.append(plain(*a)) or masks[-1]
        eps(small_denoiser(), [technique])
    assert masks[0].any()
    assert not masks[0].all()
    assert torch.equal(masks[0].sum(dim=(1, 2)), masks[1].sum(dim=(1, 2)))
    assert not torch.equal(*masks)


def test_sag_is_eps_plus_s_times_the_difference():
    denoiser = small_denoiser()
    plain, one, three = (eps(denoiser, [sag(scale=s)]) for s in (0, 1, 3))
    torch.testing.assert_close(three - plain, 3 * (one - plain), rtol=1e-4, atol=1e-4)


def test_with_classifier_free_guidance_the_published_sum_comes_out():
    """eps_u + w (eps_c - eps_u) + s (eps_u - eps_u'), all of SAG from the unconditional branch; w = 1 + scale."""
    denoiser = conditional()
    null = Y.null()
    eps_c, eps_u = denoiser(X, T, Y).eps, denoiser(X, T, null).eps
    unconditional = GuidedDenoiser(denoiser, [sag(scale=1.0)])(X, T, null).eps - eps_u  # eps_u - eps_u'
    expected = eps_u + 3.0 * (eps_c - eps_u) + 0.5 * unconditional
    torch.testing.assert_close(eps(denoiser, [ClassifierFreeGuidance(2.0), sag()], y=Y), expected, rtol=0, atol=1e-4)


def test_predictions_are_shared_between_techniques():
    classifier = ClassifierGuidance(small_classifier(), 1.0)
    for guidance, passes in (
        ([], 1),
        ([sag()], 2),
        ([sag(), BlurGuidance(1, 2.0, 9)], 3),
        ([ClassifierFreeGuidance(1)], 2),
        ([ClassifierFreeGuidance(1), sag(), classifier], 3),
        ([sag(branch="cond"), ClassifierFreeGuidance(1)], 3),
        ([classifier], 1),
    ):
        counting = Counting(conditional())
        guided = GuidedDenoiser(counting, guidance)
        guided(X, T, Y)
        assert counting.calls == guided.passes(T) == passes


def test_order_of_techniques_does_not_matter():
    techniques = [sag(), ClassifierFreeGuidance(1.0), BlurGuidance(0.3, 1.0, 9)]
    denoiser = conditional()
    torch.testing.assert_close(eps(denoiser, techniques, y=Y), eps(denoiser, techniques[::-1], y=Y))


def test_the_interval_is_in_time_whatever_the_number_of_steps():
    technique = sag(interval=(0.3, 0.7))
    for steps in (10, 25, 250):
        schedule = small_denoiser(steps).diffusion.schedule
        guided = GuidedDenoiser(small_denoiser(steps), [technique])
        on = [float(schedule.time[t]) for t in range(steps) if guided.active(t)]
        assert all(0.3 <= time <= 0.7 for time in on)
        assert len(on) == pytest.approx(0.4 * steps, abs=1)


def test_a_guided_denoiser_nests():
    inner = GuidedDenoiser(conditional(), [ClassifierFreeGuidance(1.0)])
    outer = GuidedDenoiser(inner, [sag()])
    prediction = outer(X, T, Y, capture=["middle"])
    assert set(prediction.attention) == {"middle", "output.1"}
    assert not torch.equal(prediction.eps, inner(X, T, Y).eps)
    assert outer.attention_layers == inner.attention_layers


def in_batches(size, count, shape, sampler, guided):
    """`count` samples made `size` at a time; guided(source) gives the guided denoiser."""
    rows = []
    for start in range(0, count, size):
        source = SampleNoise(3, range(start, start + size), shape, torch.device("cpu"))
        y = Condition(torch.arange(start, start + size) % 4, null_label=4)
        denoiser = guided(source)
        *_, last = sample(denoiser, sampler, source.initial(), y, noise=source.step)
        rows.append(last.x)
    return torch.cat(rows)


@pytest.mark.parametrize(("steps", "bound"), [(5, 1e-5), pytest.param(50, 2e-5, marks=pytest.mark.slow)])
def test_real_samples_are_the_same_in_batches_of_1_4_and_8(steps, bound):
    """The bound for 50 steps is above what processors of several kinds show, 8e-6 to 1.1e-5: rounding grows on the way."""
    network = UNet.from_flags(json.loads((GOLDEN / "fashion32_reference.json").read_text()))
    load_network(network, str(GOLDEN / "fashion32_reference.pt"))
    denoiser = Denoiser(network, GaussianDiffusion(Schedule.linear().respace(steps)))
    technique = SelfAttentionGuidance(0.3, "output.2", 1)
    alone, four, eight = (
        in_batches(size, 8, (3, 32, 32), DDPM(steps), lambda source: GuidedDenoiser(denoiser, [technique]))
        for size in (1, 4, 8)
    )
    torch.testing.assert_close(four, alone, rtol=0, atol=bound)
    torch.testing.assert_close(eight, alone, rtol=0, atol=bound)


@pytest.mark.parametrize("sampler", [DDPM(5), DDIM(5)], ids=["ddpm", "ddim"])
def test_no_technique_mixes_the_samples_of_a_batch(sampler):
    """Random weights enlarge rounding differences more than trained ones do, but a mixed batch would differ by tenths."""
    denoiser, classifier = conditional(steps=5), small_classifier()

    def guided(source):
        techniques = [sag(mask="random"), sag(mask="square"), sag(mask="high_frequency"), sag(), ClassifierFreeGuidance(0.5)]
        return GuidedDenoiser(denoiser, [*techniques, ClassifierGuidance(classifier, 1.0)], source.mask)

    alone, eight = (in_batches(size, 8, (3, 16, 16), sampler, guided) for size in (1, 8))
    torch.testing.assert_close(eight, alone, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sag(heads=4), "heads must be own or released"),
        (lambda: sag(mask="circle"), "unknown mask 'circle'; expected one of attention, global"),
        (lambda: sag(blend="dirty"), "blend must be clean or noisy"),
        (lambda: sag(branch="both"), "branch must be cond or uncond"),
        (lambda: sag(blur_kernel=8), "odd number of taps, got 8"),
        (lambda: sag(blur_sigma=0), "blur_sigma must be positive"),
        (lambda: sag(interval=(0.7, 0.3)), "0 <= low <= high <= 1"),
        (lambda: sag(interval=(0.7,)), "two times"),
        (lambda: GuidedDenoiser(small_denoiser(), [sag(layer="output.7")]), "unknown attention layer 'output.7'.*output.1 "),
        (lambda: GuidedDenoiser(small_denoiser(), [ClassifierFreeGuidance(1.0)]), "needs a network trained with a null class"),
        (
            lambda: GuidedDenoiser(small_denoiser(use_new_attention_order=True), [sag(heads="released")]),
            "heads=released is not defined for layer output.1",
        ),
        (
            lambda: eps(conditional(), [ClassifierGuidance(small_classifier(image_size=32), 1.0)], y=Y),
            r"images of shape \(3, 32, 32\)",
        ),
        (lambda: eps(small_denoiser(), [ClassifierGuidance(small_classifier(), 1.0)]), "classifier guidance needs labels"),
        (lambda: GuidedDenoiser(small_denoiser(), [sag(mask="random")])(X, T), "random mask needs random numbers"),
        (lambda: eps(small_denoiser(), [sag(blur_kernel=33)]), "needs images of at least 17 pixels, got 16x16"),
    ],
)
def test_what_cannot_work_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()

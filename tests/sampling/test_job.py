"""Jobs and runs of models of any kind: what is refused, and a latent model from its noise to an npz."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from helpers import small_denoiser

import sag
from sag.data import ArrayImages, to_values
from sag.diffusion import DDIM, Condition, GaussianDiffusion, Prediction, Schedule
from sag.records import shared_key
from sag.sampling import Job

MEAN = torch.tensor([0.6, -0.4]).view(2, 1, 1)


@dataclass(frozen=True)
class ToyLatent:
    """The exact denoiser of two latent numbers, Gaussian with standard deviation 0.1 around MEAN; each is half an image."""

    diffusion: GaussianDiffusion = field(
        default_factory=lambda: GaussianDiffusion(Schedule.flow(1000), None, "flow", clip_denoised=False)
    )
    shape = (2, 1, 1)
    num_classes = None
    attention_layers = {}  # noqa: RUF012

    def respace(self, steps):
        return replace(self, diffusion=self.diffusion.respace(steps))

    def condition(self, labels=None, low_res=None):
        return Condition(labels, low_res=low_res)

    def decode(self, x_0):
        return x_0.permute(0, 2, 1, 3).repeat_interleave(4, dim=2).expand(-1, 3, 8, 8)

    def __call__(self, x_t, t, condition=None, *, capture=(), attend=None, memory=None):
        signal, noise = (float(table[t]) for table in (self.diffusion.schedule.signal, self.diffusion.schedule.noise))
        off = (x_t - signal * MEAN) / (signal**2 * 0.1**2 + noise**2)
        return Prediction(noise * off, x_0=MEAN + signal * 0.1**2 * off)


def test_a_latent_model_goes_from_its_noise_to_an_npz(tmp_path):
    job = Job(ToyLatent(), {"model": "toy"}, range(50), sampler=DDIM(50), batch_size=20, bits=16)
    assert (job.shape, job.image_shape, job.target) == ((2, 1, 1), (3, 8, 8), "samples_50x8x8x3.npz")
    sampled = sag.sampling.run(job, tmp_path / "out")
    with np.load(sampled.path, allow_pickle=False) as arrays:
        values = to_values(arrays["arr_0"], [-1, 1])
    assert values.shape == (50, 8, 8, 3)
    for half, mean in ((values[:, :4], 0.6), (values[:, 4:], -0.4)):
        assert np.ptp(half, axis=(1, 2, 3)).max() == 0  # one latent number is the whole half
        assert half[:, 0, 0, 0].mean() == pytest.approx(mean, abs=4 * 0.1 / 50**0.5)
        assert half[:, 0, 0, 0].std() == pytest.approx(0.1, rel=0.35)
    assert sag.sampling.progress(tmp_path / "out").finished == sampled.path
    assert (sampled.new, sag.sampling.run(job, tmp_path / "out").new) == (True, False)


def test_runs_continue_each_other_if_their_settings_are_equal(tmp_path):
    job = Job(small_denoiser(), {"model": "small"}, range(3), sampler=DDIM(2), batch_size=2)
    first = sag.sampling.run(job, tmp_path / "out")
    longer = sag.sampling.run(replace(job, indices=range(5)), tmp_path / "out")
    assert longer.record["reused"] == 3
    assert np.array_equal(np.load(first.path)["arr_0"], np.load(longer.path)["arr_0"][:3])
    with pytest.raises(ValueError, match=r"holds results of other settings.*model \(small there, large here\)"):
        sag.sampling.run(replace(job, settings={"model": "large"}), tmp_path / "out")


def test_progress_is_told_while_samples_are_made(tmp_path):
    seen = []
    job = Job(small_denoiser(), {"model": "small"}, range(3), sampler=DDIM(2), batch_size=2)
    sag.sampling.run(job, tmp_path / "out", watch=seen.append)
    assert seen == [1, 2, 2.5, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 7}, "bits must be 8 or 16, got 7"),
        ({"bits": "8"}, "bits must be 8 or 16, got '8'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "4"}, "batch_size must be at least 1, got '4'"),
        ({"batch_size": True}, "batch_size must be at least 1, got True"),
        ({"indices": []}, "indices must be one or more different whole numbers >= 0"),
        ({"indices": [0, 0]}, "indices must be one or more different whole numbers >= 0"),
        ({"indices": [-1]}, "indices must be one or more different whole numbers >= 0"),
        ({"indices": [0.5, 1]}, "indices must be one or more different whole numbers >= 0"),
        ({"indices": 5}, "indices must be one or more different whole numbers >= 0, got 5"),
        ({"labels": [1]}, "labels must have one row for each of the 3 samples, got 1"),
        ({"low_res": ArrayImages(np.zeros((2, 4, 4, 3), np.uint8))}, "low_res must have one row for each of the 3 samples"),
        ({"duplicates": "ignore"}, "duplicates must be refuse, warn or null, got 'ignore'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        Job(**{"denoiser": ToyLatent(), "settings": {}, "indices": range(3), **arguments})


def test_a_seed_out_of_range_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*64\), got -1"):
        sag.sampling.run(Job(ToyLatent(), {}, range(3), seed=-1, sampler=DDIM(2)), tmp_path / "out")
    assert not list(tmp_path.rglob("*.npz"))


def test_a_job_of_a_config_has_the_names_that_the_program_gives():
    cfg = sag.compose("sample", ["num_samples=5", "batch_size=2", "device=cpu", "sampler.steps=2"])
    job = sag.build.job(cfg)
    assert list(job.shards) == ["00000000-00000001.npz", "00000002-00000003.npz", "00000004-00000004.npz"]
    assert job.key == shared_key(sag.build.identity(cfg))
    assert torch.isfinite(job.make([4])).all()

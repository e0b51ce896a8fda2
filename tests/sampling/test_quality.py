"""A statistical regression: what no exact test sees, such as samples that are a little worse, shows in their scores."""

import pytest

import sag
from evaluations.score_files import score_files

STORED = {"fid": (1.594, 0.092), "sfid": (4.502, 0.127), "is": (6.475, 0.067)}  # mean and standard deviation


@pytest.mark.slow
def test_2000_samples_of_the_bundled_model_are_as_good_as_ever(tmp_path):
    """Their scores are within three standard deviations of the stored mean, which is that of the seeds 1 to 8.

    The numbers are those of this command, with torch 2.14; it takes a minute for each seed on one core:

        python scripts/reproduce.py table=fashion "rows=[no guidance]" seeds=[1,2,3,4,5,6,7,8] \\
            "common=[model=fashion32,labels=balanced,sampler=ddim,sampler.steps=ddim8,batch_size=250]"
    """
    few_steps = ["labels=balanced", "sampler=ddim", "sampler.steps=ddim8", "batch_size=250"]
    cfg = sag.compose("sample", ["guidance=[]", *few_steps, "num_samples=2000", "seed=9", "device=cpu"])
    sampled = sag.sampling.run(sag.build.job(cfg), tmp_path / "run")
    found = score_files(sampled.path, metrics=list(STORED), device="cpu").values
    for name, (mean, deviation) in STORED.items():
        assert abs(found[name] - mean) < 3 * deviation, name

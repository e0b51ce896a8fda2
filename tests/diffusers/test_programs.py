"""The programs with models of the library diffusers, on tiny folders with random weights."""

import functools

import numpy as np
import pytest
import tiny
from PIL import Image

import sag
from sag.diffusers import extras
from scripts import evaluate, sample, visualize


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory):
    return tiny.stable_diffusion(tmp_path_factory.mktemp("sd"))[1]


@pytest.fixture(scope="session")
def dit(tmp_path_factory):
    return tiny.dit_pipeline(tmp_path_factory.mktemp("dit"))[1]


@pytest.fixture
def sample_with(run_script):
    few = ["device=cpu", "sampler=ddim", "sampler.steps=2"]
    return functools.partial(run_script, sample.main, "sample", sample.SampleConfig, *few)


def images(path):
    with np.load(path, allow_pickle=False) as file:
        return file["arr_0"]


def test_a_folder_is_sampled_by_a_file_of_prompts_and_continued(sample_with, stable_diffusion, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\na cat\n")
    run = ["model=own_diffusers", f"path={stable_diffusion}", f"prompts={tmp_path}/prompts.txt", "guidance=[cfg,sag]"]
    printed = sample_with(*run, "num_samples=1", f"out={tmp_path}/out")
    assert "model     own_model: " in printed
    assert "32x32x3 from latents of 16x16x4" in printed
    assert "prompts   1: 'a fox'" in printed
    assert "passes    3 per step" in printed
    sample_with(*run, "num_samples=4", "images_per_prompt=2", f"out={tmp_path}/both")
    with pytest.raises(SystemExit, match=r"holds results of other settings; .*images_per_prompt"):
        sample_with(*run, "num_samples=4", "images_per_prompt=2", f"out={tmp_path}/out")
    printed = sample_with(*run, "num_samples=2", "batch_size=2", f"out={tmp_path}/out")
    fox, cat = images(tmp_path / "out/samples_2x32x32x3.npz")
    both = images(tmp_path / "both/samples_4x32x32x3.npz")
    assert np.array_equal(both[0], fox)
    assert not np.array_equal(both[1], cat)  # the second image of the fox
    assert "cat" not in (tmp_path / "out/config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["prompt=a hat"],
        ["negative_prompt=a hat"],
        ["guidance.sag.scale=0"],
        ["guidance=[cfg,blur]"],
        ["sampler=scheduler", "sampler.scheduler=EulerDiscreteScheduler"],
        ["size=[30,36]"],
        ["bits=16"],
    ],
)
def test_every_setting_changes_the_samples(sample_with, stable_diffusion, tmp_path, changes):
    run = ["model=sd15", f"path={stable_diffusion}", "num_samples=2", "prompt=a fox", "guidance=[cfg,sag]"]
    sample_with(*run, f"out={tmp_path}/plain")
    sample_with(*run, *changes, f"out={tmp_path}/changed")
    (plain,), (changed,) = (list((tmp_path / name).glob("samples_*.npz")) for name in ("plain", "changed"))
    assert not np.array_equal(images(plain), images(changed))


@pytest.mark.slow
def test_a_folder_with_classes_is_sampled_scored_and_looked_at(sample_with, run_script, dit, tmp_path):
    run = ["model=own_diffusers", f"path={dit}", "num_samples=4", "labels=balanced", "guidance=[cfg,sag]"]
    with pytest.raises(
        SystemExit, match=r"unknown attention layer 'middle'; this network has: block\.0 \(8x8\), block\.1 \(8x8\)"
    ):
        sample_with(*run, f"out={tmp_path}/out")
    sample_with(*run, "guidance.sag.layer=block.1", f"out={tmp_path}/out")
    samples = tmp_path / "out/samples_4x32x32x3.npz"
    with np.load(samples, allow_pickle=False) as file:
        assert file["arr_1"].tolist() == [0, 1, 2, 3]
    scored = run_script(
        evaluate.main, "evaluate", evaluate.EvaluateConfig,
        f"samples={samples}", f"reference={samples}", "extractor=fashion_features", "metrics=[fid]",
    )  # fmt: skip
    assert "fid_4" in scored
    listed = run_script(
        visualize.main, "visualize", visualize.VisualizeConfig, "model=own_diffusers", f"path={dit}", "list=true", "device=cpu"
    )
    assert "block.1" in listed
    run_script(
        visualize.main, "visualize", visualize.VisualizeConfig, "model=own_diffusers", f"path={dit}", "sampler.steps=2",
        "samples=[0,1]", "moments=2", "guidance.sag.layer=block.0", f"out={tmp_path}/seen", "device=cpu",
    )  # fmt: skip
    with Image.open(tmp_path / "seen/block.0.png") as strip:
        assert strip.width > 64


def test_without_the_library_the_sentence_has_the_command_that_installs_it(sample_with, monkeypatch):
    for name in ("load_denoiser", "SchedulerSampler"):
        monkeypatch.delitem(vars(sag.diffusers), name, raising=False)  # what is imported lazily stays in the module
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for wanted in ("model=sd15", "sampler=scheduler"):
        with pytest.raises(SystemExit, match=r"^error: sag\.diffusers\.\w+ needs .*: pip install 'sag\[diffusers\]'$"):
            sample_with(wanted)

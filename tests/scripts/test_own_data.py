"""A user's own images, as docs/own_data.md has it: 16 bits, any channels, not square; trained on, sampled, scored."""

import evaluate
import make_reference
import numpy as np
import pytest
import sample
import torch
import train
from helpers import TINY
from PIL import Image

from sag import storage

SIZE = (24, 16)
RANGE = (-1000.0, 3000.0)


def network(channels):
    return [
        *["model.network.image_size=16", f"model.network.in_channels={channels}", f"model.network.out_channels={2 * channels}"],
        *["model.network.model_channels=32", "model.network.num_res_blocks=1", "model.network.channel_mult=[1,2]"],
        *["model.network.attention_resolutions=[8]", "model.network.num_classes=null", "model.null_label=null"],
        *["model.reference=null", "size=[24,16]", "device=cpu"],
    ]


def scans(count, channels):
    """Smooth random values in RANGE, (count, *SIZE, channels) float64."""
    coarse = np.random.default_rng(0).uniform(*RANGE, (count, 3, 2, channels))
    return np.repeat(np.repeat(coarse, 8, 1), 8, 2)


def train_and_sample(run_script, tmp_path, channels, data):
    run_script(
        train.main, "train", train.TrainConfig, *network(channels), *data,
        "settings.steps=2", "settings.batch_size=4", "settings.ema_rates=[0.5]", "grid_steps=2", f"out={tmp_path / 'run'}",
    )  # fmt: skip
    printed = run_script(
        sample.main, "sample", sample.SampleConfig, *network(channels), f"model.checkpoint={tmp_path}/run/ema_0.5_000002.pt",
        "guidance=[sag]", "guidance.sag.layer=middle", "bits=16", "sampler=ddim", "sampler.steps=ddim2", "num_samples=8",
        f"out={tmp_path / 'samples'}",
    )  # fmt: skip
    assert f"24x16x{channels}" in printed
    assert Image.open(tmp_path / "samples/grid.png").size == (3 * 16, 3 * 24)
    samples = storage.open_images(tmp_path / f"samples/samples_8x24x16x{channels}.npz")
    assert (samples.shape, samples.read(0, 1).dtype) == ((8, *SIZE, channels), np.uint16)
    return samples


def score(run_script, tmp_path, data, *extractor):
    run_script(
        make_reference.main, "make_reference", make_reference.MakeReferenceConfig, *data, *TINY, *extractor,
        f"out={tmp_path / 'reference.npz'}",
    )  # fmt: skip
    return run_script(
        evaluate.main, "evaluate", evaluate.EvaluateConfig, *TINY, *extractor, "metrics=[fid,precision]",
        f"samples={tmp_path / 'samples'}", f"reference={tmp_path / 'reference.npz'}",
    )  # fmt: skip


def test_16_bit_grey_files(run_script, tmp_path):
    (tmp_path / "scans").mkdir()
    for i, values in enumerate(scans(12, 1)):
        stored = (values[..., 0] - RANGE[0]).astype(np.uint16)  # as scanners do: shifted, whole numbers
        Image.fromarray(stored).save(tmp_path / f"scans/{i:02d}.png")
    data = ["data=folder", f"data.path={tmp_path / 'scans'}", "data.size=[24,16]", "data.value_range=[0,4000]"]
    samples = train_and_sample(run_script, tmp_path, 1, data)
    values = storage.to_values(samples.read(0, 8), RANGE)
    assert values.min() >= RANGE[0]
    assert values.max() <= RANGE[1]
    assert len(np.unique(values)) > 256  # more than 8 bits would hold
    assert "fid" in score(run_script, tmp_path, data).lower()


def test_any_number_of_channels(run_script, tmp_path):
    np.savez(tmp_path / "scans.npz", storage.from_values(scans(12, 5), RANGE))
    data = ["data=npz", f"data.path={tmp_path / 'scans.npz'}"]
    train_and_sample(run_script, tmp_path, 5, data)
    five = ["extractor.mean=[0,0,0,0,0]", "extractor.std=[1,1,1,1,1]", "+extractor.network.channels=5"]
    assert "fid" in score(run_script, tmp_path, data, *five).lower()
    (tmp_path / "reference.npz").unlink()
    with pytest.raises(SystemExit, match="ModuleExtractor takes images of 1 or 3 channels, got 5; for others give"):
        score(run_script, tmp_path, data)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "sample",
            ["size=[30,16]", "bits=16"],
            r"size must be \[height,width\] in pixels, both divisible by 8 here, got",
        ),
        ("sample", ["size=[32]"], r"size must be \[height,width\]"),
        ("sample", ["bits=12"], "bits must be 8 or 16, got 12"),
        (
            "train",
            ["size=[24,16]"],
            "has images of 32x32x1, the network takes 24x16x1 .* trains it on another size",
        ),
    ],
)
def test_what_does_not_fit_is_said(run_script, tmp_path, monkeypatch, script, arguments, message):
    ready = storage.ArrayImages(np.zeros((4, 32, 32, 1), np.uint8), np.zeros(4, np.int64))
    monkeypatch.setattr("sag.training.data.fashion_mnist", lambda **options: ready)
    main, schema = (sample.main, sample.SampleConfig) if script == "sample" else (train.main, train.TrainConfig)
    with pytest.raises(SystemExit, match=message):
        run_script(main, script, schema, *arguments, "device=cpu", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_levels_and_back():
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    for bits, error in ((8, 1 / 127.5), (16, 1 / 65535)):
        levels = storage.quantise(x, bits)
        assert float((storage.dequantise(levels) - x).abs().max()) <= error * 1.01
    ends = storage.quantise(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3), 16)
    assert storage.eight_bits(ends).ravel().tolist() == [0, 128, 255]
    values = np.linspace(*RANGE, 1001)
    levels = storage.from_values(values, RANGE)
    assert np.abs(storage.to_values(levels, RANGE) - values).max() <= 4000 / 65535 * 0.51
    assert storage.from_values(np.array([-5000.0, 5000.0]), RANGE).tolist() == [0, 65535]
    with pytest.raises(ValueError, match=r"value_range must be \[low, high\] with low below high, got \[3, 3\]"):
        storage.to_values(levels, (3, 3))
    with pytest.raises(ValueError, match="the values are not all finite"):
        storage.from_values(np.array([np.nan]), RANGE)

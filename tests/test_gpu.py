"""The GPU computes what the CPU does: networks, guided runs, compilation, features, scores and training.

Where there is no GPU, all of these tests are skipped. `pytest -m gpu` runs all of them.
"""

import csv

import numpy as np
import pytest
import torch
from helpers import TinyNetwork, golden_images, noise, relative_error, small_classifier, small_unet

from evaluations.extractors import ModuleExtractor
from evaluations.fashion import FashionFeatures
from evaluations.inception import Inception
from evaluations.score_files import score_files
from sag.devices import pick_device
from sag.noise import SampleNoise
from scripts import benchmark, sample, train

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
X, TAU = noise(5, 0, (2, 3, 16, 16)), torch.tensor([3.0, 700.0])


@pytest.fixture(autouse=True)
def float32_means_float32():
    pick_device(GPU.type)


def error(found, expected):
    """The largest difference in units of the standard deviation of what the CPU computes."""
    return relative_error(found.detach().cpu(), expected.detach().numpy())


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("float32", 0, 1e-4), ("float16", 1e-5, 0.03), ("bfloat16", 1e-4, 0.2)]
)
def test_a_network_in_every_precision(precision, least, most):
    network = small_unet()
    expected = network(X, TAU).sample
    network.set_precision(getattr(torch, precision))
    found = network.to(GPU)(X.to(GPU), TAU.to(GPU), capture=["middle"])
    assert (found.sample.device.type, found.sample.dtype) == (GPU.type, torch.float32)
    assert least <= error(found.sample, expected) < most
    assert found.attention["middle"].q.device.type == GPU.type


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_a_compiled_network(precision, most):
    network = small_unet()
    expected = network(X, TAU).sample
    network.set_precision(getattr(torch, precision))
    network.to(GPU).compile()
    assert error(network(X.to(GPU), TAU.to(GPU)).sample, expected) < most


def test_the_gradient_of_a_classifier():
    found = []
    for device in (torch.device("cpu"), GPU):
        x = X.to(device).requires_grad_()
        logits = small_classifier().to(device)(x, TAU.to(device))
        found += [logits, torch.autograd.grad(logits.log_softmax(1)[:, 1].sum(), x)[0]]
    assert error(found[2], found[0]) < 1e-4
    assert error(found[3], found[1]) < 1e-3


def test_noise_is_the_same_numbers_on_every_device():
    ours, theirs = (SampleNoise(3, [0, 9], (3, 8, 8), torch.device(device)) for device in ("cpu", GPU))
    assert theirs.initial().device.type == GPU.type
    assert torch.equal(theirs.initial().cpu(), ours.initial())
    assert torch.equal(theirs.step(7).cpu(), ours.step(7))


@pytest.mark.parametrize(("precision", "levels"), [("float32", 0.05), ("float16", 1.0), ("bfloat16", 4.0)])
def test_a_guided_run_in_every_precision(run_script, tmp_path, precision, levels):
    """Images of the GPU differ from the CPU's in float32 by so many of 255 levels, on average over the pixels."""
    run = ["num_samples=4", "sampler=ddim", "sampler.steps=ddim4", "guidance=[sag,classifier,cfg]"]
    images = []
    for device, chosen in (("cpu", "float32"), (GPU.type, precision)):
        out = tmp_path / device
        run_script(sample.main, "sample", sample.SampleConfig, *run, f"device={device}", f"precision={chosen}", f"out={out}")
        with np.load(out / "samples_4x32x32x3.npz", allow_pickle=False) as arrays:
            images.append(arrays["arr_0"].astype(float))
    assert images[0].std() > 30
    assert np.abs(images[1] - images[0]).mean() < levels


@pytest.mark.parametrize("make", [FashionFeatures, lambda: Inception("random")], ids=["fashion", "inception"])
def test_features(make):
    extractor, images = make(), torch.from_numpy(golden_images()[0][:8]).permute(0, 3, 1, 2)
    expected = extractor(images)
    found = extractor.to(GPU)(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device.type == GPU.type
        assert error(ours, theirs) < 1e-3


@pytest.fixture
def batches(tmp_path):
    images, labels = golden_images()
    for name, rows in (("samples", slice(80)), ("reference", slice(80, 200))):
        np.savez(tmp_path / f"{name}.npz", images[rows], labels[rows])
    return tmp_path / "samples.npz", tmp_path / "reference.npz"


@pytest.mark.parametrize("rounding", ["float32", "float16"])
def test_scores(batches, tmp_path, rounding):
    metrics = ["fid", "sfid", "is", "precision", "recall", "kid", "density", "coverage", "agreement", "vendi", "memorisation"]
    settings = {"distance_dtype": rounding, "kid_subset_size": 50, "kid_subsets": 4}
    ours, theirs = (
        score_files(
            *batches, metrics=metrics, settings=settings, extractor=FashionFeatures(), device=device, out=tmp_path / device
        ).values
        for device in (GPU.type, "cpu")
    )
    assert ours.keys() == theirs.keys() >= set(metrics)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_the_network_of_a_user(batches, tmp_path):
    extractor = ModuleExtractor("tiny", TinyNetwork())
    ours, theirs = (
        score_files(*batches, metrics=["fid"], extractor=extractor, device=device, out=tmp_path / device).values["fid"]
        for device in (GPU.type, "cpu")
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_benchmark_measures_every_precision(run_script, tmp_path):
    arguments = ["model=fashion32", "batch_size=2", "rounds=1", "compile=[false]", "precisions=[float32,bfloat16,float16]"]
    call = [benchmark.main, "benchmark", benchmark.BenchmarkConfig]
    printed = run_script(*call, *arguments, f"device={GPU.type}", f"out={tmp_path}")
    assert all(precision in printed for precision in ("float32", "bfloat16", "float16"))


@pytest.mark.parametrize(("precision", "rel"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_training_begins_with_the_losses_of_the_cpu(run_script, tmp_path, precision, rel):
    images, labels = golden_images()
    np.savez(tmp_path / "data.npz", images, labels)
    run = ["data=npz", f"data.path={tmp_path}/data.npz", "model=fashion32_weak", "settings.batch_size=8", "settings.steps=2",
           "log_every=1", "grid_steps=2"]  # fmt: skip
    losses = []
    for device, chosen in (("cpu", "float32"), (GPU.type, precision)):
        out = tmp_path / device
        call = [train.main, "train", train.TrainConfig]
        run_script(*call, *run, f"device={device}", f"settings.precision={chosen}", f"out={out}")
        with open(out / "log.csv") as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], rel=rel)

"""The loop: learns, averages, continues to the bit, and keeps the last good checkpoint whatever happens."""

import csv

import numpy as np
import pytest
import torch
from helpers import SMALL, random_images

from sag.data import ArrayImages
from sag.diffusion import GaussianDiffusion, Schedule
from sag.models import UNet
from sag.training import Classification, DiffusionLoss, LossSecondMoment, Settings, Trainer, loop

DIFFUSION = GaussianDiffusion(Schedule.linear())
DATA = ArrayImages(random_images(0, 20, size=16), np.arange(20) % 4)


def network(**changes):
    torch.manual_seed(0)
    return UNet(**{**SMALL, "num_classes": 5, "dropout": 0.1, **changes})


def trainer(out, steps=6, data=DATA, objective=None, net=None, **settings):
    options = {"batch_size": 4, "learning_rate": 1e-3, "ema_rates": (0.5, 0.9), "flip": True, **settings}
    objective = objective or DiffusionLoss(
        DIFFUSION, LossSecondMoment(1000, history=1), num_classes=5, null_label=4, label_dropout=0.2
    )
    return Trainer(net or network(), objective, data, Settings(steps=steps, **options), out)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.network.parameters()])


def finish(run, **options):
    return list(run.run(**{"save_every": 1e9, "log_every": 1, **options}))


def test_training_starts_from_the_identity_and_learns(tmp_path):
    one = ArrayImages(random_images(0, 1, size=16), np.zeros(1, np.int64))
    run = trainer(tmp_path, steps=60, data=one, learning_rate=3e-3, batch_size=8)
    x = torch.randn(2, 3, 16, 16)
    assert not run.network(x, torch.tensor([3.0, 900.0]), torch.tensor([0, 4])).sample.any()
    rows = finish(run)
    assert rows[0]["mse"] == pytest.approx(1, abs=0.2)  # zero against eps
    assert np.mean([row["mse"] for row in rows[-10:]]) < 0.3


def test_a_stopped_run_ends_with_the_same_bits(tmp_path):
    whole = trainer(tmp_path / "whole")
    finish(whole)
    for steps in (2, 5, 6):
        run = trainer(tmp_path / "parts", steps=steps)
        finish(run)
    assert torch.equal(weights(run), weights(whole))
    for rate in (0.5, 0.9):
        for a, b in zip(run.ema[rate], whole.ema[rate], strict=True):
            assert torch.equal(a, b)
    a, b = (torch.load(tmp_path / name / "opt000006.pt", weights_only=True)["state"] for name in ("whole", "parts"))
    assert all(torch.equal(a[i][key], b[i][key]) for i in a for key in a[i])
    assert torch.equal(run.objective.timesteps.probabilities(), whole.objective.timesteps.probabilities())
    logs = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("whole", "parts")]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]] == list("123456")
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_files_are_those_of_guided_diffusion(tmp_path):
    run = trainer(tmp_path, steps=2)
    finish(run, save_every=0)
    names = {path.name for path in tmp_path.iterdir()}
    expected = {"model000002.pt", "ema_0.5_000002.pt", "ema_0.9_000002.pt", "opt000002.pt"}
    assert names == expected | {"timesteps000002.pt", "state.json", "log.csv"}
    fresh = network()
    fresh.load_state_dict(torch.load(tmp_path / "model000002.pt", weights_only=True))
    assert torch.equal(torch.cat([p.detach().flatten() for p in fresh.parameters()]), weights(run))


def test_averages_follow_their_definition(tmp_path):
    run = trainer(tmp_path, steps=12)
    expected = weights(run)
    for step, _ in enumerate(run.run(1e9, 1)):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights(run)
    found = torch.cat([value.flatten() for value in run.ema[0.5]])
    assert torch.allclose(found, expected, atol=1e-6)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    data = ArrayImages(random_images(0, 8, size=16), np.arange(8) % 4)

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(768, 4)

        def forward(self, x):
            return self.linear(x.flatten(1) / 255)

    found = []
    for microbatch in (None, 3):
        run = trainer(tmp_path / str(microbatch), 4, data, Classification(4), Flat(), batch_size=8, microbatch=microbatch)
        finish(run)
        found.append(weights(run))
    assert torch.allclose(*found, atol=1e-6)


def test_every_image_is_seen_once_before_any_is_seen_again(tmp_path):
    run = trainer(tmp_path, batch_size=8, flip=False)
    batches = [run._batch(*run._read_rows(step))[0] for step in range(5)]
    seen = [image.numpy().tobytes() for batch in batches for image in batch]
    assert len(set(seen[:20])) == len(set(seen[20:])) == 20
    assert seen[:20] != seen[20:]
    x, y = run._batch(*run._read_rows(2))
    assert x.min() >= -1
    assert x.max() <= 1
    assert y.shape == (8,)


def test_the_learning_rate():
    s = Settings(steps=110, batch_size=1, learning_rate=2.0, warmup=10, anneal=True)
    assert [s.rate(step) for step in (0, 4, 9, 10, 60, 110)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.0, 0.0])
    assert Settings(steps=5, batch_size=1, learning_rate=2.0).rate(4) == 2.0


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path):
    run = trainer(tmp_path, steps=2, precision="bfloat16")
    rows = finish(run)
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert {p.dtype for p in run.network.parameters()} == {torch.float32}


def test_a_gradient_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    finish(trainer(tmp_path, steps=2))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    run = trainer(tmp_path, steps=6)
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 3 gave a gradient that is not finite; the last good checkpoint is kept"):
        finish(run, save_every=0)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    finish(trainer(tmp_path, steps=2))
    save, saved = torch.save, []

    def full(content, file):
        if len(saved) == 2:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        saved.append(file)
        save(content, file)

    monkeypatch.setattr(loop.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        finish(trainer(tmp_path, steps=4))
    monkeypatch.undo()
    run = trainer(tmp_path, steps=4)
    assert run.step == 2
    finish(run)
    assert {path.name for path in tmp_path.glob("model*.pt")} == {"model000004.pt"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be more than 0"),
        ({"microbatch": 0}, "microbatch must be at least 1"),
        ({"precision": "float16"}, "training runs in float32 or bfloat16, got precision='float16'"),
        ({"ema_rates": (1.0,)}, r"ema_rates must be in \[0, 1\)"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"steps": 1, "batch_size": 1, "learning_rate": 1.0, **change})


def test_labels_out_of_range(tmp_path):
    with pytest.raises(ValueError, match="labels up to 4, but the model has 4 classes"):
        trainer(tmp_path, data=ArrayImages(DATA.images, np.arange(20) % 5))
    with pytest.raises(ValueError, match="labels must be 0 or more, got -1"):
        trainer(tmp_path, data=ArrayImages(DATA.images, np.arange(20) % 5 - 1))

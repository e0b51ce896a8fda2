"""A training run in a folder: what it writes and returns, when it continues, and what it refuses."""

import socket
from datetime import timedelta

import numpy as np
import pytest
import torch
from helpers import SMALL, random_images
from PIL import Image

from sag.checkpoints import load_checkpoint
from sag.data import ArrayImages
from sag.diffusion import GaussianDiffusion, Schedule
from sag.distributed import Process
from sag.models import UNet
from sag.records import read_settings
from sag.storage import LocalFolder
from sag.training import DiffusionLoss, Pictures, Settings, runner, train

DIFFUSION = GaussianDiffusion(Schedule.linear())
DATA = ArrayImages(random_images(0, 20, size=16), np.arange(20) % 4)


def trained(out, steps=2, data=DATA, anneal=False, learning_rate=1e-3, **options):
    torch.manual_seed(0)
    network = UNet(**{**SMALL, "num_classes": 5, "dropout": 0.1})
    objective = DiffusionLoss(DIFFUSION, num_classes=5, null_label=4, label_dropout=0.2)
    settings = Settings(steps, 4, learning_rate, anneal=anneal, ema_rates=(0.5, 0.9))
    return train(network, objective, data, settings, out, **{"device": "cpu", "log_every": 1, **options})


def test_a_run_returns_what_it_wrote_prints_nothing_and_continues(tmp_path, capsys):
    begun, logged = [], []
    first = trained(tmp_path / "run", begun=lambda trainer: begun.append(trainer.step), logged=logged.append)
    assert capsys.readouterr() == ("", "")
    assert (first.step, first.new, begun) == (2, True, [0])
    assert first.log == logged
    assert [row["step"] for row in logged] == [1, 2]
    assert set(logged[0]) >= {"loss", "mse", "gradient_norm", "learning_rate", "images_per_second"}
    found = {first.weights, *first.averages.values()}
    assert found == {tmp_path / f"run/{name}_000002.pt" for name in ("ema_0.5", "ema_0.9")} | {tmp_path / "run/model000002.pt"}
    assert all(load_checkpoint(str(path))["out.2.weight"].any() for path in found)
    again = trained(tmp_path / "run", begun=lambda trainer: begun.append(trainer.step))
    assert (again.step, again.new, again.log, begun) == (2, False, first.log, [0, 2])
    longer = trained(tmp_path / "run", steps=3)
    assert (longer.step, len(longer.log)) == (3, 3)
    whole = trained(tmp_path / "whole", steps=3)
    assert longer.weights.read_bytes() == whole.weights.read_bytes()


def test_a_run_continues_one_with_equal_settings_only(tmp_path):
    trained(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run holds results of other settings.*learning_rate \(0.001 there, 0.01 here\)$"):
        trained(tmp_path / "run", learning_rate=1e-2)
    trained(tmp_path / "annealed", anneal=True)
    with pytest.raises(ValueError, match=r"settings\.steps \(2 there, 3 here\)$"):
        trained(tmp_path / "annealed", steps=3, anneal=True)
    trained(tmp_path / "named", recorded={"name": "mine", "sizes": [1, 2]})
    assert read_settings(LocalFolder(tmp_path / "named")) == {"name": "mine", "sizes": [1, 2]}
    assert trained(tmp_path / "named", steps=3, learning_rate=1e-2, recorded={"name": "mine", "sizes": [1, 2]}).step == 3
    with pytest.raises(ValueError, match=r"name \(mine there, other here\)$"):
        trained(tmp_path / "named", recorded={"name": "other", "sizes": [1, 2]})


def test_pictures_are_drawn_with_the_averaged_weights_and_change_no_number(tmp_path):
    plain = trained(tmp_path / "plain", steps=3)
    drawn = trained(tmp_path / "drawn", steps=3, saved=Pictures(DIFFUSION, 4, steps=2), save_minutes=1e-9)
    assert plain.weights.read_bytes() == drawn.weights.read_bytes()
    assert sorted(path.name for path in drawn.folder.glob("*.png")) == [f"grid00000{step}.png" for step in (1, 2, 3)]
    assert Image.open(drawn.folder / "grid000003.png").size == (8 * 16, 8 * 16)
    other = trained(tmp_path / "other", steps=3, saved=Pictures(DIFFUSION, 4, size=(16, 32), steps=2))
    assert Image.open(other.folder / "grid000003.png").size == (8 * 32, 8 * 16)
    with pytest.raises(ValueError, match=r"^grid_steps must be at least 1, or 0 to draw no pictures, got -1$"):
        Pictures(DIFFUSION, steps=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every": 0}, "^log_every must be at least 1, got 0$"),
        ({"save_minutes": "soon"}, "^save_minutes must be more than 0, got 'soon'$"),
        ({"device": "tpu"}, "^unknown device 'tpu'"),
        ({"data": ArrayImages(random_images(0, 4, size=8))}, "^the data has images of 8x8x3, the network takes 16x16x3 "),
        ({"size": (32, 16)}, "^the data has images of 16x16x3, the network takes 32x16x3 "),
        ({"size": (17, 16)}, r"^size must be \[height,width\] in pixels, both divisible by 2 here"),
        ({"data": ArrayImages(random_images(0, 4, size=16), np.arange(4) + 1)}, "labels up to 4, but the model has 4 classes"),
    ],
)
def test_bad_arguments_are_one_sentence_and_leave_no_folder(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        trained(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_state_of_something_else_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state\.json is there already, and no run of train\.py wrote it; give another out"):
        trained(tmp_path)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_processes_that_do_not_meet_say_so(tmp_path, monkeypatch, rank):
    """As when the master cannot be reached (rank 1), or another host was started with fewer processes (rank 0)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.setattr(runner, "MEETING", timedelta(seconds=2))
    with pytest.raises(ValueError, match=rf"the 2 processes did not meet at MASTER_ADDR:MASTER_PORT = 127\.0\.0\.1:{port}"):
        trained(tmp_path / "run", process=Process(rank, 2))
    assert not (tmp_path / "run").exists()

"""The training script as a user runs it."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, golden_images, random_images

from evaluations.fashion import FashionClassifier
from sag.checkpoints import load_checkpoint
from scripts import train

TINY_MODEL = [
    *[
        "model.network.image_size=16",
        "model.network.in_channels=3",
        "model.network.out_channels=6",
        "model.network.model_channels=32",
    ],
    *["model.network.num_res_blocks=1", "model.network.channel_mult=[1,2]", "model.network.attention_resolutions=[8]"],
    *["model.network.num_classes=5", "model.null_label=4", "task.objective.label_dropout=0.1"],
    *["settings.batch_size=4", "log_every=1", "grid_steps=2", "device=cpu"],
]


@pytest.fixture
def script(run_script):
    return functools.partial(run_script, train.main, "train", train.TrainConfig)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    from PIL import Image

    for i, image in enumerate(random_images(0, 12, size=16)):
        Image.fromarray(image).save(folder / f"{'abcd'[i % 4]}_{i}.png")
    return ["data=folder", f"data.path={folder}", "data.size=16"]


def test_a_run_writes_checkpoints_pictures_and_a_log_and_continues(script, data, tmp_path):
    out = tmp_path / "run"
    printed = script(*TINY_MODEL, *data, "settings.steps=2", f"out={out}")
    assert "from step 0 to 2" in printed
    assert {"model000002.pt", "ema_0.9999_000002.pt", "opt000002.pt", "grid000002.png", "log.csv", "config.yaml"} <= {
        path.name for path in out.iterdir()
    }
    assert "from step 2 to 3" in script(*TINY_MODEL, *data, "settings.steps=3", f"out={out}")
    assert load_checkpoint(str(out / "ema_0.9999_000003.pt"))["out.2.weight"].abs().max() > 0
    with pytest.raises(SystemExit, match=r"holds results of other settings.*learning_rate \(0.0001 there, 0.001 here\)$"):
        script(*TINY_MODEL, *data, "settings.steps=4", "settings.learning_rate=1e-3", f"out={out}")


@pytest.mark.slow
def test_a_run_may_begin_with_the_weights_of_a_checkpoint(script, data, tmp_path):
    script(*TINY_MODEL, *data, "settings.steps=2", f"out={tmp_path / 'first'}")
    weights = tmp_path / "first/model000002.pt"
    rest = ["settings.steps=1", "settings.learning_rate=1e-30", f"out={tmp_path / 'second'}"]
    script(*TINY_MODEL, *data, f"start={weights}", *rest)
    a, b = load_checkpoint(str(weights)), load_checkpoint(str(tmp_path / "second/model000001.pt"))
    assert all(np.allclose(a[name], b[name], atol=1e-6) for name in a)
    with pytest.raises(SystemExit, match=r"holds results of other settings.*start \(\S+model000002.pt there, None here\)$"):
        script(*TINY_MODEL, *data, *rest)
    with pytest.raises(SystemExit, match="does not fit the network: entries"):
        script(*TINY_MODEL, *data, "start=fashion32", *rest[:-1], f"out={tmp_path / 'third'}")
    assert not (tmp_path / "third").exists()


def test_the_feature_network_is_trained_by_the_same_script(script, tmp_path):
    images, labels = golden_images()
    np.savez(tmp_path / "images.npz", arr_0=images, arr_1=labels)
    data = ["data=npz", f"data.path={tmp_path / 'images.npz'}"]
    settings = ["settings.steps=2", "settings.batch_size=8", "log_every=1", "device=cpu", f"out={tmp_path / 'run'}"]
    printed = script("task=features", *data, *settings)
    assert "FashionClassifier" in printed
    assert not list(tmp_path.glob("run/*.png"))
    state = load_checkpoint(str(tmp_path / "run/ema_0.9999_000002.pt"))
    FashionClassifier().load_state_dict(state)


@pytest.mark.slow
def test_several_processes_train_one_model(data, tmp_path):
    arguments = [str(ROOT / "scripts/train.py"), *TINY_MODEL, *data, "settings.steps=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", ["torchrun", "--nproc_per_node=2"]), ("two", ["mpiexec", "-n", "2", sys.executable])):
        program = os.path.join(os.path.dirname(sys.executable), launcher[0])
        command = [program, *launcher[1:], *arguments]
        done = subprocess.run([*command, f"out={tmp_path / name}"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    a, b = (load_checkpoint(str(tmp_path / name / "model000003.pt")) for name in ("one", "two"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.size=32"], "the data has images of 32x32x3, the network takes 16x16x3"),
        (["settings.precision=float16"], "training runs in float32 or bfloat16"),
        (["settings.step=3"], "unknown config key 'settings.step'; did you mean 'steps'"),
        (["log_every=0"], "log_every must be at least 1"),
        (["model.network.num_classes=3", "model.null_label=2"], "labels up to 3, but the model has 2 classes"),
        (["data.path=nowhere"], "no folder nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(script, data, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message) as caught:
        script(*TINY_MODEL, *data, "settings.steps=1", *arguments, f"out={tmp_path / 'run'}")
    assert "\n" not in str(caught.value.code)
    assert not list(tmp_path.glob("run/*.pt"))

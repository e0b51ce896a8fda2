"""What the tests share: the golden numbers, the rules their inputs follow, and small networks."""

import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

from sag.diffusion import Denoiser, GaussianDiffusion, Schedule
from sag.models import Classifier, UNet

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    """The description and the arrays of one golden file."""
    return json.loads((GOLDEN / f"{name}.json").read_text()), np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


def shapes(network):
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def fill(network):
    """Give every weight the value that the golden rule derives from its name."""
    state = {}
    for name, value in network.state_dict().items():
        n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(value.shape), dtype=np.float32)
        if value.dim() >= 2:
            n = n * np.float32(1 / np.sqrt(np.prod(value.shape[1:])))
        elif name.endswith("weight"):
            n = 1 + np.float32(0.1) * n
        else:
            n = np.float32(0.1) * n
        state[name] = torch.from_numpy(n)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def noise(seed, i, shape):
    return torch.from_numpy(np.random.default_rng([seed, i]).standard_normal(shape, dtype=np.float32))


def relative_error(found, expected):
    """The largest difference in units of the standard deviation of what is expected."""
    return float(np.abs(np.asarray(found) - expected).max() / np.std(expected))


SMALL = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "channel_mult": (1, 2),
    "num_head_channels": 8,
}


def small_unet(**changes):
    return fill(UNet(**{**SMALL, **changes}))


def small_classifier(**changes):
    arguments = {
        "image_size": 16,
        "in_channels": 3,
        "model_channels": 32,
        "num_classes": 4,
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
        "channel_mult": (1, 2),
        "num_head_channels": 16,
    }
    return fill(Classifier(**{**arguments, **changes}))


def small_denoiser(steps=4, null_label=None, **changes):
    diffusion = GaussianDiffusion(Schedule.linear().respace(steps))
    return Denoiser(small_unet(**changes), diffusion, null_label)


def allowed(*command):
    """Whether this user may run a command that changes nothing, and has it."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


class Zygote:
    """Starts, kills and waits for programs in scripts/ (see tests/zygote.py), by default scripts/sample.py."""

    def __init__(self, folder, common=(), programs=("sample",)):
        self.folder, self.common, self.count = folder, common, 0
        command = [sys.executable, str(ROOT / "tests/zygote.py"), *programs]
        environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
        environment["PYTHONPATH"] = str(ROOT)  # or else the folder tests/evaluations hides the package of that name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, line):
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments, program="sample", rank=0, world=1, die_writing=None, end_writing=None, **environment):
        self.count += 1
        job = {
            "program": program,
            "arguments": [*self.common, *arguments],
            "environment": {"RANK": str(rank), "WORLD_SIZE": str(world), **environment},
            "log": str(self.folder / f"log{self.count}"),
            "die_writing": die_writing,
            "end_writing": end_writing,
        }
        return self.ask(job)

    def wait(self, pid):
        return self.ask(pid)

    def kill(self, pid, number=signal.SIGKILL):
        os.kill(pid, number)
        return self.wait(pid)

    def logs(self):
        return "".join(path.read_text() for path in sorted(self.folder.glob("log*")))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class TinyNetwork(torch.nn.Module):
    """A feature network that takes no time: colours over a 4 x 4 grid, two spatial maps, and logits of ten classes."""

    def __init__(self, scale=1.0, channels=3):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        weights = np.random.default_rng(0).standard_normal((16 * channels, 10)).astype(np.float32)
        self.register_buffer("head", torch.from_numpy(weights))

    def forward(self, x):
        pool = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) * self.scale
        return {"pool": pool, "spatial": x[:, :2, ::4, ::4].flatten(1), "logits": pool @ self.head}


TINY = ["extractor=module", "extractor.network._target_=helpers.TinyNetwork", "device=cpu"]


def random_images(seed, count, size=8):
    """Smooth random images, so that features differ between them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 2, 2, 3)) // 2 + rng.integers(0, 128, (count, 1, 1, 3))
    return np.repeat(np.repeat(coarse, size // 2, 1), size // 2, 2).astype(np.uint8)


def golden_images():
    """200 images (N, 32, 32, 1) of Fashion-MNIST's test set, and their labels."""
    with np.load(GOLDEN / "fashion_mnist_200.npz", allow_pickle=False) as arrays:
        return arrays["arr_0"], arrays["arr_1"]


class Counting:
    """A denoiser that counts how often it is asked."""

    def __init__(self, denoiser):
        self.denoiser = denoiser
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self.denoiser, name)

    def respace(self, steps):
        self.denoiser = self.denoiser.respace(steps)
        return self

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.denoiser(*args, **kwargs)

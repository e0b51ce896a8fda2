"""What `pip install` gives: commands, configs and the library, in an environment and a folder without the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv

import numpy as np
import pytest
from helpers import ROOT

OWN_TECHNIQUE = '''
from sag.guidance import BlurGuidance

class Twice(BlurGuidance):
    """Blur guidance, twice as strong."""

    def scale_at(self, time):
        return 2 * super().scale_at(time)
'''
OWN_CONFIG = "twice:\n  _target_: own_guidance.Twice\n  scale: 0.1\n  blur_sigma: 1\n"
QUICK = ["num_samples=2", "sampler.steps=2", "device=cpu"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run a command of an environment that holds the wheel, with the dependencies of this one, in an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("sag-*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env/bin/python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (folder / "env/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # without what that folder's own .pth files add
    (folder / "work").mkdir()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(program, *arguments, **variables):
        done = subprocess.run(
            [folder / "env/bin" / program, *arguments],
            cwd=folder / "work",
            env={**clean, **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.folder = folder / "work"
    return call


@pytest.mark.slow
def test_commands_work_from_any_folder(installed):
    where = installed("python", "-c", "import sag, evaluations; print(sag.__file__, evaluations.__file__)")
    assert str(ROOT) not in where
    printed = installed("sag-sample", *QUICK, "out=first")
    assert "wrote     first/samples_2x32x32x3.npz" in printed
    assert installed("sag-status", "out=first") == "finished  first/samples_2x32x32x3.npz\n"
    assert "fid" in installed("sag-evaluate", "samples=first", "metrics=[fid]", "device=cpu")
    assert "from latents of 8x8x4" in installed("sag-sample", *QUICK, "model=fashion32_latent", "out=latent")
    planned = installed("sag-reproduce", "table=fashion", "dry_run=true", "device=cpu")
    assert "TFLOP/s" in planned


@pytest.mark.slow
def test_every_command_of_the_checkout_is_there(installed):
    programs = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem not in ("__init__", "common"))
    for program in programs:
        name = f"sag-{program.replace('_', '-')}"
        assert "== Config ==" in installed(name, "--help"), name


@pytest.mark.slow
def test_own_configs_and_own_techniques_are_found(installed):
    own = installed.folder / "own_configs/guidance"
    own.mkdir(parents=True)
    (own / "twice.yaml").write_text(OWN_CONFIG)
    (installed.folder / "modules").mkdir()
    (installed.folder / "modules/own_guidance.py").write_text(OWN_TECHNIQUE)
    arguments = [*QUICK, "--config-dir", "own_configs", "guidance=[twice]"]
    printed = installed("sag-sample", *arguments, "out=second", PYTHONPATH="modules")
    assert "guidance  twice: scale 0.1, blur_sigma 1" in printed
    installed("sag-sample", *QUICK, "guidance=[blur]", "guidance.blur.scale=0.2", "guidance.blur.blur_sigma=1", "out=third")
    second, third = (np.load(installed.folder / name / "samples_2x32x32x3.npz")["arr_0"] for name in ("second", "third"))
    assert np.array_equal(second, third)
    composed = "sag.compose('sample', ['guidance=[twice]'], config_dir='own_configs')"
    code = f"import sag; print({composed}.guidance.twice.scale)"
    assert installed("python", "-c", code, PYTHONPATH="modules") == "0.1\n"

"""What SAG sees, drawn: masks, degraded images and differences are those of the sampler's own steps."""

import numpy as np
import pytest
from PIL import Image

from scripts import visualize

QUICK = ["sampler.steps=3", "samples=[2,5]", "moments=3", "device=cpu"]


@pytest.fixture
def script(run_script):
    return lambda *arguments: run_script(visualize.main, "visualize", visualize.VisualizeConfig, *arguments)


def test_a_strip_and_an_animation_for_every_layer(script, tmp_path):
    printed = script(*QUICK, "layers=[middle,output.2]", f"out={tmp_path / 'out'}")
    names = ["middle.gif", "middle.png", "output.2.gif", "output.2.png", "record.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert printed.count("wrote ") == 2
    animation = Image.open(tmp_path / "out/middle.gif")
    assert (animation.n_frames, animation.size) == (3, (2 * 96, 4 * 96))
    strip = np.asarray(Image.open(tmp_path / "out/middle.png").convert("RGB")).astype(int)
    assert (strip[..., 0] - strip[..., 1]).max() > 50  # some of it is red


def test_the_layers_are_listed(script):
    lines = script("list=true").splitlines()
    assert lines[0].split() == ["layer", "resolution", "channels", "heads"]
    assert ["middle", "4x4", "128", "4"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guidance=[cfg]"], r"there is nothing to see without SAG; add sag to guidance=\[\.\.\.\]"),
        (["layers=[output.9]"], "unknown attention layer"),
        (["moments=0"], "moments must be at least 1"),
        (["samples=[-1]"], "samples numbers >= 0"),
    ],
)
def test_bad_input_is_one_sentence(script, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        script(*QUICK, *arguments, f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()

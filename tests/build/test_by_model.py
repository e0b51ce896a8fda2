"""Values of configs that depend on the model, such as the defaults of a guidance method."""

import pytest
from omegaconf import OmegaConf

import sag
from sag.build.by_model import fix_values

TECHNIQUE = """
mine:
  _target_: sag.guidance.BlurGuidance
  scale: "${by_model:{fashion32: 0.7, up_to_64: 0.6, with_classes: 0.5, other: 0.4}}"
  blur_sigma: "${by_model:{fashion32: 2, adm_imagenet128: 3}}"
"""


@pytest.fixture
def composed(tmp_path):
    """A config with a guidance method of the user, which one file adds."""
    (tmp_path / "guidance").mkdir()
    (tmp_path / "guidance/mine.yaml").write_text(TECHNIQUE)
    return lambda *overrides: sag.compose("sample", ["guidance=[mine]", *overrides], tmp_path)


def test_a_technique_with_defaults_for_models_is_one_file(composed):
    assert composed().guidance.mine == {"_target_": "sag.guidance.BlurGuidance", "scale": 0.7, "blur_sigma": 2}
    assert composed("model=adm_imagenet128").guidance.mine.scale == 0.5
    renamed = composed("model.name=shoes", "model.checkpoint=runs/shoes.pt")  # with the network of fashion32
    assert (renamed.model.name, renamed.guidance.mine.scale) == ("shoes", 0.7)
    given = composed("model.network.channel_mult=[1,1]", "guidance.mine.blur_sigma=9")
    assert (given.guidance.mine.scale, given.guidance.mine.blur_sigma) == (0.6, 9)
    message = r"guidance\.mine\.blur_sigma has no value for this model; give guidance\.mine\.blur_sigma="
    with pytest.raises(ValueError, match=message):
        composed("model=adm_imagenet64")


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ({"image_size": 64, "num_classes": 10}, 0.6),
        ({"image_size": 65, "num_classes": 10}, 0.5),
        ({"image_size": 65, "num_classes": None}, 0.4),
        ({}, 0.4),
    ],
)
def test_the_first_entry_that_holds_counts(network, expected):
    cfg = OmegaConf.create({"model": {"name": "own", "network": network}, "guidance": OmegaConf.create(TECHNIQUE)})
    cfg.guidance.mine.blur_sigma = 1
    assert fix_values(cfg, None)
    assert (cfg.guidance.mine.scale, cfg.model.name) == (expected, "own")
    assert not fix_values(cfg, None)  # nothing depends on the model any more

"""Pictures of samples, and of what SAG sees."""

import numpy as np
from PIL import Image

from evaluations.study.pictures import draw_gif, draw_samples, draw_strip, panels
from sag.sampling import Moment


def moment(time, value):
    mask = np.zeros((2, 8, 8), bool)
    mask[:, :4] = True
    difference = np.linspace(0, value, 128, dtype=np.float32).reshape(2, 8, 8)
    return Moment(
        time, np.full((2, 8, 8, 3), 100, np.uint8), mask, np.full((2, 8, 8, 3), round(100 * time), np.uint8), difference
    )


def test_the_clean_image_is_red_where_it_is_blurred_and_the_difference_fills_the_range():
    found = panels(moment(0.5, 0.01))
    assert found["mask"][0, 0, 0].tolist() == [154, 86, 86]
    assert (found["mask"][:, 4:] == 100).all()
    assert (found["difference"].min(), found["difference"].max()) == (0, 255)
    assert panels(moment(0.5, 0.0))["difference"].max() == 0


def test_a_strip_has_a_column_for_each_moment_and_an_animation_a_frame(tmp_path):
    moments = [moment(0.9, 1.0), moment(0.5, 1.0), moment(0.1, 1.0)]
    draw_strip(moments, tmp_path / "all.png")
    draw_strip(moments[:1], tmp_path / "one.png", ["mask"])
    (width, height), (one_width, one_height) = (Image.open(tmp_path / name).size for name in ("all.png", "one.png"))
    assert width > 2 * one_width
    assert height > 2 * one_height
    draw_gif(moments, tmp_path / "all.gif")
    animation = Image.open(tmp_path / "all.gif")
    assert (animation.n_frames, animation.size) == (3, (2 * 96, 4 * 96))


def test_samples_of_every_row_stand_below_each_other(tmp_path):
    images = {name: np.full((3, 8, 8, 3), 255, np.uint8) for name in ("no guidance", "SAG", "CFG")}
    draw_samples(images, tmp_path / "three.png")
    draw_samples({"SAG": images["SAG"]}, tmp_path / "one.png")
    assert Image.open(tmp_path / "three.png").size[1] > 2 * Image.open(tmp_path / "one.png").size[1]

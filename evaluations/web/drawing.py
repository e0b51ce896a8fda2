"""What the page shows of a comparison, as HTML with the images in it."""

import base64
import html
import io

import numpy as np
from PIL import Image

from evaluations.study.pictures import panels
from evaluations.web.comparison import Compared
from sag.data import Images

CRISP = 256  # smaller images are enlarged pixel by pixel
EMPTY = '<div class="pair">{}{}</div>'.format(
    *(f'<figure><div class="empty"></div><figcaption>{text}</figcaption></figure>' for text in ("SAG off", "SAG on"))
)
"""The place of the pictures before there are any."""


def pictures(compared: Compared, scale: float) -> str:
    """Return the two pictures beside each other.

    Args:
        compared: The pictures.
        scale: The scale of SAG.
    """
    same = " (the same picture)" if np.array_equal(compared.off, compared.on) else ""
    off, on = "SAG off", f"SAG on, s = {scale:g}{same}"
    return f'<div class="pair">{figure(compared.off, "off", off, off)}{figure(compared.on, "on", on, on)}</div>'


def masks(compared: Compared) -> str:
    """Return the predicted clean images at some steps, red where SAG blurs them."""
    figures = []
    for moment in compared.moments:
        description = f"The predicted clean image at time {moment.time:.2f}, red where it is blurred"
        figures.append(figure(panels(moment)["mask"][0], "mask", f"{moment.mask.mean():.0%} blurred", description))
    explained = "The clean image that the model predicts, from the first step to the last. Red is blurred."
    return f'<h2>Where SAG blurs</h2><p>{explained}</p><div class="strip">{"".join(figures)}</div>'


def problem(sentence: str) -> str:
    """Return what went wrong."""
    return f'<p role="alert">{html.escape(sentence)}</p>'


def figure(image: Images, name: str, caption: str, description: str) -> str:
    """Return an image with a caption.

    Args:
        image: (H, W, 3) uint8.
        name: What style sheets call it.
        caption: The text below it.
        description: The text in its place for those who do not see it.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    crisp = " crisp" if max(image.shape[:2]) < CRISP else ""
    return (
        f'<figure><img class="{name}{crisp}" src="{address}" alt="{html.escape(description)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

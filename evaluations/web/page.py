"""The page: two pictures beside each other, controls, the masks, and the command. Nothing comes from other hosts."""

import html
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from evaluations.web import drawing
from evaluations.web.comparison import Settings, SideBySide
from sag.build.messages import sentence, user_errors

STYLE = Path(__file__).parent / "page.css"
WAITING = 32  # visitors who may wait for the model
SEEDS = 2**32  # that the button draws from; any in [0, 2**64) can be typed
MOST_STEPS = 250  # on the slider, unless the model starts with more
INTRODUCTION = (
    "At every step the regions that the model attends to are blurred, the model is asked again, and the sample moves away from "
    "the worse answer. Here <b>{model}</b> makes one picture without and one with it, from the same noise."
)
logger = logging.getLogger(__name__)


def serve(
    pair: SideBySide,
    names: Sequence[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    browser: bool = False,
) -> gr.Blocks:
    """Serve the page of a model from a thread of its own, and return it: `local_url` is its address, `close()` ends it.

    Args:
        pair: The model.
        names: See `page`.
        host: The address that is listened on; 0.0.0.0 is all of this machine.
        port: The port; 0 is any free one.
        browser: Whether to open the page in a browser.

    Raises:
        ValueError: If the port is in use, the host is not one of this machine, or there is not one name for each class.
    """
    blocks = page(pair, names)
    with _no_proxy(host):
        blocks.launch(
            server_name=host,
            server_port=free_port(host, port),
            inbrowser=browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            theme=_theme(),
            css_paths=STYLE,
        )
    return blocks


def free_port(host: str, port: int) -> int:
    """Return the port, or any free one for 0.

    Raises:
        ValueError: If it cannot be listened on.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
            return int(listening.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]  # what follows is the address again
        raise ValueError(
            f"the page cannot be served at {host}:{port} ({reason}); give another port=..., or port=0 for any free one"
        ) from error


@contextmanager
def _no_proxy(host: str) -> Iterator[None]:
    """Let Gradio, which asks its own server whether it has started, do so past a proxy of the environment."""
    before = os.environ.get("no_proxy")
    others = before if before is not None else os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join(filter(None, [others, host, "localhost"]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


def page(pair: SideBySide, names: Sequence[str] | None = None) -> gr.Blocks:
    """Return the page of a model.

    Args:
        pair: The model.
        names: What its classes are called; None shows numbers.

    Raises:
        ValueError: If there is not one name for each class.
    """
    start, classes = pair.start, _classes(pair, names)
    model = html.escape(str(pair.job.settings["model"]["name"]))
    blocks = gr.Blocks(title=f"Self-Attention Guidance: {model}", analytics_enabled=False)
    with blocks:
        gr.HTML(f"<h1>Self-Attention Guidance</h1><p>{INTRODUCTION.format(model=model)}</p>", elem_id="head")
        with gr.Row(elem_id="work"):
            with gr.Column(elem_id="shown"):
                pictures = gr.HTML(drawing.EMPTY, elem_id="pictures")
                problem = gr.HTML(elem_id="problem")
            with gr.Column(elem_id="controls"):
                with gr.Row():
                    run = gr.Button("Compare", variant="primary", elem_id="run", min_width=120)
                    other = gr.Button("Another seed", elem_id="other", min_width=120)
                controls = _controls(pair, classes)
            with gr.Column(elem_id="details"):
                masks = gr.HTML(elem_id="masks")
                command = gr.Textbox(
                    label="The command that makes the right picture again",
                    info="With guidance.sag.scale=0 it makes the left one.",
                    lines=2,
                    buttons=["copy"],
                    interactive=False,
                    elem_id="command",
                )

        def compare(
            prompt: str | None,
            label: str | None,
            seed: str,
            scale: float,
            blur_sigma: float,
            threshold: float,
            layer: str,
            steps: int,
            progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio looks for it here)
        ) -> tuple[object, ...]:
            try:
                chosen = Settings(_whole(seed), steps, scale, blur_sigma, threshold, layer)
                chosen = replace(chosen, label=start.label and label, prompt=start.prompt if start.prompt is None else prompt)
                compared = pair.compare(chosen, lambda share, doing: progress(share, desc=doing))
            except user_errors() as error:
                said = sentence(error)
            except Exception:
                logger.exception("a comparison failed")
                said = "this failed; the terminal of the server says why"
            else:
                return drawing.pictures(compared, scale), drawing.masks(compared), compared.command, ""
            return gr.skip(), gr.skip(), gr.skip(), drawing.problem(said)

        asked: dict[str, Any] = {
            "fn": compare,
            "inputs": list(controls.values()),
            "outputs": [pictures, masks, command, problem],
            "show_progress_on": pictures,
            "concurrency_limit": 1,  # for both buttons together
            "concurrency_id": "model",
        }
        gr.on([run.click, controls["seed"].submit, controls["prompt"].submit], **asked)
        other.click(lambda: str(secrets.randbelow(SEEDS)), outputs=controls["seed"], show_progress="hidden").then(**asked)
    blocks.queue(max_size=WAITING)
    return blocks


def _controls(pair: SideBySide, classes: list[tuple[str, str]]) -> dict[str, Any]:
    """Return a control for each of the settings, with what they are to begin with; what a model does not have is hidden."""
    start, layers = pair.start, pair.job.denoiser.attention_layers
    most = min(len(pair.job.denoiser.diffusion.schedule), max(MOST_STEPS, start.steps))
    what, whose = "What the picture shows.", "Whose attention is read. The mask has the size of its map."
    sizes = [(f"{name} ({layer.resolution}x{layer.resolution})", name) for name, layer in layers.items()]
    return {
        "prompt": gr.Textbox(start.prompt, label="Prompt", info=what, visible=start.prompt is not None, elem_id="prompt"),
        "label": gr.Dropdown(
            classes, value=start.label, label="Class", info=what, visible=start.label is not None, elem_id="label"
        ),
        "seed": gr.Textbox(str(start.seed), label="Seed", info="Both pictures start from its noise.", elem_id="seed"),
        "scale": _slider("Scale s", start.scale, (0, 3), 0.01, "How strong the guidance is; 0 is off.", "scale"),
        "blur_sigma": _slider(
            "Blur sigma", start.blur_sigma, (0.1, 10), 0.1, "How strong the blur is, in pixels of what is denoised.", "sigma"
        ),
        "threshold": _slider(
            "Threshold", start.threshold, (0, 3), 0.05, "What gets more attention is blurred; the mean is 1.", "threshold"
        ),
        "layer": gr.Dropdown(sizes, value=start.layer, label="Layer", info=whose, elem_id="layer"),
        "steps": _slider("Steps", start.steps, (1, most), 1, "With SAG, the model is asked twice at each.", "steps"),
    }


def _slider(label: str, value: float, bounds: tuple[float, float], step: float, info: str, name: str) -> gr.Slider:
    low, high = bounds
    digits = 0 if step == 1 else None
    high = high if step == 1 else max(high, 2 * value)
    return gr.Slider(low, high, value, step=step, precision=digits, label=label, info=info, buttons=[], elem_id=name)


def _classes(pair: SideBySide, names: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return the classes to choose from: what they are called, and the setting."""
    count = pair.num_classes or 0
    if names is not None and len(names) != count:
        raise ValueError(f"classes must name the {count} classes of the model, got {len(names)} names")
    first = [("any (drawn by the seed)", "random"), *([("none", "none")] if pair.has_null_class else [])]
    return [*first, *((f"{k} {names[k]}" if names else str(k), str(k)) for k in range(count))]


def _whole(seed: str) -> int:
    """Read a seed. It is typed as a text, since browsers round numbers from 2**53 on."""
    if not seed.strip().removeprefix("-").isdecimal():
        raise ValueError(f"seed must be a whole number in [0, 2**64), got {seed!r}")
    return int(seed)


def _theme() -> gr.themes.Base:
    """Return a theme with the system's fonts, and texts that stand out enough to be read."""
    theme = gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(
        block_title_text_color="*neutral_900",
        block_title_text_weight="600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )

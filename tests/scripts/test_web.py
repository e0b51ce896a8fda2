"""The page that compares SAG off and on: the same noise, the command that repeats a picture, one sentence for bad values."""

import base64
import io
import re
import shlex
import shutil
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import sag
from evaluations.web.comparison import SideBySide
from sag.build import SampleConfig
from sag.build.messages import sentence, user_errors
from sag.diffusion import Denoiser
from scripts import sample, web

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def pair():
    return SideBySide(["device=cpu", "sampler=ddim", "sampler.steps=ddim4", "seed=3", "out=ignored", "num_samples=9"], count=2)


@pytest.fixture
def repeat(run_script, tmp_path):
    """Run a command that the page shows, with further arguments, and return its image."""

    def call(command, *arguments):
        program, script, *own = shlex.split(command)
        assert (program, script) == ("python", "scripts/sample.py")
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        run_script(sample.main, "sample", SampleConfig, *own, *arguments, f"out={out}")
        (path,) = out.glob("samples_1x*.npz")
        return np.load(path)["arr_0"][0]

    return call


OTHERS = {"label": "none", "steps": 3, "layer": "middle", "threshold": 0.5}


@pytest.mark.parametrize("chosen", [{}, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_the_command_repeats_the_pictures_to_the_byte(pair, repeat, chosen):
    compared = pair.compare(replace(pair.start, scale=1.25, **chosen))
    assert np.array_equal(repeat(compared.command), compared.on)
    assert np.array_equal(repeat(compared.command, "guidance.sag.scale=0"), compared.off)
    assert not np.array_equal(compared.off, compared.on)


@pytest.mark.slow
def test_every_control_changes_the_picture_with_sag_or_both(pair):
    start = replace(pair.start, scale=1.0, label="3")
    off, on = (pair.compare(start).off, pair.compare(start).on)
    for of_sag in ({"scale": 0.5}, {"blur_sigma": 2.0}, {"threshold": 0.5}, {"layer": "middle"}):
        changed = pair.compare(replace(start, **of_sag))
        assert np.array_equal(changed.off, off), of_sag
        assert not np.array_equal(changed.on, on), of_sag
    for of_both in ({"seed": 4}, {"steps": 3}, {"label": "8"}):
        assert not np.array_equal(pair.compare(replace(start, **of_both)).off, off), of_both
    without = pair.compare(replace(start, scale=0.0))
    assert np.array_equal(without.off, without.on)


def test_it_starts_with_what_the_command_line_says(pair):
    assert (pair.start.seed, pair.start.steps, pair.start.label, pair.start.layer) == (3, 4, "random", "output.2")
    assert "sampler.steps=ddim4" in pair.overrides(pair.start)  # as given, since 4 would be other steps
    assert "sampler.steps=5" in pair.overrides(replace(pair.start, steps=5))
    assert not [o for o in pair.overrides(pair.start) if o.startswith(("out=", "num_samples="))]
    listed = SideBySide(["device=cpu", "labels=[7]", "indices=[5]", "sampler.steps='2,1'", "guidance=[sag,cfg]"], count=1)
    assert (listed.start.label, listed.start.steps) == ("7", 3)
    assert {"indices=[5]", "guidance=[sag,cfg]", "sampler.steps='2,1'"} <= set(listed.overrides(listed.start))


def test_progress_and_masks_are_those_of_the_steps(pair):
    seen = []
    compared = pair.compare(pair.start, lambda share, doing: seen.append((share, doing)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert [doing for _, doing in seen] == ["without SAG"] * 4 + ["with SAG"] * 4 + ["masks"]
    assert [moment.mask.shape for moment in compared.moments] == [(1, 32, 32), (1, 32, 32)]
    assert compared.moments[0].time > compared.moments[1].time


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": "${oc.env:HOME}"}, "seed must be a whole number"),
        ({"steps": 0}, "^steps must look like"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"blur_sigma": -1.0}, r"^blur_sigma must be positive, got -1.0$"),
        ({"layer": "output.9"}, "unknown attention layer 'output.9'; this model has input.3"),
        ({"label": "10"}, r"labels must be in \[0, 10\)"),
        ({"label": "${oc.env:HOME}"}, "label must be random, none or a whole number"),
        ({"prompt": "${oc.env:HOME}"}, "a prompt may not have"),
    ],
)
def test_a_bad_value_is_one_sentence(pair, chosen, message):
    with pytest.raises(user_errors()) as error:
        pair.compare(replace(pair.start, **chosen))
    assert re.search(message, sentence(error.value))


class Counted(Denoiser):
    """A model of texts: fashion32, which draws the class that is the number of words."""

    takes_text = True
    num_classes = None

    def condition(self, labels=None, low_res=None, texts=None):
        labels = None if texts is None else torch.tensor([len(text.split()) for text in texts])
        return super().condition(labels, low_res)


def counted(device, precision, compiled):
    """What the config of a model of texts names."""
    known = sag.build.denoiser(sag.compose("sample", ["device=cpu"]))
    return Counted(known.network, known.diffusion, known.null_label)


TEXT_MODEL = """
name: counted
checkpoint: null
reference: null
denoiser: {_target_: test_web.counted}
null_label: null
steps: 2
"""


@pytest.mark.slow
def test_a_model_of_texts_has_a_prompt_and_the_command_its_folder_of_configs(tmp_path, repeat):
    from evaluations.web.page import page  # here, as Gradio takes seconds to import, in every worker

    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/counted.yaml").write_text(TEXT_MODEL)
    given = ["model=counted", "prompt=a red dog", "device=cpu", "guidance.sag.blur_sigma=1"]
    pair = SideBySide(given, tmp_path / "configs", count=1)
    assert (pair.start.prompt, pair.start.label, pair.num_classes) == ("a red dog", None, None)
    for prompt in ("two, words=2", "'quoted' \"twice\"", ""):
        compared = pair.compare(replace(pair.start, prompt=prompt))
        assert np.array_equal(repeat(compared.command), compared.on), prompt
    prompts = [control for control in page(pair).blocks.values() if getattr(control, "elem_id", None) == "prompt"]
    assert [(prompt.visible, prompt.value) for prompt in prompts] == [(True, "a red dog")]


@pytest.fixture
def program(run_script):
    return lambda *arguments: run_script(web.main, "web", web.WebConfig, "device=cpu", *arguments)


def test_without_gradio_the_command_that_installs_it_is_named(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "evaluations.web.page", raising=False)
    with pytest.raises(SystemExit, match=r"error: the page needs Gradio: pip install 'sag\[demo\]'"):
        program()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("guidance=[cfg]", r"there is nothing to compare without SAG; add sag to guidance"),
        ("indices=[1,2]", r"the page compares one sample; give one index"),
        ("bits=16", "the page shows images of 8 bits; leave out bits"),
        ("guidance.sag.layer=output.9", "unknown attention layer"),
        ("guidance.sag.scale={_target_: sag.guidance.ScaleSchedule, start: 2, end: 0}", "leave out the schedule"),
        ("moments=0", "moments must be at least 1"),
        ("classes=[shirt]", "classes must name the 10 classes of the model, got 1 names"),
        ("host=203.0.113.1", r"cannot be served at 203\.0\.113\.1:7860"),
        ("port=70000", "cannot be served at"),
    ],
)
def test_a_page_that_cannot_be_served_is_one_sentence(program, argument, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        program(argument)


def test_a_port_in_use_is_one_sentence(program):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"127\.0\.0\.1:{port} \(.*in use\); give another port=\.\.\., or port=0"):
            program(f"port={port}")


def shown(tab, name):
    """The image of a picture on the page."""
    address = tab.locator(f"img.{name}").first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2]))))


def choose(tab, control, value):
    box = tab.locator(f"#{control} input[type=number]")
    box.fill(value)
    box.blur()


@pytest.fixture
def served(pair, monkeypatch):
    """The page, and the addresses of other machines that its process asked for."""
    from evaluations.web.page import serve

    asked, connect = [], socket.socket.connect

    def watched(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            asked.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://203.0.113.1:3128")  # nobody answers there
    blocks = serve(pair, port=0)
    yield blocks.local_url, asked
    blocks.close()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here; .ci/run installs one")
def test_the_page_works_in_a_browser_on_a_phone_and_without_a_network(served, repeat):
    url, asked = served
    problems, requested = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

        def open_page(width, scheme):
            tab = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
            tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.on("request", lambda request: requested.append(request.url))
            tab.goto(url)
            tab.locator("#run").wait_for()
            return tab

        tab = open_page(1280, "light")
        assert not tab.locator("#prompt").is_visible()  # this model takes no text
        choose(tab, "scale", "1.5")
        tab.locator("#run").click()
        tab.locator(".strip img").nth(1).wait_for()
        assert tab.locator(".strip img").count() == 2
        off, on = shown(tab, "off"), shown(tab, "on")
        assert not np.array_equal(off, on)
        assert tab.locator("img.on").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        assert tab.locator("img.on").bounding_box()["width"] > 250
        command = tab.locator("#command textarea").input_value()
        assert "guidance.sag.scale=1.5" in command
        assert np.array_equal(repeat(command), on)

        choose(tab, "scale", "0")
        tab.locator("#run").click()
        expect(tab.locator("figcaption").nth(1)).to_have_text("SAG on, s = 0 (the same picture)")
        assert np.array_equal(shown(tab, "off"), off)
        assert np.array_equal(shown(tab, "on"), off)

        tab.locator("#seed input, #seed textarea").fill("many")
        tab.locator("#run").click()
        expect(tab.locator("#problem")).to_have_text("seed must be a whole number in [0, 2**64), got 'many'")
        tab.locator("#other").click()  # draws a seed, and compares
        expect(tab.locator("#problem")).to_be_hidden()
        expect(tab.locator("#command textarea")).to_have_value(re.compile(r"seed=\d{2,}"))

        phone, second = open_page(400, "dark"), open_page(400, "light")
        for visitor, scale in ((phone, "1"), (second, "2")):  # the model serves them one after the other
            choose(visitor, "scale", scale)
            visitor.locator("#run").click()
        for visitor, scale in ((phone, "1"), (second, "2")):
            expect(visitor.locator("figcaption").nth(1)).to_have_text(f"SAG on, s = {scale}")
            visitor.locator(".strip img").first.wait_for()
            assert visitor.evaluate("document.documentElement.scrollWidth") <= 400
        assert not np.array_equal(shown(phone, "on"), shown(second, "on"))
        assert np.array_equal(shown(phone, "off"), off)
        dark, light = (page.locator("body").evaluate("body => getComputedStyle(body).color") for page in (phone, second))
        assert dark != light
        browser.close()
    assert problems == []
    assert {address.split("/")[2] for address in requested if not address.startswith("data:")} == {url.split("/")[2]}
    assert asked == []

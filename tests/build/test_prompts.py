"""Models of texts: prompts from the command line and from files, and models that a config builds by themselves."""

from dataclasses import dataclass

import pytest
import torch

import sag
from sag.build.arguments import read_arguments
from sag.data.prompts import read_prompts
from sag.diffusion import DDIM, Condition, Denoiser, GaussianDiffusion, Prediction, Schedule
from sag.guidance import ClassifierFreeGuidance, GuidedDenoiser
from sag.sampling import run


@dataclass(frozen=True)
class Words:
    """A denoiser whose only image is as bright as its text is long."""

    diffusion: GaussianDiffusion
    negative_prompt: str = ""
    takes_text = True
    attention_layers = {}  # noqa: RUF012
    shape = (3, 4, 4)
    num_classes = None

    def condition(self, labels=None, low_res=None, texts=None):
        def embedded(words):
            return torch.tensor([[[len(text) / 10]] for text in words])

        return (
            Condition()
            if texts is None
            else Condition(text=embedded(texts), null_text=embedded([self.negative_prompt] * len(texts)))
        )

    def sample_size(self, size=None):
        return self.shape[1:]

    def respace(self, steps):
        return Words(self.diffusion.respace(steps), self.negative_prompt)

    def decode(self, x_0):
        return x_0

    def __call__(self, x_t, t, condition=None, *, capture=(), attend=None, memory=None):
        x_0 = condition.text.view(-1, 1, 1, 1).expand(x_t.shape) - 1
        return Prediction(self.diffusion.eps_from_x0(x_t, t, x_0))


def words(negative_prompt="", *, path, device, precision, compiled):
    """What a model's config names."""
    assert (device.type, precision, compiled) == ("cpu", "float32", False)
    if path != "somewhere":
        raise ValueError(f"there are no words in {path}")
    return Words(GaussianDiffusion(Schedule.linear(), None), negative_prompt)


CONFIG = """# path=FOLDER: path=somewhere
name: words
checkpoint: ???
reference: null
latent: true
denoiser:
  _target_: test_prompts.words
  path: ${model.checkpoint}
  negative_prompt: ""
null_label: null
steps: 2
"""


@pytest.fixture
def composed(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/words.yaml").write_text(CONFIG)

    def compose(*overrides):
        chosen = ["model=words", "guidance=[]", "sampler=ddim", "sampler.steps=2", "device=cpu", "num_samples=3", *overrides]
        return sag.compose("sample", chosen, tmp_path)

    return compose


def levels(job):
    """How long the text of each sample was."""
    return ((job.make(range(len(job.indices)))[:, 0, 0, 0] + 1) * 10).round().int().tolist()


def test_every_sample_is_of_its_own_prompt(composed, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a\n\nccc\n")
    assert read_prompts(file) == ["a", "", "ccc"]
    assert levels(sag.build.job(composed("path=somewhere", "prompt=a fox, [two] 'foxes'"))) == [20] * 3
    assert levels(sag.build.job(composed("path=somewhere"))) == [0] * 3
    assert levels(sag.build.job(composed("path=somewhere", f"prompts={file}"))) == [1, 0, 3]
    several = composed("path=somewhere", f"prompts={file}", "images_per_prompt=2", "indices=[5,1,0]")
    assert levels(sag.build.job(several)) == [3, 1, 1]
    negative = composed("path=somewhere", "prompt=abc", "negative_prompt=ab", "guidance=[cfg]", "guidance.cfg.scale=2")
    job = sag.build.job(negative)
    assert isinstance(job.guidance[0], ClassifierFreeGuidance)
    assert levels(job) == [3 + 2 * (3 - 2)] * 3


def test_guidance_has_the_defaults_of_latents(composed):
    blur = composed("path=somewhere", "guidance=[blur]").guidance.blur
    assert (blur.scale, blur.blur_sigma, blur.blur_kernel) == (0.75, 1, 9)


def test_a_run_continues_only_with_the_same_texts(composed, tmp_path):
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("a\nbb\nccc\n")
    first = run(sag.build.job(composed("path=somewhere", f"prompts={file}", "num_samples=2")), str(out))
    (tmp_path / "elsewhere").mkdir()
    file = file.rename(tmp_path / "elsewhere/prompts.txt")
    again = run(sag.build.job(composed("path=somewhere", f"prompts={file}", "num_samples=2")), str(out))
    assert (first.new, again.new) == (True, False)
    file.write_text("a\nbbb\nccc\n")
    with pytest.raises(ValueError, match=r"holds results of other settings; .*prompts\.sha256"):
        run(sag.build.job(composed("path=somewhere", f"prompts={file}", "num_samples=2")), str(out))


def test_settings_of_models_without_texts_are_those_of_former_versions():
    settings = sag.build.identity(sag.compose("sample", ["model=fashion32"]))
    assert not {"prompt", "prompts", "negative_prompt", "images_per_prompt", "path"} & set(settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "model.checkpoint is missing"),
        (["path=nowhere"], "there are no words in nowhere"),
        (["path=somewhere", "prompts={three}", "num_samples=4"], "num_samples=4 needs 4 prompts .* has 3; set num_samples=3"),
        (["path=somewhere", "prompts={three}", "indices=[7]", "images_per_prompt=2"], "sample 7 of indices needs 4 prompts"),
        (["path=somewhere", "prompts={three}", "prompt=a"], "give either prompt, a text, or prompts, a file; not both"),
        (["path=somewhere", "prompts={three}", "images_per_prompt=0"], "images_per_prompt must be at least 1, got 0"),
        (["path=somewhere", "images_per_prompt=2"], "images_per_prompt needs prompts=FILE"),
        (["path=somewhere", "prompts={missing}"], r"prompts=.*missing\.txt cannot be read \(No such file or directory\)"),
        (["path=somewhere", "prompts={empty}"], r"empty\.txt is empty; a file of prompts has one per line"),
        (["path=somewhere", "prompts={binary}"], r"binary\.txt is not a text file in UTF-8"),
        (["path=somewhere", "labels=[3]"], r"this model takes no classes: labels=\[3\] has no use; leave it out"),
        (["model=fashion32", "prompt=a"], "fashion32 takes no text; leave out prompt and prompts"),
        (["model=fashion32", "negative_prompt=a"], "fashion32 takes no text; leave out negative_prompt"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(composed, tmp_path, overrides, message):
    for name, content in {"three": b"a\nb\nc", "empty": b"", "binary": b"\xff\xfe\x00"}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    files = {name: tmp_path / f"{name}.txt" for name in ("three", "empty", "binary", "missing")}
    with pytest.raises((ValueError, OSError), match=message) as caught:
        sag.build.job(composed(*[override.format(**files) for override in overrides]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a fox, in snow", "", "[x]", "${y}", '"${y}"', "it's", '"quoted"', "k=v", "null and void", "{a: b}", "a: b", "5"]
)
def test_prompts_are_taken_literally(text):
    (override,) = read_arguments([f"prompt={text}"], sag.build.SampleConfig)
    expected = text.strip('"') if text.startswith('"') else text  # quotes of the shell's second layer
    assert sag.compose("sample", [override]).prompt == expected


def test_the_text_model_of_these_tests_is_guided():
    model = Words(GaussianDiffusion(Schedule.linear(), None))
    guided = GuidedDenoiser(model, [ClassifierFreeGuidance(1.0)])
    condition = guided.condition(texts=["abcd"])
    assert float(DDIM(2).respace(guided)(torch.zeros(1, 3, 4, 4), 1, condition).eps.mean()) != 0
    assert not isinstance(model, Denoiser)

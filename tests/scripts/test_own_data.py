"""A user's own images, as docs/own_data.md has it: 16 bits, any channels, not square; trained on, sampled, scored."""

import re

import numpy as np
import pytest
import torch
from helpers import TINY, small_unet
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from sag.build import compose
from sag.build.groups import CONFIGS
from sag.build.own_model import reference_of
from sag.checkpoints import load_checkpoint
from sag.data import ArrayImages, eight_bits, from_values, open_images, to_values
from sag.data.tensors import dequantise, quantise
from sag.diffusion import GaussianDiffusion
from sag.models import UNet, UpsamplingUNet
from sag.sampling.shards import read_samples
from scripts import evaluate, make_reference, sample, train, visualize

SIZE = (24, 16)
RANGE = (-1000.0, 3000.0)


FLAGS = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --attention_resolutions 8 "
    "--num_head_channels 32 --resblock_updown True --learn_sigma True --noise_schedule cosine"
)


def network(channels, flags=FLAGS):
    return ["model=flags", f"model.image_channels={channels}", f"model.flags={flags}", "size=[24,16]", "device=cpu"]


def scans(count, channels):
    """Smooth random values in RANGE, (count, *SIZE, channels) float64."""
    coarse = np.random.default_rng(0).uniform(*RANGE, (count, 3, 2, channels))
    return np.repeat(np.repeat(coarse, 8, 1), 8, 2)


def train_and_sample(run_script, tmp_path, channels, data):
    run_script(
        train.main, "train", train.TrainConfig, *network(channels), *data,
        "settings.steps=2", "settings.batch_size=4", "settings.ema_rates=[0.5]", "grid_steps=2", f"out={tmp_path / 'run'}",
    )  # fmt: skip
    printed = run_script(
        sample.main, "sample", sample.SampleConfig, *network(channels), f"model.checkpoint={tmp_path}/run/ema_0.5_000002.pt",
        "guidance=[sag]", "bits=16", "sampler=ddim", "sampler.steps=ddim2", "num_samples=8",
        f"out={tmp_path / 'samples'}",
    )  # fmt: skip
    assert f"24x16x{channels}" in printed
    assert re.search("guidance  sag: scale 0.5, blur_sigma 1, .*layer middle, ", printed)
    listed = run_script(visualize.main, "visualize", visualize.VisualizeConfig, *network(channels), "list=true")
    assert re.findall(r"^(\S+) +\d+x\d+", listed, re.MULTILINE) == ["input.3", "middle", "output.0", "output.1"]
    assert Image.open(tmp_path / "samples/grid.png").size == (3 * 16, 3 * 24)
    samples = open_images(tmp_path / f"samples/samples_8x24x16x{channels}.npz")
    assert (samples.shape, samples.read(0, 1).dtype) == ((8, *SIZE, channels), np.uint16)
    return samples


def score(run_script, tmp_path, data, *extractor):
    run_script(
        make_reference.main, "make_reference", make_reference.MakeReferenceConfig, *data, *TINY, *extractor,
        f"out={tmp_path / 'reference.npz'}",
    )  # fmt: skip
    arguments = [*TINY, *extractor, "metrics=[fid,precision]", f"samples={tmp_path / 'samples'}"]
    with pytest.raises(SystemExit, match=r"reference= is missing, and own_ema_0.5_000002, the model of .*, has none: give"):
        run_script(evaluate.main, "evaluate", evaluate.EvaluateConfig, *arguments)
    reference = f"reference={tmp_path / 'reference.npz'}"
    return run_script(evaluate.main, "evaluate", evaluate.EvaluateConfig, *arguments, reference)


def test_16_bit_grey_files(run_script, tmp_path):
    (tmp_path / "scans").mkdir()
    for i, values in enumerate(scans(12, 1)):
        stored = (values[..., 0] - RANGE[0]).astype(np.uint16)  # as scanners do: shifted, whole numbers
        Image.fromarray(stored).save(tmp_path / f"scans/{i:02d}.png")
    data = ["data=folder", f"data.path={tmp_path / 'scans'}", "data.size=[24,16]", "data.value_range=[0,4000]"]
    samples = train_and_sample(run_script, tmp_path, 1, data)
    values = to_values(samples.read(0, 8), RANGE)
    assert values.min() >= RANGE[0]
    assert values.max() <= RANGE[1]
    assert len(np.unique(values)) > 256  # more than 8 bits would hold
    assert "fid" in score(run_script, tmp_path, data).lower()


def test_any_number_of_channels(run_script, tmp_path):
    np.savez(tmp_path / "scans.npz", from_values(scans(12, 5), RANGE))
    data = ["data=npz", f"data.path={tmp_path / 'scans.npz'}"]
    train_and_sample(run_script, tmp_path, 5, data)
    five = ["extractor.mean=[0,0,0,0,0]", "extractor.std=[1,1,1,1,1]", "+extractor.network.channels=5"]
    assert "fid" in score(run_script, tmp_path, data, *five).lower()
    (tmp_path / "reference.npz").unlink()
    with pytest.raises(SystemExit, match="ModuleExtractor takes images of 1 or 3 channels, got 5; for others use"):
        score(run_script, tmp_path, data)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "sample",
            ["size=[30,16]", "bits=16"],
            r"size must be \[height,width\] in pixels, both divisible by 8 here, got",
        ),
        ("sample", ["size=[32]"], r"size must be \[height,width\]"),
        ("sample", ["bits=12"], "bits must be 8 or 16, got 12"),
        (
            "train",
            ["size=[24,16]"],
            "has images of 32x32x1, the network takes 24x16x1 .* trains it on another size",
        ),
    ],
)
def test_what_does_not_fit_is_said(run_script, tmp_path, monkeypatch, script, arguments, message):
    ready = ArrayImages(np.zeros((4, 32, 32, 1), np.uint8), np.zeros(4, np.int64))
    monkeypatch.setattr("sag.data.fashion_mnist.fashion_mnist", lambda **options: ready)
    main, schema = (sample.main, sample.SampleConfig) if script == "sample" else (train.main, train.TrainConfig)
    with pytest.raises(SystemExit, match=message):
        run_script(main, script, schema, *arguments, "device=cpu", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_levels_and_back():
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    for bits, error in ((8, 1 / 127.5), (16, 1 / 65535)):
        levels = quantise(x, bits)
        assert float((dequantise(levels) - x).abs().max()) <= error * 1.01
    ends = quantise(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3), 16)
    assert eight_bits(ends).ravel().tolist() == [0, 128, 255]
    values = np.linspace(*RANGE, 1001)
    levels = from_values(values, RANGE)
    assert np.abs(to_values(levels, RANGE) - values).max() <= 4000 / 65535 * 0.51
    assert from_values(np.array([-5000.0, 5000.0]), RANGE).tolist() == [0, 65535]
    with pytest.raises(ValueError, match=r"value_range must be \[low, high\] with low below high, got \[3, 3\]"):
        to_values(levels, (3, 3))
    with pytest.raises(ValueError, match="the values are not all finite"):
        from_values(np.array([np.nan]), RANGE)


@pytest.fixture
def settled():
    """Composes configs/sample.yaml as scripts/sample.py does."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda *overrides: compose("sample", overrides)


@pytest.mark.parametrize(
    ("overrides", "name", "reference", "classifier"),
    [
        ([], "fashion32", "fashion_mnist", "fashion32"),
        (["model.diffusion.clip_denoised=false", "guidance.sag.scale=1", "seed=3"], "fashion32", "fashion_mnist", "fashion32"),
        (["model.network.image_size=32"], "fashion32", "fashion_mnist", "fashion32"),  # what it is already
        (["model.network.image_size=64"], "own", None, None),
        (["model.network.in_channels=3", "model.checkpoint=a b/sharp#1.pt"], "own_sharp_1", None, None),
        (["model.checkpoint=runs/x/ema_0.9999_020000.pt"], "own_ema_0.9999_020000", None, None),
        (["model.checkpoint=fashion32_weak"], "own_fashion32_weak", None, None),
        (["model.checkpoint=x.pt", "model.name=shoes", "model.reference=shoes.npz"], "shoes", "shoes.npz", None),
        (["model.checkpoint=x.pt", "model.reference=fashion_mnist"], "own_x", "fashion_mnist", None),
        (["model.network.num_classes=7", "model.name=shoes"], "shoes", None, None),
        (["model.checkpoint=x.pt", "classifier=fashion32"], "own_x", None, "fashion32"),
        (["model.checkpoint=x.pt", "classifier.checkpoint=y.pt"], "own_x", None, "own_y"),
        (["classifier.checkpoint=y.pt"], "fashion32", "fashion_mnist", "own_y"),
    ],
)
def test_a_model_with_another_network_or_other_weights_is_not_that_of_its_config(
    settled, overrides, name, reference, classifier
):
    cfg = settled(*overrides)
    assert (cfg.model.name, cfg.model.reference) == (name, reference)
    assert (None if cfg.classifier is None else cfg.classifier.name) == classifier


def test_a_copy_of_a_published_file_is_the_published_model(settled):
    published = settled("model=adm_imagenet64")
    copied = settled("model=adm_imagenet64", "model.checkpoint=copies/64x64_diffusion.pt")
    assert copied.model.checkpoint == "copies/64x64_diffusion.pt"
    copied.model.checkpoint = published.model.checkpoint
    assert copied == published
    tuned = settled("model=adm_imagenet64", "model.checkpoint=runs/model010000.pt")
    assert (tuned.model.name, tuned.model.reference, tuned.classifier) == ("own_model010000", None, None)
    assert tuned.guidance == published.guidance  # the network is the same


def test_another_network_does_not_inherit_settings_of_sag_unless_they_are_given(settled):
    def of(*overrides):
        guidance = settled(*overrides).guidance
        return [guidance[name].get(key) for name in guidance for key in ("scale", "layer", "blur_sigma")]

    assert of("model.network.image_size=64") == [0.2, "middle", 1]
    assert of("model.network.image_size=64", "guidance=[sag,blur]") == [0.2, "middle", 1, 0.2, None, 1]
    assert of("model.network.num_classes=null", "model.name=fashion32") == [0.5, "middle", 1]
    assert of("model.network.image_size=64", "guidance.sag.layer=output.2", "guidance.sag.scale=0.7") == [0.7, "output.2", 1]
    sizes = [of(f"model.network.image_size={size}")[-1] for size in (64, 96, 128, 256, 512)]
    assert sizes == [1, 3, 3, 9, 9]


def test_own_images_are_not_scored_against_clothes(run_script, tmp_path):
    """As docs/own_data.md had it: fashion32 with another network. Runs that were recorded so have no reference either."""
    torch.save(small_unet().state_dict(), tmp_path / "colour.pt")
    keys = {
        "image_size": 16, "in_channels": 3, "out_channels": 6, "num_res_blocks": 1, "attention_resolutions": "[8]",
        "channel_mult": "[1,2]", "num_classes": "null", "num_head_channels": 8, "resblock_updown": "false",
    }  # fmt: skip
    described = [*(f"model.network.{key}={value}" for key, value in keys.items()), "model.null_label=null"]
    printed = run_script(
        sample.main, "sample", sample.SampleConfig, *described, f"model.checkpoint={tmp_path / 'colour.pt'}", "num_samples=4",
        "sampler.steps=2", "device=cpu", f"out={tmp_path / 'out'}",
    )  # fmt: skip
    assert (
        "note      this is not fashion32, as its network and checkpoint differ; it has no bundled reference or classifier"
        in printed
    )
    assert "model     own_colour: " in printed
    recorded = OmegaConf.load(tmp_path / "out/config.yaml")
    assert (recorded.model.name, recorded.model.reference, recorded.classifier) == ("own_colour", None, None)
    for name, reference in (("own_colour", None), ("fashion32", "fashion_mnist")):
        recorded.model.name, recorded.model.reference = name, reference
        OmegaConf.save(recorded, tmp_path / "out/config.yaml")
        with pytest.raises(SystemExit, match=f"reference= is missing, and {name}, the model of .*, has none"):
            run_script(evaluate.main, "evaluate", evaluate.EvaluateConfig, f"samples={tmp_path / 'out'}", "device=cpu")


def test_the_reference_of_an_unchanged_model_is_found(settled):
    assert reference_of(settled().model) == "fashion_mnist"
    assert reference_of(settled("model=iddpm_cifar10").model) is None
    assert reference_of(OmegaConf.create({"name": "mine", "reference": "mine.npz"})) == "mine.npz"


@pytest.mark.parametrize(
    "flags",
    [
        FLAGS,
        FLAGS.replace(" --", " \\\n    --"),
        f"'{FLAGS}'",
        f'"{FLAGS}"',
        FLAGS.replace(" ", "=").replace("=--", " --"),
        "--image_size 64 --class_cond True --diffusion_steps 4000 --rescale_timesteps True --sigma_small True --dropout 0.1",
        "--image_size 32 --predict_xstart True --clip_denoised False --num_heads 2 --num_heads_upsample -1",
        "--large_size 256 --small_size 64 --class_cond True --learn_sigma True --num_channels 64",
    ],
)
def test_flags_become_the_network_and_the_diffusion_that_they_describe(settled, flags):
    model = settled("model=flags", f"model.flags={flags}", "model.checkpoint=x.pt").model
    assert list(model) == ["name", "checkpoint", "reference", "network", "diffusion", "null_label", "steps"]
    assert (model.name, model.reference, model.steps) == ("own_x", None, 250)
    line = flags.strip("'\"")
    with torch.device("meta"):
        built = instantiate(model.network, _convert_="all")
        expected = (UpsamplingUNet if "large_size" in line else UNet).from_flags(line)
    assert type(built) is type(expected)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    diffusion, from_flags = instantiate(model.diffusion), GaussianDiffusion.from_flags(line)
    assert np.array_equal(diffusion.schedule.betas, from_flags.schedule.betas)
    assert np.array_equal(diffusion.schedule.tau, from_flags.schedule.tau)
    for name in ("variance", "prediction", "clip_denoised"):
        assert getattr(diffusion, name) == getattr(from_flags, name)


def test_flags_of_sampling_and_keys_beside_the_flags(settled):
    def of(line, *overrides):
        return settled("model=flags", f"model.flags=--image_size 32 {line}", *overrides)

    assert of("--timestep_respacing ddim25").sampler.steps == "ddim25"
    assert of("--timestep_respacing 100", "sampler=ddim").sampler.steps == 100
    assert of("--timestep_respacing 100", "sampler.steps=7").sampler.steps == 7
    assert of("--diffusion_steps 100").sampler.steps == 100
    assert of("--model_path a/b.pt").model.checkpoint == "a/b.pt"
    assert of("--model_path a/b.pt", "model.checkpoint=c.pt").model.name == "own_c"
    classes = of("--class_cond True", "model.num_classes=11", "model.null_label=10", "model.image_channels=1").model
    assert (classes.network.num_classes, classes.network.in_channels, classes.network.out_channels) == (11, 1, 1)
    assert of("--class_cond True").guidance.sag.scale == 0.2
    assert of("", "model.name=fashion32").guidance.sag.scale == 0.5
    assert of("", "guidance.sag.scale=2").guidance.sag.scale == 2
    with pytest.raises(ValueError, match=r"model.num_classes=11 needs the flag --class_cond True"):
        of("", "model.num_classes=11")


def test_flags_describe_bundled_weights_and_the_samples_are_the_same(run_script, tmp_path):
    """fashion32 by its flags and weights in a file: the same images, under another name."""
    flags = (
        "--image_size 32 --num_channels 32 --num_res_blocks 1 --attention_resolutions 16,8 --channel_mult 1,1,2,4 "
        "--class_cond True --num_head_channels 32 --resblock_updown True --learn_sigma True --noise_schedule cosine "
        "--predict_xstart True --use_fp16 True --batch_size 4"
    )
    torch.save(load_checkpoint("fashion32"), tmp_path / "copy.pt")
    own = ["model=flags", f"model.flags={flags}", f"model.checkpoint={tmp_path / 'copy.pt'}", "model.image_channels=1"]
    common = ["num_samples=2", "sampler.steps=2", "guidance=[]", "device=cpu"]
    run_script(sample.main, "sample", sample.SampleConfig, *common, f"out={tmp_path / 'bundled'}")
    printed = run_script(
        sample.main, "sample", sample.SampleConfig, *common, *own, "model.num_classes=11", "model.null_label=10",
        f"out={tmp_path / 'own'}",
    )  # fmt: skip
    assert (
        "the flags use_fp16, batch_size do not describe the model and are not used; give precision=, batch_size= inst"
        in printed
    )
    images = [read_samples(tmp_path / name / "samples_2x32x32x3.npz")[0] for name in ("bundled", "own")]
    assert np.array_equal(*images)
    recorded = OmegaConf.load(tmp_path / "own/config.yaml").model
    assert (recorded.name, recorded.network.in_channels, recorded.get("flags")) == ("own_copy", 1, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.flags=--image_sise 64"], "model.flags: unknown flag 'image_sise'; did you mean 'image_size'"),
        (["model.flags=--image_size big"], "model.flags: flag image_size must be a whole number, got 'big'"),
        (["model.flags=--image_size 0"], "model.flags: flag image_size must be at least 1, got 0"),
        (["model.flags=--image_size 96"], "model.flags: size 96 has no default channel_mult"),
        (["model.flags=--small_size 16"], "model.flags: the flag small_size describes an upsampler, which needs"),
        (["model.flags=--class_cond"], "--class_cond has no value"),
        (["model.flags=$MODEL_FLAGS"], "the shell inserts the value of a variable only within double quotes"),
        (["model.flags="], "model.flags= has no value; a variable of the shell may be empty"),
        (["model.flags=--image_size 32"], "model.checkpoint is missing: the file or address of the weights"),
        (
            ["model.flags=--image_size 32", "model.network.in_channels=1"],
            "model=flags takes the network and its diffusion from",
        ),
    ],
)
def test_flags_that_do_not_describe_a_model_are_one_sentence(run_script, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message) as caught:
        run_script(sample.main, "sample", sample.SampleConfig, "model=flags", *arguments, f"out={tmp_path / 'out'}")
    assert "\n" not in str(caught.value.code)
    assert not (tmp_path / "out").exists()

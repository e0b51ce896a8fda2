"""The UNet against the reference programs' numbers, and its attention as read and replaced by arguments."""

import pytest
import torch
import torch.nn.functional as F
from helpers import fill, golden, noise, relative_error, shapes, small_unet

from sag.models import UNet, UpsamplingUNet

UNETS, UNET_OUTPUTS = golden("unet")
PUBLISHED, PUBLISHED_OUTPUTS = golden("published")
IDDPM, IDDPM_OUTPUTS = golden("iddpm")
CLASSIFIERS, CLASSIFIER_OUTPUTS = golden("classifier")
UPSAMPLERS = CLASSIFIERS["upsamplers"]


def golden_forward(flags):
    network = fill(UNet.from_flags(flags))
    px = flags["image_size"]
    n = 2 if px <= 64 else 1
    tau = torch.tensor([17.0, 803.0] if n == 2 else [803.0])
    y = torch.tensor([3, 977][:n]) if flags.get("class_cond") else None
    output = network(noise(1, 0, (n, 3, px, px)), tau, y).sample
    stride = max(1, px // 32)
    return output, output[:, :, ::stride, ::stride]


@pytest.mark.parametrize("name", UNETS)
def test_small_networks_give_the_reference_output(name):
    flags = UNETS[name]["flags"]
    assert shapes(UNet.from_flags(flags)) == UNETS[name]["keys"]
    assert relative_error(golden_forward(flags)[0], UNET_OUTPUTS[name]) < 1e-4


@pytest.mark.parametrize("name", ["iddpm_imagenet64_uncond", "iddpm_cifar10_uncond"])
def test_iddpm_networks_give_the_reference_output(name):
    assert relative_error(golden_forward(IDDPM[name]["flags"])[1], IDDPM_OUTPUTS[name]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet64", "imagenet256_uncond"])
def test_full_size_networks_give_the_reference_output(name):
    assert relative_error(golden_forward(PUBLISHED[name]["flags"])[1], PUBLISHED_OUTPUTS[name]) < 1e-4


@pytest.mark.slow
def test_the_upsampler_gives_the_reference_output():
    network = fill(UpsamplingUNet.from_flags(UPSAMPLERS["64_256_upsampler"]["flags"]))
    low_res = noise(2, 0, (1, 3, 64, 64))
    output = network(noise(1, 0, (1, 3, 256, 256)), torch.tensor([803.0]), torch.tensor([977]), low_res=low_res).sample
    assert relative_error(output[:, :, ::8, ::8], CLASSIFIER_OUTPUTS["64_256_upsampler/out"]) < 1e-4


@pytest.mark.parametrize(("cases", "name"), [(PUBLISHED, n) for n in PUBLISHED] + [(IDDPM, n) for n in IDDPM])
def test_published_entries_are_those_of_the_network(cases, name):
    with torch.device("meta"):
        assert shapes(UNet.from_flags(cases[name]["flags"])) == cases[name]["keys"]


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_published_entries_are_those_of_the_upsampler(name):
    with torch.device("meta"):
        assert shapes(UpsamplingUNet.from_flags(UPSAMPLERS[name]["flags"])) == UPSAMPLERS[name]["keys"]


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_what_is_captured_is_what_the_network_attends_with(new_order, size):
    network = small_unet(use_new_attention_order=new_order)
    x, tau = noise(5, 0, (2, 3, *size)), torch.tensor([3.0, 700.0])
    names = list(network.attention_layers)
    plain = network(x, tau).sample
    captured = network(x, tau, capture=names)
    assert torch.equal(captured.sample, plain)
    assert list(captured.attention) == names
    recomputed = {}
    for name, (q, k, v, hw) in captured.attention.items():
        assert hw == (size[0] // 2, size[1] // 2)
        assert q.shape == k.shape == v.shape == (2, network.attention_layers[name].heads, hw[0] * hw[1], 8)
        recomputed[name] = (q @ k.mT / 8**0.5).softmax(-1) @ v
    replaced = network(x, tau, attend={name: lambda q, k, v, hw, out=out: out for name, out in recomputed.items()}).sample
    torch.testing.assert_close(replaced, plain, rtol=0, atol=2e-5 * float(plain.std()))


def test_a_replacement_changes_its_layer_only():
    network = small_unet()
    x, tau = noise(5, 0, (1, 3, 16, 16)), torch.tensor([3.0])
    identity = {"middle": lambda q, k, v, hw: v}
    changed = network(x, tau, attend=identity, capture=["input.3", "output.0"])
    plain = network(x, tau, capture=["input.3", "output.0"])
    assert torch.equal(changed.attention["input.3"].q, plain.attention["input.3"].q)
    assert not torch.equal(changed.attention["output.0"].q, plain.attention["output.0"].q)


def test_capturing_runs_no_second_attention(monkeypatch):
    network = small_unet()
    calls = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a: calls.append(1) or attend(*a))
    network(noise(5, 0, (1, 3, 16, 16)), torch.tensor([3.0]), capture=list(network.attention_layers))
    assert len(calls) == len(network.attention_layers)


def test_attention_layers_tell_resolution_and_heads():
    network = UNet.from_flags(PUBLISHED["imagenet128"]["flags"] | {"num_channels": 32, "num_heads": 2, "num_heads_upsample": 8})
    layers = network.attention_layers
    assert (layers["output.8"].resolution, layers["output.2"].resolution, layers["middle"].resolution) == (32, 8, 8)
    assert (layers["input.10"].heads, layers["middle"].heads, layers["output.8"].heads) == (2, 2, 8)


@pytest.mark.parametrize("argument", ["capture", "attend"])
def test_an_unknown_layer_is_an_error_that_lists_them(argument):
    network = small_unet()
    value = {"capture": ["output.9"], "attend": {"output.9": lambda q, k, v, hw: v}}[argument]
    with pytest.raises(ValueError, match=r"unknown attention layer 'output.9'.*input.3 \(8x8\), middle"):
        network(noise(5, 0, (1, 3, 16, 16)), torch.tensor([3.0]), **{argument: value})


def test_labels_and_sizes_are_checked():
    x, tau = noise(5, 0, (1, 3, 16, 16)), torch.tensor([3.0])
    with pytest.raises(ValueError, match="takes no labels"):
        small_unet()(x, tau, torch.tensor([0]))
    with pytest.raises(ValueError, match="needs labels y in \\[0, 10\\)"):
        small_unet(num_classes=10)(x, tau)
    with pytest.raises(ValueError, match="divisible by 2"):
        small_unet()(x[:, :, :15], tau)
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        small_unet(channel_mult=(1, 1, 1), image_size=6)
    with pytest.raises(ValueError, match="cannot be split into heads of 24"):
        small_unet(num_head_channels=24)


LINE = "--image_size 64 --num_channels=32 --num_res_blocks 1 --channel_mult 1,2 --attention_resolutions 32 --learn_sigma True"


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        LINE.replace(" --", " \\\n  --"),
        LINE.replace(" --", " \\ \r\n --") + " \\",
        f"'{LINE}'",
        f'MODEL_FLAGS="{LINE}"',
        f'MODEL_FLAGS="{LINE[:15]}" DIFFUSION_FLAGS="{LINE[15:]}"',
        LINE.replace("1,2", "'1,2'"),
        LINE + " --lr 1e-4 --model_path 'models/a=b c.pt' --num_heads_upsample -1",
        "--image_size 32 " + LINE.replace("--image_size", "--num_channels 8 --image_size"),  # the last one counts
    ],
)
def test_flags_may_come_as_a_line_of_a_shell_script(line):
    with torch.device("meta"):
        assert shapes(UNet.from_flags(line)) == UNETS["unet_plain"]["keys"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_chanels": 32}, "unknown flag 'num_chanels'; did you mean 'num_channels'"),
        ({"image_size": 48}, "no default channel_mult"),
        ({"class_cond": "maybe"}, "class_cond must be True or False, got 'maybe'"),
        ({"attention_resolutions": "a,b"}, "numbers separated by commas"),
        ("--image_size", "'--name value' pairs, but --image_size has no value"),
        ("--class_cond --image_size 64", "--class_cond has no value; write --class_cond True"),
        ("python image_sample.py --image_size 64", "'python' belongs to no flag"),
        ("$MODEL_FLAGS", r"'\$MODEL_FLAGS' belongs to no flag; the shell inserts the value"),
        ("\N{EN DASH}image_size 64", "write --image_size, with two hyphens"),
        ("--attention_resolutions 32, 16", "write lists of numbers without spaces, as 32,16,8"),
        ("--image_size '64", r"cannot be read \(no closing quotation\)"),
        ({"large_size": 64, "small_size": 16}, "with large_size describe a UpsamplingUNet; use UpsamplingUNet.from_flags"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises(ValueError, match=message):
        UNet.from_flags(flags)


def test_bfloat16_runs_the_body_only_and_stays_close():
    network = small_unet()
    x, tau = noise(5, 0, (2, 3, 16, 16)), torch.tensor([3.0, 700.0])
    exact = network(x, tau).sample
    network.set_precision(torch.bfloat16)
    dtypes = {name: value.dtype for name, value in network.named_parameters()}
    assert dtypes["input_blocks.1.0.in_layers.2.weight"] == dtypes["middle_block.1.qkv.weight"] == torch.bfloat16
    for name in (
        "time_embed.0.weight",
        "input_blocks.1.0.in_layers.0.weight",
        "input_blocks.1.0.emb_layers.1.weight",
        "out.2.weight",
    ):
        assert dtypes[name] == torch.float32, name
    rough = network(x, tau).sample
    assert rough.dtype == torch.float32
    assert 0 < relative_error(rough, exact.numpy()) < 0.2

"""DiT and SiT against their programs' numbers, diffusers' DiT and the published entries; attention read and replaced."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from helpers import fill, golden, noise, relative_error, shapes

from sag.checkpoints import CheckpointMismatch, load_network
from sag.diffusion import DDIM, DDPM, Condition, Denoiser, GaussianDiffusion, Schedule, sample
from sag.diffusion.flow_samplers import EulerMaruyama, Heun
from sag.guidance import ClassifierFreeGuidance, GuidedDenoiser, SelfAttentionGuidance
from sag.models import DiT, SiT
from sag.training import DiffusionLoss

GOLDEN, OUTPUTS = golden("dit")
SMALL = {"image_size": 8, "in_channels": 4, "out_channels": 8, "num_classes": 11, "width": 24, "depth": 3, "heads": 3}
X, TAU, Y = noise(5, 0, (2, 4, 8, 8)), torch.tensor([3.0, 700.0]), torch.tensor([4, 10])


def small(kind=DiT, **changes):
    """A network with the values of the golden rule, but for the positions, which are no weights."""
    arguments = {**SMALL, **changes}
    if kind is SiT:
        del arguments["out_channels"]
    network = kind(**arguments)
    positions = network.pos_embed.clone()
    fill(network)
    network.load_state_dict({**network.state_dict(), "pos_embed": positions})
    return network


def of_the_programs(kind):
    out = {"out_channels": 8} if kind is DiT else {"out_channels": None}
    return small(kind, **GOLDEN["network"], **out)


def trajectory(network, sampler, diffusion):
    """The end of a trajectory with classifier-free guidance of 3 channels, w = 0.5: the programs call it 1.5."""
    guided = GuidedDenoiser(Denoiser(network, diffusion, 10), [ClassifierFreeGuidance(0.5, channels=3)])
    condition = Condition(torch.tensor([3, 7]), null_label=10)
    *_, last = sample(guided, sampler, noise(2, 0, (2, 4, 8, 8)), condition, noise=lambda t: noise(3, t, (2, 4, 8, 8)))
    return last.x


@pytest.mark.parametrize(("kind", "tau"), [(DiT, [17.0, 803.0]), (SiT, [0.75, 0.1])])
def test_small_networks_give_the_output_of_their_programs(kind, tau):
    """SiT's program counts time from noise to image, and predicts image minus noise."""
    found = of_the_programs(kind)(noise(1, 0, (2, 4, 8, 8)), torch.tensor(tau), torch.tensor([3, 10])).sample
    expected = OUTPUTS["dit"] if kind is DiT else -OUTPUTS["sit"]
    assert relative_error(found, expected) < 1e-4


def test_a_guided_trajectory_is_that_of_dits_program():
    found = trajectory(of_the_programs(DiT), DDPM(10), GaussianDiffusion(Schedule.linear(), clip_denoised=False))
    assert relative_error(found, OUTPUTS["dit_ddpm"]) < 1e-4


@pytest.mark.parametrize(("name", "sampler", "bound"), [("sde", EulerMaruyama(10), 1e-4), ("ode", Heun(100), 1e-3)])
def test_guided_trajectories_are_those_of_sits_program(name, sampler, bound):
    """The program's solver of the differential equation adapts its steps and is exact to about 1e-6."""
    found = trajectory(of_the_programs(SiT), sampler, GaussianDiffusion(Schedule.flow(), None, "flow", clip_denoised=False))
    assert relative_error(found, OUTPUTS[f"sit_{name}"]) < bound


def theirs(ours, freq_shift=0):
    """The transformer of diffusers with the same weights: the embeddings of time and class stand in every block there.

    It embeds time with the frequencies 10000^(-i/127), and DiT's own program, for which the weights are, 10000^(-i/128);
    freq_shift=0 makes them the latter.
    """
    state, own = ours.state_dict(), {}
    for name, value in state.items():
        block, _, rest = name.removeprefix("blocks.").partition(".")
        start = f"transformer_blocks.{block}"
        kind = name.rpartition(".")[2]
        if name.startswith("x_embedder.proj."):
            own[f"pos_embed.proj.{kind}"] = value
        elif name.startswith(("t_embedder.mlp.", "y_embedder.")):
            for i in range(len(ours.blocks)):
                to = {"0": "timestep_embedder.linear_1", "2": "timestep_embedder.linear_2"}.get(name.split(".")[2])
                own[f"transformer_blocks.{i}.norm1.emb.{f'{to}.{kind}' if to else 'class_embedder.embedding_table.weight'}"] = (
                    value
                )
        elif rest.startswith("attn.qkv."):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                own[f"{start}.attn1.to_{part}.{kind}"] = rows
        elif name.startswith("blocks."):
            to = {"attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
                  "adaLN_modulation.1": "norm1.linear"}[rest.rpartition(".")[0]]  # fmt: skip
            own[f"{start}.{to}.{kind}"] = value
        elif name.startswith("final_layer."):
            own[f"proj_out_{1 if 'adaLN' in name else 2}.{kind}"] = value
    layer = next(iter(ours.attention_layers.values()))
    found = DiTTransformer2DModel(
        num_attention_heads=layer.heads,
        attention_head_dim=layer.channels // layer.heads,
        in_channels=ours.in_channels,
        out_channels=ours.out_channels,
        num_layers=len(ours.blocks),
        sample_size=ours.image_size,
        patch_size=ours.patch,
        num_embeds_ada_norm=ours.num_classes - 1,
        norm_eps=1e-6,  # as in DiT's own program
    )
    found.load_state_dict(own, strict=True)
    for block in found.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = freq_shift
    return found.eval()


@pytest.mark.parametrize(
    ("changes", "size"),
    [({}, 8), ({}, 12), ({"out_channels": 4, "patch": 4, "heads": 2}, 8), ({"image_size": 6, "patch": 1}, 6)],
)
def test_the_output_is_that_of_diffusers(changes, size):
    """All channels: the second half of eight encodes the variance."""
    network = small(**changes)
    x = noise(5, 0, (2, 4, size, size))
    with torch.no_grad():
        expected = theirs(network)(x, timestep=TAU, class_labels=Y).sample
    found = network(x, TAU, Y).sample
    assert found.shape == (2, network.out_channels, size, size)
    assert float(found.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_unchanged_diffusers_gives_another_output_except_at_time_zero():
    """It reads the time with other frequencies than the network was trained with; this test fails when that is repaired."""
    network = small()
    with torch.no_grad():
        found = theirs(network, freq_shift=1)(X, timestep=torch.tensor([0.0, 700.0]), class_labels=Y).sample
    error = (found - network(X, torch.tensor([0.0, 700.0]), Y).sample).abs().amax(dim=(1, 2, 3))
    assert error[0] < 1e-4
    assert error[1] > 0.1
    assert DiTTransformer2DModel(1, 4, num_layers=1).transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift == 1


def published(size):
    """The entries of DiT-XL-2-256x256.pt and DiT-XL-2-512x512.pt, whose latents are 8 times smaller than the images."""
    width = 1152

    def linear(name, out, of=width):
        return {f"{name}.weight": [out, of], f"{name}.bias": [out]}

    entries = {
        "pos_embed": [1, (size // 8 // 2) ** 2, width],
        "x_embedder.proj.weight": [width, 4, 2, 2],
        "x_embedder.proj.bias": [width],
        **linear("t_embedder.mlp.0", width, 256),
        **linear("t_embedder.mlp.2", width),
        "y_embedder.embedding_table.weight": [1001, width],
        **linear("final_layer.linear", 2 * 2 * 8),
        **linear("final_layer.adaLN_modulation.1", 2 * width),
    }
    for i in range(28):
        entries |= linear(f"blocks.{i}.attn.qkv", 3 * width)
        entries |= linear(f"blocks.{i}.attn.proj", width)
        entries |= linear(f"blocks.{i}.mlp.fc1", 4 * width)
        entries |= linear(f"blocks.{i}.mlp.fc2", width, 4 * width)
        entries |= linear(f"blocks.{i}.adaLN_modulation.1", 6 * width)
    return entries


@pytest.mark.parametrize(("kind", "size"), [(DiT, 256), (DiT, 512), (SiT, 256)])
def test_published_entries_are_those_of_the_network(kind, size):
    out = {"out_channels": 8} if kind is DiT else {}
    with torch.device("meta"):
        network = kind(image_size=size // 8, in_channels=4, num_classes=1001, **out)
    assert shapes(network) == published(size)
    assert sum(p.numel() for p in network.parameters()) == 674_834_720
    assert [layer.resolution for layer in network.attention_layers.values()] == [size // 16] * 28


def test_positions_are_the_sines_and_cosines_of_the_paper():
    """The table, written out with numpy for each place: the column in the first half, the row in the second."""
    network = DiT(**{**SMALL, "image_size": 10, "patch": 2, "width": 48})
    table = np.zeros((25, 48))
    for place in range(25):
        row, column = divmod(place, 5)
        for half, at in enumerate((column, row)):
            for i in range(12):
                angle = at / 10000 ** (i / 12)
                table[place, 24 * half + i], table[place, 24 * half + 12 + i] = math.sin(angle), math.cos(angle)
    np.testing.assert_allclose(network.pos_embed[0], table, atol=1e-6)
    assert "pos_embed" not in dict(network.named_parameters())  # it is not trained


def test_other_sizes_need_the_positions_of_the_paper():
    network = small()
    assert network(noise(5, 0, (1, 4, 6, 12)), TAU[:1], Y[:1]).sample.shape == (1, 8, 6, 12)
    plain = network(X, TAU, Y).sample
    network.load_state_dict({**network.state_dict(), "pos_embed": network.pos_embed.bfloat16().float()})
    assert network(noise(5, 0, (1, 4, 6, 12)), TAU[:1], Y[:1]).sample.shape == (1, 8, 6, 12)
    network.load_state_dict({**network.state_dict(), "pos_embed": network.pos_embed.flip(1)})
    assert not torch.equal(network(X, TAU, Y).sample, plain)  # those of the file are used
    with pytest.raises(ValueError, match="position embedding of their own, which is known for 8x8 only, got 6x12"):
        network(noise(5, 0, (1, 4, 6, 12)), TAU[:1], Y[:1])


@pytest.mark.parametrize("kind", [DiT, SiT])
@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
def test_what_is_captured_is_what_the_network_attends_with(kind, size):
    network = small(kind)
    x = noise(5, 0, (2, 4, *size))
    names = ["block.0", "block.1", "block.2"]
    assert list(network.attention_layers) == names
    plain = network(x, TAU, Y).sample
    captured = network(x, TAU, Y, capture=names)
    assert torch.equal(captured.sample, plain)
    assert list(captured.attention) == names
    recomputed = {}
    for name, (q, k, v, hw) in captured.attention.items():
        assert hw == (size[0] // 2, size[1] // 2)
        assert q.shape == k.shape == v.shape == (2, 3, hw[0] * hw[1], 8)
        recomputed[name] = (q @ k.mT / 8**0.5).softmax(-1) @ v
    replaced = network(x, TAU, Y, attend={name: lambda q, k, v, hw, out=out: out for name, out in recomputed.items()}).sample
    torch.testing.assert_close(replaced, plain, rtol=0, atol=2e-5 * float(plain.std()))


def test_a_replacement_changes_its_layer_only():
    network = small()
    sizes = []
    identity = {"block.1": lambda q, k, v, hw: sizes.append(hw) or v}
    x = noise(5, 0, (2, 4, 6, 12))
    changed = network(x, TAU, Y, attend=identity, capture=["block.1", "block.2"])
    plain = network(x, TAU, Y, capture=["block.1", "block.2"])
    assert sizes == [(3, 6)]
    assert torch.equal(changed.attention["block.1"].q, plain.attention["block.1"].q)
    assert not torch.equal(changed.attention["block.2"].q, plain.attention["block.2"].q)
    assert not torch.equal(changed.sample, plain.sample)


def test_capturing_runs_no_second_attention(monkeypatch):
    network, calls, attend = small(), [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a: calls.append(1) or attend(*a))
    network(X, TAU, Y, capture=list(network.attention_layers))
    assert len(calls) == 3


@pytest.mark.parametrize("argument", ["capture", "attend"])
def test_an_unknown_layer_is_an_error_that_lists_them(argument):
    value = {"capture": ["middle"], "attend": {"middle": lambda q, k, v, hw: v}}[argument]
    with pytest.raises(ValueError, match=r"unknown attention layer 'middle'.*block.0 \(4x4\), block.1 \(4x4\), block.2"):
        small()(X, TAU, Y, **{argument: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(X[:, :, :7], TAU, Y), "height and width must be divisible by 2 for this network, got 7x8"),
        (lambda: small()(X, TAU), r"needs labels y in \[0, 11\)"),
        (lambda: small(num_classes=None)(X, TAU, Y), "takes no labels"),
        (lambda: small(patch=3), "image_size 8 cannot be split into patches of 3"),
        (lambda: small(heads=5), "width 24 must be divisible by heads=5"),
        (lambda: small(width=30, heads=2), "by 4 for the position embedding"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_times_and_places_change_the_output():
    network = small()
    x = X[:1].expand(2, -1, -1, -1)
    by_label = network(x, TAU[:1].expand(2), torch.tensor([1, 2])).sample
    by_time = network(x, TAU, Y[:1].expand(2)).sample
    assert not torch.equal(by_label[0], by_label[1])
    assert not torch.equal(by_time[0], by_time[1])
    flat = network(torch.ones(1, 4, 8, 8), TAU[:1], Y[:1]).sample
    assert float(flat.std(dim=(2, 3)).min()) > 0


def test_bfloat16_runs_attention_and_mlps_only_and_stays_close():
    network = small()
    exact = network(X, TAU, Y).sample
    network.set_precision(torch.bfloat16)
    dtypes = {name: value.dtype for name, value in network.state_dict().items()}
    low = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert low == {name for name in dtypes if ".attn." in name or ".mlp.fc" in name}
    output = network(X, TAU, Y, capture=["block.1"])
    assert output.attention["block.1"].q.dtype == torch.bfloat16
    assert output.sample.dtype == torch.float32
    assert 0 < relative_error(output.sample, exact.numpy()) < 0.2


def test_a_new_network_is_the_identity_that_the_paper_begins_with():
    torch.manual_seed(0)
    network = DiT(**SMALL)
    assert not network(X, TAU, Y).sample.any()
    state = network.state_dict()
    zeros = {name for name, value in state.items() if not value.any()}
    biases = {name for name in state if name.endswith("bias")}
    assert zeros == biases | {name for name in state if "adaLN" in name} | {"final_layer.linear.weight"}
    assert 0.018 < float(state["y_embedder.embedding_table.weight"].std()) < 0.022
    bound = (6 / (24 + 4 * 24)) ** 0.5
    assert 0.95 * bound < float(state["blocks.0.mlp.fc1.weight"].max()) <= bound


@pytest.mark.parametrize("kind", [DiT, SiT])
def test_a_new_network_learns(kind):
    torch.manual_seed(0)
    if kind is DiT:
        network, diffusion = DiT(**SMALL), GaussianDiffusion(Schedule.linear(), clip_denoised=False)
    else:
        network = SiT(**{key: value for key, value in SMALL.items() if key != "out_channels"})
        diffusion = GaussianDiffusion(Schedule.flow(), None, "flow", clip_denoised=False)
    loss = DiffusionLoss(diffusion, num_classes=11, null_label=10, label_dropout=0.1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    images = torch.linspace(-1, 1, 8).expand(32, 4, 8, 8)
    losses = []
    for _ in range(60):
        found = loss(network, images, torch.arange(32) % 10)[1]["mse"].mean()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_a_training_checkpoint_gives_its_averaged_weights(tmp_path):
    network = small()
    state = network.state_dict()
    torch.save({"model": {name: value + 1 for name, value in state.items()}, "ema": state}, tmp_path / "0400000.pt")
    with torch.device("meta"):
        loaded = DiT(**SMALL)
    assert load_network(loaded, str(tmp_path / "0400000.pt")) == ("EMA weights of entry 'ema', not of entry 'model'",)
    assert torch.equal(loaded(X, TAU, Y).sample, network(X, TAU, Y).sample)


def test_weights_of_another_network_are_named(tmp_path):
    state = small().state_dict()
    del state["blocks.2.mlp.fc2.bias"]
    state["y_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"][:10]
    torch.save({**state, "blocks.3.attn.qkv.bias": torch.zeros(72)}, tmp_path / "model.pt")
    message = (
        r"1 missing \(blocks.2.mlp.fc2.bias\), 1 unexpected \(blocks.3.attn.qkv.bias\), "
        r"1 of another shape \(y_embedder.embedding_table.weight \(10, 24\) instead of \(11, 24\)\)"
    )
    with pytest.raises(CheckpointMismatch, match=message):
        load_network(DiT(**SMALL), str(tmp_path / "model.pt"))


def test_sit_counts_time_the_other_way_and_predicts_the_other_sign():
    sit, dit = small(SiT), small()
    dit.load_state_dict(sit.state_dict())
    tau = torch.tensor([0.25, 1.0])
    found = sit(X, tau, Y, capture=["block.1"])
    other = dit(X, 1 - tau, Y, capture=["block.1"])
    assert torch.equal(found.sample, -other.sample[:, :4])
    assert torch.equal(found.attention["block.1"].k, other.attention["block.1"].k)


@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
def test_guidance_runs_over_it(size):
    """SAG and classifier-free guidance together: each changes the samples."""
    diffusion = GaussianDiffusion(Schedule.linear(), clip_denoised=False)
    denoiser = Denoiser(small(), diffusion, 10)
    sag = SelfAttentionGuidance(0.75, "block.1", blur_sigma=1, blur_kernel=3)
    x_T, condition = noise(6, 0, (2, 4, *size)), Condition(torch.tensor([1, 2]), null_label=10)

    def ends(*guidance):
        guided = GuidedDenoiser(denoiser, guidance)
        *_, last = sample(guided, DDPM(4), x_T, condition, noise=lambda t: noise(7, t, x_T.shape))
        return last.x

    plain, both = ends(), ends(ClassifierFreeGuidance(0.5), sag)
    assert bool(both.isfinite().all())
    for other in (plain, ends(sag), ends(ClassifierFreeGuidance(0.5))):
        assert not torch.equal(both, other)
    guided = GuidedDenoiser(denoiser.respace(4), [ClassifierFreeGuidance(0.5), sag])
    assert guided.passes(0) == 3


def test_sit_is_sampled_as_a_flow():
    denoiser = Denoiser(small(SiT), GaussianDiffusion(Schedule.flow(), None, "flow", clip_denoised=False), 10)
    *_, last = sample(denoiser, DDIM(3), X, Condition(torch.tensor([1, 2]), null_label=10), noise=None)
    assert bool(last.x.isfinite().all())
    assert last.x.shape == X.shape

"""One processor reads and replaces the attention of the library's networks, and changes nothing when nobody asks."""

import logging
import threading

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0, XFormersAttnProcessor
from tiny import dit, flux, sd3, unet

from sag.diffusers.attention import Request, prepare
from sag.guidance.sag import attention_mass

TEXT, POOLED = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)), torch.ones(2, 32)


def run_unet(network, x, **more):
    return network(x, 500, TEXT, **more).sample


def run_dit(network, x, **more):
    return network(x, timestep=torch.tensor([500, 500]), class_labels=torch.tensor([1, 2]), **more).sample


def joint(more):
    return {"joint_attention_kwargs": more.pop("cross_attention_kwargs", None), **more}


def run_sd3(network, x, **more):
    return network(x, TEXT, POOLED, torch.tensor([500, 500]), **joint(more)).sample


def run_flux(network, x, **more):
    tokens = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    ids = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1).view(64, 3)
    return network(tokens, TEXT, POOLED, torch.tensor([0.5, 0.5]), ids, torch.zeros(5, 3), **joint(more)).sample


MODELS = {
    "unet": (unet, run_unet, "middle", (8, 8)),
    "unet_deep": (lambda: unet(transformer_layers_per_block=2), run_unet, "up.1.1.1", (16, 16)),
    "dit": (dit, run_dit, "block.1", (8, 8)),
    "sd3": (sd3, run_sd3, "block.1", (8, 8)),
    "sd3_image": (sd3, run_sd3, "block.0.image", (8, 8)),
    "flux": (flux, run_flux, "block.0", (8, 8)),
    "flux_single": (flux, run_flux, "single.0", (8, 8)),
}


@pytest.fixture(params=MODELS)
def model(request):
    make, run, layer, size = MODELS[request.param]
    network = make()
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    before = run(network, x)
    layers = prepare(network)
    assert torch.equal(run(network, x), before)
    return network, run, x, layer, size, layers, before


@torch.no_grad()
def test_capturing_changes_no_bit_and_replacing_does(model):
    network, run, x, layer, size, layers, before = model
    request = Request((16, 16), [layer])
    assert torch.equal(run(network, x, cross_attention_kwargs={"sag": request}), before)
    found = request.found[layer]
    assert found.size == size
    assert layers[layer].resolution == (64 if run is run_flux else size[0])  # Flux's config does not say for which size
    assert found.q.shape == (
        2,
        layers[layer].heads,
        64 if size == (8, 8) else 256,
        layers[layer].channels // layers[layer].heads,
    )
    torch.testing.assert_close(attention_mass(found).mean((1, 2)), torch.ones(2))
    replaced = run(network, x, cross_attention_kwargs={"sag": Request((16, 16), attend={layer: lambda q, k, v, size: v})})
    assert (replaced - before).abs().max() > 1e-4


@torch.no_grad()
def test_replacing_attention_by_itself_changes_nothing_but_rounding():
    network, x = prepared(unet()), torch.ones(2, 4, 16, 16)
    same = {"middle": lambda q, k, v, size: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v}
    replaced = run_unet(network, x, cross_attention_kwargs={"sag": Request((16, 16), attend=same)})
    torch.testing.assert_close(replaced, run_unet(network, x), rtol=0, atol=1e-5)


def prepared(network):
    prepare(network)
    return network


@pytest.mark.parametrize("make", [sd3, flux])
@torch.no_grad()
def test_joint_layers_show_the_image_alone(make):
    """Its rows of the attention add up to 1 over the image; where they are replaced, the rows of the text are not."""
    network = prepared(make())
    attn, tokens = network.transformer_blocks[0].attn, torch.randn(2, 64, 32)
    request = Request((16, 16), ["block.0"])
    image, text = attn(tokens, TEXT, sag=request)
    q, k, _ = request.found["block.0"][:3]
    torch.testing.assert_close(q.transpose(1, 2), attn.norm_q(attn.to_q(tokens).unflatten(-1, (attn.heads, -1))))
    text_k = attn.norm_added_k(attn.add_k_proj(TEXT).unflatten(-1, (attn.heads, -1))).transpose(1, 2)
    keys = torch.cat([k, text_k], 2)
    rows = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)[..., :64]  # of the image, as the network computes them
    assert rows.sum(-1).max() < 0.999
    mass = (rows / rows.sum(-1, keepdim=True)).sum(2).mean(1).view(2, 8, 8)
    torch.testing.assert_close(attention_mass(request.found["block.0"]), mass)
    own, same = attn(tokens, TEXT, sag=Request((16, 16), attend={"block.0": lambda q, k, v, size: v}))
    assert torch.equal(same, text)
    torch.testing.assert_close(own, attn.to_out[0](attn.to_v(tokens)))
    assert (own - image).abs().max() > 1e-3


@torch.no_grad()
def test_layers_with_other_projections_show_what_they_compute():
    """As LoRA does, which replaces the projections by modules that add to them."""

    class Added(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.down, self.up = linear, torch.nn.Linear(64, 2, bias=False), torch.nn.Linear(2, 64, bias=False)

        def forward(self, x):
            return self.linear(x) + self.up(self.down(x))

    network, x, requests = prepared(unet()), torch.randn(2, 4, 16, 16), [Request((16, 16), ["middle"]) for _ in range(2)]
    run_unet(network, x, cross_attention_kwargs={"sag": requests[0]})
    attn = network.mid_block.attentions[0].transformer_blocks[0].attn1
    attn.to_q = Added(attn.to_q)
    run_unet(network, x, cross_attention_kwargs={"sag": requests[1], "scale": 1.0})
    assert (requests[0].found["middle"].q - requests[1].found["middle"].q).abs().max() > 1e-3
    assert torch.equal(requests[0].found["middle"].k, requests[1].found["middle"].k)


@torch.no_grad()
def test_odd_sizes_are_halved_upwards():
    request = Request((18, 26), ["middle", "down.0.0"])
    run_unet(prepared(unet()), torch.zeros(2, 4, 18, 26), cross_attention_kwargs={"sag": request})
    assert {name: a.size for name, a in request.found.items()} == {"middle": (9, 13), "down.0.0": (18, 26)}
    with pytest.raises(ValueError, match=r"layer middle has 117 tokens, but latents of .* have 120 there"):
        run_unet(prepared(unet()), torch.zeros(2, 4, 18, 26), cross_attention_kwargs={"sag": Request((20, 24), ["middle"])})


@torch.no_grad()
def test_requests_of_two_threads_do_not_meet():
    network, x = prepared(unet()), torch.randn(2, 4, 16, 16)
    alone = run_unet(network, x, cross_attention_kwargs={"sag": (request := Request((16, 16), ["middle"]))})
    both, results = threading.Barrier(2), {}

    def wait(q, k, v, size):
        both.wait(30)  # each thread is now within the same layer
        return v

    def work(name, capture, attend):
        own = Request((16, 16), capture, attend)
        with torch.no_grad():
            results[name] = run_unet(network, x, cross_attention_kwargs={"sag": own}), own.found

    threads = [
        threading.Thread(target=work, args=("first", ["middle"], {"down.0.0": wait})),
        threading.Thread(target=work, args=("second", ["up.1.0"], {"down.0.0": wait})),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: list(found) for name, (_, found) in results.items()} == {"first": ["middle"], "second": ["up.1.0"]}
    assert torch.equal(results["first"][0], results["second"][0])
    again = Request((16, 16), ["middle"])
    assert torch.equal(run_unet(network, x, cross_attention_kwargs={"sag": again}), alone)
    assert torch.equal(again.found["middle"].q, request.found["middle"].q)


@torch.no_grad()
def test_fused_projections_work():
    network, x = unet(), torch.randn(2, 4, 16, 16)
    network.fuse_qkv_projections()
    before = run_unet(network, x)
    request = Request((16, 16), ["middle"])
    assert torch.equal(run_unet(prepared(network), x, cross_attention_kwargs={"sag": request}), before)
    assert request.found["middle"].size == (8, 8)


@torch.no_grad()
def test_an_ip_adapter_is_left_alone(caplog, monkeypatch):
    network = unet()
    own = {
        name: IPAdapterAttnProcessor2_0(hidden_size=int(name.startswith(("mid", "down_blocks.1", "up_blocks.0"))) * 32 + 32,
                                        cross_attention_dim=32, num_tokens=(2,), scale=0.7)
        if "attn2" in name else processor
        for name, processor in network.attn_processors.items()
    }  # fmt: skip
    network.set_attn_processor(own)
    network.config.encoder_hid_dim_type = None
    text = (TEXT, [torch.randn(2, 1, 2, 32)])
    x = torch.randn(2, 4, 16, 16)
    before = network(x, 500, text).sample
    prepare(network)
    request = Request((16, 16), ["middle"])
    logger = logging.getLogger("diffusers.models.attention_processor")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    assert torch.equal(network(x, 500, text, cross_attention_kwargs={"sag": request, "other": 1}).sample, before)
    assert any("'other'" in record.getMessage() for record in caplog.records)  # a warning would be seen
    caplog.clear()
    assert torch.equal(network(x, 500, text, cross_attention_kwargs={"sag": request}).sample, before)
    assert not caplog.records
    assert "middle" in request.found
    assert all(type(p) is IPAdapterAttnProcessor2_0 for name, p in network.attn_processors.items() if "attn2" in name)


def test_a_processor_that_hides_its_attention_is_refused_by_name():
    network = unet()
    before = {name: type(processor) for name, processor in network.attn_processors.items()}
    network.mid_block.attentions[0].transformer_blocks[0].attn1.processor = XFormersAttnProcessor()
    with pytest.raises(ValueError, match="layer middle has the attention processor XFormersAttnProcessor, which does not show"):
        prepare(network)
    changed = {name for name, processor in network.attn_processors.items() if type(processor) is not before[name]}
    assert changed == {"mid_block.attentions.0.transformer_blocks.0.attn1.processor"}


def test_a_network_without_self_attention_is_refused():
    plain = UNet2DConditionModel(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        mid_block_type=None, layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip
    for network in (plain, UNet2DModel(block_out_channels=(32,), down_block_types=("AttnDownBlock2D",),
                                       up_block_types=("AttnUpBlock2D",), layers_per_block=1, norm_num_groups=8)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{type(network).__name__} has no self-attention layers"):
            prepare(network)


@torch.no_grad()
def test_a_mask_on_the_image_and_a_hidden_backend_are_refused():
    network = prepared(unet())
    mask = torch.zeros(2, 64)
    with pytest.raises(ValueError, match="the attention of layer middle is masked"):
        network.mid_block.attentions[0].transformer_blocks[0].attn1(
            torch.zeros(2, 64, 64), attention_mask=mask[:, None], sag=Request((16, 16), ["middle"])
        )
    hidden = prepared(unet())
    attn = hidden.mid_block.attentions[0].transformer_blocks[0].attn1
    attn.processor.wrapped = lambda attn, hidden_states, *others: hidden_states
    with pytest.raises(ValueError, match="layer middle is not computed by PyTorch"):
        run_unet(hidden, torch.zeros(2, 4, 16, 16), cross_attention_kwargs={"sag": Request((16, 16), ["middle"])})


def test_preparing_twice_is_the_same_as_once():
    network = unet()
    assert prepare(network) == prepare(network)
    processor = network.mid_block.attentions[0].transformer_blocks[0].attn1.processor
    assert type(processor.wrapped).__name__ == "AttnProcessor2_0"


def test_a_backend_set_later_reaches_the_wrapped_processor():
    network = prepared(flux())
    network.set_attention_backend("native")
    assert network.transformer_blocks[0].attn.processor.wrapped._attention_backend == "native"
    network.reset_attention_backend()
    assert network.transformer_blocks[0].attn.processor.wrapped._attention_backend is None


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_is_read_without_leaving_its_graph():
    network, x = prepared(unet()), torch.randn(2, 4, 16, 16)
    request, compiled = Request((16, 16), ["middle"]), Request((16, 16), ["middle"])
    expected = run_unet(network, x, cross_attention_kwargs={"sag": request})
    found = torch.compile(run_unet, backend="eager", fullgraph=True)(network, x, cross_attention_kwargs={"sag": compiled})
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compiled.found["middle"].q, request.found["middle"].q)

"""Networks of the user, and DINOv2."""

import numpy as np
import pytest
import torch
from helpers import TinyNetwork, fill, noise
from torch import nn

from evaluations.dinov2 import DinoV2, VisionTransformer
from evaluations.extractors import ModuleExtractor, load_torchscript

IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Outputs(nn.Module):
    def __init__(self, convert):
        super().__init__()
        self.convert = convert

    def forward(self, x):
        return self.convert(x)


def test_a_network_gets_normalised_images():
    seen = []
    extractor = ModuleExtractor("x", Outputs(lambda x: seen.append(x) or x.mean((2, 3))), 4, (0.5, 0.5, 0.5), (0.1, 0.2, 0.5))
    extractor(IMAGES)
    assert seen[0].shape == (2, 3, 4, 4)
    resized = nn.functional.interpolate(IMAGES.float(), (4, 4), mode="bicubic", antialias=True)
    expected = (resized / 255 - 0.5) / torch.tensor([0.1, 0.2, 0.5]).view(3, 1, 1)
    assert torch.allclose(seen[0], expected, atol=1e-6)
    raw = ModuleExtractor("x", Outputs(lambda x: x.flatten(1)), std=(1 / 255,) * 3)
    assert torch.allclose(raw(IMAGES).pool, IMAGES.flatten(1).float(), atol=1e-4)


def test_outputs_of_a_network():
    pool = ModuleExtractor("x", Outputs(lambda x: x.mean((2, 3))))(IMAGES)
    assert pool.pool.shape == (2, 3)
    assert pool.spatial is pool.logits is None
    pair = ModuleExtractor("x", Outputs(lambda x: (x.mean((2, 3)), x.amax((2, 3)))))(IMAGES)
    assert torch.equal(pair.logits, IMAGES.float().amax((2, 3)) / 255)
    assert ModuleExtractor("x", TinyNetwork())(IMAGES).spatial.shape == (2, 8)
    with pytest.raises(ValueError, match=r"returned pool of shape \(2, 3, 8, 8\) for 2 images; expected \(images, features\)"):
        ModuleExtractor("x", Outputs(lambda x: x))(IMAGES)
    with pytest.raises(ValueError, match="the network returned str; expected features"):
        ModuleExtractor("x", Outputs(lambda x: "features"))(IMAGES)


def test_the_id_follows_weights_and_preprocessing():
    ids = [
        ModuleExtractor("x", TinyNetwork()).id,
        ModuleExtractor("x", TinyNetwork(2.0)).id,
        ModuleExtractor("x", TinyNetwork(), size=16).id,
        ModuleExtractor("y", TinyNetwork()).id,
    ]
    assert len(set(ids)) == 4
    assert ids[0] == ModuleExtractor("x", TinyNetwork()).id


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).save(tmp_path / "network.pt")
    extractor = ModuleExtractor("script", load_torchscript(str(tmp_path / "network.pt")))
    assert torch.allclose(extractor(IMAGES).pool, network(IMAGES / 255), atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"no TorchScript file at 'nowhere\.pt'"):
        load_torchscript("nowhere.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(ValueError, match=r"text\.pt is not a TorchScript file"):
        load_torchscript(str(tmp_path / "text.pt"))


# timm 1.0's VisionTransformer(img_size=70, patch_size=14, embed_dim=128, depth=2, num_heads=2, init_values=1, num_classes=0),
# weights by the rule of tests/golden, input noise(1, 0, (1, 3, 70, 70)); the first eight outputs
TIMM = [1.2011932, 1.7309290, 0.5964813, 1.7512584, -0.1361294, 2.4146185, 0.2619618, 0.0810825]


def test_the_vision_transformer_computes_what_timm_computes():
    network = fill(VisionTransformer(128, 2, 26))
    found = network(noise(1, 0, (1, 3, 70, 70)))
    assert found.shape == (1, 128)
    assert found[0, :8].tolist() == pytest.approx(TIMM, abs=1e-5)


def test_positions_are_resampled_by_the_authors_factor():
    network = VisionTransformer(64, 1, 1 + 37**2)
    values = noise(3, 0, (37,))
    network.pos_embed.data[:, 1:] = values.view(37, 1, 1).expand(37, 37, 64).reshape(1, 37**2, 64)
    positions = network._positions(16, 16)
    assert positions.shape == (1, 257, 64)
    rows = positions[0, 1:, 0].view(16, 16)[:, 5]
    # cubic convolution (a = -0.75) at scale 37 / 16.1, where a plain resize would use 37 / 16
    expected = []
    for i in range(16):
        x = (i + 0.5) * 37 / 16.1 - 0.5
        near = [int(np.floor(x)) + k for k in (-1, 0, 1, 2)]
        d = [abs(x - j) for j in near]
        weights = [1.25 * s**3 - 2.25 * s**2 + 1 if s <= 1 else -0.75 * (s**3 - 5 * s**2 + 8 * s - 4) for s in d]
        expected.append(sum(w * float(values[min(max(j, 0), 36)]) for w, j in zip(weights, near, strict=True)))
    assert rows.tolist() == pytest.approx(expected, abs=1e-4)


def test_dinov2_reads_its_size_from_the_weights(tmp_path):
    network = fill(VisionTransformer(128, 2, 1 + 37**2))
    state = {**network.state_dict(), "mask_token": torch.zeros(1, 128)}
    torch.save(state, tmp_path / "dinov2.pth")
    extractor = DinoV2(str(tmp_path / "dinov2.pth"))
    assert extractor.id.startswith("dinov2-128-")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    resized = nn.functional.interpolate(IMAGES.float(), (224, 224), mode="bicubic", antialias=True)
    assert torch.allclose(extractor(IMAGES).pool, network((resized / 255 - mean) / std), atol=1e-4)


def test_dinov2_without_its_weights_says_where_they_are(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"needs weights: fetch https://.*dinov2_vitl14_pretrain\.pth and set extractor"
    ):
        DinoV2(None)
    with pytest.raises(FileNotFoundError, match=r"finds no weights at 'nowhere\.pth'"):
        DinoV2("nowhere.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold a DINOv2"):
        DinoV2(str(tmp_path / "other.pth"))

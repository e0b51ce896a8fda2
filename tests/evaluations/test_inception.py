"""The Inception extractor: TensorFlow's resize to the bit, torch-fidelity's features, sFID's order, its weights file."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from local_server import Server
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evaluations import inception
from evaluations.inception import Inception
from evaluations.resize import resize_tensorflow1
from evaluations.self_check import RESIZED, pattern


@pytest.fixture(scope="module")
def network():
    return Inception("random")


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def pictures(count=3, height=40, width=50):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", RESIZED, ids=str)
def test_resize_is_tensorflow_to_the_bit(size):
    x = (resize_tensorflow1(pattern(*size), 299, 299) - 128) / 128
    digest = sha256(x[0].permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
    assert digest.startswith(RESIZED[size])


def test_features_are_those_of_torch_fidelity_with_sfid_in_nhwc_order(network, weights):
    theirs = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(weights))
    seen = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    pool, logits = theirs(pictures())
    spatial = seen[0][:, :7].permute(0, 2, 3, 1).reshape(3, -1)  # after batch norm and ReLU
    assert spatial.shape == (3, 2023)
    assert (spatial >= 0).all()
    found = network(pictures())
    for ours, expected in zip(found, (pool, spatial, logits), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).abs().max() < 1e-4 * expected.std()
    assert (found.spatial - seen[0][:, :7].flatten(1)).abs().max() > 0.1 * spatial.std()  # NCHW is another order


def test_logits_have_no_bias(network):
    found = network(pictures(1))
    try:
        network.fc.bias.data.fill_(5.0)
        assert torch.equal(network(pictures(1)).logits, found.logits)
    finally:
        network.fc.bias.data.zero_()


def test_a_batch_gives_what_single_images_give(network):
    together, apart = network(pictures(5)), [network(image[None]) for image in pictures(5)]
    for i, name in enumerate(together._fields):
        assert (together[i] - torch.cat([f[i] for f in apart])).abs().max() <= 1e-6, name


def test_grey_counts_as_three_equal_channels(network):
    grey = pictures(2)[:, :1]
    assert torch.equal(network(grey).pool, network(grey.expand(-1, 3, -1, -1)).pool)
    with pytest.raises(ValueError, match="Inception takes images of 1 or 3 channels, got 2"):
        network(pictures(2)[:, :2])


def test_reduced_precision_is_off_inside_and_back_afterwards(network):
    expected, seen = network(pictures(1)).pool, []
    handle = network.Mixed_7c.register_forward_pre_hook(
        lambda module, inputs: seen.append((torch.backends.mkldnn.matmul.fp32_precision, torch.is_autocast_enabled("cpu")))
    )
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(network(pictures(1)).pool, expected)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        handle.remove()
    assert seen == [("ieee", False)]


def test_weights_by_path(network, weights):
    digest = sha256(weights.read_bytes()).hexdigest()
    found = Inception(str(weights), sha256=digest[:12])
    assert found.id == f"inception-{digest[:8]}/tensorflow1-bilinear/nhwc"
    assert torch.equal(found(pictures(1)).pool, network(pictures(1)).pool)
    assert Inception(str(weights), sha256=None).id == found.id


def test_the_published_id(weights, monkeypatch):
    monkeypatch.setattr(inception, "SHA256", sha256(weights.read_bytes()).hexdigest()[:8])
    assert Inception(str(weights), inception.SHA256).id.startswith("inception-2015-12-05-")


def test_weights_from_torch_hubs_cache(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    target = tmp_path / "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(weights.read_bytes())
    assert Inception(None, sha256=None).id.startswith("inception-")
    with pytest.raises(ValueError, match=r"is damaged or another file: its sha256 starts \w{8}, expected 6726825d; remove it"):
        Inception()


def test_weights_are_downloaded_into_torch_hubs_cache(weights, tmp_path, monkeypatch):
    digest = sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "SHA256", digest[:8])
    with Server(weights.read_bytes()) as server:
        monkeypatch.setattr(inception, "URL", f"{server.url}/{weights.name}")
        for _ in range(2):
            assert Inception(None, digest[:8]).id.startswith("inception-2015-12-05-")
        assert len(server.asked) == 1
        (tmp_path / "hub/checkpoints" / weights.name).unlink()
        server.content = b"an error page"
        with pytest.raises(OSError, match=rf"its sha256 starts with \w{{8}}, expected {digest[:8]}"):
            Inception()


def test_without_a_network_the_place_for_the_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/weights-inception-2015-12-05-6726825d.pth")
    with pytest.raises(
        OSError, match=r"could not download http.*6726825d\.pth: .*copy the file to .*6726825d\.pth, or give its path as"
    ):
        Inception()
    assert not list(tmp_path.rglob("*.pth"))


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "/proc/nope")
    with pytest.raises(OSError, match=r"^the cache folder /proc/nope/hub cannot be written .*; set TORCH_HOME to a folder"):
        Inception()


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no Inception weights at 'nowhere\.pth'"):
        Inception("nowhere.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold torch-fidelity's Inception"):
        Inception(str(tmp_path / "other.pth"), sha256=None)
    torch.save({"a": np.random.default_rng()}, tmp_path / "objects.pth")
    with pytest.raises(ValueError, match="holds more than tensors; it was not loaded"):
        Inception(str(tmp_path / "objects.pth"), sha256=None)
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(ValueError, match="is not a file of weights"):
        Inception(str(tmp_path / "text.pth"), sha256=None)

"""The bundled feature network and its reference, on real images."""

import numpy as np
import pytest
import torch
from helpers import golden_images

from evaluations.batches import open_batch
from evaluations.fashion import REFERENCE, FashionClassifier, FashionFeatures


@pytest.fixture(scope="module")
def extractor():
    return FashionFeatures()


def test_real_test_images_are_recognised(extractor):
    images, labels = golden_images()
    logits = extractor(torch.from_numpy(images).permute(0, 3, 1, 2)).logits
    assert (logits.argmax(1).numpy() == labels).mean() >= 0.9


def test_grey_and_three_equal_channels_are_the_same_and_a_batch_does_not_matter(extractor):
    x = torch.from_numpy(golden_images()[0][:8]).permute(0, 3, 1, 2)
    together, repeated = extractor(x), extractor(x.expand(-1, 3, -1, -1))
    assert (together.pool.shape, together.spatial.shape) == ((8, 128), (8, 256))
    alone = torch.cat([extractor(image[None]).pool for image in x])
    torch.testing.assert_close(alone, together.pool, rtol=1e-5, atol=1e-5)
    for a, b in zip(together, repeated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_bundled_reference_is_of_this_network(extractor):
    reference = open_batch(REFERENCE)
    assert reference.extractor == extractor.id
    assert reference.count == 60000
    assert reference.images.shape == (10000, 32, 32, 1)
    features = extractor(torch.from_numpy(reference.images.read(0, 2000)).permute(0, 3, 1, 2))
    # 2,000 drawn from the 60,000: their mean differs by its standard error
    error = np.sqrt(np.diag(reference.pool.covariance) / 2000)
    assert np.abs(features.pool.double().mean(0).numpy() - reference.pool.mean).max() < 5 * error.max()


def test_other_images_and_missing_weights_are_refused(extractor, tmp_path):
    with pytest.raises(ValueError, match="takes images of 32x32, got 28x28; for other images use extractor=inception"):
        extractor(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(FileNotFoundError, match="no weights of fashion_features at"):
        FashionFeatures(str(tmp_path / "nothing.safetensors"))


def test_it_learns_images_it_is_shown():
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array[:40]) for array in golden_images())
    network, x = FashionClassifier(width=8, dropout=0.0), images.permute(0, 3, 1, 2).float()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    assert (network(x).argmax(1) == labels).float().mean() > 0.9

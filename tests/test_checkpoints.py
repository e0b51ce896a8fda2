"""Loading weights: where they are found, and what is said of files that do not fit."""

import argparse

import blobfile
import numpy as np
import pytest
import torch
from helpers import noise, small_unet
from safetensors.torch import save_file

from sag.checkpoints import CheckpointMismatch, load_checkpoint, load_network, load_weights, read_checkpoint
from sag.models import UNet


@pytest.fixture
def weights():
    return small_unet().state_dict()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_gives_the_network_its_output(tmp_path, weights, suffix, dtype):
    path = tmp_path / f"model{suffix}"
    stored = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    torch.save(stored, path) if suffix == ".pt" else save_file(stored, path)
    with torch.device("meta"):
        network = UNet(image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1,
                       attention_resolutions=(8,), channel_mult=(1, 2), num_head_channels=8)  # fmt: skip
    load_network(network, str(path))
    assert not network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())
    x, tau = noise(5, 0, (1, 3, 16, 16)), torch.tensor([3.0])
    torch.testing.assert_close(
        network(x, tau).sample, small_unet()(x, tau).sample, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1
    )


def test_the_bundled_model_is_found_by_name():
    assert load_checkpoint("fashion32")["out.2.weight"].shape == (2, 32, 3, 3)


def test_a_missing_file_is_named_beside_the_bundled_models(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"no checkpoint at '.*nothing.pt'.*bundled model \(fashion32, fashion32_autoencoder, fashion32_c.*_weak\)",
    ):
        load_checkpoint(str(tmp_path / "nothing.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_named_as_such(tmp_path, weights, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(weights, path) if suffix == ".pt" else save_file({k: v.contiguous() for k, v in weights.items()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        load_checkpoint(str(path))


def test_an_optimizer_file_is_recognised(tmp_path):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "opt000100.pt")
    with pytest.raises(ValueError, match="state of an optimizer; give the model"):
        load_checkpoint(str(tmp_path / "opt000100.pt"))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_objects_are_not_unpickled(tmp_path, capsys):
    torch.save({"weight": Harmful()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="more than plain tensors"):
        load_checkpoint(str(tmp_path / "model.pt"))
    assert "never" not in capsys.readouterr().out


class Small(torch.nn.Module):
    """A network with few weights, named as those of a UNet; entry i of `values` fills it with numbers of its own."""

    def __init__(self, values=0):
        super().__init__()
        self.input_blocks = torch.nn.ModuleList([torch.nn.Conv2d(2, 3, 1), torch.nn.Sequential(torch.nn.Linear(3, 3))])
        self.out = torch.nn.Linear(3, 2)
        rng = np.random.default_rng(values)
        for parameter in self.parameters():
            parameter.data = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))


RAW, EMA, OTHER = (dict(Small(values).state_dict()) for values in range(3))
ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def below(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def loads(path, expected):
    """The notes of loading `path`, which must hold the weights `expected`."""
    network = Small(99)
    notes = load_weights(network, str(path))
    state = network.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], value.float()), name
    return "; ".join(notes)


def compiled_inside(state):
    return {name.replace("input_blocks.1.", "input_blocks.1._orig_mod."): value for name, value in state.items()}


PREFIXED = {
    "module.": "prefix module. removed",
    "_orig_mod.": "prefix _orig_mod. removed",
    "model.": "prefix model. removed",
    "ema.": "prefix ema. removed",
    "ema_model.": "prefix ema_model. removed",
    "network.": "prefix network. removed",
    "diffusion_model.": "prefix diffusion_model. removed",
    "model.diffusion_model.": "prefix model.diffusion_model. removed",
    "module._orig_mod.": "prefix module._orig_mod. removed",
    "_orig_mod.module.model.": "prefix _orig_mod.module.model. removed",
    "module.module.": "prefix module.module. removed",
    "own_name.of_somebody.": "prefix own_name.of_somebody. removed",
}


@pytest.mark.parametrize("prefix", PREFIXED)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "ema"])
def test_a_prefix_of_all_names_is_removed(tmp_path, prefix, wrapper):
    state = below(prefix, RAW)
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "model.pt")
    assert PREFIXED[prefix] in loads(tmp_path / "model.pt", RAW)


WRAPPED = {
    "state_dict": ({"state_dict": RAW, "epoch": 3}, RAW, "weights of entry 'state_dict'"),
    "model": ({"model": RAW, "optimizer": ADAM, "step": 7}, RAW, "weights of entry 'model'"),
    "model_state_dict": ({"model_state_dict": RAW, "optimizer_state_dict": ADAM}, RAW, "weights of entry 'model_state_dict'"),
    "any name": ({"generator": RAW, "loss": 0.1}, RAW, "weights of entry 'generator'"),
    "nested": ({"state": {"model": RAW, "step": 1}}, RAW, "weights of entry 'state.model'"),
    "ema": ({"ema": EMA, "model": RAW}, EMA, "EMA weights of entry 'ema', not of entry 'model'"),
    "ema_state_dict": ({"model": RAW, "ema_state_dict": EMA}, EMA, "EMA weights of entry 'ema_state_dict', not of entry 'mod"),
    "params_ema": ({"params": RAW, "params_ema": EMA}, EMA, "EMA weights of entry 'params_ema', not of entry 'params'"),
    "model_ema": ({"config": {"a": 1}, "model": RAW, "model_ema": EMA, "opt": ADAM}, EMA, "EMA weights of entry 'model_ema'"),
    "train.py of DiT": (
        {"model": RAW, "ema": EMA, "opt": ADAM, "args": argparse.Namespace(model="DiT-XL/2", epochs=1400, vae="ema")},
        EMA, "EMA weights of entry 'ema', not of entry 'model'",
    ),
    "ema beside entries": ({**RAW, "ema": EMA}, EMA, "EMA weights of entry 'ema', not of the entries at the top"),
    "ema of ema-pytorch": (
        {"model": RAW, "step": 3,
         "ema": {"initted": torch.tensor(True), "step": torch.tensor(3),
                 **below("online_model.", RAW), **below("ema_model.", EMA)}},
        EMA, "EMA weights of entry 'ema.ema_model', not of entry 'model'; prefix ema_model. removed; left out: initted, step",
    ),
    "Lightning": (
        {"state_dict": {**below("net.", RAW), **below("net_ema.", EMA)}, "callbacks": {"Best": {"score": torch.tensor(0.5)}},
         "hyper_parameters": {"lr": 0.1}, "optimizer_states": [ADAM], "pytorch-lightning_version": "2.5"},
        EMA, "EMA weights of entry 'state_dict.net_ema'; prefix net_ema. removed",
    ),
    "AveragedModel": (
        {"n_averaged": torch.tensor(9), **below("module.", EMA)}, EMA, "prefix module. removed; left out: n_averaged",
    ),
    "shadow_params": (
        {"model": RAW, "ema": {"decay": 0.999, "num_updates": 5, "shadow_params": list(EMA.values())}, "optimizer": ADAM},
        EMA, "EMA weights of entry 'ema.shadow_params', not of entry 'model'",
    ),
    "shadow_params and a prefix": (
        {"model": below("module.", RAW), "ema": {"shadow_params": list(EMA.values())}},
        EMA, "EMA weights of entry 'ema.shadow_params', not of entry 'model'; prefix module. removed",
    ),
    "scalar": ({"step": 1000, **RAW}, RAW, "left out: step"),
    "scalars": ({"step": torch.tensor(5), "lr": 0.1, "name": "adm", "best": None, **RAW}, RAW, "left out: lr, name, best, ..."),
    "num_batches_tracked": ({"norm.num_batches_tracked": torch.tensor(5), **RAW}, RAW, "left out: norm.num_batches_tracked"),
    "compiled inside": (compiled_inside(RAW), RAW, "_orig_mod. removed from the middle of names"),
    "one of two fits": (
        {"generator": RAW, "discriminator": {"weight": torch.ones(2)}}, RAW, "weights of entry 'generator', not of entry 'd",
    ),
    "EMA of another network": (
        {"model": RAW, "ema": {"weight": torch.ones(2)}}, RAW,
        "weights of entry 'model', not of entry 'ema'; the EMA weights do not fit the network",
    ),
    "losses": ({"model": RAW, "losses": torch.ones(100), "rng": torch.get_rng_state()}, RAW, "weights of entry 'model'"),
    "parameters": (
        {name: torch.nn.Parameter(value.half()) for name, value in RAW.items()}, {n: v.half() for n, v in RAW.items()}, "",
    ),
    "plain": (RAW, RAW, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_the_weights_are_found_in_what_trainers_write(tmp_path, case):
    content, expected, note = WRAPPED[case]
    torch.save(content, tmp_path / "model.pt")
    found = loads(tmp_path / "model.pt", expected)
    assert found.startswith(note) if note else found == ""


def test_a_name_that_the_network_has_is_no_counter_and_no_prefix(tmp_path):
    network = torch.nn.Module()
    network.model, network.step = torch.nn.Linear(1, 1), torch.nn.Parameter(torch.tensor(3.0))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert load_weights(network, str(tmp_path / "model.pt")) == ()


def test_without_a_network_the_known_names_decide(tmp_path):
    for name, content in {"a": {"model": below("module.", RAW), "epoch": 3}, "b": {"ema": EMA, "model": RAW}}.items():
        torch.save(content, tmp_path / f"{name}.pt")
    found = [read_checkpoint(str(tmp_path / f"{name}.pt")) for name in "ab"]
    assert [c.notes for c in found] == [
        ("weights of entry 'model'", "prefix module. removed"),
        ("EMA weights of entry 'ema', not of entry 'model'",),
    ]
    assert all(torch.equal(c.state[name], true[name]) for c, true in zip(found, (RAW, EMA), strict=True) for name in RAW)


REFUSED = {
    "prefix on some": (
        {**below("module.", RAW), "extra.weight": torch.ones(3)},
        r"the prefix module\. on 6 of its 7 names only: extra\.weight lacks it",
    ),
    "prefix on one": (
        {**RAW, "module.weight": torch.ones(3)}, r"the prefix module\. on 1 of its 7 names only: module\.weight has it",
    ),
    "latent diffusion": (
        {**below("model.diffusion_model.", RAW), **below("first_stage_model.", OTHER)},
        r"the prefix model\. on 6 of its 12 names only: first_stage_model\.input_blocks\.0\.weight lacks it",
    ),
    "two models": ({"model": RAW, "net": OTHER}, r"several sets of weights \(entry 'model', entry 'net'\); save the one"),
    "two EMAs": ({"ema": RAW, "params_ema": OTHER}, r"several sets of weights \(entry 'ema', entry 'params_ema'\)"),
    "beside entries": ({**RAW, "model": OTHER}, r"several sets of weights \(the entries at the top, entry 'model'\)"),
    "EMA without names": (
        {"decay": 0.9, "shadow_params": list(EMA.values())},
        r"EMA weights without names \(shadow_params, 6 tensors\), and no state dict that they match one to one",
    ),
    "EMA of fewer": ({"model": RAW, "ema": list(EMA.values())[:5]}, r"EMA weights without names \(ema, 5 tensors\)"),
    "optimizer": (ADAM, "the state of an optimizer; give the model"),
    "optimizer in a file": ({"optimizer": ADAM, "step": 3}, "not a state dict of names and tensors; it holds: optimizer, step"),
    "tensor": (torch.ones(3), "it holds: Tensor"),
    "list": ([torch.ones(3)], "it holds: list"),
    "number": (3, "it holds: int"),
    "nothing": ({}, "it holds: nothing"),
    "numbers for names": ({0: torch.ones(3), 1: torch.ones(2)}, "it holds: 0, 1"),
    "scalars only": ({"step": torch.tensor(1), "loss": 0.1}, "it holds: step, loss"),
    "integers": ({**RAW, "out.bias": torch.ones(2, dtype=torch.int64)}, "entry out.bias holds int64 values"),
    "complex": ({**RAW, "out.bias": torch.ones(2, dtype=torch.complex64)}, "entry out.bias holds complex64 values"),
    "quantised": (
        {**RAW, "out.bias": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, "entry out.bias holds qint8 values",
    ),
    "8 bits": ({**RAW, "out.bias": torch.ones(2).to(torch.float8_e4m3fn)}, "entry out.bias holds float8_e4m3fn values"),
    "sparse": ({**RAW, "out.bias": torch.ones(2).to_sparse()}, "entry out.bias holds float32 values in layout sparse_coo"),
    "meta": ({**RAW, "out.bias": torch.ones(2, device="meta")}, "entry out.bias holds no values"),
    "NaN": ({**RAW, "out.bias": torch.tensor([0.0, float("nan")])}, "entry out.bias holds values that are not finite"),
    "infinity": ({**RAW, "out.bias": torch.tensor([0.0, float("inf")]).half()}, "holds values that are not finite"),
    "beyond float32": ({**RAW, "out.bias": torch.tensor([0.0, 1e300]).double()}, "holds values that are not finite in float32"),
    "module": (Small(), r"holds more than plain tensors \(test_checkpoints\.Small\).*weights_only=False"),
    "arguments": (
        {"ema": EMA, "args": argparse.Namespace(start=Harmful())}, r"more than plain tensors \(print\)",
    ),
    "NumPy": ({"model": RAW, "loss": np.float64(0.1)}, r"more than plain tensors \(numpy\."),
}  # fmt: skip


ONLY_ZIPPED = ("meta", "8 bits")  # PyTorch writes no other file of these


@pytest.mark.parametrize(
    ("case", "zipped"), [(case, zipped) for case in REFUSED for zipped in (True, False) if zipped or case not in ONLY_ZIPPED]
)
def test_what_would_be_a_guess_is_refused_by_name(tmp_path, case, zipped):
    content, message = REFUSED[case]
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"^checkpoint {path} .*{message}|^checkpoint {path}: .*{message}") as caught:
        load_weights(Small(), str(path))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_compared_without_its_prefixes(tmp_path):
    torch.save({"ema": below("module.", {**RAW, "out.bias": torch.ones(7)}), "step": 1}, tmp_path / "model.pt")
    with pytest.raises(CheckpointMismatch, match=r"1 of another shape \(out.bias \(7,\) instead of \(2,\)\)$") as caught:
        load_weights(Small(), str(tmp_path / "model.pt"))
    assert caught.value.shapes == {name: tuple(value.shape) for name, value in RAW.items()} | {"out.bias": (7,)}


def test_a_cycle_ends(tmp_path):
    content = {"model": RAW}
    content["self"] = content
    torch.save(content, tmp_path / "model.pt")
    loads(tmp_path / "model.pt", RAW)


@pytest.mark.parametrize("content_suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ""])
def test_the_content_tells_the_kind_of_a_file(tmp_path, content_suffix, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(RAW, path) if content_suffix == ".pt" else save_file(RAW, path)
    assert loads(path, RAW) == ""


OTHERS = {
    "empty": (b"", "it is empty"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "a pointer of Git LFS; git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html><html>sign in</html>", "it is a web page; download the file itself"),
    "npy": (b"\x93NUMPY\x01\x00", "it is an array of NumPy"),
    "no content": (b"PK\x05\x06" + bytes(18), "it is an archive without content"),
    "text": (b"weights", "truncated or not a checkpoint: "),
    "zeros": (bytes(4096), "truncated or not a checkpoint: "),
    "header": (b"\xff" * 8 + b"{", "truncated or not a checkpoint: "),
    "long header": ((10**7).to_bytes(8, "little") + b"{}", "truncated or not a checkpoint: "),
    "pickle": (b"\x80\x02}q\x00.", "truncated or not a checkpoint: "),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_files_are_called_what_they_are(tmp_path, case, suffix):
    content, message = OTHERS[case]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^checkpoint {path} .*{message}") as caught:
        load_checkpoint(str(path))
    assert "\n" not in str(caught.value)


def test_archives_of_other_programs_are_called_what_they_are(tmp_path):
    np.savez(tmp_path / "arrays.npz", np.ones(3))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    for name, message in {"arrays.npz": "NumPy arrays", "program.pt": "a program of TorchScript; save the state_dict"}.items():
        with pytest.raises(ValueError, match=rf"{name} is truncated or not a checkpoint: it is .*{message}"):
            load_checkpoint(str(tmp_path / name))


def test_a_flipped_bit_of_the_values_is_found(tmp_path):
    torch.save(RAW, tmp_path / "model.pt")
    content = bytearray((tmp_path / "model.pt").read_bytes())
    content[bytes(content).find(RAW["out.weight"].numpy().tobytes()) + 2] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated or not a checkpoint: Bad CRC-32 for file 'model/data/\d+'"):
        load_checkpoint(str(tmp_path / "model.pt"))


def test_files_that_were_saved_without_checksums_load(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(RAW, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    loads(tmp_path / "model.pt", RAW)


def test_places_without_a_file_are_named(tmp_path, monkeypatch):
    (tmp_path / "ema_0.9999_010000.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} is a folder; give a file in it \(ema_0\.9999_010000\.pt\)"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(OSError, match=r"^checkpoint x+ cannot be read \(File name too long\)$"):
        load_checkpoint("x" * 300)
    for source in ("", None, 5):
        with pytest.raises(ValueError, match="must be a path, an address or the name of a bundled model, got "):
            load_checkpoint(source)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(tmp_path / "ema_0.9999_010000.pt"))

    monkeypatch.setattr("sag.tensor_files.open", refuse, raising=False)
    with pytest.raises(OSError, match=r"^checkpoint .*010000\.pt cannot be read \(Permission denied\)$"):
        load_checkpoint(str(tmp_path / "ema_0.9999_010000.pt"))


def test_a_file_is_not_taken_for_its_neighbour_with_a_suffix(tmp_path):
    torch.save(RAW, tmp_path / "model")
    save_file(OTHER, tmp_path / "model.safetensors")
    loads(tmp_path / "model", RAW)


def test_a_file_that_does_not_fit_says_which_entries_differ(tmp_path, weights):
    weights["extra.bias"] = weights.pop("out.2.bias")
    weights["out.0.weight"] = torch.ones(7)
    torch.save(weights, tmp_path / "model.pt")
    expected = (
        r"1 missing \(out.2.bias\), 1 unexpected \(extra.bias\), 1 of another shape \(out.0.weight \(7,\) instead of \(32,\)\)"
    )
    with pytest.raises(CheckpointMismatch, match=expected) as caught:
        load_network(small_unet(), str(tmp_path / "model.pt"))
    assert caught.value.shapes["extra.bias"] == (6,)


@pytest.mark.parametrize("url", ["gs://bucket/folder/model.pt", "az://account/container/model.pt"])
def test_blob_addresses_are_read_through_blobfile(tmp_path, weights, monkeypatch, url):
    torch.save(weights, tmp_path / "remote.pt")

    class LocalContext:
        def stat(self, path):
            assert path == url
            return blobfile.stat(str(tmp_path / "remote.pt"))

        def BlobFile(self, path, mode):
            return open(tmp_path / "remote.pt", mode)

    monkeypatch.setattr(blobfile, "create_context", lambda **options: LocalContext())
    assert load_checkpoint(url).keys() == weights.keys()


ROUNDS = 300
EXTRAS = [{}, {"epoch": 3}, {"step": torch.tensor(9), "optimizer": ADAM}, {"config": {"lr": 0.1}, "name": "adm", "best": None}]
WRAPPERS = [[], [], ["state_dict"], ["model"], ["ema"], ["params_ema"], ["state", "model"], ["somebody's", "own"]]
DAMAGE = ["whole"] * 5 + ["cut", "cut", "flip", "flip", "junk", "junk before", "second half", "zeros"]


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def written(rng, path):
    """Write a checkpoint of some form to `path`. The weights to be found, None if it must be refused; whether it is a zip."""
    state = {name: value.to(pick(rng, [torch.float32, torch.float16, torch.bfloat16, torch.float64])) for name, value in
             Small(int(rng.integers(100))).state_dict().items()}  # fmt: skip
    content = below("".join(pick(rng, list(PREFIXED)) for _ in range(rng.integers(3))), state)
    content = {name: content[name] for name in map(str, rng.permutation(list(content)))}
    if rng.random() < 0.25:
        save_file(content, path)
        return state, False
    if rng.random() < 0.2:
        torch.save(REFUSED[pick(rng, list(REFUSED))][0], path)
        return None, True
    if rng.random() < 0.3:
        content["step"] = pick(rng, [1000, torch.tensor(1000)])
    wrapper = pick(rng, WRAPPERS)
    for key in reversed(wrapper):
        content = {key: content, **pick(rng, EXTRAS)}
    if wrapper and rng.random() < 0.4:
        content |= {"net": OTHER} if "ema" in wrapper[0] else {"discriminator": {"weight": torch.ones(2)}}
    zipped = rng.random() < 0.7
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return state, zipped


def spoilt(rng, path, checksums):
    """Damage the file; returns how, where the damage may be in a place that nobody reads with a question mark."""
    content, kind = path.read_bytes(), pick(rng, DAMAGE)
    place = int(rng.integers(len(content)))
    if kind in ("flip", "zeros") and not checksums:
        kind = "cut"
    damaged = {
        "whole": content,
        "cut": content[:place],
        "flip": content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1 :],
        "junk": rng.bytes(place),
        "junk before": rng.bytes(1 + place % 100) + content,
        "second half": content[len(content) // 2 :],
        "zeros": content[:place] + bytes(len(content) - place),
    }
    path.write_bytes(damaged[kind])
    return f"{kind}?" if kind in ("flip", "zeros") else kind


def test_any_file_gives_the_right_weights_or_one_sentence_with_its_path(tmp_path):
    counts = {}
    for number in range(ROUNDS):
        rng = np.random.default_rng([16, number])
        path = tmp_path / f"{number}{pick(rng, ['.pt', '.pth', '.ckpt', '.bin', '.safetensors', ''])}"
        expected, checksums = written(rng, path)
        kind = spoilt(rng, path, checksums)
        network = Small(99)
        true = {name: value.clone() for name, value in network.state_dict().items()}
        sentence = ""
        try:
            load_weights(network, str(path))
            true = None if expected is None else {name: value.float() for name, value in expected.items()}
        except (ValueError, OSError) as error:
            sentence = str(error)
        assert true is not None, (number, kind, "what must be refused was loaded")
        assert all(torch.equal(value, true[name]) for name, value in network.state_dict().items()), (number, kind)
        if sentence:
            assert str(path) in sentence
            assert not any(part in sentence for part in ("\n", "[Errno", "Traceback", "\x1b")), sentence
        if not kind.endswith("?"):
            assert bool(sentence) == (expected is None or kind != "whole"), (number, kind, sentence)
        ending = f"{'good' if expected else 'bad'} file, {kind}: {'refused' if sentence else 'right weights'}"
        counts[ending] = counts.get(ending, 0) + 1
    print(f"{ROUNDS} checkpoints: " + "; ".join(f"{ending} {count}" for ending, count in sorted(counts.items())))
    assert counts["good file, whole: right weights"] >= 80

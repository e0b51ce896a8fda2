"""The sampling script as a user runs it: what it writes, what it repeats, what it refuses."""

import functools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import GOLDEN, ROOT, small_classifier, small_unet
from PIL import Image
from safetensors.torch import save_file

import sag
from sag.checkpoints import load_checkpoint
from sag.sampling import runner
from scripts import sample

QUICK = ["num_samples=3", "batch_size=2", "sampler.steps=2", "device=cpu"]


@pytest.fixture
def script(run_script):
    return functools.partial(run_script, sample.main, "sample", sample.SampleConfig)


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def save(network, path):
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


@pytest.fixture
def conditional(tmp_path):
    """Overrides that describe a small class-conditional model with a null class, and a classifier for it."""
    network = save(small_unet(num_classes=5), tmp_path / "network.safetensors")
    classifier = save(small_classifier(), tmp_path / "classifier.safetensors")
    return [
        *["model.network.image_size=16", "model.network.num_res_blocks=1", "model.network.attention_resolutions=[8]"],
        *["model.network.channel_mult=[1,2]", "model.network.num_head_channels=8", "model.network.resblock_updown=false"],
        *["model.network.in_channels=3", "model.network.out_channels=6"],
        *["model.network.num_classes=5", "model.null_label=4", f"model.checkpoint={network}"],
        *["classifier=adm_imagenet64", "classifier.network.image_size=16", "classifier.network.model_channels=32"],
        *["classifier.network.num_classes=4", "classifier.network.num_res_blocks=1", "classifier.network.channel_mult=[1,2]"],
        *[
            "classifier.network.attention_resolutions=[8]",
            "classifier.network.num_head_channels=16",
            f"classifier.checkpoint={classifier}",
        ],
    ]


UNCONDITIONAL = [  # the network of tests/golden/fashion32_reference.pt
    *["model.network.in_channels=3", "model.network.out_channels=6", "model.network.num_res_blocks=2"],
    *["model.network.channel_mult=[1,2,2]", "model.network.num_classes=null", "model.null_label=null"],
    f"model.checkpoint={GOLDEN / 'fashion32_reference.pt'}",
]
SMALL_SAG = ["guidance.sag.layer=output.1", "guidance.sag.blur_kernel=9"]


def test_a_run_writes_samples_picture_config_and_record(script, tmp_path):
    out = tmp_path / "out"
    printed = script(*QUICK, f"out={out}")
    assert "3.2 M parameters" in printed
    assert "passes    2 per step" in printed
    assert sorted(file.name for file in out.iterdir()) == ["config.yaml", "grid.png", "record.json", "samples_3x32x32x3.npz"]
    with np.load(out / "samples_3x32x32x3.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["arr_0", "arr_1"]
        images = arrays["arr_0"]
    assert (images.dtype, images.shape) == (np.uint8, (3, 32, 32, 3))
    assert np.array_equal(images[..., 0], images[..., 2])  # one grey channel, repeated
    grid = np.asarray(Image.open(out / "grid.png"))
    assert np.array_equal(grid[:32, 32:64], images[1])
    record = json.loads((out / "record.json").read_text())
    assert record["seed"] == 0
    assert record["indices"] == [0, 1, 2]
    assert set(record["versions"]) == {"sag", "torch", "numpy", "python"}
    assert record["seconds"] > 0


def test_the_same_command_twice_gives_the_same_bytes_and_chosen_indices_the_same_images(script, tmp_path):
    for name in "ab":
        script(*QUICK, f"out={tmp_path / name}")
    first, second = (only(tmp_path / name, "*.npz").read_bytes() for name in "ab")
    assert first == second
    script(*QUICK, "indices=[2,0]", f"out={tmp_path / 'c'}")
    whole, chosen = (np.load(only(tmp_path / name, "*.npz"))["arr_0"].astype(int) for name in "ac")
    assert chosen.shape[0] == 2
    assert np.abs(chosen - whole[[2, 0]]).max() <= 1  # other batches round differently: at most a grey level


def test_a_killed_run_continues_and_a_finished_one_returns(script, tmp_path, monkeypatch):
    script(*QUICK, f"out={tmp_path / 'whole'}")
    write, shards = runner.shards.write_shard, []

    def dies_at_the_second(folder, name, shard):
        if shards:
            raise OSError("no space left on device")
        shards.append(name)
        write(folder, name, shard)

    monkeypatch.setattr(runner.shards, "write_shard", dies_at_the_second)
    with pytest.raises(SystemExit, match="no space left"):
        script(*QUICK, f"out={tmp_path / 'killed'}")
    assert not list((tmp_path / "killed").glob("*.npz"))
    monkeypatch.setattr(runner.shards, "write_shard", write)
    script(*QUICK, f"out={tmp_path / 'killed'}")
    assert not (tmp_path / "killed/shards").exists()
    assert only(tmp_path / "killed", "*.npz").read_bytes() == only(tmp_path / "whole", "*.npz").read_bytes()
    assert "is there already" in script(*QUICK, f"out={tmp_path / 'killed'}")


@pytest.fixture
def meanwhile(script, tmp_path, monkeypatch):
    """Continue a run in which one of two shards is there; something else happens just before one of the functions."""

    def run(moment, happens):
        script(*QUICK, f"out={tmp_path / 'whole'}")
        out = tmp_path / "out"
        with monkeypatch.context() as killed:
            killed.setattr(runner.shards, "pack", lambda *arguments: sys.exit("killed"))
            with pytest.raises(SystemExit, match="killed"):
                script(*QUICK, f"out={out}")
        (out / "shards/00000002-00000002.npz").unlink()
        place = runner if moment == "picture" else runner.shards
        function, happened = getattr(place, moment), []

        def interrupted(*arguments):
            if not happened:
                happened.append(moment)
                happens(out)
            return function(*arguments)

        monkeypatch.setattr(place, moment, interrupted)
        script(*QUICK, f"out={out}")
        assert happened
        assert {file.name for file in out.iterdir()} == {file.name for file in (tmp_path / "whole").iterdir()}
        assert only(out, "*.npz").read_bytes() == only(tmp_path / "whole", "*.npz").read_bytes()

    return run


@pytest.mark.parametrize(
    "moment",
    ["read_shard", *(pytest.param(m, marks=pytest.mark.slow) for m in ("write_shard", "check_shards", "picture")), "pack"],
)
def test_a_run_that_another_process_finishes_meanwhile_ends_well(script, meanwhile, moment):
    """The other one packs and removes the shards; it takes over the claims, as those of a process that seems dead."""

    def another_finishes(out):
        for claim in out.rglob("*.claim"):
            claim.unlink()
        script(*QUICK, f"out={out}")
        assert not (out / "shards").exists()

    meanwhile(moment, another_finishes)


@pytest.mark.parametrize("moment", ["read_shard", pytest.param("check_shards", marks=pytest.mark.slow), "pack"])
def test_a_shard_that_another_process_removes_meanwhile_is_made_again(meanwhile, moment):
    meanwhile(moment, lambda out: (out / "shards/00000000-00000001.npz").unlink())


def test_a_run_on_a_blob_store_writes_the_same_bytes_and_continues(script, bucket, tmp_path, monkeypatch):
    script(*QUICK, f"out={tmp_path / 'local'}")
    with monkeypatch.context() as killed:
        killed.setattr(runner.shards, "pack", lambda *arguments: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            script(*QUICK, f"out={bucket}")
    assert bucket.names("shards") == {"00000000-00000001.npz", "00000002-00000002.npz"}
    printed = script(*QUICK, f"out={bucket}")
    local = only(tmp_path / "local", "*.npz")
    assert f"wrote     {bucket}/{local.name}, " in printed
    assert bucket.names() == {local.name, "grid.png", "config.yaml", "record.json"}
    assert bucket.read(local.name) == local.read_bytes()
    assert bucket.names("shards") == set()
    with pytest.raises(SystemExit, match=r"seed \(0 there, 1 here\)"):
        script(*QUICK, f"out={bucket}", "seed=1")


def test_other_settings_are_refused_and_named(script, tmp_path):
    script(*QUICK, f"out={tmp_path / 'out'}")
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    expected = r"holds results of other settings.*guidance.sag.scale \(0.3 there, 0.5 here\), seed \(0 there, 1 here\)$"
    with pytest.raises(SystemExit, match=expected):
        script(*QUICK, f"out={tmp_path / 'out'}", "guidance.sag.scale=0.5", "seed=1")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_run_of_other_settings_that_finished_meanwhile_is_not_taken_for_this_one(script, tmp_path, monkeypatch):
    build = sag.build.job

    def while_another_run_finishes(cfg):
        monkeypatch.setattr(sag.build, "job", build)
        script(*QUICK, f"out={tmp_path / 'out'}", "seed=1")
        return build(cfg)

    monkeypatch.setattr(sag.build, "job", while_another_run_finishes)
    with pytest.raises(SystemExit, match=r"holds results of other settings.*: seed \(1 there, 0 here\)$"):
        script(*QUICK, f"out={tmp_path / 'out'}")


def test_without_out_the_folder_is_named_by_the_settings(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [
        re.search(r"to (outputs/\S+)", script(*QUICK, *extra)).group(1)
        for extra in ([], ["device=cpu"], ["seed=1"], ["guidance=[]"])
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    assert folders[0].startswith("outputs/fashion32-sag-")
    assert folders[3].startswith("outputs/fashion32-none-")


@pytest.mark.slow
def test_every_technique_runs_from_the_command_line(script, tmp_path, conditional):
    images = {}
    for guidance in ("[]", "[sag]", "[blur]", "[classifier]", "[cfg]", "[sag,classifier,cfg]"):
        out = tmp_path / guidance
        extra = SMALL_SAG if "sag" in guidance else ["guidance.blur.blur_kernel=9"] if "blur" in guidance else []
        printed = script(*QUICK, *conditional, f"guidance={guidance}", *extra, f"out='{out}'")
        with np.load(only(out, "*.npz")) as arrays:
            images[guidance] = arrays["arr_0"]
            assert arrays["arr_1"].shape == (3,)
            assert arrays["arr_1"].max() < 4
    assert "3 per step, and 1 classifier gradient" in printed
    distinct = {array.tobytes() for array in images.values()}
    assert len(distinct) == len(images)


def test_samplers_precisions_and_labels(script, tmp_path, conditional):
    arguments = [*QUICK, *conditional, "guidance=[]"]
    script(*arguments, "sampler=ddim", "sampler.eta=0.5", "precision=bfloat16", "labels=[2,0]", f"out={tmp_path / 'a'}")
    assert np.load(only(tmp_path / "a", "*.npz"))["arr_1"].tolist() == [2, 0, 2]
    script(*arguments, "labels=balanced", f"out={tmp_path / 'b'}")
    assert np.load(only(tmp_path / "b", "*.npz"))["arr_1"].tolist() == [0, 1, 2]
    script(*arguments, "labels=none", f"out={tmp_path / 'c'}")
    assert np.load(only(tmp_path / "c", "*.npz"))["arr_1"].tolist() == [4, 4, 4]


def test_an_upsampler_enlarges_the_samples_of_another_run(script, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "low.npz", arr_0=rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), arr_1=np.array([3, 1, 2]))
    arguments = {
        "image_size": 16, "in_channels": 6, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": "[8]",
        "channel_mult": "[1,2]", "num_heads": "4", "num_head_channels": 8, "num_classes": 4, "resblock_updown": "false",
    }  # fmt: skip
    weights = save(small_unet(in_channels=6, num_classes=4), tmp_path / "network.safetensors")
    network = [f"model.network.{key}={value}" for key, value in arguments.items()]
    common = [
        *QUICK,
        "model=adm_upsample_64_256",
        *network,
        f"model.checkpoint={weights}",
        *SMALL_SAG,
        f"out={tmp_path / 'out'}",
    ]
    script(*common, f"low_res={tmp_path / 'low.npz'}")
    with np.load(only(tmp_path / "out", "*.npz")) as arrays:
        assert arrays["arr_0"].shape == (3, 16, 16, 3)
        assert arrays["arr_1"].tolist() == [3, 1, 2]
    elsewhere = [*common[:-1], f"out={tmp_path / 'other'}"]
    with pytest.raises(SystemExit, match=r"an upsampling model needs low_res=samples\.npz"):
        script(*elsewhere)
    with pytest.raises(SystemExit, match="holds 3 images, but sample 4 is asked for"):
        script(*elsewhere, f"low_res={tmp_path / 'low.npz'}", "num_samples=5")
    np.savez(tmp_path / "foreign.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8), arr_1=np.array([3, 4, 2]))
    with pytest.raises(SystemExit, match=r"has labels outside \[0, 4\), the classes of own_network"):
        script(*elsewhere, f"low_res={tmp_path / 'foreign.npz'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["num_samples=0"], "num_samples must be at least 1, got 0"),
        (["num_samples=many"], "num_samples.*(many|Integer)|(many|Integer).*num_samples"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["indices=[1,1]"], "indices must be one or more different whole numbers"),
        (["seed=-1"], r"seed must be in \[0, 2\*\*64\), got -1"),
        (["precision=float8"], "precision must be one of float32, bfloat16, float16, got 'float8'"),
        (["precision=float16"], "precision=float16 needs a GPU; on a CPU use precision=bfloat16"),
        (["device=abacus"], "unknown device 'abacus'; expected auto, cpu, cuda"),
        (["guidance.sag.scael=1"], "unknown config key 'guidance.sag.scael'; did you mean 'scale'"),
        (["+guidance.sag.extra=1"], "unexpected keyword argument 'extra'"),
        (["num_sample=3"], "unknown config key 'num_sample'; did you mean 'num_samples'"),
        (["+other=3"], "unknown config key 'other'"),
        (["model=adm_imagenet1024"], "unknown model 'adm_imagenet1024'; expected one of .*adm_imagenet512"),
        (["guidance=[sga]"], "unknown guidance 'sga'; expected one of blur, cfg, classifier, rescale, sag"),
        (["guidance.sag.layer=output.9"], r"unknown attention layer 'output.9'; this network has: input.3 \(16x16\)"),
        (["guidance.sag.blur_kernel=65"], "a blur_kernel of 65 needs images of at least 33 pixels, got 32x32"),
        (["guidance=[cfg]", "model.null_label=null"], "needs a network trained with a null class"),
        (
            ["guidance=[classifier]", "~classifier"],
            r"guidance 'classifier' needs a classifier.*add classifier=... \(one of adm_imagenet128",
        ),
        (["model.checkpoint=nowhere.pt"], "no checkpoint at 'nowhere.pt'"),
        (["labels=[3]", *UNCONDITIONAL], "this model is unconditional: labels=.* has no use"),
        (["low_res=x.npz"], "low_res=x.npz is for upsampling models"),
        (["sampler.steps=2000"], "cannot keep 2000 of 1000"),
        (["sampler.steps=fast"], "steps must look like 250"),
        pytest.param(
            ["model.network.channel_mult=[1,2]"],
            "does not fit the network.*its entries fit model=fashion32",
            marks=pytest.mark.slow,
        ),
        ([f"model.checkpoint={GOLDEN / 'fashion32_reference.json'}"], "(not a checkpoint|more than plain tensors)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_nothing_is_written(script, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as caught:
        script(
            f"out={tmp_path / 'out'}",
            *[q for q in QUICK if q.split("=")[0] not in {a.split("=")[0] for a in arguments}],
            *arguments,
        )
    text = str(caught.value.code)
    assert text.startswith("error: ")
    assert "\n" not in text
    assert re.search(message, text), text
    assert not (tmp_path / "out").exists()


def test_a_classifier_guides_an_unconditional_model(script, tmp_path, conditional):
    network = save(small_unet(), tmp_path / "unconditional.safetensors")
    arguments = [*QUICK, *conditional, "model.network.num_classes=null", "model.null_label=null", f"model.checkpoint={network}"]
    for scale in (0, 5):
        script(*arguments, "guidance=[classifier]", f"guidance.classifier.scale={scale}", f"out={tmp_path / str(scale)}")
    none, guided = (np.load(only(tmp_path / scale, "*.npz")) for scale in "05")
    assert none["arr_1"].tolist() == guided["arr_1"].tolist()
    assert not np.array_equal(none["arr_0"], guided["arr_0"])


def test_labels_none_and_a_classifier_exclude_each_other(script, tmp_path, conditional):
    with pytest.raises(SystemExit, match="labels=none leaves classifier guidance without a class"):
        script(*QUICK, *conditional, "guidance=[classifier]", "labels=none", f"out={tmp_path / 'out'}")


def test_classifier_and_model_must_agree(script, tmp_path, conditional):
    arguments = [*QUICK, *conditional, "guidance=[classifier]", f"out={tmp_path / 'out'}"]
    more = save(small_classifier(num_classes=7), tmp_path / "more.safetensors")
    with pytest.raises(SystemExit, match="the model has 4 classes, but the classifier 7"):
        script(*arguments, "classifier.network.num_classes=7", f"classifier.checkpoint={more}")
    larger = save(small_classifier(image_size=32, attention_resolutions=(16,)), tmp_path / "larger.safetensors")
    size = ["classifier.network.image_size=32", "classifier.network.attention_resolutions=[16]"]
    with pytest.raises(SystemExit, match=r"takes images of shape \(3, 32, 32\), got \(3, 16, 16\)"):
        script(*arguments, *size, f"classifier.checkpoint={larger}")
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite_stop_the_run(script, tmp_path):
    network = {name: value.float() for name, value in load_checkpoint("fashion32").items()}
    network["input_blocks.0.0.bias"][0] = 3e38  # finite, but its square is not
    torch.save(network, tmp_path / "broken.pt")
    with pytest.raises(SystemExit, match=r"step 1 of 2 \(t = 1, tau = 999\) gave values that are not finite in image 0, 1"):
        script(*QUICK, f"model.checkpoint={tmp_path / 'broken.pt'}", f"out={tmp_path / 'out'}")
    network["input_blocks.0.0.bias"][0] = float("nan")
    torch.save(network, tmp_path / "broken.pt")
    with pytest.raises(SystemExit, match=r"broken\.pt: entry input_blocks\.0\.0\.bias holds values that are not finite"):
        script(*QUICK, f"model.checkpoint={tmp_path / 'broken.pt'}", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_error_is_one_line_and_the_traceback_is_there_when_asked_for():
    command = [sys.executable, str(ROOT / "scripts/sample.py"), "num_samples=0"]
    short, full = (
        subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HYDRA_FULL_ERROR": flag}) for flag in "01"
    )
    assert (short.returncode, short.stderr) == (1, "error: num_samples must be at least 1, got 0\n")
    assert full.returncode == 1
    assert "Traceback" in full.stderr


@pytest.mark.slow
def test_compiled_samples_are_the_same_to_a_grey_level(script, tmp_path, conditional):
    for compiled in ("false", "true"):
        arguments = [*QUICK, *conditional, *SMALL_SAG, "guidance=[sag,classifier]"]
        script(*arguments, f"compile={compiled}", f"out={tmp_path / compiled}")
    plain, compiled = (np.load(only(tmp_path / name, "*.npz"))["arr_0"].astype(int) for name in ("false", "true"))
    assert np.abs(plain - compiled).max() <= 1

"""What a wrong command line is answered with: one sentence that names the key, what was given, and what it takes."""

import importlib

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sag.build.arguments import quote, read_arguments
from scripts.sample import SampleConfig

NUMBER, WHOLE = "takes a number, got", "takes a whole number, got"
SCALE = "guidance.sag.scale takes a number or keys of its own, got"
WRONG = [  # program, arguments, parts of the sentence
    # a value of another type: keys of the program
    ("sample", ["seed=x"], [f"seed {WHOLE} 'x'"]),
    ("sample", ["num_samples=4.5"], [f"num_samples {WHOLE} 4.5"]),
    ("sample", ["batch_size=null"], [f"batch_size {WHOLE} null"]),
    ("sample", ["compile=maybe"], ["compile takes true or false, got 'maybe'"]),
    ("sample", ["size=32"], ["size takes a list of 2 whole numbers or null, got 32"]),
    ("sample", ["indices=3"], ["indices takes a list of whole numbers or null, got 3; write indices=[3]"]),
    ("sample", ["device=gpu"], ["unknown device 'gpu'; expected auto, cpu, cuda or cuda:N"]),
    ("sample", ["labels=foo"], ["labels takes random, balanced, none, a whole number or a list of whole numbers, got 'foo'"]),
    ("sample", ["labels=1.5"], ["labels takes random,", "got 1.5"]),
    ("evaluate", ["metrics=fid"], ["metrics takes a list of names, got 'fid'; write metrics=[fid]"]),
    ("evaluate", ["is_splits=a"], ["is_splits takes a whole number or null, got 'a'"]),
    ("train", ["out=run", "save_minutes=soon"], [f"save_minutes {NUMBER} 'soon'"]),
    ("status", ["out=run", "minutes=x"], [f"minutes {NUMBER} 'x'"]),
    ("sweep", ["seed=1,x"], [f"seed {WHOLE} 'x'"]),
    ("reproduce", ["seeds=0"], ["seeds takes a list of whole numbers, got 0; write seeds=[0]"]),
    ("report", ["num_samples=x"], ["num_samples takes a whole number or null, got 'x'"]),
    ("visualize", ["list=maybe"], ["list takes true or false, got 'maybe'"]),
    ("visualize", ["size=32"], ["size takes a list of 2 whole numbers or null, got 32"]),
    ("make_reference", ["out=x.npz", "num_images=x"], [f"num_images {WHOLE} 'x'"]),
    ("download", ["what=fashion32", "dry_run=x"], ["dry_run takes true or false, got 'x'"]),
    ("demo", ["num_samples=x"], [f"num_samples {WHOLE} 'x'"]),
    ("benchmark", ["compile=true"], ["compile takes a list of true or false, got true"]),
    # ... and arguments of what is built
    ("sample", ["guidance.sag.scale=abc"], [f"{SCALE} 'abc'"]),
    ("sample", ["guidance.sag.scale=null"], [f"{SCALE} null"]),
    ("sample", ["guidance.sag.scale=nan"], ["guidance.sag.scale takes a finite number or keys of its own, got nan"]),
    ("sample", ["guidance.sag.scale=true"], [f"{SCALE} true"]),
    ("sample", ["guidance.sag.blur_kernel=3.5"], [f"guidance.sag.blur_kernel {WHOLE} 3.5"]),
    ("sample", ["guidance.sag.interval=0.5"], ["guidance.sag.interval takes a list of numbers, got 0.5"]),
    ("sample", ["guidance.sag.mask=square_"], ["guidance.sag.mask takes attention, global, random, square or high_frequency"]),
    ("sample", ["guidance.sag=0.5"], ["guidance.sag takes keys of its own, got 0.5; set one of them"]),
    ("sample", ["model.network.channel_mult=2"], ["model.network.channel_mult takes a list of numbers, got 2"]),
    ("sample", ["model.network.image_size=big"], [f"model.network.image_size {WHOLE} 'big'"]),
    ("sample", ["model.network=null"], ["model.network takes keys of its own, got null"]),
    ("sample", ["model.null_label=x"], ["model.null_label takes a whole number or null, got 'x'"]),
    ("sample", ["model.diffusion.schedule.steps=many"], [f"model.diffusion.schedule.steps {WHOLE} 'many'"]),
    ("sample", ["sampler.steps=abc"], ["steps must look like 250, ddim25 or 10,15,20, got 'abc'"]),
    ("sample", ["sampler.steps=null"], ["sampler.steps takes a whole number or text, got null"]),
    ("sample", ["sampler=ddim", "sampler.eta=much"], [f"sampler.eta {NUMBER} 'much'"]),
    ("sample", ["model.checkpoint=null"], ["model.checkpoint is missing: the file or address of the weights"]),
    ("train", ["out=run", "settings.steps=2e4"], [f"settings.steps {WHOLE} 20000.0"]),
    ("train", ["out=run", "settings=3"], ["settings takes keys of its own, got 3"]),
    ("train", ["out=run", "task.objective.label_dropout=x"], [f"task.objective.label_dropout {NUMBER} 'x'"]),
    ("evaluate", ["extractor=module", "extractor.network._target_=nope.Net"], ["nope.Net cannot be imported: No module named"]),
    ("sample", ["model.sag.scale=0.7"], ["model.sag.scale is no longer a key; write guidance.sag.scale=0.7"]),
    ("sample", ["+model.sag.scale=0.7"], ["model.sag is no longer a key; give guidance.sag.scale=0.7 instead"]),
    ("sample", ["guidance.sag.heads=true"], ["guidance.sag.heads takes own or released, got true"]),
    ("sample", ["++guidance.sag.scael=1"], ["guidance.sag: ", "unexpected keyword argument 'scael'; it takes scale, layer,"]),
    ("sample", ["~guidance.sag.scale"], ["guidance.sag.scale is missing; SelfAttentionGuidance needs it"]),
    # what is not there
    ("sample", ["guidance.cfg.scale=2"], ["guidance.cfg is not in use; add cfg to the list: guidance=[sag,cfg]"]),
    ("sample", ["guidance=[]", "guidance.sag.scale=2"], ["guidance.sag is not in use; add sag to the list: guidance=[sag]"]),
    (
        "sample",
        ["model=adm_imagenet256_uncond", "classifier.checkpoint=x.pt"],
        ["classifier is not in use; choose one with classifier=... (one of adm_imagenet128,"],
    ),
    ("evaluate", ["extractor.weights=x"], ["extractor is not in use; choose one with extractor=... (one of dinov2,"]),
    ("evaluate", ["published.any_n=true"], ["published is not in use; choose one with published=... (one of"]),
    ("sample", ["sampler.eta=0.5"], ["'sampler.eta' is no key of the sampler in use; it is one of sampler=ddim"]),
    (
        "train",
        ["out=run", "data.path=images"],
        ["'data.path' is no key of the data in use; it is one of data=folder, data=npz"],
    ),
    ("sample", ["modle=fashion32"], ["unknown config key 'modle'; did you mean 'model'?"]),
    ("sample", ["scale=1"], ["unknown config key 'scale'; did you mean", "'guidance.sag.scale'"]),
    ("sample", ["guidance.sga.scale=1"], ["unknown config key 'guidance.sga.scale'; did you mean 'guidance.sag.scale'?"]),
    ("sample", ["+sede=3"], ["unknown config key 'sede'; did you mean 'seed'?"]),
    (
        "sample",
        ["model=fashion23"],
        ["unknown model 'fashion23'; expected one of adm_imagenet128,", "did you mean 'fashion32'?"],
    ),
    ("sample", ["experiment=imagenet_128"], ["unknown experiment 'imagenet_128'; expected", "did you mean 'imagenet128'?"]),
    ("sample", ["classifier=nosuch"], ["unknown classifier 'nosuch'; expected one of adm_imagenet128,"]),
    ("sample", ["hydra/launcher=nosuch"], ["unknown hydra/launcher 'nosuch'; expected one of basic, slurm,"]),
    ("reproduce", ["common=[modle=fashion32]", "dry_run=true"], ["unknown config key 'modle'; did you mean 'model'?"]),
    ("status", [], ["out is missing (the folder of a run)", "for example: python scripts/status.py out=outputs/..."]),
    ("train", [], ["out is missing (the folder of the run)", "for example: python scripts/train.py "]),
    (
        "bundle",
        ["out=m.safetensors"],
        ["checkpoint is missing (a path or an address)", "for example: python scripts/bundle.py "],
    ),
    ("download", [], ["what is missing (a model, a list of models, or all)"]),
    ("make_reference", ["out=x.npz", "data=folder"], ["data.path is missing", "data=folder data.path=... data.size=256"]),
    (
        "evaluate",
        ["extractor=torchscript"],
        ["extractor.network.path is missing", "extractor=torchscript extractor.network.path="],
    ),
    ("sample", ["model=flags"], ["model.flags is missing", 'model=flags model.flags="--image_size 64']),
    ("train", ["out=run", "task=classifier", "~classifier"], ["task.network needs classifier.network", "give classifier=..."]),
    # groups
    ("sample", ["guidance=null"], ["guidance=null is no choice; write guidance=[] for none"]),
    ("sample", ["model=3"], ["model=3 is no choice; model takes one name of"]),
    ("sample", ["classifier=null"], ["classifier=null is no choice", "or ~classifier for none"]),
    ("sample", ["model=[fashion32,flags]"], ["model=[fashion32,flags] is no choice; model takes one name of"]),
    ("sample", ["~model"], ["~model is no choice; model takes one name of"]),
    ("sample", ["+model=adm_imagenet64"], ["model is chosen already; write model=..., without the +"]),
    ("sample", ["+sampler=ddpm"], ["sampler is chosen already; write sampler=..., without the +"]),
    ("sample", ["+seed=3"], ["seed is there already; write seed=3, without the +"]),
    ("sample", ["~seed"], ["~seed removes a key that the program needs"]),
    ("sample", ["~sede"], ["there is no sede to remove with ~; did you mean 'seed'?"]),
    # several values, and keys that refer to others
    ("sample", ["guidance=sag,cfg"], ["guidance=sag,cfg is several values", "write guidance=[sag,cfg] for a list"]),
    ("sample", ["seed=1,2"], ["seed=1,2 is several values, and one is wanted (scripts/sweep.py"]),
    ("sample", ["out=a,b"], ["out=a,b is several values", "write \"out='a,b'\" for one text"]),
    ("sample", ["seed=${seed}"], ["seed refers to itself through ${...}"]),
    ("sample", ["seed=${nope}"], ["seed refers to ${nope}, but there is no key 'nope'"]),
    ("sample", ["guidance.sag.scale=${guidance.sag.scale}"], ["guidance.sag.scale refers to itself"]),
    # options
    ("sample", ["--num_samples", "4"], ["there is no option --num_samples; write num_samples=4, without dashes"]),
    ("sample", ["--num-samples=4"], ["there is no option --num-samples=4; write num_samples=4, without dashes"]),
    ("sample", ["-n", "4"], ["there is no option -n; write num_samples=4, without dashes"]),
    ("sample", ["--image_size", "64"], ["there is no option --image_size", 'model=flags model.flags="--image_size 64 ..."']),
    ("sample", ["--frobnicate"], ["there is no option --frobnicate; settings are given as key=value"]),
    ("sample", ["--cfg", "jub"], ["argument --cfg/-c: invalid choice: 'jub'"]),
    ("sample", ["--config-dir", "/nope/x"], ["Additional config directory '/nope/x' not found"]),
    ("sample", ["--config-name", "nosuch"], ["there is no config 'nosuch' in "]),
    # spaces, brackets and quotes
    ("sample", ["labels=[1,", "2]"], ["'labels=[1,' is cut at a space; quote the whole argument: 'labels=[1, 2]'"]),
    ("sample", ["guidance=[sag,", "cfg]"], ["quote the whole argument: 'guidance=[sag, cfg]'"]),
    ("sample", ["guidance=[sag"], ["a bracket of 'guidance=[sag' is not closed"]),
    (
        "sample",
        ["out=my", "folder"],
        ["'folder' is not of the form key=value; if it belongs to 'out=my', quote", "'out=my folder'"],
    ),
    ("sample", ["num_samples", "4"], ["'num_samples' has no value; write num_samples=4"]),
    ("sample", ["num_samples=", "4"], ["there is a space after 'num_samples='; write num_samples=4"]),
    ("sample", ["num_samples", "=", "4"], ["'num_samples' has no value; write num_samples=4"]),
    ("sample", ["num_samples = 4"], ["write num_samples=4, with one = and no spaces around it"]),
    ("sample", ["num_samples:4"], ["write num_samples=4"]),
    ("sample", ["num_samples==4"], ["write num_samples=4, with one ="]),
    ("sample", ["num_samples=4;"], [f"num_samples {WHOLE} '4;'"]),
    ("sample", ["guidance=[sag],[cfg", "seed=1"], ["a bracket of 'guidance=[sag],[cfg' is not closed"]),
    ("sample", ["=4"], ["'=4' has no key"]),
    ("sample", ["out="], ["out= has no value; a variable of the shell may be empty"]),
    ("sample", ["guidance.sag.layer=a#b"], ["quote the value, and the whole for the shell: \"guidance.sag.layer='a#b'\""]),
    ("status", ["outputs/run"], ["'outputs/run' is not of the form key=value; write out=outputs/run"]),
    ("evaluate", ["samples.npz"], ["'samples.npz' is not of the form key=value; write samples=samples.npz"]),
    ("reproduce", ["common=model=fashion32"], ["common takes a list; write 'common=[model=fashion32]'"]),
]


@pytest.mark.parametrize(
    ("program", "arguments", "parts"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_a_wrong_command_line_is_one_sentence(run_script, tmp_path, monkeypatch, program, arguments, parts):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"scripts.{program}")
    schema = getattr(module, f"{program.title().replace('_', '')}Config")
    with pytest.raises(SystemExit) as caught:
        run_script(module.main, program, schema, *arguments)
    text = str(caught.value.code)
    assert text.startswith("error: ")
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs"}  # of Hydra's own, for sweeps


@pytest.mark.parametrize(
    "value",
    [
        "my folder (2)",
        "a=b",
        "a#b",
        "1e3",
        "007",
        "true",
        "[x]",
        "{x}",
        "a!b",
        "it's",
        "'a",
        "ünï/結果",
        "a\\b\\",
        "a'\\'b",
        "x: y",
        "a&b;c",
    ],
)
def test_the_value_of_a_key_that_takes_a_text_is_taken_as_it_stands(value):
    for key in ("out", "low_res", "model.checkpoint", "+data.path"):
        (override,) = read_arguments([f"{key}={value}"], SampleConfig)
        assert OverridesParser.create().parse_override(override).value() == value


def test_a_home_folder_is_found_whatever_the_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of me")
    assert read_arguments(["out=~/runs"], SampleConfig) == ["out='/home/of me/runs'"]


def test_what_is_quoted_for_hydra_or_means_several_values_stays():
    kept = ["out='my folder'", 'out="a,b"', "out=null", "out=a,b", "out=${model.name}", "labels=[1,2]", "seed=1", "~classifier"]
    assert read_arguments(kept, SampleConfig) == kept


def test_lists_of_texts_need_no_quotes_within(run_script):
    from scripts.evaluate import EvaluateConfig
    from scripts.reproduce import ReproduceConfig

    found = read_arguments(["common=[precision=bfloat16, guidance=[sag,cfg],'seed=1']"], ReproduceConfig)
    assert OverridesParser.create().parse_override(found[0]).value() == ["precision=bfloat16", "guidance=[sag,cfg]", "seed=1"]
    assert read_arguments(["metrics=[fid,is]"], EvaluateConfig) == ["metrics=[fid,is]"]


def test_options_may_stand_between_overrides():
    assert read_arguments(["seed=1", "-m", "num_samples=2"], SampleConfig) == ["seed=1", "num_samples=2", "-m"]


@pytest.mark.parametrize("text", ["plain", "it's", "a\\", "a\\'b", "\\\\", "a\nb", "'", "", "--a 1 \\\n --b 'c,d'"])
def test_quoting_gives_the_same_text_back(text):
    assert OverridesParser.create().parse_override(f"key={quote(text)}").value() == text

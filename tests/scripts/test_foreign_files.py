"""However a program ends, the files of somebody else in its folder are as they were."""

import random

import numpy as np
import pytest
import torch
from helpers import Zygote, golden_images, random_images

from evaluations.study.results import Results, Run

ROUNDS = 220
SAMPLE = ["num_samples=3", "batch_size=2", "sampler.steps=1", "guidance=[]", "device=cpu"]
TINY = [
    *["model.network.image_size=16", "model.network.model_channels=32", "model.network.num_res_blocks=1"],
    *["model.network.channel_mult=[1,2]", "model.network.attention_resolutions=[8]", "model.network.num_classes=null"],
    *["model.null_label=null", "settings.batch_size=2", "settings.steps=4", "save_minutes=1e-9", "log_every=1"],
]
COMMON = "common=['model=fashion32','sampler=ddim','sampler.steps=ddim1','batch_size=8']"
SCORED = ["extractor=fashion_features", "metrics=[fid]", "device=cpu"]
PROGRAMS = {  # name: arguments, by the folder of the inputs, and the names that it writes
    "sample": (
        lambda given: SAMPLE,
        ["grid.png", "record.json", "config.yaml", "samples_3x32x32x3.npz", "shards/00000000-00000001.npz", "shards/a.txt"],
    ),
    "train": (
        lambda given: [*TINY, "data=npz", f"data.path={given}/data.npz", "grid_steps=1", "device=cpu"],
        ["model000002.pt", "opt000004.pt", "ema_0.9999_000001.pt", "vgg.pt", "log.csv", "state.json", "config.yaml"],
    ),
    "evaluate": (
        lambda given: [f"samples={given}/samples.npz", f"reference={given}/reference.npz", *SCORED],
        [".scores.features/00000000.npz", "scores.json"],
    ),
    "make_reference": (
        lambda given: ["data=npz", f"data.path={given}/reference.npz", "extractor=fashion_features", "device=cpu"],
        [".new.features/00000000.npz", "new.npz"],
    ),
    "visualize": (
        lambda given: ["sampler.steps=1", "samples=[0]", "moments=1", "device=cpu"],
        ["output.2.png", "output.2.gif", "record.json"],
    ),
    "report": (lambda given: [f"results={given}/results.sqlite"], ["report.html", "t.png", "tables.md", "record.json"]),
    "reproduce": (
        lambda given: ["table=fashion", "rows=[no guidance]", "num_samples=8", "seeds=[0]", COMMON, "device=cpu"],
        ["results.sqlite"],
    ),
    "bundle": (lambda given: [f"checkpoint={given}/weights.pt"], ["new.safetensors"]),
}
OFTEN = {"sample": 6, "train": 6, "evaluate": 2, "make_reference": 2}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the programs read."""
    folder = tmp_path_factory.mktemp("given")
    pixels, labels = golden_images()
    np.savez(folder / "samples.npz", pixels[:100], labels[:100])
    np.savez(folder / "reference.npz", pixels[100:], labels[100:])
    np.savez(folder / "data.npz", random_images(0, 8, size=16)[..., :1])
    torch.save({"a": torch.ones(1000)}, folder / "weights.pt")
    run = Run("k", "t", "SAG", 0, 10, {}, metrics={"fid": 1.0, "precision": 0.5, "recall": 0.5}, scoring={"extractor": "e"})
    Results(folder / "results.sqlite").add(run)
    return folder


def place(program, out):
    """The overrides that say where a program writes."""
    file = {"evaluate": "scores.json", "make_reference": "new.npz", "bundle": "new.safetensors"}.get(program)
    return [
        f"out={out if file is None else out / file}",
        *([f"results={out}/results.sqlite"] if program == "reproduce" else []),
    ]


def scatter(rng, out, names, count):
    """Write files of somebody else that are not there yet, some under names that the program has too."""
    written = {}
    for _ in range(count):
        kind = rng.random()
        name = rng.choice(names) if kind < 0.04 else f"{rng.choice(['', 'shards/', 'deep/', '.'])}{rng.randrange(10**6)}"
        name += rng.choice([".npz", ".pt", ".png", ".part", ".claim", ".json", ""]) if kind >= 0.04 else ""
        path = out / name
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(rng.choice([0, 1, 100, 5000])))
            written[path] = path.read_bytes()
    return written


@pytest.mark.slow
def test_files_of_somebody_else_survive_every_program_and_every_ending(given, tmp_path, capsys):
    rng, endings, programs = random.Random(0), {}, {}
    zygote = Zygote(tmp_path, programs=[*PROGRAMS])
    for number in range(ROUNDS):
        program = rng.choices([*PROGRAMS], [OFTEN.get(name, 1) for name in PROGRAMS])[0]
        arguments, names = PROGRAMS[program]
        out = tmp_path / str(number)
        foreign = scatter(rng, out, names, rng.randrange(8))
        for attempt in range(rng.choice([1, 2, 3])):  # a run, and the same command again
            ending = rng.choice(["none", "kill", "error"])
            stop = None if ending == "none" else [rng.randrange(1, 30), ending]
            command = [*arguments(given), *place(program, out)]
            code = zygote.wait(zygote.start(*command, program=program, end_writing=stop, SAG_CACHE=str(tmp_path / "cache")))
            changed = [path for path, content in foreign.items() if not path.exists() or path.read_bytes() != content]
            assert not changed, (number, attempt, program, ending, changed, zygote.logs()[-2000:])
            assert code in (0, 1, -9), zygote.logs()[-3000:]  # 2 would be an error that is no sentence
            endings[code] = endings.get(code, 0) + 1
            foreign |= scatter(rng, out, [f"{rng.randrange(10**6)}.npz"], rng.randrange(3))
        programs[program] = programs.get(program, 0) + 1
    zygote.close()
    assert set(programs) == set(PROGRAMS)
    assert min(endings.values()) > 50
    with capsys.disabled():
        print(
            f"\nforeign files: {ROUNDS} rounds of {len(programs)} programs, {endings[0]} runs ended well, {endings[1]} with an "
            f"error, {endings[-9]} were killed; every file of somebody else is unchanged to the byte"
        )

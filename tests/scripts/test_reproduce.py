"""The tables: every row of every paper's table, and a small table run to its end, stopped, and started again."""

import copy
import re

import hydra
import pytest
import torch
from helpers import GOLDEN
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import OmegaConf

from evaluations.study.results import Results
from evaluations.study.rows import Row, table_rows
from sag.build import compose, identity
from sag.build.groups import choices, load_config, open_configs
from sag.build.objects import guidance as build_guidance
from sag.build.tables import experiments as experiment_tables
from sag.build.tables import row_settings, store_experiments
from sag.diffusion import Denoiser
from sag.diffusion import sample as sample_steps
from sag.guidance import GuidedDenoiser
from sag.noise import SampleNoise
from scripts import reproduce

EXPERIMENTS, TABLES = sorted(experiment_tables()), choices("table")
SCORING = (
    f"['extractor=module','extractor.network._target_=helpers.TinyNetwork','reference={GOLDEN / 'fashion_mnist_200.npz'}']"
)
QUICK = "['model=fashion32','sampler=ddim','sampler.steps=ddim2','labels=balanced','batch_size=6']"
SMALL = ["num_samples=12", f"common={QUICK}", f"table.scoring={SCORING}", "device=cpu"]

# FID, sFID, IS, precision, recall as facts of the papers; None where a paper has no number
PUBLISHED = {
    "imagenet256_uncond": (26.21, 6.35, 39.70, 0.61, 0.63),
    "imagenet256_uncond_sag_0.5_released": (20.31, 5.09, 45.30, 0.66, 0.61),
    "imagenet256_uncond_sag_0.8_released": (20.08, 5.77, 45.56, 0.68, 0.59),
    "imagenet256": (10.94, 6.02, 100.98, 0.69, 0.63),
    "imagenet256_sag_0.2_released": (9.41, 5.28, 104.79, 0.70, 0.62),
    "lsun_cat": (7.03, 8.24, None, 0.60, 0.53),
    "lsun_cat_sag_0.05_released": (6.87, 8.21, None, 0.60, 0.50),
    "lsun_horse": (3.45, 7.55, None, 0.68, 0.56),
    "lsun_horse_sag_0.01_released": (3.43, 7.51, None, 0.68, 0.55),
    "imagenet128": (5.91, 5.09, None, 0.70, 0.65),
    "imagenet128_classifier": (2.97, 5.09, None, 0.78, 0.59),
    "imagenet128_sag": (5.11, 4.09, None, 0.72, 0.65),
    "imagenet128_sag_classifier": (2.58, 4.35, None, 0.79, 0.59),
    "imagenet64": (2.07, 4.29, None, 0.74, 0.63),
    "imagenet256_classifier": (4.59, 5.25, 186.70, 0.82, 0.52),
    "imagenet256_uncond_classifier": (12.00, 10.40, 95.41, 0.76, 0.44),
    "imagenet512": (23.24, 10.19, 58.06, 0.73, 0.60),
    "lsun_bedroom_1000": (1.90, None, None, None, None),
    "lsun_horse_1000": (2.57, None, None, None, None),
    "lsun_cat_1000": (5.57, None, None, None, None),
    "iddpm64": (19.2, None, None, None, None),
    "iddpm64_sag": (18.0, None, None, None, None),
    "ablation_none": (5.98, None, 141.72, None, None),
    "ablation_mask_global": (5.82, None, 143.15, None, None),
    "ablation_mask_high_frequency": (5.74, None, 148.87, None, None),
    "ablation_mask_random": (5.68, None, 148.99, None, None),
    "ablation_mask_attention": (5.47, None, 151.12, None, None),
    "dit256": (9.62, 6.85, 121.50, 0.67, 0.67),
    "dit256_cfg_1.25": (3.22, 5.28, 201.77, 0.76, 0.62),
    "dit256_cfg_1.5": (2.27, 4.60, 278.24, 0.83, 0.57),
    "dit256_cfg_1.5_sag": (2.16, None, None, None, None),
    "dit512": (12.03, 7.12, 105.25, 0.75, 0.64),
    "dit512_cfg_1.25": (4.64, 5.77, 174.77, 0.81, 0.57),
    "dit512_cfg_1.5": (3.04, 5.02, 240.82, 0.84, 0.54),
    "ablation_sigma_1": (5.58, None, None, None, None),
    "ablation_sigma_3": (5.47, None, None, None, None),
    "ablation_sigma_9": (5.70, None, None, None, None),
    "ablation_sigma_27": (5.80, None, None, None, None),
}
SECONDHAND = ("iddpm", "ablation", "dit256_cfg_1.25", "dit256_cfg_1.5_sag")
BASELINES = (  # of ADM's paper
    *("imagenet64", "imagenet512", "lsun_bedroom_1000", "lsun_horse_1000", "lsun_cat_1000"),
    *("imagenet256_classifier", "imagenet256_uncond_classifier"),
)
EXTRACTOR = "inception-2015-12-05-6726825d/tensorflow1-bilinear/nhwc"
# scale, layer, blur sigma, classifier scale, steps, batch size, as published
SETTINGS = {
    "imagenet128_sag_classifier": (0.1, "output.8", 3, 0.5, 250, 64),
    "imagenet256_uncond_sag_0.5_released": (0.5, "output.2", 9, None, 250, 16),
    "imagenet256_uncond_sag_0.8_released": (0.8, "output.2", 9, None, 250, 16),
    "imagenet256_sag_0.2_released": (0.2, "output.2", 9, None, 250, 16),
    "lsun_cat_sag_0.05_released": (0.05, "output.2", 9, None, 250, 16),
    "lsun_horse_sag_0.01_released": (0.01, "output.2", 9, None, 250, 16),
    "imagenet128_sag_classifier_ddim25": (0.1, "output.8", 3, 1.0, "ddim25", 64),
}


@pytest.fixture(scope="module")
def experiments():
    """The config of every experiment, by its name."""
    store_experiments(EXPERIMENTS)
    with open_configs():
        found = {name: hydra.compose("sample", [f"experiment={name}"]) for name in EXPERIMENTS}
    del ConfigStore.instance().repo["experiment"]  # Hydra copies it for each config that it looks for
    return found


@pytest.fixture
def script(run_script, tmp_path):
    def call(*arguments):
        places = [f"out={tmp_path / 'rows'}", f"results={tmp_path / 'results.sqlite'}"]
        return run_script(reproduce.main, "reproduce", reproduce.ReproduceConfig, *arguments, *places)

    return call


@pytest.mark.slow
def test_published_numbers_are_those_of_the_papers(experiments):
    found = {name: cfg.published for name, cfg in experiments.items()}
    assert {name for name, published in found.items() if published is not None} == set(PUBLISHED)
    for name, values in PUBLISHED.items():
        metrics = ("fid", "sfid", "is", "precision", "recall")
        expected = {metric: value for metric, value in zip(metrics, values, strict=True) if value is not None}
        assert dict(found[name]["values"]) == expected, name
        assert found[name].num_samples == 50000
        assert found[name].get("secondhand", False) == name.startswith(SECONDHAND), name
        source = "arXiv:2105.05233" if name in BASELINES else "arXiv:2210.00939"
        if name.startswith("dit") and not name.endswith("sag"):
            source = "arXiv:2212.09748"
        assert (found[name].source, found[name].extractor) == (source, EXTRACTOR), name


@pytest.mark.slow
def test_dit_is_guided_as_in_its_paper(experiments):
    """Its cfg is 1 + scale, and guides 3 of the 4 channels."""
    for name in (name for name in PUBLISHED if name.startswith("dit")):
        cfg = experiments[name]
        _, number, *with_sag = name.replace("_cfg", "").split("_") + (["1"] if "cfg" not in name else [])
        assert list(cfg.guidance) == [*(["cfg"] if "cfg" in name else []), *with_sag], name
        assert "cfg" not in name or (1 + cfg.guidance.cfg.scale, cfg.guidance.cfg.channels) == (float(number), 3), name
        assert (cfg.sampler._target_, cfg.sampler.steps, cfg.num_samples) == ("sag.diffusion.DDPM", 250, 50000)
        assert cfg.model.name == f"dit_xl2_{name[3:6]}"


@pytest.mark.slow
def test_published_settings_are_those_of_the_papers(experiments):
    for name, (scale, layer, sigma, classifier, steps, batch) in SETTINGS.items():
        cfg = experiments[name]
        sag = cfg.guidance.sag
        assert (sag.scale, sag.layer, sag.blur_sigma, sag.blur_kernel, sag.threshold) == (scale, layer, sigma, 31, 1.0), name
        assert ("classifier" in cfg.guidance) == (classifier is not None)
        assert classifier is None or cfg.guidance.classifier.scale == classifier
        assert (cfg.sampler.steps, cfg.batch_size, cfg.num_samples, cfg.labels) == (steps, batch, 50000, "random")
    for name, cfg in experiments.items():
        if cfg.model.name.startswith(("adm_imagenet256", "adm_lsun")) and "sag" in cfg.guidance:
            assert cfg.guidance.sag.heads == ("released" if name.endswith("_released") else "own")
            twin = copy.deepcopy(experiments[name.removesuffix("_released")])
            twin.guidance.sag.heads = cfg.guidance.sag.heads
            assert identity(twin) == identity(cfg)


@pytest.mark.slow
def test_every_row_composes_and_those_of_papers_are_experiments(experiments):
    found = []
    with open_configs():
        for name in TABLES:
            table = load_config("table", name)
            assert table.name == name
            if "published" in table:
                found += table.rows
                (row,) = table_rows(table, list(table.rows)[-1:])
                assert row.cfg == OmegaConf.create(OmegaConf.to_container(experiments[row.name], resolve=True))
                continue
            for row in table.rows:
                hydra.compose("sample", [*table.common, *row_settings(table, row)])
    shared = {"imagenet128", "imagenet128_classifier"}  # by two papers
    assert sorted(found) == sorted([*EXPERIMENTS, *shared])


def test_what_is_given_wins_over_an_experiment():
    given = ["experiment=imagenet128_sag", "guidance.sag.scale=0.3", "num_samples=8", "model=adm_imagenet64"]
    cfg = compose("sample", given)
    assert (cfg.guidance.sag.scale, cfg.num_samples, cfg.model.name, cfg.batch_size) == (0.3, 8, "adm_imagenet64", 64)
    assert cfg.published["values"]["fid"] == 5.11
    (row,) = table_rows("main", ["imagenet256_sag_0.2"], common=["batch_size=2", "guidance.sag.scale=0.4"])
    assert (row.cfg.batch_size, row.cfg.guidance.sag.scale, row.cfg.published) == (2, 0.4, None)


def reduced(node):
    """A network of the same architecture, narrow, with random weights."""
    node = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
    heads = node.get("num_head_channels")
    if "width" in node:  # a transformer; SAG reads a block in the middle
        node.width, node.heads = 32, 2
    else:
        node.model_channels = round(32 / min(1, *node.get("channel_mult", [1])))
    if heads is not None and heads > 0:
        node.num_head_channels = 16
    torch.manual_seed(0)
    return instantiate(node, _convert_="all").eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_two_steps_at_a_reduced_size(experiments, name):
    cfg = experiments[name]
    network = reduced(cfg.model.network)
    sampler = instantiate(cfg.sampler)
    guidance = build_guidance(cfg.guidance, lambda node: reduced(node.network))
    denoiser = Denoiser(network, instantiate(cfg.model.diffusion).respace(sampler.steps), cfg.model.null_label)
    shape = (network.image_channels, network.image_size, network.image_size)
    noise = SampleNoise(cfg.seed, range(1), shape, torch.device("cpu"))
    y = denoiser.condition(torch.zeros(1, dtype=torch.int64))
    steps = sample_steps(GuidedDenoiser(denoiser, guidance, noise.mask), sampler, noise.initial(), y, noise=noise.step)
    for _ in range(2):
        step = next(steps)
    assert torch.isfinite(step.x).all()


@pytest.mark.slow
def test_a_table_is_run_once_continues_and_is_printed(script, tmp_path, monkeypatch):
    rows = ["rows=['no guidance',SAG,'SAG + CFG']", "seeds=[0,1]"]
    run, done = Row.run, []

    def dies_at_the_third(row, *arguments, **options):
        if len(done) == 2:
            raise OSError("no space left on device")
        done.append(row.name)
        return run(row, *arguments, **options)

    monkeypatch.setattr(Row, "run", dies_at_the_third)
    with pytest.raises(SystemExit, match="no space left"):
        script(*SMALL, *rows)
    monkeypatch.setattr(Row, "run", run)
    printed = script(*SMALL, *rows)
    store = Results(tmp_path / "results.sqlite")
    found = store.runs()
    assert [(r.row, r.seed) for r in found] == [(row, seed) for seed in (0, 1) for row in ("no guidance", "SAG", "SAG + CFG")]
    assert len({r.metrics["fid"] for r in found}) == 6
    assert all(r.num_samples == 12 and r.table == "fashion" and r.seconds > 0 for r in found)
    assert not list(tmp_path.glob("rows/*/*.npz"))
    assert len(list(tmp_path.glob("rows/*/masks.png"))) == 4  # of the rows with SAG
    assert "fashion: no guidance, seed 0" not in printed
    fids = torch.tensor([r.metrics["fid"] for r in found if r.row == "SAG"], dtype=torch.float64)
    assert f"| SAG | 2 | {fids.mean():.3f} ± {fids.std():.3f} |" in printed
    assert "fashion: " not in script(*SMALL, *rows)
    common = f"common=[{QUICK[1:-1]},'precision=float32']"  # over that of the table, which has bfloat16
    same = [*SMALL, common, "table=fashion_main", "rows=[SAG]", "seeds=[0]"]
    assert "fashion_main: " not in script(*same)  # the same settings
    assert [(r.key, r.row) for r in store.runs() if r.table == "fashion_main"] == [(found[1].key, "SAG")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=nowhere"], "unknown table 'nowhere'; expected one of ablation_layer, "),
        (["rows=[nowhere]"], "table fashion has no row 'nowhere'; it has no guidance, SAG, "),
        (["num_samples=0"], "num_samples must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(script, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        script(*SMALL, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_plan_says_what_is_published_and_what_it_costs(script, tmp_path):
    printed = script("table=fashion", "dry_run=true", "num_samples=100", "device=cpu").splitlines()
    hours = {line.strip().split("  ")[0]: line for line in printed[1:-1]}
    assert list(hours) == ["no guidance", "SAG", "classifier", "SAG + classifier", "CFG", "SAG + CFG", "blur"]
    assert [int(line.split()[-4]) for line in hours.values()] == [10, 20, 10, 20, 20, 30, 20]
    assert re.match(
        r"\d+\.\d hours on one cpu \(.*\), at \d+\.\d+ TFLOP/s measured on fashion32 \(float32, random", printed[-1]
    )
    assert not list(tmp_path.iterdir())

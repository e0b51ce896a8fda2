"""The commands that README and docs show: the quick ones run, and the keys and values of all others are composed."""

import importlib
import itertools
import re
import shlex
import shutil

import pytest
from helpers import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from sag.build.arguments import read_overrides
from sag.build.composing import compose, register

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "sag/weights/README.md"]
FLAGS = "--image_size 32 --num_channels 32 --num_res_blocks 1 --learn_sigma True"  # for $MODEL_FLAGS
SMALL = ["num_samples=2", "batch_size=2", "sampler.steps=2", "device=cpu"]
RUN = {  # commands that run here, and what is added so that they take a few seconds at most
    "scripts/sample.py": SMALL,
    "scripts/sample.py guidance=[]": SMALL,
    "scripts/sample.py labels=none guidance.sag.layer=input.3 guidance.sag.scale=1.0 sampler=ddim sampler.steps=ddim8": SMALL,
    "scripts/evaluate.py": ["metrics=[fid]", "device=cpu"],
    "scripts/visualize.py": ["samples=[1]", "sampler.steps=2", "moments=2", "device=cpu"],
    "scripts/visualize.py model=adm_imagenet256_uncond list=true": [],
    "scripts/reproduce.py table=fashion_100 results=docs/study/results.sqlite": [],
    "scripts/reproduce.py table=fashion_heads results=docs/study/results.sqlite": [],
    "scripts/report.py results=docs/study/results.sqlite out=outputs/study": [],
}


def blocks(text):
    """The shell commands in blocks of code and between single backticks, loops unrolled, one a line."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    shell = "\n".join(code for language, code in fenced.findall(text) if not language).replace("\\\n", " ")
    loop = re.compile(r"for (\w+) in ([^;\n]+); do(.*?)done", re.DOTALL)
    shell = loop.sub(lambda m: "\n".join(m[3].replace(f"${m[1]}", value) for value in m[2].split()), shell)
    within = [code.replace("\n", " ") for code in re.findall(r"`(python [^`]+)`", fenced.sub("", text))]
    return [line for line in [*shell.split("\n"), *within] if re.search("scripts/|sag-", line)]


def commands():
    """Program and arguments of every command of a program in scripts/, by what is shown, without what is left open as "..."."""
    found = {}
    for line in itertools.chain.from_iterable(blocks(page.read_text()) for page in PAGES):
        words = shlex.split(line.replace("$MODEL_FLAGS", FLAGS), comments=True)
        for begin, word in enumerate(words):
            if program := re.fullmatch(r"scripts/(\w+)\.py|sag-([a-z-]+)", word):
                own = list(itertools.takewhile(lambda word: word not in ("&&", ";"), words[begin + 1 :]))
                arguments = [argument.removesuffix(";") for argument in own if not re.fullmatch(r"(\w+=)?\.\.\.", argument)]
                if arguments or not own:
                    found[" ".join([word, *arguments])] = program[1] or program[2].replace("-", "_"), arguments
    return found


COMMANDS = commands()


def program(name):
    module = importlib.import_module(f"scripts.{name}")
    return module.main, name, getattr(module, "".join(word.capitalize() for word in name.split("_")) + "Config")


def first_point(override):
    """An override that gives one value in place of a sweep over several."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    value = parsed.value()
    first = value.start if isinstance(value, IntervalSweep) else next(parsed.sweep_string_iterator())
    return f"{parsed.get_key_element()}={first}"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUN])
def test_keys_and_values_are_known(command):
    name, arguments = COMMANDS[command]
    _, config, schema = program(name)
    register(config, schema)
    overrides = [argument for argument in arguments if argument != "-m"]
    compose(config, [first_point(override) for override in read_overrides(overrides, schema)])


@pytest.mark.parametrize("command", RUN)
def test_quick_commands_run(command, run_script, tmp_path, monkeypatch):
    assert command in COMMANDS, "no page shows this command any more"
    (tmp_path / "docs/study").mkdir(parents=True)
    shutil.copy(ROOT / "docs/study/results.sqlite", tmp_path / "docs/study")
    monkeypatch.chdir(tmp_path)
    name, arguments = COMMANDS[command]
    if command == "scripts/evaluate.py":  # scores the newest run
        run_script(*program("sample"), *SMALL)
    assert run_script(*program(name), *arguments, *RUN[command])


def test_files_that_pages_name_are_there():
    named = re.compile(r"(?<![\w/.])(?:sag|evaluations|scripts|tests|docs|configs|\.ci)/[\w/.]+")
    for page in PAGES:
        for path in named.findall(page.read_text()):
            assert list(ROOT.glob(path.rstrip("."))), f"{page.name}: {path}"

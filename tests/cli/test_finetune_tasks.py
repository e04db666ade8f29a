"""Every task from end to end: finetune, its result, the run read back, predict; and what does not go together."""

import csv
import json

import numpy as np
import pytest

from adapt.cli import extract, finetune, predict
from adapt.data import tables
from adapt.errors import CheckpointError, DataError, StrategyError
from adapt.models import Classifier, Span, Tagger
from adapt.options import TaskOptions
from adapt.pretrained import hub
from adapt.tasks import TASKS
from adapt.training.loop import evaluate
from adapt.training.step import make_eval
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

SENTENCES = [text for text, _ in tiny.sentences(24)]
TELLING = {*tiny.GOOD, *tiny.BAD}


def tags_of(text: str) -> list[str]:
    return ["TELLING" if word in TELLING else "PLAIN" for word in text.split()]


def span_of(text: str) -> list[int]:
    word = next(word for word in text.split() if word in TELLING)
    return [text.index(word), text.index(word) + len(word)]


def rows_of(task: str) -> tuple[list[list], list[str]]:
    """(rows, header) of a table with the columns that the task reads."""
    kinds = ["good" if TELLING & {*tiny.GOOD} & {*text.split()} else "bad" for text in SENTENCES]
    rows = []
    for number, (text, kind) in enumerate(zip(SENTENCES, kinds, strict=True)):
        other = SENTENCES[(number + 2 + number % 2) % len(SENTENCES)]
        choices = [" ".join([word, "end"]) for word in ("the", "so", "a")]
        choices[number % 3] = text
        rows.append(
            [
                text,
                other,
                kind,
                f"c{number % 3}",
                json.dumps(tags_of(text)),
                json.dumps(span_of(text)),
                *choices,
            ]
        )
    return rows, ["text", "other", "label", "third", "tags", "span", "one", "two", "three"]


FLAGS = {
    "multitask": {"label_column": "label,third"},
    "tags": {"label_column": "tags"},
    "span": {"label_column": "span", "text_pair_column": "label"},
    "choice": {"text_pair_column": "one,two,three", "label_column": "number"},
    "contrastive": {"text_pair_column": "other"},
    "setfit": {},
    "classification": {"text_pair_column": "other"},
}
METRICS = {
    "multitask": {
        "accuracy",
        "accuracy_label",
        "auroc_label",
        "accuracy_third",
        "macro_f1_third",
        "majority_accuracy",
    },
    "tags": {"accuracy", "macro_f1", "majority_accuracy"},
    "span": {"exact_match", "f1", "majority_accuracy"},
    "choice": {"accuracy", "ece", "majority_accuracy"},
    "contrastive": {"recall_at_1", "mrr", "chance_recall_at_1"},
    "setfit": {"average_precision", "auroc", "chance_average_precision"},
    "classification": {
        "accuracy",
        "macro_f1",
        "ece",
        "rare_f1",
        "auroc",
        "average_precision",
        "majority_accuracy",
    },
}
HEADS = {"tags": Tagger, "span": Span}


@pytest.fixture
def run(inputs, tmp_path):
    """`run("tags", "bert_mlm_tied")` is the result of a run in `tmp_path / "run"` on the table of that task."""

    def finetuned(
        task: str,
        case: str = "bert_mlm_tied",
        name: str = "run",
        blocks: int | None = 1,
        **flags,
    ) -> dict:
        rows, header = rows_of(task)
        table = [[*row, number % 3] for number, row in enumerate(rows)]
        path = str(tiny.write_table(tmp_path / "data.csv", table, [*header, "number"]))
        given = {
            "train": path,
            "test": path,
            "epochs": 1,
            "batch_size": 4,
            "checkpoint": inputs.checkpoint(case, blocks),
        }
        config = finetune.Config(
            **given | {"task": task} | FLAGS[task] | flags, out=tmp_path / name, overwrite=True
        )
        return finetune.main(config)

    return finetuned


def predicted(tmp_path, **flags) -> list[dict[str, str]]:
    out = tmp_path / "predicted.csv"
    predict.main(
        predict.Config(
            run=(tmp_path / "run",),
            data=str(tmp_path / "data.csv"),
            out=out,
            overwrite=True,
            **flags,
        )
    )
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", FLAGS)
def test_a_run_of_every_task_scores_what_it_says_and_is_read_back(run, tmp_path, task, caplog):
    """On GPT-2, which has no types and no special tokens; the tests below are on BERT, which trains."""
    has_weights = task not in ("contrastive", "setfit")
    strategy = "frozen" if has_weights else "full"
    result = run(task, "gpt2_lm_tied", blocks=1, strategy=strategy)
    assert METRICS[task] <= set(result) and np.isfinite(result["loss"])
    assert "please report this" not in caplog.text, "a check of the doctor failed"
    assert all(0 <= result[name] <= 1 for name in METRICS[task])
    after = hub.load(tmp_path / "run")
    assert after.task == task and isinstance(after.head, HEADS.get(task, Classifier))
    names = {
        "multitask": ("label=bad", "label=good", "third=c0", "third=c1", "third=c2"),
        "tags": ("PLAIN", "TELLING"),
        "classification": ("bad", "good"),
    }
    assert after.labels == names.get(task, ())


@pytest.mark.parametrize(
    ("task", "strategy"),
    [("tags", "top:1"), ("span", "frozen"), ("choice", "frozen"), ("setfit", "top:1")],
)
def test_a_task_is_the_same_with_and_without_the_cache(run, task, strategy):
    kept, computed = (
        run(task, blocks=1, strategy=strategy, dropout=0.0, cache=cache) for cache in ("on", "off")
    )
    assert computed["cache"] is None and kept["cache"] is not None
    for name in (*METRICS[task], "loss"):  # the last digits decide between pairs of one cosine
        near = 1e-2 if task == "setfit" and name != "loss" else 1e-4
        assert kept[name] == pytest.approx(computed[name], rel=near, abs=1e-6)


@pytest.mark.parametrize("task", ["tags", "choice"])
def test_micro_batches_of_words_and_of_choices_are_one_batch(run, task):
    one, two = (run(task, blocks=1, dropout=0.0, accumulate=parts) for parts in (1, 2))
    for name in (*METRICS[task], "loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)


# What the heads learn

LEARN = {
    "epochs": 10,
    "learning_rate": 1e-2,
    "head_learning_rate": 1e-2,
    "patience": 0,
    "dropout": 0.0,
}


def test_tags_are_learnt_and_predicted_for_every_word(run, tmp_path):
    result = run("tags", **LEARN)
    assert result["accuracy"] > 0.95 > result["majority_accuracy"]
    found = predicted(tmp_path)
    right = [
        json.loads(row["prediction"]) == tags_of(text)
        for row, text in zip(found, SENTENCES, strict=True)
    ]
    assert np.mean(right) > 0.7


def test_spans_are_learnt_and_predicted_as_characters(run, tmp_path):
    result = run("span", **LEARN)
    assert result["exact_match"] > 0.7
    found, right = predicted(tmp_path, text_pair_column="label"), 0
    for row, text in zip(found, SENTENCES, strict=True):
        if row["text"]:
            assert row["text"] == text[int(row["start"]) : int(row["end"])]
        right += [row["start"], row["end"]] == [str(place) for place in span_of(text)]
    assert right / len(found) == pytest.approx(result["exact_match"])


def test_a_choice_is_predicted_by_its_number(run, tmp_path):
    result = run("choice", **LEARN)
    found = predicted(tmp_path, text_pair_column="one,two,three")
    right = np.mean([int(row["prediction"]) == number % 3 for number, row in enumerate(found)])
    assert right == pytest.approx(result["accuracy"]) and right > 0.8
    assert set(found[0]) == {"row", "prediction", *(f"probability:{k}" for k in range(3))}
    assert sum(float(found[0][f"probability:{k}"]) for k in range(3)) == pytest.approx(1)


def test_several_columns_are_predicted_each_with_its_own_probabilities(run, tmp_path):
    result = run("multitask", **LEARN)
    found = predicted(tmp_path)
    kinds = [row["prediction:label"] for row in found]
    expected = [row[2] for row in rows_of("multitask")[0]]
    assert (
        np.mean([one == other for one, other in zip(kinds, expected, strict=True)])
        == result["accuracy_label"]
    )
    for row in found[:3]:
        for column, names in (("label", ("bad", "good")), ("third", ("c0", "c1", "c2"))):
            p = {name: float(row[f"probability:{column}={name}"]) for name in names}
            assert (
                sum(p.values()) == pytest.approx(1)
                and max(p, key=lambda n: p[n]) == row[f"prediction:{column}"]
            )


def test_contrastive_training_brings_pairs_together_and_extract_reads_them(run, tmp_path):
    before = run("contrastive", learning_rate=0.0, dropout=0.0)
    after = run("contrastive", **LEARN)
    assert after["loss"] < before["loss"] and after["mrr"] > before["mrr"]
    with pytest.raises(
        CheckpointError,
        match="was trained for embeddings \\(contrastive\\), which extract computes",
    ):
        predicted(tmp_path, text_pair_column="other")
    config = extract.Config(
        checkpoint=str(tmp_path / "run"), data=str(tmp_path / "data.csv"), out=tmp_path / "features"
    )
    assert extract.main(config)["examples"] == 24


def test_setfit_separates_classes(run):
    before, after = (run("setfit", learning_rate=rate, dropout=0.0) for rate in (0.0, 1e-2))
    assert after["average_precision"] > 0.85 > 0.6 > before["average_precision"]


# Flags of the head


@pytest.mark.parametrize(
    ("mix", "strategy"), [("concat", "frozen"), ("learned", "full"), ("learned", "frozen")]
)
def test_layers_of_the_encoder_are_read_side_by_side_or_mixed(run, tmp_path, mix, strategy):
    result = run(
        "classification",
        blocks=None,
        layers=(0, 2),
        mix=mix,
        strategy=strategy,
        text_pair_column=None,
        dropout=0.0,
    )
    after = hub.load(tmp_path / "run")
    assert (after.head.layers, after.head.mix) == ((0, 2), mix)
    assert ("mix" in after.params["head"]) == (mix == "learned")
    assert (
        len(after.params["head"]["classifier"]["kernel"])
        == (1 + (mix == "concat")) * after.config.width
    )
    if strategy == "frozen":  # what the cache keeps is pooled, and gives the same
        kept = run(
            "classification",
            blocks=None,
            layers=(0, 2),
            mix=mix,
            strategy=strategy,
            text_pair_column=None,
            dropout=0.0,
            cache="on",
        )
        assert kept["loss"] == pytest.approx(result["loss"], rel=1e-5)
    right = [row["prediction"] for row in predicted(tmp_path)]
    expected = [row[2] for row in rows_of("classification")[0]]
    assert (
        np.mean([one == other for one, other in zip(right, expected, strict=True)])
        == result["accuracy"]
    )


def test_attention_pooling_is_learnt_kept_and_extracted(run, tmp_path):
    run("classification", pooling="attention", text_pair_column=None, strategy="frozen", cache="on")
    assert np.any(hub.load(tmp_path / "run").params["head"]["attention"])
    config = extract.Config(
        checkpoint=str(tmp_path / "run"),
        data=str(tmp_path / "data.csv"),
        pooling="attention",
        out=tmp_path / "f",
    )
    assert extract.main(config)["width"] == hub.load(tmp_path / "run").config.width
    with pytest.raises(StrategyError, match="has no attention to graft"):
        extract.main(
            extract.Config(
                checkpoint="tiny-bert",
                data=str(tmp_path / "data.csv"),
                pooling="attention",
                out=tmp_path / "g",
            )
        )


def test_balanced_weights_are_those_of_scikit_learn_and_touch_training_alone(run):
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 1, 2])
    task, names = TASKS["classification"], ["a", "b", "c"]
    balanced = TaskOptions(class_weights="balanced")
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    logits = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    plain = task.training_loss(TaskOptions(), labels, names)(logits, labels)
    weighted = task.training_loss(balanced, labels, names)(logits, labels)
    np.testing.assert_allclose(weighted, plain * weights[labels], rtol=1e-6)
    still = {"head_learning_rate": 0.0, "text_pair_column": None, "strategy": "frozen"}
    assert (
        run("classification", **still)["loss"]
        == run("classification", class_weights="balanced", **still)["loss"]
    )


# Pairs


def test_pairs_packed_in_rows_are_what_they_are_one_a_row(run, tmp_path):
    """Types and all: against the checkpoint's own tokenizer and a batch of one pair."""
    run("classification", strategy="frozen")
    after = hub.load(tmp_path / "run")
    table = tables.read(tmp_path / "data.csv")
    labels = np.zeros(24, np.int32)
    part = TASKS["classification"].examples(after, table, ["text", "other"], labels)
    forward = make_eval(after.model)
    outputs = evaluate(forward, after.params, part.eval_batches(), part.num_outputs)
    for number in (0, 7, 23):
        encoding = after.tokenizer.backend.encode(
            *[table.rows[number][column] for column in ("text", "other")]
        )
        length = len(encoding)
        alone = {
            "tokens": np.array([encoding.ids], np.int32),
            "types": np.array([encoding.type_ids], np.int32),
            "positions": np.arange(length, dtype=np.int32)[None],
            "segments": np.zeros((1, length), np.int32),
            "first": np.zeros(1, np.int32),
            "length": np.full(1, length, np.int32),
        }
        assert 0 < sum(encoding.type_ids) < length
        np.testing.assert_allclose(forward(after.params, alone)[0], outputs[number], atol=1e-5)
        swapped = forward(after.params, alone | {"types": 0 * alone["types"]})[0]
        assert not np.allclose(swapped, outputs[number], atol=1e-5)


def test_a_run_on_pairs_predicts_on_the_columns_of_its_training(run, tmp_path):
    run("classification", strategy="frozen")
    assert predicted(tmp_path) == predicted(tmp_path, text_pair_column="other")


# What does not go together

WRONG = [
    (
        "contrastive",
        {"accumulate": 2},
        "`accumulate` 2 would leave an example of `task` contrastive fewer negatives",
    ),
    (
        "contrastive",
        {"text_pair_column": None},
        "names no columns, and the task contrastive takes one",
    ),
    ("choice", {"text_pair_column": "one"}, "names 1 columns, and the task choice takes 2 or more"),
    ("tags", {"text_pair_column": "other"}, "names 1 columns, and the task tags takes none"),
    (
        "span",
        {"pooling": "mean"},
        "`pooling` is for heads that pool, and `task` span reads the tokens",
    ),
    (
        "tags",
        {"layers": (0, 1)},
        "`layers` is for heads that pool, and `task` tags reads the tokens",
    ),
    (
        "multitask",
        {"class_weights": "balanced"},
        "balanced goes with classification, cloze, tags, not multitask",
    ),
    ("classification", {"mix": "learned"}, "`mix` learned mixes the layers that `layers` names"),
    ("classification", {"layers": (0, 3)}, "`layers` 3 is not there: the encoder has layers 0"),
    (
        "classification",
        {"layers": (0, 2), "pooling": "pooler"},
        "was trained on the last layer alone",
    ),
    (
        "classification",
        {"layers": (0, 2), "strategy": "top:1"},
        "reads layers 0, 2 and 2 of 3 stages are frozen",
    ),
]


@pytest.mark.parametrize(("task", "flags", "words"), WRONG)
def test_flags_that_contradict_each_other_are_refused_in_one_line(
    run, tmp_path, task, flags, words
):
    with pytest.raises(StrategyError) as fault:
        run(task, blocks=None, **flags)
    assert words in str(fault.value) and "\n" not in str(fault.value)
    assert not (tmp_path / "run").exists()


def test_more_labels_than_words_are_refused_with_the_row(run, tmp_path):
    table = tiny.write_table(
        tmp_path / "longer.csv", [["a film", "X Y"], ["so", "X Y"]], ["text", "tags"]
    )
    with pytest.raises(DataError, match=r"longer\.csv: row 2 has 1 words and 2 labels"):
        run("tags", train=str(table), test=str(table))


def test_a_span_beyond_its_text_is_refused_with_the_row(run, tmp_path):
    table = tiny.write_table(
        tmp_path / "beyond.csv", [["a film", "[0, 1]"], ["so", "[0, 9]"]], ["text", "span"]
    )
    with pytest.raises(
        DataError,
        match=r"beyond\.csv: row 2: the span 0 to 9 is empty or goes beyond the 2 characters",
    ):
        run("span", train=str(table), test=str(table), text_pair_column=None)


def test_pictures_have_no_second_text_and_no_words(inputs, tmp_path):
    flags = {
        "checkpoint": inputs.checkpoint("vit_classifier"),
        "out": tmp_path / "run",
        **inputs.images,
    }
    with pytest.raises(StrategyError, match="is an image encoder, and the task tags is for texts"):
        finetune.main(finetune.Config(task="tags", **flags))
    with pytest.raises(
        StrategyError, match="is an image encoder, and `text_pair_column` is for texts"
    ):
        finetune.main(finetune.Config(text_pair_column="other", **flags))


def test_words_and_spans_that_were_cut_off_are_told_and_not_scored(run, tmp_path, caplog):
    run("tags", max_length=6, strategy="frozen")
    assert "words lie beyond the 6 tokens of an example: not scored" in caplog.text
    found = [json.loads(row["prediction"]) for row in predicted(tmp_path)]
    for tags, text in zip(found, SENTENCES, strict=True):
        assert len(tags) == len(text.split())
        assert [tag is None for tag in tags] == [place >= 4 for place in range(len(tags))]
    result = run("span", max_length=8, strategy="frozen", stride=0)
    assert "spans lie beyond the 8 tokens" in caplog.text
    assert np.isfinite(result["loss"])


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        (
            "contrastive",
            {"strategy": "frozen"},
            "the head of this `task` has no weights, so `strategy` frozen would train",
        ),
        (
            "contrastive",
            {"strategy": "lp-ft", "epochs": 2},
            "`strategy` lp-ft would train nothing: give top:1",
        ),
        (
            "multitask",
            {"label_column": "label,label"},
            "`label_column` label,label: label columns must differ",
        ),
        ("multitask", {"label_column": "label,a=x"}, "have no = in their names"),
    ],
)
def test_what_would_train_nothing_or_the_same_twice_is_one_line(run, task, flags, message):
    with pytest.raises(StrategyError, match=message):
        run(task, **flags)


def test_a_choice_that_is_no_number_of_one_is_called_so(run):
    with pytest.raises(DataError, match="row 1: 'c0' is not the number of a choice, 0 to 2"):
        run("choice", label_column="third")


def test_a_test_below_its_floor_is_said(run, caplog):
    result = run("multitask", strategy="frozen", head_learning_rate=0.0)
    assert (result["accuracy"] <= result["majority_accuracy"]) == (
        "is no better than majority_accuracy" in caplog.text
    )

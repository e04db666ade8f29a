"""Pre-training as a library: a stream of corrupted batches, one phase, and runs of earlier versions that go on."""

import dataclasses
import json

import numpy as np
import pytest

import adapt
from adapt import fitting, pretraining, tree
from adapt.data import masking, packing
from adapt.data.examples import from_sequences
from adapt.errors import AdaptError, CheckpointError, DataError
from adapt.objectives import OBJECTIVES, Corpus
from adapt.options import ObjectiveOptions
from adapt.pretrained import hub
from adapt.pretraining import PretrainingData, PretrainingOptions
from adapt.ragged import ragged
from adapt.training import events, run_state
from tests.helpers import tiny


@pytest.fixture(scope="module")
def bert(inputs):
    return hub.load(inputs.checkpoint("bert_mlm_tied", 1))


def test_eighty_ten_ten_and_new_in_every_epoch(bert):
    mask, plan_tokens = 4, ragged([[2, *range(5, 23), 3]] * 400)
    shapes = packing.batch_shapes(plan_tokens.lengths, 8, 0, 2)
    corpus = Corpus(from_sequences(plan_tokens))
    corruption = masking.masked_lm(bert, 0.15)
    kinds, masks = np.zeros(3), []
    for epoch in (0, 1):
        stream = pretraining.corrupted_batches(corpus, shapes, corruption, 0, epoch, once=True)
        places = []
        for batch in stream:
            count = int(batch["weight"].sum())
            now, label = (
                batch["tokens"].reshape(-1)[batch["targets"][:count]],
                batch["label"][:count],
            )
            kinds += [
                (now == mask).sum(),
                ((now != mask) & (now != label)).sum(),
                (now == label).sum(),
            ]
            places.append(batch["targets"][:count])
        masks.append(np.concatenate(places))
    total = kinds.sum()
    assert total == pytest.approx(0.15 * 18 * 400 * 2, rel=0.02)
    # A random token is now and then [MASK] or the token itself: one in 25 each.
    np.testing.assert_allclose(
        kinds / total, [0.8 + 0.1 / 25, 0.1 * 23 / 25, 0.1 + 0.1 / 25], atol=0.025
    )
    assert not np.array_equal(*masks)
    again = pretraining.corrupted_batches(corpus, shapes, corruption, 0, 1, once=True)
    np.testing.assert_array_equal(
        masks[1], np.concatenate([b["targets"][: int(b["weight"].sum())] for b in again])
    )


def data_of(bert, count: int = 40, **changes) -> PretrainingData:
    """Sentences of 20 tokens, 5 batches of 8 in a pass."""
    tokens = ragged([[2, *range(5, 23), 3]] * count)
    options = PretrainingOptions(
        text="", batch_size=8, **{"steps": 12, "validate_every": 5} | changes
    )
    held_out = from_sequences(tokens.take(np.arange(4)))
    objective = OBJECTIVES["masked"]
    corpora = Corpus(from_sequences(tokens)), Corpus(held_out)
    return PretrainingData(*corpora, objective, masking.masked_lm(bert), options)


def labels_of(batches) -> list[bytes]:
    return [batch["label"].tobytes() + batch["tokens"].tobytes() for batch in batches]


def test_batches_between_validations_are_those_of_one_stream(bert):
    data = data_of(bert)
    stream = pretraining.corrupted_batches(data.training, data.shapes, data.corruption, data.seed)
    whole = labels_of(batch for batch, _ in zip(stream, range(12), strict=False))
    assert labels_of(b for epoch in range(3) for b in data.batches(epoch, 0)) == whole
    assert len(set(whole)) == 12


@pytest.mark.parametrize(("epoch", "skip"), [(0, 3), (1, 1), (2, 1)])
def test_batches_after_a_stop_are_those_that_were_left(bert, epoch, skip):
    data = data_of(bert)
    assert labels_of(data.batches(epoch, skip)) == labels_of(data.batches(epoch, 0))[skip:]


def test_held_out_batches_are_always_the_same(bert):
    data = data_of(bert)
    assert labels_of(data.held_out_batches()) == labels_of(data.held_out_batches())


def test_a_run_validates_first_and_then_at_every_interval_and_at_its_end(inputs, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(text for text, _ in tiny.sentences(30)))
    options = PretrainingOptions(text=str(path), steps=8, batch_size=4, validate_every=3)
    pretrained = hub.load(inputs.checkpoint("bert_pretraining"))
    pretrained = pretraining.with_max_length(pretrained, options.max_length)
    objective = OBJECTIVES["masked"]
    plan = pretraining.build_plan(pretrained, objective, options)
    seen: list[events.Event] = []
    fitted = fitting.fit(
        plan,
        PretrainingData.read(pretrained, objective, pretraining.text_table(path), options),
        options.training,
        callbacks=[seen.append],
        validate_first=True,
    )
    validated = [event for event in seen if isinstance(event, events.Validated)]
    assert [event.step for event in validated] == [0, 3, 6, 8]
    assert all(event.is_best for event in validated)
    assert not any(isinstance(event, events.CacheChosen) for event in seen)
    assert fitted.progress.first_loss == validated[0].loss
    assert fitted.progress.best_loss == validated[-1].loss
    unused = {path for path in tree.paths(plan.params) if "pooler" in path or "next_sent" in path}
    assert unused and unused == set(tree.paths(fitted.active.frozen))


def test_progress_of_an_earlier_pre_training_run_is_read():
    info = {
        "folder": "step_00000012",
        "metrics_bytes": 437,
        "examples": 215.0,
        "seconds": 0.5,
        "start_loss": 7.9,
        "validation": {"loss": 6.4, "accuracy": 0.17},
    }
    progress = run_state.Progress.read(info)
    assert (progress.first_loss, progress.best_loss, progress.best_score) == (7.9, 6.4, 0.17)
    assert (progress.metrics_bytes, progress.examples_per_second) == (437, 430.0)
    assert progress.has_begun(0) and progress.was_cached(0) is False


TEXTS = [text for text, _ in tiny.sentences(30)]


def test_texts_in_a_list_train_as_the_same_file_does(bert, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS))
    options = {"steps": 4, "batch_size": 4, "validate_every": 2}
    by_list = adapt.pretrain(bert, TEXTS, **options)
    by_file = adapt.pretrain(bert, path, out=tmp_path / "run", **options)
    assert tree.digest(by_list.pretrained.params) == tree.digest(by_file.pretrained.params)
    assert by_list.scores == by_file.scores and set(by_list.scores) == {"before", "validation"}
    again = adapt.load_run(tmp_path / "run")
    assert tree.digest(again.pretrained.params) == tree.digest(by_list.pretrained.params)
    assert again.result == by_file.result and len(again.history) == len(by_list.history)
    with pytest.raises(CheckpointError, match="pre-training"):
        again.predict(["a film"])


def test_a_run_that_stopped_before_its_first_validation_makes_it_when_it_goes_on(bert, tmp_path):
    options = {"steps": 4, "batch_size": 4, "validate_every": 2}
    whole = adapt.pretrain(bert, TEXTS, out=tmp_path / "whole", **options)

    def stop_at_first_checkpoint(event: events.Event) -> None:
        if isinstance(event, events.Saved):
            raise KeyboardInterrupt

    options["out"] = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        adapt.pretrain(bert, TEXTS, callbacks=[stop_at_first_checkpoint], **options)
    run = adapt.pretrain(bert, TEXTS, resume=True, **options)
    assert run.scores == whole.scores and run.result["loss_before"] is not None
    validated = [record["step"] for record in run.history if "validation_loss" in record]
    assert validated == [0, 2, 4]


def test_a_run_that_has_ended_goes_on_with_more_steps(bert, tmp_path):
    options = {"batch_size": 4, "validate_every": 2, "out": tmp_path / "run"}
    first = adapt.pretrain(bert, TEXTS, steps=3, **options)
    run = adapt.pretrain(bert, TEXTS, steps=6, resume=True, **options)
    assert (first.steps, run.steps, run.outcome) == (3, 6, "complete")
    validated = [record["step"] for record in run.history if "validation_loss" in record]
    assert validated == [0, 2, 3, 4, 6]
    assert run.result["loss_before"] == first.result["loss_before"]
    again = adapt.load_run(tmp_path / "run")
    assert again.settings["extended_from"] == {"steps": [3]}
    assert tree.digest(again.pretrained.params) == tree.digest(run.pretrained.params)
    with pytest.raises(AdaptError, match=r"`steps` was 6 .* is 5 now: give as many or more"):
        adapt.pretrain(bert, TEXTS, steps=5, resume=True, **options)


def test_a_run_that_began_before_there_were_objectives_goes_on(bert, tmp_path):
    """Its config.json does not have what they read."""
    options = {"steps": 2, "batch_size": 4, "validate_every": 1, "out": tmp_path / "run"}
    adapt.pretrain(bert, TEXTS, stop_after=1, **options)
    file = tmp_path / "run/config.json"
    settings = json.loads(file.read_text())
    for field in dataclasses.fields(ObjectiveOptions):
        if field.name != "mask_rate":  # which is older
            del settings[field.name]
    del settings["pictures"]
    file.write_text(json.dumps(settings))
    assert adapt.pretrain(bert, TEXTS, resume=True, **options).steps == 2


def test_the_digest_that_processes_compare_is_of_the_lines_too(bert):
    """A causal tokenizer puts nothing between them."""
    held_out = Corpus(from_sequences(ragged([[7, 8]])))
    digests = set()
    for lines in ([[1, 2], [3, 4]], [[1, 2, 3], [4]]):
        training = Corpus(from_sequences(ragged(lines)))
        corruption = masking.masked_lm(bert, 0.15)
        options = PretrainingOptions()
        data = PretrainingData(training, held_out, OBJECTIVES["causal"], corruption, options)
        digests.add(data.digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("texts", "options", "named"),
    [
        (["a film"], {}, "at least 2"),
        ([3, 4], {}, "int"),
        ("nowhere.txt", {}, "nowhere.txt"),
        ("reviews.csv.gz", {}, "reviews.csv.gz is a table"),
        (TEXTS, {"steps": 0}, "steps"),
        (TEXTS, {"mask_rate": 15}, "mask_rate"),
        (TEXTS, {"learning_rate": "fast"}, "learning_rate"),
        (TEXTS, {"resume": True}, "out"),
        (TEXTS, {"stop_after": 1}, "stop_after"),
        ([(text, text) for text in TEXTS], {}, "tuples"),
        (TEXTS, {"seed": -1}, "seed"),
        (TEXTS, {"callbacks": print}, "callbacks"),
        (TEXTS, {"random_weights": True, "generator": "folder"}, "`generator` folder brings"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_parameter(bert, texts, options, named):
    with pytest.raises(AdaptError, match=named):
        adapt.pretrain(bert, texts, **options)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "git lfs pull"),
        ("\n<!DOCTYPE html>\n<html>\n<body>\n<p>a film</p>\n</body>\n</html>\n", "HTML"),
    ],
)
def test_a_text_that_was_not_fetched_teaches_nothing(bert, tmp_path, content, named):
    path = tmp_path / "page.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"page\.txt: .*{named}"):
        adapt.pretrain(bert, path, out=tmp_path / "run", steps=2)
    assert not (tmp_path / "run").exists()

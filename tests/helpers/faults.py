"""The ways in which adaptation goes wrong: what names each, and the tests that plant it."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A way in which adaptation goes wrong.

    ``checks`` name it, or ``refused`` is what an error says of it, or ``why_not`` why it can't
    happen here; ``planted`` are tests, by file and name.
    """

    checks: tuple[str, ...] = ()
    refused: str = ""
    why_not: str = ""
    planted: tuple[str, ...]


CHECKPOINT = "doctor/test_checkpoint.py"
DATA = "doctor/test_data.py"
SETTINGS = "doctor/test_settings.py"
TRAINING = "doctor/test_training.py"
RESULT = "doctor/test_result.py"
RUNS = "doctor/test_several_runs.py"
FEATURES = "doctor/test_feature_scales.py"
DEEP = "doctor/test_deep.py"
REFUSALS = "doctor/test_refusals.py"

FAULTS = {
    "everything frozen by mistake": Fault(
        refused="every rule freezes, so nothing would train",
        planted=(f"{REFUSALS}::test_everything_frozen",),
    ),
    "a rule that matches nothing": Fault(
        refused="wins no parameter: the nearest paths are",
        planted=(f"{REFUSALS}::test_a_rule_that_matches_nothing",),
    ),
    "the head frozen by mistake": Fault(
        checks=("frozen_head",),
        planted=(f"{SETTINGS}::test_a_head_that_is_frozen_by_mistake",),
    ),
    "a dead head, two heads": Fault(
        checks=("leaves_without_gradient",),
        planted=(
            f"{TRAINING}::test_a_leaf_that_no_gradient_reached",
            f"{TRAINING}::test_training_that_changes_nothing",
            "test_diagnosing.py::test_blocks_that_train_and_that_nothing_reads",
        ),
    ),
    "a rate too high": Fault(
        checks=("rate_too_high", "loss_above_prior", "diverged"),
        planted=(
            f"{SETTINGS}::test_a_rate_that_rewrites_what_was_pre_trained",
            f"{TRAINING}::test_a_loss_above_that_of_the_labels_shares",
            f"{TRAINING}::test_a_run_that_diverged",
        ),
    ),
    "a rate too low": Fault(
        checks=("head_rate_too_low", "encoder_rate_too_low", "nothing_learned"),
        planted=(
            f"{SETTINGS}::test_the_encoders_rate_on_the_head",
            f"{SETTINGS}::test_a_rate_that_leaves_the_encoder_as_it_was",
            f"{TRAINING}::test_a_loss_that_stays_because_the_rate_is_too_low",
        ),
    ),
    "updates swallowed by the dtype": Fault(
        checks=("updates_rounded_away",),
        planted=(f"{TRAINING}::test_updates_that_the_dtype_swallows",),
    ),
    "the frozen part in dropout": Fault(
        why_not="the frozen prefix runs without dropout",
        planted=(
            "models/test_models.py::test_dropout_is_off_in_the_prefix_and_on_in_the_suffix",
            "training/test_step.py::test_dropout_is_off_in_frozen_stages_and_on_in_the_head",
        ),
    ),
    "features not standardised": Fault(
        checks=("features_not_standardised", "constant_features", "not_finite"),
        planted=(
            f"{FEATURES}::test_features_that_are_not_finite",
            f"{FEATURES}::test_scales_that_differ_by_orders_of_magnitude",
            f"{FEATURES}::test_dimensions_that_are_constant",
        ),
    ),
    "labels shuffled in training": Fault(
        checks=("nothing_learned", "memorised", "contradictory_labels", "labels_not_learnable"),
        planted=(
            f"{TRAINING}::test_a_loss_that_stays_whatever_the_rate",
            f"{TRAINING}::test_rows_that_were_memorised",
            f"{DATA}::test_rows_of_one_input_with_different_labels",
            f"{DEEP}::test_labels_that_nothing_predicts",
        ),
    ),
    "labels shuffled in a test; validation and test that disagree": Fault(
        checks=("sets_disagree",),
        planted=(f"{RESULT}::test_validation_and_test_that_disagree",),
    ),
    "labels flipped, or numbered in another order": Fault(
        checks=("labels_in_another_order",),
        planted=(
            f"{RESULT}::test_labels_in_another_order",
            f"{RESULT}::test_validation_labels_in_another_order",
            "test_diagnosing.py::test_a_run_is_judged_by_other_rows",
        ),
    ),
    "leaked rows": Fault(
        checks=("repeated_rows", "held_out_rows_in_training"),
        planted=(
            f"{DATA}::test_rows_of_another_part_that_are_trained_on",
            f"{DATA}::test_copies_of_which_some_are_held_out",
        ),
    ),
    "leaked near copies": Fault(checks=("near_copies",), planted=(f"{DEEP}::test_near_copies",)),
    "constant labels": Fault(
        refused="takes at least two classes",
        checks=("constant_values",),
        planted=(
            f"{REFUSALS}::test_one_class_for_all_rows",
            f"{DATA}::test_values_that_are_all_the_same",
        ),
    ),
    "unseen labels": Fault(
        refused="is unseen in training",
        planted=(f"{REFUSALS}::test_a_label_that_training_does_not_have",),
    ),
    "classes too uneven for the metric": Fault(
        checks=("imbalance", "one_class_for_all"),
        planted=(
            f"{DATA}::test_a_class_so_frequent_that_accuracy_says_little",
            f"{RESULT}::test_one_class_for_every_input",
        ),
    ),
    "scores of a class that never occurs": Fault(
        checks=("absent_classes", "missing_classes"),
        planted=(
            f"{DATA}::test_a_set_with_one_class",
            f"{DATA}::test_a_set_without_a_class_of_training",
        ),
    ),
    "a tokenizer of another model": Fault(
        checks=("tokenizer_of_another_model",),
        refused="the tokenizer belongs to another checkpoint",
        planted=(
            f"{CHECKPOINT}::test_a_tokenizer_of_another_model_of_the_same_size",
            f"{REFUSALS}::test_a_tokenizer_with_more_tokens_than_the_embedding",
        ),
    ),
    "mostly unknown tokens": Fault(
        checks=("unknown_tokens",),
        planted=(f"{DATA}::test_words_that_the_vocabulary_does_not_have",),
    ),
    "lower-cased by mistake": Fault(
        checks=("case_mismatch",),
        planted=(
            f"{CHECKPOINT}::test_capitals_that_an_uncased_vocabulary_does_not_have",
            f"{CHECKPOINT}::test_capitals_that_are_lowered_by_mistake",
        ),
    ),
    "special tokens missing": Fault(
        checks=("special_tokens_missing",),
        planted=(f"{CHECKPOINT}::test_special_tokens_that_are_not_added",),
    ),
    "truncation that cuts the answer": Fault(
        checks=("truncated_texts", "answers_cut_off"),
        planted=(
            f"{DATA}::test_texts_that_are_read_in_part",
            f"{DATA}::test_answers_that_no_example_holds",
        ),
    ),
    "one input in most rows": Fault(
        checks=("same_inputs",), planted=(f"{DATA}::test_rows_with_one_and_the_same_input",)
    ),
    "pooling other than the checkpoint's": Fault(
        checks=("other_pooling",),
        planted=(f"{SETTINGS}::test_a_pooling_that_the_checkpoint_contradicts",),
    ),
    "position overflow": Fault(
        refused="the encoder's positions",
        planted=(f"{REFUSALS}::test_more_tokens_than_positions",),
    ),
    "an encoder that is newly initialised": Fault(
        checks=("newly_initialised",),
        planted=(f"{CHECKPOINT}::test_blocks_that_were_newly_initialised",),
    ),
    "an encoder that is loaded in part": Fault(
        refused="do not fit its config.json",
        planted=(f"{REFUSALS}::test_an_encoder_that_is_loaded_in_part",),
    ),
    "pre-trained no better than random weights": Fault(
        checks=("no_better_than_random_weights",),
        planted=(f"{DEEP}::test_no_better_than_random_weights",),
    ),
    "no better than a bag of words": Fault(
        checks=("no_better_than_bag_of_words",),
        planted=(f"{DEEP}::test_no_better_than_a_bag_of_words",),
    ),
    "no better than no input": Fault(
        checks=("no_better_than_baseline",),
        planted=(f"{RESULT}::test_a_score_no_better_than_without_a_look",),
    ),
    "a frozen prefix recomputed": Fault(
        checks=("cache_off",),
        planted=(
            f"{SETTINGS}::test_a_frozen_encoder_that_is_computed_in_every_epoch",
            "test_diagnosing.py::test_the_command_that_is_shown_shows_it_again",
        ),
    ),
    "padding": Fault(
        checks=("padding",), planted=(f"{RESULT}::test_batches_that_are_mostly_padding",)
    ),
    "recompilation": Fault(
        checks=("recompilation",),
        planted=(
            f"{TRAINING}::test_steps_that_go_on_compiling",
            f"{TRAINING}::test_a_loop_of_ones_own_with_ever_new_shapes",
        ),
    ),
    "non-determinism": Fault(
        checks=("two_runs_differ", "same_run_differs"),
        planted=(
            f"{DEEP}::test_steps_that_differ_when_they_are_taken_again",
            f"{RUNS}::test_the_same_run_with_another_score",
        ),
    ),
    "results that vary by seed more than the difference": Fault(
        checks=("difference_within_seeds", "varies_by_seed"),
        planted=(
            f"{RUNS}::test_a_difference_that_seeds_make",
            f"{RUNS}::test_scores_that_vary_wildly_by_seed",
        ),
    ),
    "calibration": Fault(
        checks=("overconfident",),
        planted=(f"{RESULT}::test_probabilities_above_how_often_they_are_right",),
    ),
}

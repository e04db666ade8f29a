"""The script to fork: discard a head, freeze a part of the encoder, train the rest, with the loop
in sight.

python -m experiments.loop                   # tiny-bert on film reviews, half a minute on 2 cores
python -m experiments.loop minilm 2000 1     # another checkpoint, so many examples, so many epochs
"""

import sys

import jax
import numpy as np

import adapt
from adapt.data import bundled, examples
from adapt.training.loop import evaluate

BATCH_SIZE = 32
SEED = 0


def read_examples(pretrained, part, count):
    """Film reviews as examples for this encoder; class 1 is positive."""
    table = bundled.read("reviews", part)
    classes = [int(label == "positive") for label in table["label"][:count]]
    return examples.from_texts(pretrained, [table["text"][:count]], np.array(classes, np.int32))


def main(checkpoint="tiny-bert", count=8000, epochs=2):
    pretrained = adapt.load(checkpoint)
    train = read_examples(pretrained, "train", count)
    test = read_examples(pretrained, "test", count)

    # The pre-training head is discarded, a new one attached.
    key = jax.random.key(SEED)
    params = adapt.drop(pretrained.params, "head")
    head = adapt.Classifier(classes=2, pooling="mean", dropout=0.1)
    model = adapt.Model(adapt.Encoder(pretrained.config), head)
    params = adapt.graft(params, "head", model.init_head(key))

    # The head and the top block train, each at its rate; everything below them is frozen.
    top = f"encoder/block_{pretrained.config.layers - 1:02d}/.*"
    labels = adapt.label(params, [("head/.*", "head"), (top, "top"), (".*", adapt.FROZEN)])
    print(adapt.summary(params, labels))
    shapes = train.batch_shapes(BATCH_SIZE, SEED, epochs)
    steps = epochs * -(-len(train) // BATCH_SIZE)
    groups = {
        "head": adapt.adamw(adapt.schedule(1e-3, steps)),
        "top": adapt.adamw(adapt.schedule(1e-4, steps)),
    }
    tx = adapt.by_label(groups, labels, clip_norm=1.0)
    frozen, state = adapt.init_state(params, labels, tx, key)
    step = adapt.make_step(model, adapt.cross_entropy, tx)
    frozen_before = adapt.digest(frozen)

    for epoch in range(epochs):
        losses = []
        for batch in train.batches(shapes, SEED, epoch):
            state, metrics = step(frozen, state, batch)
            losses.append(metrics["loss"])
        print(f"epoch {epoch + 1}  training loss {np.mean(jax.device_get(losses)):.4f}")

    adapted = adapt.merge(frozen, state.params)
    logits = evaluate(adapt.make_eval(model), adapted, test.eval_batches(), len(test))
    accuracy = float((logits.argmax(-1) == test.labels).mean())
    print(
        f"test accuracy {accuracy:.4f}, frozen part unchanged: "
        f"{adapt.digest(frozen) == frozen_before}"
    )
    return accuracy


if __name__ == "__main__":
    defaults = ["tiny-bert", "8000", "2"]
    arguments = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
    main(arguments[0], int(arguments[1]), int(arguments[2]))

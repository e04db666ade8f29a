"""What a strategy costs before it runs: FLOPs of matrix products, counted by hand from the config.

Everything else that an encoder computes is small beside them. ``tokens`` is how many tokens are
computed, ``span`` how many tokens each of them attends to.
"""

from adapt.models import EncoderConfig


def block_flops(config: EncoderConfig, tokens: float, span: float) -> float:
    """FLOPs of one block, forward."""
    of_attention = 2 * (config.query_width + config.key_width)  # query and output, key and value
    projections = config.width * (of_attention + config.mlp_kernels * config.mlp_width)
    # Scores, and the mixture of values; scores of differences, which are twice as many as tokens.
    products = 2 + 2 * len(config.relative_terms)
    attention = config.query_width * products * span
    return 2.0 * tokens * (projections + attention)


def embedding_flops(config: EncoderConfig, tokens: float) -> float:
    """FLOPs of the patch projection of an image encoder, or of the one that follows a narrow
    embedding; looking up a text's tokens takes none.
    """
    if not config.is_image:
        return 2.0 * tokens * config.embedding_width * config.width
    patches = tokens * config.patches / config.positions  # the others are no patches
    return 2.0 * patches * config.patch_size**2 * config.channels * config.width


def prefix_flops(config: EncoderConfig, depth: int, tokens: float, span: float) -> float:
    """FLOPs of the first ``depth`` stages, forward: the embedding, then the blocks."""
    if depth == 0:
        return 0.0
    flops = embedding_flops(config, tokens)
    for block in range(min(depth - 1, config.layers)):
        flops += block_flops(config, tokens, config.span_of(block, span))
    return flops


def step_flops(config: EncoderConfig, depth: int, tokens: float, span: float) -> float:
    """FLOPs of a train step after the first ``depth`` stages, which are frozen; without the head.

    What trains costs a forward pass and twice as much backward. The first block after a frozen
    stage needs no gradient of its input, which is that of its query, key and value projections.
    """
    if depth > config.layers:
        return 0.0
    encoder = prefix_flops(config, config.layers + 1, tokens, span)
    frozen = prefix_flops(config, depth, tokens, span)
    outputs = config.query_width + 2 * config.key_width
    unneeded = 2.0 * tokens * config.width * outputs if depth else 0.0
    return 3 * encoder - 3 * frozen - unneeded

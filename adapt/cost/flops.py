"""What a strategy costs before it runs: matrix products by hand, from the config."""

from adapt.models import EncoderConfig


def block_flops(c: EncoderConfig, tokens: float, span: float) -> float:
    """Of the matrix products of one block, forward, for ``tokens`` of which each looks at ``span``."""
    return 2.0 * tokens * c.width * (4 * c.width + 2 * c.mlp_width + 2 * span)


def embedding_flops(c: EncoderConfig, tokens: float) -> float:
    """Of the patch projection of an image encoder; looking up a text's embeddings multiplies nothing."""
    patches = tokens * (c.positions - 1) / c.positions
    return 2.0 * patches * c.patch_size**2 * c.channels * c.width if c.is_image else 0.0


def prefix_flops(c: EncoderConfig, cut: int, tokens: float, span: float) -> float:
    """Of the matrix products of the first ``cut`` stages, forward."""
    blocks = min(max(cut - 1, 0), c.layers)
    return (embedding_flops(c, tokens) if cut else 0.0) + blocks * block_flops(c, tokens, span)


def step_flops(c: EncoderConfig, cut: int, tokens: float, span: float) -> float:
    """Of the matrix products of a train step's suffix: twice a forward pass more for what trains, but no gradient of the
    first block's input. The head is left out."""
    if cut > c.layers:
        return 0.0
    first = 2.0 * tokens * c.width * 3 * c.width if cut else 0.0
    return (
        3 * prefix_flops(c, c.layers + 1, tokens, span)
        - 3 * prefix_flops(c, cut, tokens, span)
        - first
    )

"""The configuration of an encoder."""

import dataclasses
import math

# What says where a token stands: rows of a table that are added to the embedding, rotations of
# queries and keys, or nothing.
POSITION_KINDS = ("learned", "rotary", "none")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes an encoder's shapes and arithmetic.

    The values are plain, so it is saved as JSON. One config describes BERT, GPT-2 and ViT: text
    encoders set ``vocabulary``, image encoders ``image_size``, ``patch_size`` and ``channels``. The
    last seven fields say what parameter-efficient methods add to the pre-trained layers; see
    :mod:`adapt.models.peft`.

        >>> config = EncoderConfig("bert", 12, 768, 12, 3072, 512, vocabulary=30522, types=2)
        >>> config.is_image
        False
    """

    family: str  # which file of adapt.pretrained.families imports and exports it
    layers: int  # transformer blocks
    width: int  # of a token's state
    heads: int
    mlp_width: int
    positions: int  # the most tokens of an example; of an image all, those before the patches too
    vocabulary: int = 0  # token ids
    types: int = 0  # token types of text pairs; 0 where the family has none
    image_size: int = 0  # pixels a side
    patch_size: int = 0  # pixels a side
    channels: int = 0
    causal: bool = False  # a token attends to itself and what is before it (GPT-2)
    pre_norm: bool = False  # the norm before each branch (GPT-2, ViT), not after each sum (BERT)
    activation: str = "gelu"  # a name of adapt.models.layers.ACTIVATIONS
    norm_epsilon: float = 1e-12
    norm_kind: str = "layer"  # "rms": scaled by the root of the mean square, without mean and bias
    norm_offset: bool = False  # a norm's scale is stored as its distance from 1 (Gemma)
    branch_norms: bool = False  # of a pre-norm block: a norm after each branch, too (Gemma)
    qkv_bias: bool = True
    query_bias: bool = True  # False: of the three, this one has none
    key_bias: bool = True  # the same (BEiT, DINOv3)
    value_bias: bool = True
    kv_heads: int = 0  # heads of keys and values, each read by several of queries; 0: as many
    head_width: int = 0  # 0: width / heads
    qk_norm: bool = False  # queries and keys of a head are normalised by RMS (Qwen3, Gemma 3)
    attention_scale: float = 0.0  # of the scores; 0: width of a head ** -0.5
    embedding_scale: float = 1.0  # of the token embedding
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_range: float = 0.02  # standard deviation of fresh weights
    embedding_width: int = 0  # of tables that a dense layer brings to the width; 0: no such layer
    position_offset: int = 0  # the row of a text's first token in the table of positions (RoBERTa)
    pad_token: int = 0
    end_token: int | None = None  # of decoders: the end of a text; None: not known

    position_kind: str = "learned"  # one of POSITION_KINDS
    rotary_base: float = 10000.0
    local_rotary_base: float = 0.0  # that of the local layers; 0: the same
    rotary_dtype: str = "float32"  # to which the frequencies are rounded
    rotary_factor: float = 1.0  # divides angles, for longer texts; not of local layers with a base
    rotary_length: int = 0  # 0: all angles are divided; else which are: see models.rotary.Stretch
    rotary_slow: float = 1.0
    rotary_fast: float = 4.0
    rotary_by_index: bool = False
    rotary_scale: float = 1.0  # of rotated queries and keys, as rotary_factor not of local layers
    unrotated_layers: tuple[int, ...] = ()  # blocks, from 0, whose attention has no positions
    local_layers: tuple[int, ...] = ()  # blocks, from 0, that attend within the window alone
    window: int = 0  # places ahead and back to which a token of a local layer attends, at the most
    norm_bias: bool = True
    mlp_bias: bool = True
    down_bias: bool = False  # of the MLP's last layer, even where mlp_bias is False
    output_bias: bool = True  # of attention's output
    gated_mlp: bool = False  # down(activation(gate) * up), not down(activation(up))
    embedding_norm: bool = False  # also in a pre-norm encoder; post-norm ones always have it
    token_dropout: bool = False  # masked tokens are zeros, and the others scaled up (ESM)
    mask_token: int = 0  # the id of a masked token, for token_dropout
    first_norm: bool = True  # whether the first block has a norm before attention

    # image encoders
    class_token: bool = True  # before the patches
    distillation_token: bool = False  # after the class token, with a position of its own (DeiT)
    registers: int = 0  # tokens before the patches that have no position (DINOv2)
    patch_bias: bool = True
    layer_scale: bool = False  # a factor for each feature of what a branch adds (DINOv2, BEiT)
    final_norm: bool = True  # of a pre-norm encoder, after its last block; not in BEiT
    # A bias of the scores by how far patches lie apart (BEiT): of each "layer", "shared", or "".
    relative_patches: str = ""

    # What is added to scores for the distance of two tokens, see adapt.models.relative.
    relative_buckets: int = 0  # of distances; 0: nothing is added
    relative_distance: int = 128  # from which on all are one bucket
    relative_per_block: bool = False  # a table in every block, not one for all (umT5)
    relative_terms: tuple[str, ...] = ()  # "c2p", "p2c": DeBERTa's, which has no number a bucket
    relative_norm: bool = False  # DeBERTa's states of buckets are normalised
    relative_kernels: bool = False  # and have a layer of their own, not that of the tokens
    convolution: int = 0  # tokens that the first block's convolution reads (DeBERTa); 0: none
    convolution_activation: str = "gelu"
    shared_blocks: bool = False  # all blocks have the weights of the first (ALBERT)

    lora_rank: int = 0  # 0: no LoRA
    lora_alpha: float = 0.0
    lora_targets: str = ""  # a regular expression for the paths of dense layers
    lora_stabilised: bool = False  # scaled by alpha / sqrt(rank), not alpha / rank (rsLoRA)
    lora_magnitudes: bool = False  # each output's kernel has a length of its own (DoRA)
    adapter_width: int = 0  # 0: no adapters
    prefix_tokens: int = 0  # 0: no prefix

    def __post_init__(self) -> None:
        # JSON has lists, and a config is hashed.
        object.__setattr__(self, "local_layers", tuple(self.local_layers))
        object.__setattr__(self, "relative_terms", tuple(self.relative_terms))
        object.__setattr__(self, "unrotated_layers", tuple(self.unrotated_layers))

    @property
    def block_names(self) -> tuple[str, ...]:
        """The name of every block's parameters: ``block_00``, ``block_01``, ...

        Blocks that share their weights all have the name of the first.
        """
        names = [f"block_{index:02d}" for index in range(self.layers)]
        return tuple(names[:1] * self.layers if self.shared_blocks else names)

    @property
    def lora_scale(self) -> float:
        """By what A B of LoRA is multiplied."""
        if self.lora_stabilised:
            return self.lora_alpha / math.sqrt(self.lora_rank)
        return self.lora_alpha / self.lora_rank

    @property
    def own_blocks(self) -> int:
        """How many blocks have weights of their own: what a strategy can choose among."""
        return 1 if self.shared_blocks else self.layers

    @property
    def width_of_head(self) -> int:
        """The width of each head's queries, keys and values."""
        return self.head_width or self.width // self.heads

    @property
    def query_width(self) -> int:
        """The width of all heads' queries together."""
        return self.heads * self.width_of_head

    @property
    def key_width(self) -> int:
        """The width of all keys together, and that of all values."""
        return (self.kv_heads or self.heads) * self.width_of_head

    @property
    def is_image(self) -> bool:
        """Whether the encoder reads pixels, not tokens."""
        return self.image_size > 0

    @property
    def mlp_kernels(self) -> int:
        """How many kernels [width, mlp_width], or the other way round, the MLP of a block has."""
        return 3 if self.gated_mlp else 2

    def window_of(self, block: int) -> int | None:
        """How many places ahead and back a token of this block attends; None: to all."""
        return self.window if block in self.local_layers else None

    def span_of(self, block: int, span: float) -> float:
        """How many tokens each token of this block attends to, where there are ``span``."""
        window = self.window_of(block)
        return span if window is None else min(span, 2 * window + 1)

    def is_rotated(self, block: int) -> bool:
        """Whether this block has rotary positions."""
        return self.position_kind == "rotary" and block not in self.unrotated_layers

    def rotary_base_of(self, block: int) -> float:
        """The base of the rotary positions in this block."""
        is_local = block in self.local_layers
        return (is_local and self.local_rotary_base) or self.rotary_base

    @property
    def leading_tokens(self) -> int:
        """The tokens of an image that come before its patches; 0 of a text."""
        return self.positions - self.patches if self.is_image else 0

    @property
    def patches(self) -> int:
        """The patches of an image."""
        return (self.image_size // self.patch_size) ** 2

"""The configuration of an encoder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes an encoder's shapes and arithmetic.

    The values are plain, so it is saved as JSON. One config describes BERT, GPT-2 and ViT: text
    encoders set ``vocabulary``, image encoders ``image_size``, ``patch_size`` and ``channels``. The
    last five fields say what parameter-efficient methods add to the pre-trained layers; see
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
    positions: int  # the most tokens of an example; of an image all of them, the class token too
    vocabulary: int = 0  # token ids
    types: int = 0  # token types of text pairs; 0 where the family has none
    image_size: int = 0  # pixels a side
    patch_size: int = 0  # pixels a side
    channels: int = 0
    causal: bool = False  # a token attends to itself and what is before it (GPT-2)
    pre_norm: bool = False  # the norm before each branch (GPT-2, ViT), not after each sum (BERT)
    activation: str = "gelu"  # a name of adapt.models.layers.ACTIVATIONS
    norm_epsilon: float = 1e-12
    qkv_bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_range: float = 0.02  # standard deviation of fresh weights
    pad_token: int = 0
    end_token: int = 0  # of decoders: the end of a text

    lora_rank: int = 0  # 0: no LoRA
    lora_alpha: float = 0.0
    lora_targets: str = ""  # a regular expression for the paths of dense layers
    adapter_width: int = 0  # 0: no adapters
    prefix_tokens: int = 0  # 0: no prefix

    @property
    def is_image(self) -> bool:
        """Whether the encoder reads pixels, not tokens."""
        return self.image_size > 0

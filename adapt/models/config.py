"""What fixes an encoder's shapes and arithmetic."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes an encoder's shapes and arithmetic; plain numbers, so it is saved as JSON."""

    family: str
    layers: int
    width: int
    heads: int
    mlp_width: int
    positions: int
    vocabulary: int = 0  # text
    types: int = 0  # segment types of text pairs; 0: the family has none
    image_size: int = 0  # images: pixels a side
    patch_size: int = 0
    channels: int = 0
    causal: bool = False
    pre_norm: bool = False
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    qkv_bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_range: float = 0.02
    pad_token: int = 0
    end_token: int = 0  # decoders: the end of a text
    lora_rank: int = (
        0  # what was added to the pre-trained layers: see adapt.models.peft; 0: nothing
    )
    lora_alpha: float = 0.0
    lora_targets: str = ""
    adapter_width: int = 0
    prefix_tokens: int = 0

    @property
    def is_image(self) -> bool:
        return self.image_size > 0

"""Record the outputs of transformers for the families of image encoders.

Run as `python tests/references/record_images.py`, with names of cases to record these alone. See record.py.

In CLIP the last hidden state is recorded after its post_layernorm, which transformers applies to the class token
alone; a classifier of CLIP reads the state before it. What a head puts out that is not logits, the projection of
CLIP and the attention pooling of SigLIP, is pooler_output.
"""

import sys
from typing import Any

import record
import torch
import transformers as hf
from record import Case, Tensors

SMALL = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WIDE = SMALL | {"intermediate_size": 24}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "bos_token_id": 18,
    "eos_token_id": 19,
}


def dinov2(**changes: Any) -> hf.Dinov2Config:
    return hf.Dinov2Config(**SMALL | {"mlp_ratio": 2} | changes)


def registers(**changes: Any) -> hf.Dinov2WithRegistersConfig:
    return hf.Dinov2WithRegistersConfig(**SMALL | {"mlp_ratio": 2} | changes)


def deit(**changes: Any) -> hf.DeiTConfig:
    return hf.DeiTConfig(**WIDE | changes)


def beit(**changes: Any) -> hf.BeitConfig:
    return hf.BeitConfig(**WIDE | changes)


def dinov3(**changes: Any) -> hf.DINOv3ViTConfig:
    return hf.DINOv3ViTConfig(**WIDE | changes)


def clip_vision(**changes: Any) -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(**WIDE | {"projection_dim": 12} | changes)


def clip_text(**changes: Any) -> hf.CLIPTextConfig:
    sizes = TEXT | {"num_hidden_layers": 2, "intermediate_size": 24, "max_position_embeddings": 16}
    return hf.CLIPTextConfig(**sizes | {"projection_dim": 12, "pad_token_id": 0} | changes)


def siglip_vision(**changes: Any) -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**WIDE | changes)


def towers(config: type, vision: Any, **changes: Any) -> Any:
    return config(vision_config=vision.to_dict(), text_config=TEXT, **changes)


def terse(tensors: Tensors, config: dict) -> Tensors:
    """As hub files are: a config.json without what is the default."""
    for key in ("hidden_act", "num_channels", "mlp_ratio", "layer_norm_eps"):
        config.pop(key, None)
    return tensors


CASES = {
    "dinov2_bare": Case(hf.Dinov2Model, dinov2(layer_norm_eps=1e-3)),
    "dinov2_classifier": Case(hf.Dinov2ForImageClassification, dinov2(num_labels=5)),
    "dinov2_gated_no_qkv_bias": Case(
        hf.Dinov2Model, dinov2(use_swiglu_ffn=True, qkv_bias=False, num_channels=1)
    ),
    "dinov2_registers": Case(
        hf.Dinov2WithRegistersModel, registers(num_register_tokens=3, image_size=8)
    ),
    "dinov2_registers_classifier": Case(
        hf.Dinov2WithRegistersForImageClassification, registers(num_labels=3)
    ),
    "dinov2_registers_gated": Case(
        hf.Dinov2WithRegistersModel,
        registers(use_swiglu_ffn=True, num_register_tokens=1, mlp_ratio=3, layer_norm_eps=1e-2),
    ),
    "deit_classifier": Case(hf.DeiTForImageClassification, deit(num_labels=4)),
    "deit_teacher": Case(
        hf.DeiTForImageClassificationWithTeacher, deit(num_labels=3, layer_norm_eps=1e-3)
    ),
    "deit_bare_pooler": Case(hf.DeiTModel, deit(qkv_bias=False), terse),
    "clip_vision_projection": Case(hf.CLIPVisionModelWithProjection, clip_vision()),
    "clip_vision_bare": Case(
        hf.CLIPVisionModel, clip_vision(hidden_act="gelu", layer_norm_eps=1e-3, num_channels=1)
    ),
    "clip_towers": Case(
        hf.CLIPModel, towers(hf.CLIPConfig, clip_vision(num_hidden_layers=1), projection_dim=6)
    ),
    "clip_classifier": Case(
        hf.CLIPForImageClassification,
        towers(hf.CLIPConfig, clip_vision(), projection_dim=6, num_labels=3),
    ),
    "siglip_vision": Case(hf.SiglipVisionModel, siglip_vision()),
    "siglip_vision_no_head": Case(
        hf.SiglipVisionModel,
        siglip_vision(vision_use_head=False, layer_norm_eps=1e-3, hidden_act="gelu"),
    ),
    "siglip_towers": Case(
        hf.SiglipModel, towers(hf.SiglipConfig, siglip_vision(num_hidden_layers=1))
    ),
    "siglip_classifier": Case(
        hf.SiglipForImageClassification,
        towers(hf.SiglipConfig, siglip_vision(num_hidden_layers=1, image_size=8), num_labels=3),
    ),
    "clip_text_projection": Case(hf.CLIPTextModelWithProjection, clip_text()),
    "clip_text_bare": Case(
        hf.CLIPTextModel, clip_text(hidden_act="gelu", layer_norm_eps=1e-3, eos_token_id=2)
    ),
    "dino_v1": Case(hf.ViTModel, hf.ViTConfig(**WIDE | {"layer_norm_eps": 1e-6}), no_pooler=True),
    "beit_classifier": Case(
        hf.BeitForImageClassification, beit(use_relative_position_bias=True, num_labels=3)
    ),
    "beit_class_token": Case(
        hf.BeitModel,
        beit(
            use_shared_relative_position_bias=True,
            use_mean_pooling=False,
            layer_scale_init_value=0.0,
        ),
    ),
    "beit_positions": Case(
        hf.BeitModel,
        beit(use_absolute_position_embeddings=True, layer_norm_eps=1e-3, use_mask_token=True),
    ),
    "dinov3": Case(hf.DINOv3ViTModel, dinov3(num_register_tokens=2)),
    "dinov3_value_bias": Case(
        hf.DINOv3ViTModel, dinov3(query_bias=False, key_bias=True, num_hidden_layers=1)
    ),
    "dinov3_gated": Case(
        hf.DINOv3ViTModel,
        dinov3(
            use_gated_mlp=True,
            num_register_tokens=1,
            hidden_act="silu",
            mlp_bias=False,
            num_attention_heads=1,
            layer_norm_eps=1e-3,
        ),
    ),
    "dinov3_no_registers": Case(
        hf.DINOv3ViTModel,
        dinov3(proj_bias=False, rope_theta=10.0, key_bias=True, num_channels=1),
    ),
}


def tower(model: Any) -> Any:
    """The encoder of images in a model of two towers, or under a classifier; the one of texts in a
    model without images.
    """
    if "CLIPText" in type(model).__name__:
        return getattr(model, "text_model", model)
    if "ImageClassification" in type(model).__name__:
        model = model.base_model
    return getattr(model, "vision_model", model)


@torch.no_grad()
def outputs_of(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What record.outputs_of gives, of the image encoder alone."""
    model.eval()
    inputs = {
        name: value.astype("int64") if value.dtype == "int32" else value
        for name, value in inputs.items()
    }
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if next(model.parameters()).dtype == torch.float64:
        for name, value in tensors.items():
            tensors[name] = value.double() if value.is_floating_point() else value
    encoder = tower(model)
    base = encoder(**tensors, output_hidden_states=True)
    last = base.last_hidden_state
    is_classifier = "ImageClassification" in type(model).__name__
    if hasattr(encoder, "pre_layrnorm") and not is_classifier:
        last = encoder.post_layernorm(last)
    pooled = base.get("pooler_output")
    if hasattr(model, "text_projection") and not hasattr(model, "vision_model"):
        pooled = model.text_projection(pooled)
    if hasattr(model, "visual_projection"):
        pooled = model.visual_projection(pooled)
    found = {
        "hidden_states": torch.stack(base.hidden_states),
        "last_hidden_state": last,
        "pooler_output": pooled,
        "logits": model(**tensors).logits if is_classifier else None,
    }
    if is_classifier:
        del found["pooler_output"]
    return {name: value.numpy() for name, value in found.items() if value is not None}


def text_inputs(config: hf.CLIPTextConfig, rng: Any) -> dict[str, Any]:
    """Texts that end in the token that says so, the one of the highest id, and then padding."""
    lengths = record.np.array([[12], [7], [2]])
    places = record.np.arange(12)
    end = config.vocab_size - 1
    ids = rng.integers(3, end, (3, 12)) * (places < lengths)
    ids[places == lengths - 1] = end
    mask = places < lengths
    return {"input_ids": ids.astype("int32"), "attention_mask": mask.astype("int32")}


def draw_inputs(case: Case, rng: Any) -> dict[str, Any]:
    config = getattr(case.config, "vision_config", case.config)
    if isinstance(config, hf.CLIPTextConfig):
        return text_inputs(config, rng)
    shape = (2, config.num_channels, config.image_size, config.image_size)
    return {"pixel_values": rng.uniform(-1, 1, shape).astype("float32")}


# Recorded on pictures of another size, too.
OTHER_SIZES = (
    "dino_v1",
    "deit_classifier",
    "clip_vision_projection",
    "siglip_vision",
    "dinov2_bare",
    "dinov2_registers",
    "beit_classifier",
    "beit_positions",
    "dinov3",
)


@torch.no_grad()
def record_other_sizes() -> None:
    """The last states of pictures of 20 pixels, [T, D], for which transformers interpolates positions; and of 8
    where that averages them."""
    rng = record.np.random.default_rng(0)
    arrays = {"pixel_values": rng.uniform(-1, 1, (1, 3, 20, 20)).astype("float32")}
    for name in OTHER_SIZES:
        model = CASES[name].model.from_pretrained(record.HERE / name).eval()
        encoder = tower(model)
        by_itself = name.startswith("dinov")
        asked = {} if by_itself else {"interpolate_pos_encoding": True}
        for size in (20, 4):
            pixels = torch.from_numpy(arrays["pixel_values"][:, :, :size, :size].copy())
            last = encoder(pixel_values=pixels, **asked).last_hidden_state
            if hasattr(encoder, "pre_layrnorm"):
                last = encoder.post_layernorm(last)
            arrays[f"{name}|{size}"] = last[0].numpy()
    record.np.savez_compressed(record.HERE / "image_sizes.npz", **arrays)


def main() -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    record.outputs_of = outputs_of
    record.draw_inputs = draw_inputs
    for name in sys.argv[1:] or CASES:
        record.record_case(name, CASES[name])
    record_other_sizes()


if __name__ == "__main__":
    main()

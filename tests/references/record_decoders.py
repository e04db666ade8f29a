"""Record the decoders: `python tests/references/record_decoders.py`, as record.py does its cases.

Windows are shorter than the longest text, and the scales of rotary positions change angles within
it, so that each of them shows. qwen3_embedding.npz has the vectors that sentence-transformers
makes in a folder such as Qwen3-Embedding's.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from record import Case, record_attentions, record_case

from tests.helpers.decoder_files import QUERIES, embedding_folder

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


# Of six frequencies the second and the third are between those that are kept and those that are
# divided.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}


def of(config: type, theta: float = 100.0, **changes: Any) -> Any:
    """A config of the sizes above. The base of its rotary positions makes them turn in a few
    tokens.
    """
    rope = {"rope_theta": theta, "rope_type": "default"} | changes.pop("rope", {})
    return config(**SIZES | {"rope_parameters": rope} | changes)


def gemma(local: dict[str, Any], everywhere: dict[str, Any], **changes: Any) -> Any:
    """A config of Gemma 3 with the rotary positions of its local and of its other layers."""
    default = {"rope_type": "default"}
    rope = {"sliding_attention": default | local, "full_attention": default | everywhere}
    return hf.Gemma3TextConfig(**SIZES | {"rope_parameters": rope, "head_dim": 8} | changes)


WINDOWS = {"use_sliding_window": True, "sliding_window": 4}
LOCAL_FIRST = ["sliding_attention", "full_attention"]
THREE_LABELS = {"id2label": {0: "negative", 1: "neutral", 2: "positive"}}
CASES = {
    "llama_lm_untied": Case(
        hf.LlamaForCausalLM, of(hf.LlamaConfig, rms_norm_eps=1e-2), shard_size="4KB"
    ),
    "llama_classifier_llama3": Case(
        hf.LlamaForSequenceClassification,
        of(hf.LlamaConfig, rope=LLAMA3, attention_bias=True, mlp_bias=True, **THREE_LABELS),
    ),
    "llama_lm_tied_linear": Case(
        hf.LlamaForCausalLM,
        of(
            hf.LlamaConfig,
            rope={"rope_type": "linear", "factor": 2.5},
            head_dim=6,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        ),
    ),
    "llama_lm_yarn": Case(
        hf.LlamaForCausalLM, of(hf.LlamaConfig, rope=YARN, head_dim=12, num_hidden_layers=1)
    ),
    "qwen3_bare_yarn": Case(
        hf.Qwen3Model,
        of(hf.Qwen3Config, rope=YARN | {"attention_factor": 0.8, "beta_fast": 2.0}, head_dim=8),
    ),
    "mistral_lm_window": Case(hf.MistralForCausalLM, of(hf.MistralConfig, sliding_window=5)),
    "mistral_classifier": Case(
        hf.MistralForSequenceClassification,
        of(hf.MistralConfig, sliding_window=None, head_dim=8, hidden_act="gelu", **THREE_LABELS),
    ),
    "mistral_tagger": Case(
        hf.MistralForTokenClassification,
        of(
            hf.MistralConfig,
            sliding_window=3,
            num_key_value_heads=1,
            num_hidden_layers=3,
            rope={"rope_type": "linear", "factor": 2.0},
            **THREE_LABELS,
        ),
    ),
    "qwen2_lm_tied": Case(hf.Qwen2ForCausalLM, of(hf.Qwen2Config, tie_word_embeddings=True)),
    "qwen2_tagger_windows": Case(
        hf.Qwen2ForTokenClassification,
        of(hf.Qwen2Config, **WINDOWS, max_window_layers=1, num_key_value_heads=4, **THREE_LABELS),
    ),
    "qwen2_classifier_llama3": Case(
        hf.Qwen2ForSequenceClassification,
        of(hf.Qwen2Config, rope=LLAMA3, rms_norm_eps=1e-2, hidden_act="relu", **THREE_LABELS),
    ),
    "qwen3_bare": Case(hf.Qwen3Model, of(hf.Qwen3Config, head_dim=8, rms_norm_eps=1e-2)),
    "qwen3_lm_untied": Case(
        hf.Qwen3ForCausalLM, of(hf.Qwen3Config, head_dim=4, attention_bias=True)
    ),
    "qwen3_classifier_windows": Case(
        hf.Qwen3ForSequenceClassification,
        of(hf.Qwen3Config, **WINDOWS, layer_types=LOCAL_FIRST, head_dim=6, **THREE_LABELS),
    ),
    "smollm3_lm_tied": Case(hf.SmolLM3ForCausalLM, of(hf.SmolLM3Config, no_rope_layer_interval=2)),
    "smollm3_tagger": Case(
        hf.SmolLM3ForTokenClassification,
        of(hf.SmolLM3Config, no_rope_layers=[0, 1], attention_bias=True, **THREE_LABELS),
    ),
    "smollm3_classifier_windows": Case(
        hf.SmolLM3ForSequenceClassification,
        of(
            hf.SmolLM3Config,
            **WINDOWS,
            no_rope_layers=[1, 0, 1],
            num_hidden_layers=3,
            mlp_bias=True,
            num_key_value_heads=4,
            **THREE_LABELS,
        ),
    ),
    "gemma3_text_lm_tied": Case(
        hf.Gemma3ForCausalLM,
        gemma(
            {"rope_theta": 10.0},
            {"rope_theta": 100.0, "rope_type": "linear", "factor": 4.0},
            sliding_window=4,
            layer_types=LOCAL_FIRST,
        ),
    ),
    "gemma3_text_both_ways": Case(
        hf.Gemma3TextModel,
        gemma(
            {"rope_theta": 20.0},
            {"rope_theta": 200.0},
            sliding_window=6,
            layer_types=LOCAL_FIRST,
            use_bidirectional_attention=True,
            query_pre_attn_scalar=8,
        ),
    ),
    "gemma3_text_classifier": Case(
        hf.Gemma3TextForSequenceClassification,
        gemma(
            {"rope_theta": 10.0},
            {"rope_theta": 100.0},
            sliding_window=3,
            layer_types=LOCAL_FIRST[::-1],
            query_pre_attn_scalar=20,
            attention_bias=True,
            num_key_value_heads=4,
            **THREE_LABELS,
        ),
    ),
}


def record_embedding() -> None:
    """Vectors of the texts as queries, with the prompt, and as documents, without one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = embedding_folder(Path(scratch) / "model")
        model = SentenceTransformer(str(folder), device="cpu")
        arrays = {}
        for name in ("query", "document"):
            arrays[name] = model.encode(QUERIES, prompt_name=name, show_progress_bar=False)
    np.savez_compressed(HERE / "qwen3_embedding.npz", **arrays)
    print("qwen3_embedding:", {name: array.shape for name, array in arrays.items()})


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    for name in names or CASES:
        record_case(name, CASES[name])
    if names:
        return
    for name in ("qwen3_bare", "gemma3_text_both_ways"):
        record_attentions(name, CASES[name])
    record_embedding()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Made-up checkpoint folders, each with one setting that decides what becomes of a text or a picture.

``record_folders.py`` makes them and records what the original libraries do with them;
``tests/pretrained/test_checkpoint_table.py`` makes them again and asks `adapt`. ``docs/checkpoints.md``
has a row for every entry that a case covers. Only the standard library is needed here.
"""

import json
import math
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEXTS = [
    "the films was good",
    "É café B FILM The",
    "a好 film [MASK] b <ent> x </s> [SEP] query: a",
    "the film was good a b x " * 4,
    "unseen",
]
PAIRS = [("the film", "was good"), ("the film was good a b x " * 4, "a b")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the",
    "The",
    "film",
    "FILM",
    "##s",
    "was",
    "good",
    "é",
    "É",
    "e",
    "E",
    "caf",
    "##é",
    "##e",
    "café",
    "cafe",
    "b",
    "B",
    "a",
    "A",
    "好",
    "##好",
    "query",
    ":",
    "x",
    "</s>",
    "<s>",
    "passage",
    "<",
    ">",
    "ent",
    "/",
]
VOCABULARY = [*SPECIAL, *WORDS, *(f"w{n}" for n in range(100 - len(SPECIAL) - len(WORDS)))]
LETTERS = sorted(set("thefilmwasgoodabx"))
BYTES = [*LETTERS, "Ġ", *(f"Ġ{letter}" for letter in LETTERS), "Ċ"]
ST = "sentence_transformers.models."


@dataclass
class Case:
    """A folder, the rows of the table that it is for, and what is looked at: tokens, vectors, pixels
    or states of the original library; or what `adapt` says where it ``refuses`` or notes (``says``).
    """

    covers: list[tuple[str, str]]
    make: Callable[[Path], None]
    looks: str = "tokens"
    # of vectors: what is asked for, by sentence-transformers' names
    asked: dict[str, Any] = field(default_factory=dict)
    refuses: str = ""
    says: str = ""


CASES: dict[str, Case] = {}


def case(name: str, *covers: str, **settings: Any) -> Callable[[Callable[[Path], None]], Any]:
    """Register the function below as what makes a folder; ``covers`` are "file: entry"."""
    pairs = [tuple(cover.split(": ", 1)) for cover in covers]

    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[name] = Case(pairs, make, **settings)  # type: ignore[arg-type]
        return make

    return register


# Files


def write(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, "utf-8")


def change(folder: Path, name: str, **entries: Any) -> None:
    """Change entries of a JSON file; it is made where there is none."""
    path = folder / name
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    write(folder, name, before | entries)


def encoder(folder: Path, recorded: str) -> None:
    """A recorded random encoder without its outputs."""
    shutil.copytree(
        HERE / recorded, folder, ignore=shutil.ignore_patterns("*.npz"), dirs_exist_ok=True
    )


def bert_json(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json as transformers writes it for BERT."""
    first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    ids = {"[CLS]": 2, "[SEP]": 3}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": n, "content": name, **flags, "special": True} for n, name in enumerate(SPECIAL)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text, last],
            "pair": [first, text, last, second, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {
                name: {"id": name, "ids": [number], "tokens": [name]}
                for name, number in ids.items()
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: number for number, token in enumerate(VOCABULARY)},
        },
    }
    return content | changes


def bert_normalizer(**changes: Any) -> dict[str, Any]:
    return bert_json()["normalizer"] | changes


def old_bert(folder: Path, **settings: Any) -> None:
    """BERT with vocab.txt."""
    encoder(folder, "bert_bare_pooler")
    write(folder, "vocab.txt", "\n".join(VOCABULARY) + "\n")
    if settings:
        write(folder, "tokenizer_config.json", settings)


def bert(folder: Path, content: dict[str, Any] | None = None, **settings: Any) -> None:
    """BERT with tokenizer.json."""
    encoder(folder, "bert_bare_pooler")
    write(folder, "tokenizer.json", content or bert_json())
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"} | settings)


def old_gpt2(folder: Path, **settings: Any) -> None:
    """GPT-2 with vocab.json and merges.txt."""
    encoder(folder, "gpt2_bare")
    ids = {token: number for number, token in enumerate(BYTES)} | {"<|endoftext|>": len(BYTES)}
    write(folder, "vocab.json", ids)
    write(folder, "merges.txt", "#version: 0.2\n" + "".join(f"Ġ {x}\n" for x in LETTERS))
    if settings:
        write(folder, "tokenizer_config.json", settings)


def gpt2(folder: Path, changes: dict[str, Any] | None = None, **settings: Any) -> None:
    """GPT-2 with tokenizer.json."""
    encoder(folder, "gpt2_bare")
    ids = {token: number for number, token in enumerate(BYTES)} | {"<|endoftext|>": len(BYTES)}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    end = {"id": len(BYTES), "content": "<|endoftext|>", "single_word": False, "lstrip": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | {"rstrip": False, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": ids,
            "merges": [f"Ġ {x}" for x in LETTERS],
        },
    }
    write(folder, "tokenizer.json", content | (changes or {}))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"} | settings)


def sentence(
    folder: Path, pooling: dict[str, Any] | None = None, more: tuple = (), **config: Any
) -> None:
    """A sentence-transformers folder of BERT: a pooling, and steps after it."""
    bert(folder)
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), *more]
    write(
        folder,
        "modules.json",
        [
            {"idx": n, "name": str(n), "path": path, "type": ST + kind}
            for n, (kind, path) in enumerate(steps)
        ],
    )
    write(folder, "1_Pooling/config.json", {"embedding_dimension": 36, **(pooling or {})})
    if config:
        write(folder, "config_sentence_transformers.json", config)


def vit(folder: Path, **settings: Any) -> None:
    """A ViT of 32 pixels with a preprocessor_config.json."""
    encoder(folder, "vit_classifier")
    base = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    write(folder, "preprocessor_config.json", base | settings)


# tokenizer_config.json, tokenizer.json and the other files of a tokenizer


@case("bert", "tokenizer.json: model", "tokenizer.json: decoder")
def _(folder: Path) -> None:
    bert(folder)


@case("no tokenizer_config", "tokenizer.json: normalizer", says="does not say do_lower_case")
def _(folder: Path) -> None:
    bert(folder, bert_json(normalizer=bert_normalizer(lowercase=False)))
    (folder / "tokenizer_config.json").unlink()


@case("cased", "tokenizer_config.json: do_lower_case", says="do_lower_case false")
def _(folder: Path) -> None:
    bert(folder, do_lower_case=False)


@case("accents", "tokenizer_config.json: strip_accents", says="strip_accents false")
def _(folder: Path) -> None:
    bert(folder, strip_accents=False)


@case(
    "chinese", "tokenizer_config.json: tokenize_chinese_chars", says="tokenize_chinese_chars false"
)
def _(folder: Path) -> None:
    bert(folder, tokenize_chinese_chars=False)


@case("as it is", "tokenizer_config.json: tokenizer_class")
def _(folder: Path) -> None:
    content = bert_json(normalizer=bert_normalizer(lowercase=False), post_processor=None)
    bert(folder, content, tokenizer_class="PreTrainedTokenizerFast", do_lower_case=True)


@case("class of config.json", "config.json: tokenizer_class")
def _(folder: Path) -> None:
    bert(folder, bert_json(normalizer=bert_normalizer(lowercase=False)))
    (folder / "tokenizer_config.json").unlink()
    change(folder, "config.json", tokenizer_class="PreTrainedTokenizerFast")


@case(
    "a class of another vocabulary",
    "tokenizer_config.json: tokenizer_class",
    refuses="BertJapaneseTokenizer",
)
def _(folder: Path) -> None:
    old_bert(folder, tokenizer_class="BertJapaneseTokenizer")


@case(
    "a vocabulary of another class",
    "tokenizer_config.json: tokenizer_class",
    refuses="tokenizer.json holds BPE",
)
def _(folder: Path) -> None:
    gpt2(folder)
    encoder(folder, "bert_bare_pooler")
    change(folder, "tokenizer_config.json", tokenizer_class="BertTokenizer")


@case("no post_processor", "tokenizer.json: post_processor")
def _(folder: Path) -> None:
    bert(folder, bert_json(post_processor=None))


@case("another pre_tokenizer", "tokenizer.json: pre_tokenizer")
def _(folder: Path) -> None:
    content = bert_json(pre_tokenizer={"type": "WhitespaceSplit"})
    bert(folder, content, tokenizer_class="PreTrainedTokenizerFast")


@case("padding of tokenizer.json", "tokenizer.json: padding", "tokenizer.json: truncation")
def _(folder: Path) -> None:
    padding = {"strategy": {"Fixed": 10}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    truncation = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    bert(folder, bert_json(padding=padding, truncation=truncation), model_max_length=8)


@case("model_max_length", "tokenizer_config.json: model_max_length")
def _(folder: Path) -> None:
    bert(folder, model_max_length=6)


@case(
    "no model_max_length", "tokenizer_config.json: model_max_length", refuses="model_max_length 0"
)
def _(folder: Path) -> None:
    bert(folder, model_max_length=0)


@case("cut on the left", "tokenizer_config.json: truncation_side")
def _(folder: Path) -> None:
    bert(folder, truncation_side="left", model_max_length=6)


@case("cut nowhere", "tokenizer_config.json: truncation_side", refuses="truncation_side 'middle'")
def _(folder: Path) -> None:
    bert(folder, truncation_side="middle")


@case(
    "what changes no token",
    "tokenizer_config.json: padding_side, clean_up_tokenization_spaces, model_input_names, do_basic_tokenize, never_split, chat_template, name_or_path",
)
def _(folder: Path) -> None:
    nothing = {
        "clean_up_tokenization_spaces": True,
        "do_basic_tokenize": False,
        "never_split": ["the"],
    }
    bert(
        folder,
        padding_side="left",
        model_input_names=["input_ids"],
        name_or_path="x",
        model_max_length=12,
        **nothing,
    )


@case(
    "other ends",
    "tokenizer_config.json: cls_token, sep_token, unk_token, pad_token, mask_token, bos_token, eos_token",
)
def _(folder: Path) -> None:
    bert(
        folder,
        bert_json(post_processor=None, added_tokens=[]),
        cls_token="<s>",
        sep_token="</s>",
        unk_token="x",
        model_max_length=12,
    )


@case(
    "ends with settings",
    "tokenizer_config.json: cls_token, sep_token, unk_token, pad_token, mask_token, bos_token, eos_token",
)
def _(folder: Path) -> None:
    token = {
        "__type": "AddedToken",
        "content": "<s>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    bert(folder, bert_json(added_tokens=[]), cls_token=token, model_max_length=12)


@case(
    "special_tokens_map",
    "special_tokens_map.json: cls_token, sep_token, unk_token, pad_token, mask_token, additional_special_tokens",
)
def _(folder: Path) -> None:
    old_bert(folder, do_lower_case=True, model_max_length=12)
    write(
        folder,
        "special_tokens_map.json",
        {
            "sep_token": "</s>",
            "cls_token": {
                "content": "<s>",
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
            },
        },
    )


@case("added_tokens_decoder", "tokenizer_config.json: added_tokens_decoder")
def _(folder: Path) -> None:
    number = VOCABULARY.index("ent")
    flags = {
        "lstrip": True,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": False,
    }
    bert(
        folder, added_tokens_decoder={str(number): {"content": "ent", **flags}}, model_max_length=12
    )


@case(
    "an added token of another id",
    "tokenizer_config.json: added_tokens_decoder",
    refuses="has the id 7",
)
def _(folder: Path) -> None:
    bert(folder, added_tokens_decoder={"7": {"content": "ent", "special": True}})


@case(
    "additional_special_tokens",
    "tokenizer_config.json: additional_special_tokens, extra_special_tokens",
)
def _(folder: Path) -> None:
    bert(folder, additional_special_tokens=["film"], model_max_length=12)


@case("added_tokens of tokenizer.json", "tokenizer.json: added_tokens")
def _(folder: Path) -> None:
    flags = {
        "single_word": True,
        "lstrip": False,
        "rstrip": True,
        "normalized": True,
        "special": False,
    }
    more = {"id": VOCABULARY.index("film"), "content": "film", **flags}
    bert(folder, bert_json(added_tokens=[*bert_json()["added_tokens"], more]), model_max_length=12)


@case("added_tokens.json", "added_tokens.json: (every entry)")
def _(folder: Path) -> None:
    old_bert(folder, do_lower_case=False, model_max_length=12)
    write(
        folder,
        "added_tokens.json",
        {"FILM": VOCABULARY.index("FILM"), "ent": VOCABULARY.index("ent")},
    )


@case(
    "a token without a row",
    "added_tokens.json: (every entry)",
    looks="",
    says="no row for '<|pad|>'",
)
def _(folder: Path) -> None:
    old_bert(folder, do_lower_case=True)
    write(folder, "added_tokens.json", {"<|pad|>": 100})


@case(
    "split_special_tokens",
    "tokenizer_config.json: split_special_tokens",
    refuses="split_special_tokens",
)
def _(folder: Path) -> None:
    bert(folder, split_special_tokens=True)


@case("vocab.txt", "vocab.txt: (every line)")
def _(folder: Path) -> None:
    old_bert(folder, do_lower_case=False, model_max_length=12)


@case("vocab.txt that does not fit", "vocab.txt: (every line)", says="does not fit tokenizer.json")
def _(folder: Path) -> None:
    bert(folder, model_max_length=12)
    write(folder, "vocab.txt", "\n".join([*SPECIAL, *reversed(WORDS)]))


@case("gpt2", "vocab.json: (every entry)", "merges.txt: (every line)")
def _(folder: Path) -> None:
    old_gpt2(folder, model_max_length=12)


@case("gpt2 with a begin", "tokenizer_config.json: add_bos_token, add_eos_token")
def _(folder: Path) -> None:
    old_gpt2(folder, add_bos_token=True, model_max_length=12)


@case("gpt2 with a space", "tokenizer_config.json: add_prefix_space", says="add_prefix_space true")
def _(folder: Path) -> None:
    gpt2(folder, add_prefix_space=True, model_max_length=12)


@case("gpt2 of tokenizer.json", "tokenizer.json: normalizer")
def _(folder: Path) -> None:
    gpt2(folder, {"normalizer": {"type": "Lowercase"}}, model_max_length=12)


# sentence-transformers


@case("mean", "modules.json: Transformer", "modules.json: Pooling", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder)


@case("transformer in a folder", "modules.json: Transformer", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder)
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in [*folder.iterdir()]:
        if path.is_file() and path.name != "modules.json":
            path.rename(inner / path.name)
    steps = json.loads((folder / "modules.json").read_text())
    write(folder, "modules.json", [{**steps[0], "path": "0_Transformer"}, steps[1]])


@case("normalize", "modules.json: Normalize", "2_Normalize: (nothing in it)", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder, {"pooling_mode": "cls"}, (("Normalize", "2_Normalize"),))


@case("dropout", "modules.json: Dropout", looks="")
def _(folder: Path) -> None:
    sentence(folder, None, (("Dropout", "2_Dropout"),))
    write(folder, "2_Dropout/config.json", {"dropout": 0.2})


@case("another module", "modules.json: any other", looks="vectors", refuses="has LSTM in '2_LSTM'")
def _(folder: Path) -> None:
    sentence(folder, None, (("LSTM", "2_LSTM"),))


def dense(folder: Path, shape: tuple[int, int], bias: bool = True, **settings: Any) -> None:
    """A dense layer of vectors, from and to these widths, with weights that a sine draws."""
    before, after = shape
    entries = {"in_features": before, "out_features": after, "bias": bias}
    write(folder, "config.json", entries | settings)
    sizes = {"linear.weight": [after, before]} | ({"linear.bias": [after]} if bias else {})
    header: dict[str, Any] = {}
    values: list[float] = []
    for name, size in sizes.items():
        start = len(values)
        values += [math.sin(1.7 * n * n + len(name)) / 3 for n in range(math.prod(size))]
        offsets = [4 * start, 4 * len(values)]
        header[name] = {"dtype": "F32", "shape": size, "data_offsets": offsets}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(values)}f", *values)
    (folder / "model.safetensors").write_bytes(content)


DENSE = "2_Dense/config.json: in_features, out_features, bias, activation_function"
TORCH = "torch.nn.modules."


@case("dense", "modules.json: Dense", DENSE, looks="vectors")
def _(folder: Path) -> None:
    sentence(folder, None, (("Dense", "2_Dense"),))
    dense(folder / "2_Dense", (36, 20))


@case("two dense layers", "modules.json: Dense", DENSE, looks="vectors")
def _(folder: Path) -> None:
    steps = (("Dense", "2_Dense"), ("Dense", "3_Dense"), ("Normalize", "4_Normalize"))
    sentence(folder, {"pooling_mode": "cls"}, steps, truncate_dim=16)
    linear = {"activation_function": f"{TORCH}linear.Identity"}
    dense(folder / "2_Dense", (36, 50), bias=False, **linear)
    dense(folder / "3_Dense", (50, 24), bias=False, **linear)


for activation in ("GELU", "ReLU", "SiLU", "Sigmoid"):

    @case(f"dense with {activation}", DENSE, looks="vectors")
    def _(folder: Path, activation: str = activation) -> None:
        sentence(folder, None, (("Dense", "2_Dense"),))
        dense(folder / "2_Dense", (36, 7), activation_function=f"{TORCH}activation.{activation}")


@case("another activation of a dense layer", DENSE, looks="vectors", refuses="Softplus")
def _(folder: Path) -> None:
    sentence(folder, None, (("Dense", "2_Dense"),))
    dense(folder / "2_Dense", (36, 7), activation_function=f"{TORCH}activation.Softplus")


@case("a dense layer of another width", DENSE, refuses="vectors of 36: fetch")
def _(folder: Path) -> None:
    sentence(folder, None, (("Dense", "2_Dense"),))
    dense(folder / "2_Dense", (20, 7))


OTHERS = "2_Dense/config.json: use_residual, module_input_name, module_output_name"


@case("a residual", OTHERS, looks="vectors", refuses="says use_residual")
def _(folder: Path) -> None:
    sentence(folder, None, (("Dense", "2_Dense"),))
    dense(folder / "2_Dense", (36, 36), use_residual=True)


@case("a dense layer of tokens", OTHERS, looks="vectors", refuses="token_embeddings")
def _(folder: Path) -> None:
    sentence(folder, None, (("Dense", "2_Dense"),))
    dense(folder / "2_Dense", (36, 36), module_input_name="token_embeddings")


for mode in ("cls", "max", "lasttoken"):

    @case(f"pooling {mode}", "1_Pooling/config.json: pooling_mode", looks="vectors")
    def _(folder: Path, mode: str = mode) -> None:
        sentence(folder, {"pooling_mode": mode})


@case("old pooling", "1_Pooling/config.json: pooling_mode_cls_token, ...", looks="vectors")
def _(folder: Path) -> None:
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    sentence(folder, {"embedding_dimension": 36, **modes})


@case(
    "two poolings",
    "1_Pooling/config.json: pooling_mode",
    looks="vectors",
    refuses="says cls and max",
)
def _(folder: Path) -> None:
    sentence(folder, {"pooling_mode": ["cls", "max"]})


@case(
    "weighted pooling",
    "1_Pooling/config.json: pooling_mode",
    looks="vectors",
    refuses="says weightedmean",
)
def _(folder: Path) -> None:
    sentence(folder, {"pooling_mode": "weightedmean"})


@case(
    "another width",
    "1_Pooling/config.json: embedding_dimension, word_embedding_dimension",
    refuses="for vectors of 7",
)
def _(folder: Path) -> None:
    sentence(folder, {"embedding_dimension": 7})


@case(
    "without the prompt",
    "1_Pooling/config.json: include_prompt",
    looks="vectors",
    refuses="include_prompt",
)
def _(folder: Path) -> None:
    sentence(
        folder, {"include_prompt": False}, prompts={"query": "query: "}, default_prompt_name="query"
    )


QUERY = {"prompts": {"query": "query: ", "passage": "passage: "}}


@case("default prompt", "config_sentence_transformers.json: default_prompt_name", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder, default_prompt_name="query", **QUERY)


@case(
    "prompt by name",
    "config_sentence_transformers.json: prompts",
    looks="vectors",
    asked={"prompt_name": "passage"},
)
def _(folder: Path) -> None:
    sentence(folder, default_prompt_name="query", **QUERY)


@case(
    "prompt by its words",
    "config_sentence_transformers.json: prompts",
    looks="vectors",
    asked={"prompt": "query: "},
)
def _(folder: Path) -> None:
    sentence(folder, **QUERY)


@case(
    "no prompt", "config_sentence_transformers.json: prompts", looks="vectors", asked={"prompt": ""}
)
def _(folder: Path) -> None:
    sentence(folder, default_prompt_name="query", **QUERY)


@case(
    "a default without its prompt",
    "config_sentence_transformers.json: default_prompt_name",
    refuses="has no prompt 'q'",
)
def _(folder: Path) -> None:
    sentence(folder, default_prompt_name="q", **QUERY)


@case("truncate_dim", "config_sentence_transformers.json: truncate_dim", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder, None, (("Normalize", "2_Normalize"),), truncate_dim=8)


@case("dot product", "config_sentence_transformers.json: similarity_fn_name", looks="similarity")
def _(folder: Path) -> None:
    sentence(folder, similarity_fn_name="dot")


@case(
    "another kind of model",
    "config_sentence_transformers.json: model_type",
    looks="vectors",
    refuses="model_type SparseEncoder",
)
def _(folder: Path) -> None:
    sentence(folder, model_type="SparseEncoder")


@case(
    "what changes no vector",
    "config_sentence_transformers.json: __version__, requirements",
    looks="vectors",
)
def _(folder: Path) -> None:
    sentence(folder, __version__={"sentence_transformers": "2.0.0"})


@case("max_seq_length", "sentence_bert_config.json: max_seq_length", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder)
    change(folder, "tokenizer_config.json", model_max_length=10)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": False})


@case("max_seq_length of version 6", "tokenizer_config.json: model_max_length", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder)
    change(folder, "tokenizer_config.json", model_max_length=6)


@case("lower case", "sentence_bert_config.json: do_lower_case", looks="vectors")
def _(folder: Path) -> None:
    sentence(folder)
    write(folder, "tokenizer.json", bert_json(normalizer=bert_normalizer(lowercase=False)))
    change(folder, "tokenizer_config.json", do_lower_case=False)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": True})


@case(
    "tokenizer_args", "sentence_bert_config.json: tokenizer_args, processor_kwargs", looks="vectors"
)
def _(folder: Path) -> None:
    sentence(folder)
    write(folder, "sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 6}})


@case(
    "model_args",
    "sentence_bert_config.json: model_args, model_kwargs, config_args, config_kwargs",
    looks="vectors",
    refuses="says num_hidden_layers 1",
)
def _(folder: Path) -> None:
    sentence(folder)
    write(folder, "sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}})


@case(
    "another task",
    "sentence_bert_config.json: transformer_task, processing_kwargs",
    looks="vectors",
    refuses="transformer_task",
)
def _(folder: Path) -> None:
    sentence(folder)
    write(folder, "sentence_bert_config.json", {"transformer_task": "fill-mask"})


# config.json


def states(name: str, recorded: str, *covers: str, **entries: Any) -> None:
    """A case of a changed config.json, whose last states are looked at."""

    @case(name, *covers, looks="states")
    def _(folder: Path) -> None:
        encoder(folder, recorded)
        change(folder, "config.json", **entries)


def refused(name: str, recorded: str, cover: str, refuses: str, **entries: Any) -> None:
    """A case of a changed config.json that is refused."""

    @case(name, cover, refuses=refuses)
    def _(folder: Path) -> None:
        encoder(folder, recorded)
        change(folder, "config.json", **entries)


SIZES = "config.json: num_hidden_layers, hidden_size, num_attention_heads, intermediate_size, vocab_size, max_position_embeddings"
states("sizes", "bert_bare_pooler", SIZES, "config.json: layer_norm_eps, layer_norm_epsilon")
states(
    "epsilon",
    "bert_bare_pooler",
    "config.json: layer_norm_eps, layer_norm_epsilon",
    layer_norm_eps=0.1,
)
for activation in (
    "gelu_new",
    "gelu_fast",
    "gelu_python",
    "gelu_pytorch_tanh",
    "relu",
    "silu",
    "swish",
):
    states(
        f"activation {activation}",
        "bert_bare_pooler",
        "config.json: hidden_act, activation_function",
        hidden_act=activation,
    )
refused(
    "another activation",
    "bert_bare_pooler",
    "config.json: hidden_act, activation_function",
    "unknown activation 'mish'",
    hidden_act="mish",
)
states(
    "upcast",
    "gpt2_bare",
    "config.json: reorder_and_upcast_attn, use_cache, dtype, torch_dtype",
    reorder_and_upcast_attn=True,
    torch_dtype="float16",
)
refused(
    "no model_type",
    "bert_bare_pooler",
    "config.json: model_type",
    "unknown architecture 'mamba'",
    model_type="mamba",
)
refused(
    "quantised",
    "bert_bare_pooler",
    "config.json: quantization_config",
    "quantization_config",
    quantization_config={"bits": 4},
)
refused(
    "relative",
    "bert_bare_pooler",
    "config.json: position_embedding_type",
    "position_embedding_type",
    position_embedding_type="relative_key",
)
refused(
    "decoder",
    "bert_bare_pooler",
    "config.json: is_decoder, add_cross_attention",
    "is_decoder",
    is_decoder=True,
)
refused(
    "scaled",
    "gpt2_bare",
    "config.json: scale_attn_weights, scale_attn_by_inverse_layer_idx",
    "scale_attn_by_inverse",
    scale_attn_by_inverse_layer_idx=True,
)


# preprocessor_config.json


def pixels(name: str, cover: str, **settings: Any) -> None:
    """A case of a changed preprocessor_config.json, whose pixels are looked at."""

    @case(name, f"preprocessor_config.json: {cover}", looks="pixels")
    def _(folder: Path) -> None:
        vit(folder, **settings)


def no_pixels(name: str, cover: str, refuses: str, **settings: Any) -> None:
    """A case of a changed preprocessor_config.json that is refused."""

    @case(name, f"preprocessor_config.json: {cover}", refuses=refuses)
    def _(folder: Path) -> None:
        vit(folder, **settings)


SQUARE = {"height": 32, "width": 32}
pixels("vit", "image_processor_type")
pixels("fast", "image_processor_type", image_processor_type="ViTImageProcessorFast")
no_pixels(
    "another processor",
    "image_processor_type",
    "image_processor_type",
    image_processor_type="LevitImageProcessor",
)
for processor in ("CLIPImageProcessor", "BitImageProcessor", "DeiTImageProcessor"):
    # What they are by default but for the sizes: a crop of the middle.
    named = {"image_processor_type": processor, "crop_size": 32}
    pixels(
        f"{processor}, shorter side", "image_processor_type", **named, size={"shortest_edge": 36}
    )
    pixels(f"{processor}, one number", "size", **named, size=40)
for processor in ("SiglipImageProcessor", "BeitImageProcessorFast", "DINOv3ViTImageProcessorFast"):
    pixels(processor, "image_processor_type", image_processor_type=processor)
pixels("size as a number", "size", size=32)
pixels("shortest edge", "size", size={"shortest_edge": 40}, do_center_crop=True, crop_size=SQUARE)
no_pixels("another size", "size", "24 x 32", size={"height": 24, "width": 32})
no_pixels("longest edge", "size", "longest_edge", size={"longest_edge": 40})
pixels("nearest", "resample", resample=0)
pixels("bicubic", "resample", resample=3)
pixels(
    "crop",
    "do_center_crop, crop_size",
    size={"height": 48, "width": 40},
    do_center_crop=True,
    crop_size=SQUARE,
)
pixels(
    "crop of less",
    "do_center_crop, crop_size",
    size={"height": 24, "width": 30},
    do_center_crop=True,
    crop_size=32,
)


@case(
    "crop of the default size",
    "preprocessor_config.json: do_center_crop, crop_size",
    looks="pixels",
)
def _(folder: Path) -> None:
    vit(folder, do_center_crop=True, crop_size=SQUARE)
    content = json.loads((folder / "preprocessor_config.json").read_text())
    write(folder, "preprocessor_config.json", {k: v for k, v in content.items() if k != "size"})


pixels("crop alone", "do_resize", do_resize=False, do_center_crop=True, crop_size=SQUARE)
no_pixels("no resize", "do_resize", "do_resize", do_resize=False)
pixels("rescale_factor", "do_rescale, rescale_factor", rescale_factor=1 / 127.5)
pixels("no rescale", "do_rescale, rescale_factor", do_rescale=False)
pixels(
    "mean and std",
    "do_normalize, image_mean, image_std",
    image_mean=[0.1, 0.2, 0.3],
    image_std=[0.4, 0.5, 0.6],
)
pixels("no normalize", "do_normalize, image_mean, image_std", do_normalize=False)
pixels("rgb", "do_convert_rgb", do_convert_rgb=True)
no_pixels("pad", "do_pad", "do_pad", do_pad=True)
no_pixels(
    "square size", "use_square_size, do_reduce_labels", "use_square_size", use_square_size=True
)
pixels("labels of segments", "use_square_size, do_reduce_labels", do_reduce_labels=True)


# The rest of config.json: what is looked at is in test_checkpoint_table.py


def says(name: str, recorded: str, cover: str, **entries: Any) -> None:
    """A case of a changed config.json with a test of its own."""

    @case(name, f"config.json: {cover}", looks=name)
    def _(folder: Path) -> None:
        encoder(folder, recorded)
        change(folder, "config.json", **entries)


says("one type", "bert_mlm_relu", "type_vocab_size")
says("padding without a row", "bert_bare_pooler", "pad_token_id", pad_token_id=100)
says(
    "dropout of the encoder",
    "bert_bare_pooler",
    "hidden_dropout_prob, attention_probs_dropout_prob, initializer_range",
    hidden_dropout_prob=0.3,
    attention_probs_dropout_prob=0.2,
    initializer_range=0.5,
)
says(
    "dropout of a head",
    "bert_classifier",
    "classifier_dropout, summary_type",
    classifier_dropout=0.7,
)
says("tied", "bert_mlm_tied", "tie_word_embeddings")
says("a tagger", "bert_classifier", "architectures", architectures=["BertForTokenClassification"])
says(
    "labels",
    "bert_classifier",
    "id2label, num_labels, problem_type",
    problem_type="multi_label_classification",
)
says("gray pictures", "vit_gray_no_qkv_bias", "image_size, patch_size, num_channels, qkv_bias")


@case("other numbers of labels", "config.json: label2id", looks="", says="by label2id")
def _(folder: Path) -> None:
    old_bert(folder)
    encoder(folder, "bert_classifier")
    write(folder, "vocab.txt", "\n".join(VOCABULARY))
    names = json.loads((folder / "config.json").read_text())["id2label"]
    reversed_numbers = {name: 2 - int(number) for number, name in names.items()}
    change(folder, "config.json", label2id=reversed_numbers)


@case(
    "fewer labels",
    "config.json: id2label, num_labels, problem_type",
    looks="",
    says="names 2 labels",
)
def _(folder: Path) -> None:
    old_bert(folder)
    encoder(folder, "bert_classifier")
    change(folder, "config.json", id2label={"0": "a", "1": "b"}, label2id=None)


@case("merges that do not fit", "merges.txt: (every line)", says="other merges")
def _(folder: Path) -> None:
    gpt2(folder, model_max_length=12)
    write(folder, "merges.txt", "#version: 0.2\nt h\n")


@case("nested", "processor_config.json: image_processor", looks="pixels")
def _(folder: Path) -> None:
    vit(folder, image_mean=[0.1, 0.1, 0.1])
    nested = json.loads((folder / "preprocessor_config.json").read_text())
    write(
        folder,
        "processor_config.json",
        {"image_processor": nested | {"image_mean": [0.3, 0.2, 0.1]}},
    )


@case("an adapter", "adapter_config.json: (every entry)", refuses="adapter of PEFT")
def _(folder: Path) -> None:
    bert(folder)
    write(folder, "adapter_config.json", {"peft_type": "LORA"})


@case(
    "a token named twice",
    "tokenizer_config.json: additional_special_tokens, extra_special_tokens",
)
def _(folder: Path) -> None:
    flags = {"lstrip": False, "rstrip": True, "single_word": True, "normalized": True}
    film = {"content": "film", "special": True, **flags}
    bert(
        folder, added_tokens_decoder={"7": film}, extra_special_tokens=["film"], model_max_length=12
    )


@case(
    "additional and extra tokens",
    "tokenizer_config.json: additional_special_tokens, extra_special_tokens",
)
def _(folder: Path) -> None:
    extra = {"image_token": "ent"}
    bert(
        folder, additional_special_tokens=["FILM"], extra_special_tokens=extra, model_max_length=12
    )

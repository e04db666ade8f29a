"""The tokenizer that a checkpoint's files describe, as transformers 5 reads them.

    read_tokenizer(folder, "BertTokenizer", hf)          # .backend, .max_length, .notes

One file has the vocabulary: tokenizer.json, vocab.txt, or vocab.json with merges.txt. Others say
how it is used: tokenizer_config.json, special_tokens_map.json, added_tokens.json. For its classes
in ``TOKENIZERS`` transformers takes the vocabulary alone of a tokenizer.json and makes the rest
anew, by what the others say; for its class PreTrainedTokenizerFast it takes tokenizer.json as it
is. Both are done here in the same way. Where two files contradict each other, a note says which one
holds.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from adapt import signatures
from adapt.errors import CheckpointError, first_line
from adapt.files import read_json
from adapt.options import Long
from adapt.pretrained import tokenizer_steps
from adapt.pretrained.json_files import read_settings
from adapt.pretrained.tokenizer import Tokenizer

# transformers' classes, without the ending Fast, by which tokenizer they make.
AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")
# Other names of the classes in TOKENIZERS.
SAME_CLASSES: dict[str, str] = dict.fromkeys(
    ("DistilBertTokenizer", "ConvBertTokenizer", "ElectraTokenizer"), "BertTokenizer"
)
# The class that is made of a vocabulary, where neither the files nor the family say one.
OF_FILES = {"vocab.txt": "BertTokenizer", "vocab.json": "GPT2Tokenizer"}
MODELS_OF_FILES = {"vocab.txt": ("WordPiece", "WordLevel"), "vocab.json": ("BPE",)}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
NO_LENGTH = 10**15  # from here on model_max_length stands for none

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says of its tokenizer. ``max_length`` is None where it names no length;
    ``named`` is :class:`Tokenizer`'s.
    """

    backend: tokenizers.Tokenizer
    max_length: Any
    notes: Sequence[str]
    named: Mapping[str, str | None]


def load_tokenizer(folder: Path, max_length: int, long: Long = "head") -> Tokenizer | None:
    """The tokenizer of a run's folder, cut to ``max_length`` tokens; None where it has none.

    Its tokenizer.json is taken as it is; that of a checkpoint is read with what else its folder
    says, see :func:`read_tokenizer`.
    """
    files = read_tokenizer(folder, own_class=None, hf={})
    if files is None:
        return None
    return Tokenizer(files.backend, max_length, long, named=files.named)


def vocabulary_file(folder: Path) -> Path | None:
    """The file that a folder's tokenizer is made from; None if there is none."""
    for name in ("tokenizer.json", "vocab.txt"):
        if (folder / name).exists():
            return folder / name
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return folder / "vocab.json"
    return None


def read_tokenizer(
    folder: Path, own_class: str | None, hf: Settings, more: Settings | None = None
) -> TokenizerFiles | None:
    """The tokenizer of a checkpoint's folder; None where it has none.

    ``own_class`` is the class that the family's tokenizers have, "" for none, or None for a run,
    whose tokenizer.json is taken as it is. ``hf`` is its config.json; ``more`` overrules
    tokenizer_config.json, as sentence_bert_config.json may. Raises :class:`CheckpointError` for
    files that can't be read, and for a tokenizer that is not made here.
    """
    file = vocabulary_file(folder)
    if file is None:
        check_no_sentencepiece(folder)
        return None
    settings = read_settings(folder / "tokenizer_config.json") | dict(more or {})
    said = settings.get("tokenizer_class") or hf.get("tokenizer_class")
    try:
        check_is_fetched(file)
        content = read_content(file)
        kind = kind_of(str(said or "").removesuffix("Fast"), own_class or "", file, content)
        special, added = tokens_of_files(folder, kind, settings, content)
        maker = TOKENIZERS.get(kind)
        if maker is None:
            backend = tokenizers.Tokenizer.from_file(str(file))
        else:
            backend = maker.make(file, content, settings, special)
        check_ids(backend)
        notes = contradictions(file, kind, content, backend, settings)
        add_tokens(backend, special, added, file)
        if maker is not None and maker.ends is not None:
            backend.post_processor = maker.ends(backend, settings, special)
        elif backend.post_processor is None and own_class is not None:
            bounds = {} if content else settings  # tokenizer.json has its own, or none
            backend.post_processor = with_bounds(backend, bounds, special)
        notes += other_vocabulary(folder, file, backend) + other_merges(folder, content)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception for any malformed file
        reason = first_line(error)
        raise CheckpointError(f"cannot read the tokenizer {file}: {reason}") from None
    if settings.get("split_special_tokens"):
        raise CheckpointError(
            f"split_special_tokens is true in {folder / 'tokenizer_config.json'}: only false is read"
        )
    backend.enable_truncation(NO_LENGTH, direction=truncation_side(folder, settings, content))
    length = settings.get("model_max_length", settings.get("max_len"))
    if isinstance(length, int | float) and length >= NO_LENGTH:
        length = None
    named: dict[str, str | None] = {}
    for name in NAMED:
        if name in special:
            token = special[name]
            named[name] = token.content if token else None
    return TokenizerFiles(backend, length, notes, named)


def check_no_sentencepiece(folder: Path) -> None:
    """Raise :class:`CheckpointError` where the only file of a tokenizer is SentencePiece's."""
    for name in SENTENCEPIECE:
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder / name} is a model of SentencePiece, which is not read: save its "
                "tokenizer.json beside it with transformers (AutoTokenizer.from_pretrained(folder)"
                ".save_pretrained(folder))"
            )


def check_is_fetched(file: Path) -> None:
    """Raise :class:`CheckpointError` where another file was fetched in place of a vocabulary, or of
    the merges beside it.
    """
    files = [file]
    if file.name == "vocab.json":
        files.append(file.with_name("merges.txt"))
    for each in files:
        what = signatures.stand_in(signatures.head_of(each))
        if what is not None:
            raise CheckpointError(f"cannot read the tokenizer {each}: {what}")


def read_content(file: Path) -> Settings:
    """The object in tokenizer.json; {} for another file. Raises ValueError for anything else in it."""
    if file.name != "tokenizer.json":
        return {}
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not an object")
    check_template(content.get("post_processor"))
    return content


def check_ids(backend: tokenizers.Tokenizer) -> None:
    """Raise ValueError for two tokens of one id: one of them would be lost where it is saved."""
    of_id: dict[int, str] = {}
    for token, number in backend.get_vocab().items():
        other = of_id.setdefault(number, token)
        if other != token:
            first, second = sorted((token, other))
            raise ValueError(f"{first!r} and {second!r} have both the id {number}")


def check_template(processor: Any) -> None:
    """Raise ValueError for a post-processor whose template has a token that it does not explain:
    the library would panic at the first text.
    """
    if not isinstance(processor, Mapping):
        return
    for inner in processor.get("processors") or ():
        check_template(inner)
    if processor.get("type") != "TemplateProcessing":
        return
    for piece in [*processor["single"], *processor["pair"]]:
        token = piece.get("SpecialToken", {}).get("id")
        if token is not None and token not in processor["special_tokens"]:
            raise ValueError(f"its post_processor does not say which id {token} has")


def kind_of(said: str, own_class: str, file: Path, content: Settings) -> str:
    """The class that makes the tokenizer, a name of ``TOKENIZERS``, or "" for tokenizer.json as it
    is.

    Raises :class:`CheckpointError` for another class without a tokenizer.json, and for a class of
    the family that is not made here.
    """
    own_class = SAME_CLASSES.get(own_class, own_class)
    if own_class and own_class not in TOKENIZERS:
        raise CheckpointError(
            f"the family of {file.parent} has the tokenizer {own_class}, which is not made here: "
            f"say one of {', '.join(TOKENIZERS)} in the Family, or none to take tokenizer.json"
        )
    has_json = file.name == "tokenizer.json"
    if said in AS_IT_IS and has_json:
        return ""
    said = SAME_CLASSES.get(said, said)
    if said in TOKENIZERS and (has_json or TOKENIZERS[said].model in MODELS_OF_FILES[file.name]):
        kind = said
    elif said and said not in AS_IT_IS:
        if not has_json:
            raise CheckpointError(
                f"tokenizer_config.json in {file.parent} says {said}, and a {said} is not made from "
                f"{file.name}: save its tokenizer.json with transformers, or say BertTokenizer if "
                "that is what it is"
            )
        return ""
    elif has_json and not own_class:
        return ""
    else:
        kind = class_of_file(file, own_class)
    model = content.get("model")
    model_type = model.get("type") if isinstance(model, Mapping) else None
    wanted = TOKENIZERS[kind].model
    if has_json and model_type not in (wanted, None):
        if said:
            raise CheckpointError(
                f"{file} holds {model_type}, and tokenizer_config.json says {said}, which is made "
                f"of {wanted}: say PreTrainedTokenizerFast to take tokenizer.json as it is"
            )
        return ""
    return kind


def class_of_file(file: Path, own_class: str) -> str:
    """The class of a family's tokenizer, unless the vocabulary is of another kind of file."""
    usual = OF_FILES.get(file.name)
    if usual is None:
        return own_class
    fits = own_class in TOKENIZERS and TOKENIZERS[own_class].model in MODELS_OF_FILES[file.name]
    return own_class if fits else usual


# Special and added tokens


def tokens_of_files(
    folder: Path, kind: str, settings: Settings, content: Settings
) -> tuple[dict[str, AddedToken | None], list[tuple[int | None, AddedToken]]]:
    """(the named special tokens, the added tokens with the ids that files say they have).

    Those of ``added_tokens_decoder`` in tokenizer_config.json are all; without it they are in
    special_tokens_map.json, added_tokens.json and tokenizer.json.
    """
    defaults = TOKENIZERS[kind].defaults if kind else {}
    said = {**defaults, **settings}
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        for number, token in settings["added_tokens_decoder"].items():
            added[int(number)] = AddedToken(**token)
    else:
        said |= read_settings(folder / "special_tokens_map.json")
        named = {spelled(said.get(name)) for name in NAMED}
        for text, number in read_settings(folder / "added_tokens.json").items():
            is_special = text in named
            added[number] = AddedToken(text, normalized=not is_special, special=is_special)
        for entry in content.get("added_tokens", ()):
            number = entry["id"]
            added[number] = AddedToken(**{name: entry[name] for name in entry if name != "id"})
    by_text = {token.content: token for token in added.values()}
    special: dict[str, AddedToken | None] = {}
    others: list[AddedToken] = []
    for name, value in said.items():
        if name in NAMED or (name.endswith("_token") and isinstance(value, str)):
            text = spelled(value)
            special[name] = by_text.get(text, as_token(value)) if text else None
    for value in more_special_tokens(said):
        if spelled(value) not in by_text:
            others.append(as_token(value))
    numbered: list[tuple[int | None, AddedToken]] = []
    for number in sorted(added):
        numbered.append((number, added[number]))
    return special, [*numbered, *((None, token) for token in others)]


def more_special_tokens(settings: Settings) -> list[Any]:
    """Special tokens without a name of their own: transformers 5 calls extra what was additional."""
    additional = list(settings.get("additional_special_tokens") or ())
    extra = settings.get("extra_special_tokens") or ()
    if isinstance(extra, Mapping):
        return [*extra.values(), *additional]
    return list(extra) or additional


def spelled(value: Any) -> str:
    """The text of a token, which files have as text or with settings; "" for none."""
    return str(value.get("content", "")) if isinstance(value, Mapping) else str(value or "")


def as_token(value: Any) -> AddedToken:
    """A special token as a file has it."""
    if isinstance(value, Mapping):
        fields = {
            name: value[name]
            for name in ("lstrip", "rstrip", "single_word", "normalized")
            if name in value
        }
        return AddedToken(spelled(value), special=True, **fields)
    return AddedToken(str(value), special=True)


def add_tokens(
    backend: tokenizers.Tokenizer,
    special: Mapping[str, AddedToken | None],
    added: Sequence[tuple[int | None, AddedToken]],
    file: Path,
) -> None:
    """Add to a tokenizer what files name, in the order in which transformers does.

    Raises :class:`CheckpointError` for a token that gets another id than the files say.
    """
    there = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for _, token in added if repr(token) not in there])
    for number, token in added:
        given = backend.token_to_id(token.content)
        if number is not None and given != number:
            raise CheckpointError(
                f"the token {token.content!r} has the id {number} in {file.parent}, and {given} by "
                f"the vocabulary of {file.name}: one of these files is of another checkpoint"
            )
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    named = [
        token for token in special.values() if token is not None and token.content not in known
    ]
    backend.add_tokens(named)


# transformers' classes


def bert_backend(
    file: Path, content: Settings, settings: Settings, special: Mapping[str, AddedToken | None]
) -> tokenizers.Tokenizer:
    """BERT's tokenizer of a vocabulary, by tokenizer_config.json."""
    vocabulary = content["model"]["vocab"] if content else read_lines(file)
    unknown = special["unk_token"]
    for name in ("unk_token", "cls_token", "sep_token"):
        token = special[name]
        if token is None or token.content not in vocabulary:
            raise ValueError(f"there is no {token.content if token else name} in it")
    assert unknown is not None
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown.content))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def read_lines(vocabulary: Path) -> dict[str, int]:
    """The tokens of vocab.txt with their ids. Lines end in a newline alone, for U+2028 may be a
    token.
    """
    tokens = vocabulary.read_text("utf-8").removesuffix("\n").split("\n")
    return {token: index for index, token in enumerate(tokens)}


def with_ends(
    backend: tokenizers.Tokenizer, settings: Settings, special: Mapping[str, AddedToken | None]
) -> processors.TemplateProcessing:
    """BERT's [CLS] text [SEP], whatever these two are called."""
    first = special["cls_token"]
    last = special["sep_token"]
    assert first is not None and last is not None
    ends = [(token.content, backend.token_to_id(token.content)) for token in (first, last)]
    single = f"{first.content}:0 $A:0 {last.content}:0"
    return processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1 {last.content}:1", special_tokens=ends
    )


def gpt2_backend(
    file: Path, content: Settings, settings: Settings, special: Mapping[str, AddedToken | None]
) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE of a vocabulary and merges, by tokenizer_config.json."""
    if content:
        pairs = []
        for merge in content["model"]["merges"]:  # two tokens, or a text of both in old files
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            pairs.append((first, second))
        model = models.BPE(vocab=content["model"]["vocab"], merges=pairs)
    else:
        model = models.BPE.from_file(str(file), str(file.with_name("merges.txt")))
    backend = tokenizers.Tokenizer(model)
    space = settings.get("add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    if content:
        backend.post_processor = tokenizers.Tokenizer.from_file(str(file)).post_processor
    return backend


def with_steps(
    steps: Callable[[tokenizers.Tokenizer, Settings, Settings], None],
) -> Callable[[Path, Settings, Settings, Mapping[str, AddedToken | None]], Any]:
    """How a class makes its tokenizer that takes the model of a tokenizer.json and has ``steps`` of
    its own before it; a byte-level one is made of vocab.json, too.
    """

    def make(
        file: Path, content: Settings, settings: Settings, special: Mapping[str, AddedToken | None]
    ) -> tokenizers.Tokenizer:
        if content:
            backend = tokenizers.Tokenizer.from_file(str(file))
        else:
            backend = gpt2_backend(file, content, settings, special)
        steps(backend, content, settings)
        return backend

    return make


def with_roberta_ends(
    backend: tokenizers.Tokenizer, settings: Settings, special: Mapping[str, AddedToken | None]
) -> processors.RobertaProcessing:
    """RoBERTa's <s> text </s>, and <s> text </s></s> text </s> of pairs."""
    return processors.RobertaProcessing(
        tokenizer_steps.token_and_id(backend, special, "sep_token"),
        tokenizer_steps.token_and_id(backend, special, "cls_token"),
        trim_offsets=settings.get("trim_offsets", True),
        add_prefix_space=settings.get("add_prefix_space", False),
    )


def esm_backend(
    file: Path, content: Settings, settings: Settings, special: Mapping[str, AddedToken | None]
) -> tokenizers.Tokenizer:
    """ESM's tokenizer of residues: every token of the vocabulary is one wherever it stands, and
    what is between them and white space is unknown as a whole.
    """
    if content:
        vocabulary = content["model"]["vocab"]
    else:
        lines = file.read_text("utf-8").splitlines()
        vocabulary = {line.strip(): index for index, line in enumerate(lines)}
    unknown = special["unk_token"]
    assert unknown is not None
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown.content))
    longest_first = sorted(filter(None, vocabulary), key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    steps = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
        pre_tokenizers.WhitespaceSplit(),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return backend


def with_cls_and_eos(
    backend: tokenizers.Tokenizer, settings: Settings, special: Mapping[str, AddedToken | None]
) -> processors.TemplateProcessing:
    """ESM's <cls> text <eos>; it has no separator."""
    return with_ends(backend, settings, {**special, "sep_token": special["eos_token"]})


def with_bounds(
    backend: tokenizers.Tokenizer, settings: Settings, special: Mapping[str, AddedToken | None]
) -> Any:
    """A text as it is, or between the begin and the end token that old files of GPT-2 may ask for;
    the second text of a pair is of type 1.
    """
    bounds = []
    for entry, name in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        token = special.get(name)
        bounds.append(token.content if settings.get(entry) and token else None)
    begin, end = bounds
    templates = []
    for number, text in enumerate(("$A", "$B")):
        pieces = [piece for piece in (begin, text, end) if piece]
        templates.append(" ".join(f"{piece}:{number}" for piece in pieces))
    ids = {token: backend.token_to_id(token) for token in (begin, end) if token}
    template = processors.TemplateProcessing(
        single=templates[0], pair=" ".join(templates), special_tokens=list(ids.items())
    )
    # A token that begins with a space is where its letters are.
    return processors.Sequence([processors.ByteLevel(trim_offsets=True), template])


# What contradicts itself


def contradictions(
    file: Path,
    kind: str,
    content: Settings,
    backend: tokenizers.Tokenizer,
    settings: Settings,
) -> list[str]:
    """Where tokenizer.json says something else than the tokenizer does that was made of it."""
    if not content or not kind:
        return []
    made = json.loads(backend.to_str())
    theirs = TOKENIZERS[kind].says(content)
    ours = TOKENIZERS[kind].says(made)
    notes = []
    for entry, value in ours.items():
        follows = entry == "strip_accents" and settings.get(entry) is None
        if entry in theirs and theirs[entry] != value and not (follows and notes):
            by = f"tokenizer_config.json says {entry} {json.dumps(settings.get(entry))}"
            if entry not in settings:
                by = (
                    f"tokenizer_config.json does not say {entry}, so {kind} has {json.dumps(value)}"
                )
            notes.append(
                f"{file}: {json.dumps(theirs[entry])} for {entry} does not hold: {by}, as in "
                "transformers"
            )
    return notes


def bert_case(content: Settings) -> dict[str, Any]:
    """What a tokenizer.json does to letters, by the entries of tokenizer_config.json; {} where it
    does not do it as BERT's does.
    """
    normalizer = content.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        return {}
    lower = normalizer.get("lowercase")
    accents = normalizer.get("strip_accents")
    return {
        "do_lower_case": lower,
        "strip_accents": lower if accents is None else accents,
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars"),
    }


def nothing_said(content: Settings) -> dict[str, Any]:
    """``says`` of a class that no entry changes."""
    return {}


@dataclasses.dataclass(frozen=True)
class TokenizerClass:
    """How transformers makes a tokenizer of one of its classes from a vocabulary.

    ``model`` is the type of the model in a tokenizer.json, ``defaults`` are the special tokens that
    need not be said, ``make`` makes the tokenizer and ``ends`` what is put around texts (None: what
    tokenizer.json says); ``says`` are the entries of tokenizer_config.json by which a
    tokenizer.json may be compared with what was made.
    """

    model: str
    defaults: Mapping[str, str]
    make: Callable[[Path, Settings, Settings, Mapping[str, AddedToken | None]], Any]
    ends: Callable[[Any, Settings, Mapping[str, AddedToken | None]], Any] | None
    says: Callable[[Settings], dict[str, Any]]


BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
BERT_BOUNDS = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
XLM_ROBERTA = TokenizerClass(
    model="Unigram",
    defaults=ROBERTA_TOKENS,
    make=with_steps(tokenizer_steps.as_xlm_roberta),
    ends=tokenizer_steps.as_bos_and_eos,
    says=tokenizer_steps.said_of_spaces,
)
TOKENIZERS: dict[str, TokenizerClass] = {
    "AlbertTokenizer": TokenizerClass(
        model="Unigram",
        defaults=BERT_TOKENS | BERT_BOUNDS | {"unk_token": "<unk>", "pad_token": "<pad>"},
        make=with_steps(tokenizer_steps.as_albert),
        ends=with_ends,
        says=tokenizer_steps.said_of_case,
    ),
    "BertTokenizer": TokenizerClass(
        model="WordPiece",
        defaults=BERT_TOKENS,
        make=bert_backend,
        ends=with_ends,
        says=bert_case,
    ),
    "CamembertTokenizer": XLM_ROBERTA,
    "DebertaV2Tokenizer": TokenizerClass(
        model="Unigram",
        defaults=BERT_TOKENS | BERT_BOUNDS,
        make=with_steps(tokenizer_steps.as_deberta),
        ends=with_ends,
        says=tokenizer_steps.said_of_letters,
    ),
    "EsmTokenizer": TokenizerClass(
        model="WordLevel",
        defaults={
            "unk_token": "<unk>",
            "cls_token": "<cls>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
            "eos_token": "<eos>",
        },
        make=esm_backend,
        ends=with_cls_and_eos,
        says=nothing_said,
    ),
    "GPT2Tokenizer": TokenizerClass(
        model="BPE",
        defaults=dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
        make=gpt2_backend,
        ends=None,
        says=tokenizer_steps.said_of_spaces,
    ),
    "MPNetTokenizer": TokenizerClass(
        model="WordPiece",
        defaults=ROBERTA_TOKENS | {"unk_token": "[UNK]"},
        make=bert_backend,
        ends=with_roberta_ends,
        says=bert_case,
    ),
    "Qwen2Tokenizer": TokenizerClass(
        model="BPE",
        defaults=dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
        make=with_steps(tokenizer_steps.as_qwen),
        ends=None,
        says=tokenizer_steps.said_of_spaces,
    ),
    "RobertaTokenizer": TokenizerClass(
        model="BPE",
        defaults=ROBERTA_TOKENS,
        make=gpt2_backend,
        ends=with_roberta_ends,
        says=tokenizer_steps.said_of_spaces,
    ),
    "T5Tokenizer": TokenizerClass(
        model="Unigram",
        defaults={name: ROBERTA_TOKENS[name] for name in ("eos_token", "unk_token", "pad_token")},
        make=with_steps(tokenizer_steps.as_t5),
        ends=tokenizer_steps.as_eos,
        says=tokenizer_steps.said_of_spaces,
    ),
    "XLMRobertaTokenizer": XLM_ROBERTA,
}


def other_vocabulary(folder: Path, file: Path, backend: tokenizers.Tokenizer) -> list[str]:
    """Where vocab.txt or vocab.json has other ids than the tokenizer.json that is used."""
    if file.name != "tokenizer.json":
        return []
    readers: dict[str, Callable[[Path], Settings]]
    readers = {"vocab.txt": read_lines, "vocab.json": read_settings}
    notes = []
    for name, read in readers.items():
        other = folder / name
        if not other.exists():
            continue
        vocabulary = read(other)
        differing = [
            text for text, number in vocabulary.items() if backend.token_to_id(text) != number
        ]
        if differing:
            token = differing[0]
            notes.append(
                f"{other} does not fit tokenizer.json, which is used: {len(differing):,} of "
                f"{len(vocabulary):,} tokens have another id or none there, such as {token!r} "
                f"({vocabulary[token]}, {backend.token_to_id(token)})"
            )
    return notes


def other_merges(folder: Path, content: Settings) -> list[str]:
    """Where merges.txt has others than the tokenizer.json that is used."""
    other = folder / "merges.txt"
    used = content.get("model", {}).get("merges")
    if used is None or not other.exists():
        return []
    ours = [merge if isinstance(merge, str) else " ".join(merge) for merge in used]
    lines = other.read_text("utf-8").split("\n")
    theirs = [line for line in lines if line and not line.startswith("#version")]
    if ours == theirs:
        return []
    return [f"{other} has other merges than tokenizer.json, which is used"]


def truncation_side(folder: Path, settings: Settings, content: Settings) -> str:
    """From which side of a text tokens are cut. Raises :class:`CheckpointError` for any other."""
    truncation = content.get("truncation")
    direction = truncation.get("direction", "Right") if isinstance(truncation, Mapping) else "Right"
    side = settings.get("truncation_side", str(direction).lower())
    if side not in ("left", "right"):
        raise CheckpointError(
            f"truncation_side {side!r} in {folder / 'tokenizer_config.json'} is neither left nor right"
        )
    return side


# Changes of a tokenizer


def without_rows(
    backend: tokenizers.Tokenizer, rows: int
) -> tuple[tokenizers.Tokenizer, list[str]]:
    """(a tokenizer whose ids are below ``rows``, the added tokens that were left out for it).

    They are tokens that a text has only where it spells them, such as a padding token that was
    added without a row. Raises ValueError where a token of the vocabulary itself is beyond, or one
    that every text gets.
    """
    content = json.loads(backend.to_str())
    beyond = [token for token in content["added_tokens"] if token["id"] >= rows]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < rows]
    words = backend.get_vocab(with_added_tokens=False).values()
    ends = backend.encode("").ids
    if max(words, default=0) >= rows or max(ends, default=0) >= rows:
        raise ValueError
    shorter = tokenizers.Tokenizer.from_str(json.dumps(content))
    return shorter, [token["content"] for token in beyond]


def in_lower_case(backend: tokenizers.Tokenizer) -> None:
    """Put lower case before what a tokenizer does to letters, unless it has it:
    sentence-transformers' do_lower_case.
    """
    before = backend.normalizer
    if before is not None and lowers(json.loads(backend.to_str())["normalizer"]):
        return
    first = normalizers.Lowercase()
    backend.normalizer = normalizers.Sequence([first] if before is None else [first, before])


def lowers(normalizer: Settings) -> bool:
    """Whether a normalizer of a tokenizer.json makes letters small."""
    if normalizer.get("type") == "Sequence":
        return any(lowers(inner) for inner in normalizer["normalizers"])
    is_bert = normalizer.get("type") == "BertNormalizer"
    return normalizer.get("type") == "Lowercase" or (is_bert and bool(normalizer["lowercase"]))


def with_one_type(backend: tokenizers.Tokenizer) -> processors.TemplateProcessing:
    """The post-processor of a tokenizer, with type 0 for both texts of a pair.

    An encoder with one type of segment has no row for a type 1: other libraries look one up.
    """
    special: dict[str, int] = {}
    templates = []
    for encoding in (backend.encode("a"), backend.encode("a", "a")):
        pieces = []
        for token, number, text in zip(
            encoding.tokens, encoding.ids, encoding.sequence_ids, strict=True
        ):
            piece = token if text is None else ("$A", "$B")[text]
            if text is None:
                special[token] = number
            if not pieces or text is None or pieces[-1] != f"{piece}:0":
                pieces.append(f"{piece}:0")
        templates.append(" ".join(pieces))
    single, pair = templates
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=list(special.items())
    )


def is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether a token tells by a space at its beginning that it begins a word."""
    before = json.loads(backend.to_str())["pre_tokenizer"] or {}
    steps = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    return any(step.get("type") == "ByteLevel" for step in steps)

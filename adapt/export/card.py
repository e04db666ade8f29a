"""The README.md of an exported folder: what it is, code that loads it as it stands, the classes,
and what to know.
"""

from collections.abc import Sequence

from adapt.tasks.base import TASKS, class_list

MARK = "Exported by adapt."  # by this a folder is known as one that may be replaced


def card(
    title: str, library: str, code: str, task: str, classes: Sequence[str], notes: Sequence[str]
) -> str:
    """Markdown. ``code`` runs in the folder, given ``texts``, ``images``, ``words`` or
    ``questions`` and ``contexts``, and leaves ``outputs``, ``logits`` or ``vectors``.
    """
    front = f"---\nlibrary_name: {library}\n---\n"
    paragraphs = [f"{front}# {title}\n\n{MARK}\n\n```python\n{code}```", *notes]
    if task in TASKS:
        note = TASKS[task].output_note(classes)
        paragraphs += [note] if note else []
    elif classes:
        paragraphs.append(class_list("Logits by class:", classes))
    return "\n\n".join(paragraphs) + "\n"


TEXTS = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = {auto}.from_pretrained(".")
outputs = model(**tokenizer(texts, truncation=True, padding={padding}, return_tensors="pt"))
"""
WORDS = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = {auto}.from_pretrained(".")
inputs = tokenizer(words, is_split_into_words=True, truncation=True, padding=True, return_tensors="pt")
outputs = model(**inputs)  # a word has the tag of its first token: inputs.word_ids(row)
"""
# A byte-level tokenizer tells by a space that a token begins a word.
SPACED_WORDS = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".", add_prefix_space=False)  # this folder
model = {auto}.from_pretrained(".")
spaced = [[row[0], *(" " + word for word in row[1:])] for row in words]
inputs = tokenizer(spaced, is_split_into_words=True, truncation=True, padding=True, return_tensors="pt")
outputs = model(**inputs)  # a word has the tag of its first token: inputs.word_ids(row)
"""
CONTEXTS = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = {auto}.from_pretrained(".")
inputs = tokenizer(questions, contexts, truncation="only_second", padding=True, return_tensors="pt")
outputs = model(**inputs)  # of start and end: a softmax over an example's own tokens
"""
IMAGES = """\
from transformers import {auto}, AutoImageProcessor

processor = AutoImageProcessor.from_pretrained(".", backend="pil")  # this folder
model = {auto}.from_pretrained(".")
outputs = model(**processor(images, return_tensors="pt"))
"""
PEFT_TEXTS = """\
from peft import PeftModel
from transformers import {auto}, AutoConfig, AutoTokenizer

base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
config = AutoConfig.from_pretrained(".")  # this folder
model = {auto}.from_pretrained(base, config=config)
model = PeftModel.from_pretrained(model, ".").eval()
outputs = model(**tokenizer(texts, truncation=True, padding={padding}, return_tensors="pt"))
"""
PEFT_IMAGES = """\
from peft import PeftModel
from transformers import {auto}, AutoConfig, AutoImageProcessor

base = "{base}"
processor = AutoImageProcessor.from_pretrained(base, backend="pil")
config = AutoConfig.from_pretrained(".")  # this folder
model = {auto}.from_pretrained(base, config=config)
model = PeftModel.from_pretrained(model, ".").eval()
outputs = model(**processor(images, return_tensors="pt"))
"""
EMBEDDINGS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # this folder
vectors = model.encode(texts)
"""
SENTENCES = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # this folder
logits = model.encode(texts)
"""

NEARLY_LINEAR_TANH = """\
This head was trained on the first token itself, where the class has a pooler with a tanh. So the pooler is 2^-16 times
the identity, where tanh is straight, and the classifier's weights are 2^16 times the trained ones. Compute in float32
or bfloat16: such weights overflow in float16. To train further, start from the run, not from here."""
LINEAR_BY_SHIFT = """\
This head was trained on the first token itself, where the class has a dense layer and an activation before the classifier. So that layer is
the identity with a bias so large that the activation lets everything through, and the classifier's bias takes it off again. Compute in
float32. To train further, start from the run, not from here."""
ADDED_PADDING = """\
The tokenizer had no padding token of its own: `{pad}` was added, with a row of zeros in the embedding. Pad on the right."""
RESIZING = """\
Pictures were resized by Pillow. `backend="pil"` does the same; torchvision rounds some pixels to the next of 256 values."""
GRAY = """\
Pictures were converted to gray (`image.convert("L")`), which the processor does not do."""
NO_HEAD = """\
The head of the run ({head}) is not in this folder, for no class of transformers holds it: this is the encoder alone."""
WINDOWS = """\
Longer contexts were read in windows of {tokens} tokens, each with the question, whose texts begin {stride} tokens apart (at most half
a window). This code reads the first one."""
NO_ANSWER = """\
A question has no answer where the sum of both logits of the first token is larger than that of the best span by more
than {threshold:.6g}, which was chosen in validation."""
PROMPT = """\
Classes are said by words: each of `texts` is a prompt, a text in `{template}`. The score of a class is the mean of its words'
`outputs.logits` {where}, and a softmax over classes gives probabilities. The words, and the ids of their tokens:

{classes}"""
ZERO_POOLER = """\
Vectors are made of the states of tokens. The pooler, which transformers' class has beside them, is zeros here, and so is its `pooler_output`."""
LOGITS = """\
`encode` returns logits, not embeddings: leave `normalize_embeddings` off, and do not compare them by cosine."""

"""Record the losses of transformers' classes of pre-training, for the inputs that record.py and its siblings recorded.

Run as `python tests/references/record_objectives.py` with torch and transformers. It writes objectives.npz, whose
arrays are called <case>/<name>: what the class was given beside the recorded inputs, and its loss, float32.

    electra_discriminator   labels int32 [B, T], 1 where a token was replaced
    bert_pretraining        labels int32 [B, T], -100 where nothing is predicted; next int32 [B]
    albert_pretraining      the same; next is the order of the sentences
    vit_masked_image        masked bool [B, patches]; reconstruction [B, C, H, W]
    deit_masked_image       the same

The folders of the last two are recorded here, too.
"""

import numpy as np
import torch
import transformers as hf
from record import HERE, Case, record_case, vit

DEIT = {"image_size": 12, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2}
DEIT |= {"num_attention_heads": 2, "intermediate_size": 24, "encoder_stride": 4}
CASES = {
    "vit_masked_image": Case(hf.ViTForMaskedImageModeling, vit(encoder_stride=8)),
    "deit_masked_image": Case(hf.DeiTForMaskedImageModeling, hf.DeiTConfig(**DEIT)),
}
CLASSES = {
    "electra_discriminator": hf.ElectraForPreTraining,
    "bert_pretraining": hf.BertForPreTraining,
    "albert_pretraining": hf.AlbertForPreTraining,
    "vit_masked_image": hf.ViTForMaskedImageModeling,
    "deit_masked_image": hf.DeiTForMaskedImageModeling,
}
NEXT = {"bert_pretraining": "next_sentence_label", "albert_pretraining": "sentence_order_label"}
Arrays = dict[str, np.ndarray]


def draw_targets(case: str, recorded: Arrays, config: hf.PretrainedConfig) -> Arrays:
    """What a class of pre-training is given beside its inputs."""
    rng = np.random.default_rng(len(case))
    if "pixel_values" in recorded:
        patches = (config.image_size // config.patch_size) ** 2
        return {"masked": rng.random((len(recorded["pixel_values"]), patches)) < 0.6}
    ids = recorded["input_ids"]
    if case not in NEXT:
        return {"labels": (rng.random(ids.shape) < 0.4).astype(np.int32)}
    chosen = (rng.random(ids.shape) < 0.4) & (recorded["attention_mask"] > 0)
    drawn = rng.integers(0, config.vocab_size, ids.shape)
    following = rng.integers(0, 2, len(ids))
    labels = np.where(chosen, drawn, -100)
    return {"labels": labels.astype(np.int32), "next": following.astype(np.int32)}


@torch.no_grad()
def losses(case: str) -> Arrays:
    """The targets of a case and the loss of its class."""
    recorded = dict(np.load(HERE / case / "outputs.npz"))
    model = CLASSES[case].from_pretrained(HERE / case).eval()
    targets = draw_targets(case, recorded, model.config)
    names = {"masked": "bool_masked_pos", "next": NEXT.get(case), "labels": "labels"}
    arguments = {names[name]: torch.from_numpy(array) for name, array in targets.items()}
    inputs = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
    arguments |= {name: torch.from_numpy(recorded[name]) for name in inputs if name in recorded}
    for name, tensor in arguments.items():
        if tensor.dtype == torch.int32:
            arguments[name] = tensor.long()
    outputs = model(**arguments)
    found = targets | {"loss": outputs.loss.numpy()}
    if "masked" in targets:
        found["reconstruction"] = outputs.reconstruction.numpy()
    print(case, float(outputs.loss))
    return {f"{case}/{name}": array for name, array in found.items()}


if __name__ == "__main__":
    for name, case in CASES.items():
        record_case(name, case)
    arrays: Arrays = {}
    for name in CLASSES:
        arrays |= losses(name)
    np.savez_compressed(HERE / "objectives.npz", **arrays)

"""Pretrained parts: small random checkpoints saved here, read as published ones are; nothing is fetched."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.proxies.checkpoint_facts import check_parameters, decoder_facts, encoder_facts
from nas.proxies.data import DataError, Dataset, Question
from nas.proxies.hub import CHECKPOINT_FILES, checkpoint_folder
from nas.proxies.pretrained import PretrainedVLM, load_decoder, load_encoder, load_saved, load_vlm
from nas.proxies.tuning import ALIGN, FULL, TuningRecipe, evaluate, fine_tune
from search_spaces import PROJECTORS, ConfigError
from search_spaces.reference import reference_decoder, reference_encoder
from search_spaces.vision import VisionTransformer

transformers = pytest.importorskip(
    "transformers", reason="the extra hub is not installed: pip install 'edge-vlm-nas[hub]'"
)

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SPECIAL = {"eos_token": "<|end|>", "bos_token": "<|begin|>"}
COLOURS = {"red": 0, "green": 1, "blue": 2}
TEXTS = ("Question: what colour is it? Answer: red green blue", "Question: is it red? Answer: yes no", "2024 2024")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders siglip, clip, llama and qwen2 with random weights; both decoders share a tokenizer made of TEXTS."""
    root = tmp_path_factory.mktemp("checkpoints")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = made_tokenizer()
        words = {"vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": 1, "pad_token_id": None}
        models = {
            "siglip": transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)),
            "clip": transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
            "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, **words, tie_word_embeddings=True)),
            "qwen2": transformers.Qwen2ForCausalLM(
                transformers.Qwen2Config(**TEXT, **words, tie_word_embeddings=False)
            ),
        }
    for name, model in models.items():
        model.save_pretrained(root / name, safe_serialization=True)
    for name in ("llama", "qwen2"):
        tokenizer.save_pretrained(root / name)
    return root


def made_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    # Digits apart: more than the bare byte level that the classes by model type build.
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|begin|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def vlm(checkpoints: Path, encoder: str = "siglip", decoder: str = "llama", projector: str = "mlp") -> PretrainedVLM:
    return load_vlm(str(checkpoints / encoder), str(checkpoints / decoder), projector, seed=0)


class Fields:
    """Images of one colour each."""

    def images(self, indices: np.ndarray, image_px: int) -> np.ndarray:
        found = np.zeros((len(indices), 3, image_px, image_px), np.uint8)
        found[np.arange(len(indices)), indices % 3] = 255
        return found


def coloured(count: int = 6) -> Dataset:
    names = list(COLOURS)
    asked = [
        (
            Question("what colour is it?", names[i % 3], "colour"),
            Question("is it red?", "no" if i % 3 else "yes", "check"),
        )
        for i in range(count)
    ]
    return Dataset("fields", Fields(), tuple(asked))


# ------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
@pytest.mark.parametrize("encoder", ["siglip", "clip"])
def test_parts_become_a_model(checkpoints: Path, encoder: str, decoder: str) -> None:
    model = vlm(checkpoints, encoder, decoder)
    images = model.pixels(coloured(), [0, 1])
    ids = torch.tensor([model.question_ids("is it red?")] * 2)
    with torch.no_grad():
        tokens = model.encode(images)
        assert tokens.shape == (2, 16, 32)
        assert model.project(tokens).shape == (2, model.image_tokens, 32)
        assert model(images, ids).shape == (2, ids.shape[1], model.facts.config.vocabulary)
    counts = model.parameter_counts()
    assert counts["decoder"] == model.facts.parameters
    assert counts["encoder"] == pytest.approx(model.encoder.facts.parameters, rel=0.01)
    assert counts["projector"] == PROJECTORS["mlp"]().parameters(4, 32, 32)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("projector", [k for k, p in PROJECTORS.items() if p.levels == 1 and not p.joins_tiles])
def test_every_projector_stands_between(checkpoints: Path, projector: str) -> None:
    model = vlm(checkpoints, projector=projector)
    with torch.no_grad():
        image_tokens = model.project(model.encode(model.pixels(coloured(), [0])))
    assert image_tokens.shape == (1, PROJECTORS[projector]().tokens(4), 32)


def test_an_unknown_projector_is_refused(checkpoints: Path) -> None:
    with pytest.raises(DataError, match="choose another projector"):
        vlm(checkpoints, projector="token_packer")
    with pytest.raises(ConfigError, match="unknown projector 'mpl'; did you mean 'mlp'"):
        vlm(checkpoints, projector="mpl")


def test_vision_tokens_are_those_of_the_checkpoint(checkpoints: Path) -> None:
    whole = transformers.SiglipVisionModel.from_pretrained(checkpoints / "siglip").eval()
    clip = transformers.CLIPVisionModel.from_pretrained(checkpoints / "clip").eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = load_encoder(str(checkpoints / "siglip"))(images)
        torch.testing.assert_close(found, whole(images).last_hidden_state)
        expected = clip(images, output_hidden_states=True).hidden_states[1][:, 1:]  # before the last of two layers
        torch.testing.assert_close(load_encoder(str(checkpoints / "clip"))(images), expected)


@pytest.mark.parametrize("family", ["Siglip", "CLIP"])
def test_the_image_tower_of_a_whole_checkpoint_is_read(family: str, tmp_path: Path) -> None:
    text = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = getattr(transformers, f"{family}Config")(
        text_config={**text, "num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1},
        vision_config=VISION,
    )
    whole = getattr(transformers, f"{family}Model")(config).eval()
    whole.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    state = whole.vision_model.state_dict()
    for name, tensor in encoder.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], msg=name)


def test_weights_named_as_by_older_versions_are_read(checkpoints: Path, tmp_path: Path) -> None:
    for name in ("siglip", "clip"):
        shutil.copytree(checkpoints / name, tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        weights = load_file(path)
        save_file({f"vision_model.{key}": tensor for key, tensor in weights.items()}, path, {"format": "pt"})
        loaded = load_encoder(str(tmp_path / name)).model.state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded.items())


def test_pixels_are_normalised_as_the_checkpoint_says(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "siglip", tmp_path / "siglip")
    path = tmp_path / "siglip" / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.0, 0.5, 1.0], "image_std": [1.0, 0.5, 2.0]}))
    model = load_vlm(str(tmp_path / "siglip"), str(checkpoints / "llama"), seed=0)
    assert model.pixels(coloured(), [0])[0, :, 0, 0].tolist() == [1.0, -1.0, -0.5]
    assert vlm(checkpoints).pixels(coloured(), [0])[0, :, 0, 0].tolist() == [1.0, -1.0, -1.0]
    path.write_text(json.dumps({"image_mean": [0.0]}))
    with pytest.raises(DataError, match=r"preprocessor_config\.json: image_mean and image_std are three numbers"):
        load_encoder(str(tmp_path / "siglip"))


# ------------------------------------------------------------------------------------------------------------ refusals


def copied(checkpoints: Path, name: str, to: Path) -> Path:
    shutil.copytree(checkpoints / name, to / name)
    return to / name


def test_pickled_weights_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    folder = copied(checkpoints, "llama", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is pickled and could run code; .* save_pretrained"):
        load_decoder(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(DataError, match=r"read from \.safetensors only, but it has none"):
        load_decoder(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"no checkpoint: it has no config\.json"):
        load_decoder(str(folder))


def test_pickles_are_never_fetched(monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> None:
    import huggingface_hub

    calls = []

    def fetched(name: str, **kwargs: Any) -> str:
        calls.append((name, kwargs))
        return str(checkpoints / "llama")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert checkpoint_folder("owner/model", "0123abc") == checkpoints / "llama"
    assert calls == [("owner/model", {"revision": "0123abc", "allow_patterns": list(CHECKPOINT_FILES)})]
    assert not any(Path("pytorch_model.bin").match(pattern) for pattern in CHECKPOINT_FILES)
    assert not any(Path("modeling.py").match(pattern) for pattern in CHECKPOINT_FILES)
    with pytest.raises(DataError, match="owner/model: no such folder, and a name on a hub needs a revision"):
        checkpoint_folder("owner/model")

    def unreachable(name: str, **kwargs: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nPlease check")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(DataError, match=r"owner/model: cannot be fetched: no network$"):
        checkpoint_folder("owner/model", "main")


def test_missing_and_foreign_weights_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    folder = copied(checkpoints, "llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    lost = {key: tensor for key, tensor in weights.items() if key != "model.norm.weight"}
    save_file(lost, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"weights are missing: model\.norm\.weight"):
        load_decoder(str(folder))
    more = {**weights, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}
    save_file(more, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"weights that a llama does not have: model\.layers\.0\.self_attn\.q_norm"):
        load_decoder(str(folder))
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(DataError, match="llama: cannot be loaded: "):
        load_decoder(str(folder))


def test_other_architectures_and_tokenizers_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown model_type 'llama' .*known: clip, clip_vision_model, siglip"):
        load_encoder(str(checkpoints / "llama"))
    with pytest.raises(DataError, match=r"unknown model_type 'siglip_vision_model' .*known: llama, qwen2"):
        load_decoder(str(checkpoints / "siglip"))
    folder = copied(checkpoints, "llama", tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="llama: no usable tokenizer"):
        load_decoder(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"llama: no tokenizer\.json"):
        load_decoder(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"llama: config\.json is a JSON object"):
        load_decoder(str(folder))


def test_code_of_a_checkpoint_never_runs(checkpoints: Path, tmp_path: Path) -> None:
    folder = copied(checkpoints, "llama", tmp_path)
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\nM = T = C\n")
    for name, key, value in (
        ("config.json", "auto_map", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.T", "evil.T"]}),
    ):
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**told, key: value}))
    load_decoder(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("prompt", ["{question}{image}", "{image}", "{image}{question}{image}", "none"])
def test_a_prompt_holds_image_and_question(checkpoints: Path, prompt: str) -> None:
    with pytest.raises(DataError, match=r"a prompt holds \{image\} and then \{question\}"):
        load_vlm(str(checkpoints / "siglip"), str(checkpoints / "llama"), seed=0, prompt=prompt)


# --------------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize(
    ("name", "published", "changes"),
    [
        ("SmolLM2-135M", 134_515_008, {}),
        ("SmolLM2-360M", 361_821_120, {}),
        ("SmolLM2-1.7B", 1_711_376_384, {}),
        ("TinyLlama-1.1B", 1_100_048_384, {}),
        ("Qwen1.5-0.5B", 463_987_712, {}),
        ("Qwen1.5-1.8B", 1_836_828_672, {}),
        ("Qwen2.5-0.5B", 494_032_768, {}),
        ("Qwen2.5-1.5B", 1_543_714_304, {}),
        ("Qwen2.5-3B", 3_085_938_688, {}),
    ],
)
def test_published_decoders_have_the_parameters_of_their_networks(
    name: str, published: int, changes: dict[str, Any]
) -> None:
    row = reference_decoder(name).config
    family = "Qwen2" if row.family == "qwen2" else "Llama"
    config = getattr(transformers, f"{family}Config")(
        hidden_size=row.width,
        num_hidden_layers=row.depth,
        num_attention_heads=row.heads,
        num_key_value_heads=row.kv_heads,
        intermediate_size=row.feed_forward,
        vocab_size=row.vocabulary,
        tie_word_embeddings=not row.untied,
    )
    with torch.device("meta"):
        network = getattr(transformers, f"{family}ForCausalLM")(config)
    counted = sum(p.numel() for p in network.parameters())
    facts = check_parameters(decoder_facts(config, "it"), counted)
    assert counted == facts.parameters == row.parameters == published
    assert facts.config == row


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_siglip_224",
        "vit_so400m_patch14_siglip_384",
        "vit_base_patch16_clip_224",
        "vit_large_patch14_clip_336",
    ],
)
def test_published_encoders_have_the_parameters_of_their_networks(name: str) -> None:
    row = reference_encoder(name).config
    assert isinstance(row, VisionTransformer)
    family = "SiglipVision" if "siglip" in name else "CLIPVision"
    config = getattr(transformers, f"{family}Config")(
        hidden_size=row.width,
        num_hidden_layers=row.depth,
        num_attention_heads=row.heads,
        intermediate_size=row.feed_forward,
        patch_size=row.patch_px,
        image_size=row.image_px,
    )
    config.vision_use_head = False
    with torch.device("meta"):
        network = getattr(transformers, f"{family}Model")(config)
    counted = sum(p.numel() for p in network.parameters())
    facts = check_parameters(encoder_facts(config, row.written.prefix_tokens, "it"), counted)
    assert facts.config == dataclasses.replace(row, pooled=0)
    assert facts.parameters == counted


def test_a_checkpoint_with_parts_that_are_not_priced_is_refused(checkpoints: Path) -> None:
    facts = vlm(checkpoints).facts
    with pytest.raises(DataError, match="it has parts that are not priced"):
        check_parameters(facts, round(facts.parameters * 1.02))


# ---------------------------------------------------------------------------------------------------- text and answers


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_tokens_are_those_of_the_checkpoint_s_tokenizer(checkpoints: Path, decoder: str) -> None:
    from tokenizers import Tokenizer

    model = vlm(checkpoints, decoder=decoder)
    own = Tokenizer.from_file(str(checkpoints / decoder / "tokenizer.json"))
    for text in ("what colour is it?", "is it 2024  or é?", "yes"):
        assert model.answer_ids(text) == (*own.encode(f" {text}", add_special_tokens=False).ids, model.end)
    assert len(model.answer_ids("2024")) == 6


def test_text_cannot_inject_special_tokens(checkpoints: Path) -> None:
    model = vlm(checkpoints)
    assert model.end not in model.question_ids("is it <|end|>?")
    assert model.answer_ids("<|end|> red").count(model.end) == 1
    assert model.tokenizer.decode(model.answer_ids("blue")[:-1]) == " blue"
    own = load_vlm(
        str(checkpoints / "siglip"),
        str(checkpoints / "llama"),
        seed=0,
        prompt="<|begin|>{image} Question: {question}<|end|>",
    )
    assert own.question_ids("is it <|end|>?")[-1] == own.end
    assert own._head == (1,)


def asked_alone(model: PretrainedVLM, image: Tensor, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model(image, torch.tensor([list(ids)]))[0, -1]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tuned(checkpoints: Path) -> PretrainedVLM:
    """A model that answers some questions and not all."""
    model = vlm(checkpoints)
    fine_tune(model, coloured(), dataclasses.replace(FULL, rate=3e-3, steps=25, batch=8), seed=0)
    return model


def test_generation_is_greedy_decoding(tuned: PretrainedVLM) -> None:
    data = coloured(3)
    for i, asked in enumerate(data.questions):
        image = tuned.pixels(data, [i])
        for question in asked:
            ids, found = list(tuned.question_ids(question.text)), []
            while len(found) < 6:
                found.append(int(asked_alone(tuned, image, [*ids, *found]).argmax()))
                if found[-1] == tuned.end:
                    found.pop()
                    break
            assert tuned.answer(image, question.text, 6) == tuned.tokenizer.decode(found).strip()


def test_evaluation_is_exact_match_of_the_greedy_answer(tuned: PretrainedVLM) -> None:
    data = coloured(5)
    hits: dict[str, list[bool]] = {}
    for i, asked in enumerate(data.questions):
        for question in asked:
            answer = tuned.answer(tuned.pixels(data, [i]), question.text, 8)
            hits.setdefault(question.kind, []).append(answer == question.answer)
    by_kind = {kind: sum(found) / len(found) for kind, found in hits.items()}
    for batch in (1, 2, 16):
        accuracy, found = evaluate(tuned, data, batch=batch)
        assert found == by_kind
        assert accuracy == pytest.approx(np.mean([hit for each in hits.values() for hit in each]))


def test_too_long_a_sequence_is_refused(checkpoints: Path) -> None:
    model = vlm(checkpoints)
    with pytest.raises(DataError, match=r"a sequence of .* tokens, at most 128 were trained"):
        model.answer(model.pixels(coloured(), [0]), "red " * 200)


# -------------------------------------------------------------------------------------------------------------- tuning


def weights(model: PretrainedVLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_alignment_changes_the_projector_alone(checkpoints: Path) -> None:
    model = vlm(checkpoints, "clip", "qwen2")
    before = weights(model)
    done = fine_tune(model, coloured(), dataclasses.replace(ALIGN, steps=3, batch=4), seed=0)
    changed = {name.split(".")[0] for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {"projector"}
    assert len(done.losses) == 3
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


def test_full_tuning_learns_and_follows_from_the_seed(checkpoints: Path) -> None:
    seen = []
    recipe = dataclasses.replace(FULL, rate=1e-2, steps=80, batch=6)
    model = vlm(checkpoints)
    done = fine_tune(model, coloured(), recipe, seed=1, progress=lambda *point: seen.append(point))
    assert done.losses[-1] < 0.3 * done.losses[0]
    assert [step for step, _, _ in seen] == list(range(1, 81))
    assert evaluate(model, coloured())[0] >= 0.8
    again = vlm(checkpoints)
    short = dataclasses.replace(recipe, steps=2)
    first = fine_tune(again, coloured(), short, seed=1).losses
    assert first == fine_tune(vlm(checkpoints), coloured(), short, seed=1).losses


def test_a_loss_that_diverges_is_told(checkpoints: Path) -> None:
    model = vlm(checkpoints)
    with torch.no_grad():
        model.decoder.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="the loss left the finite numbers at step 1"):
        fine_tune(model, coloured(), dataclasses.replace(ALIGN, steps=2, batch=2), seed=0)


def test_bad_recipes_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown part 'decodre'; did you mean 'decoder'"):
        TuningRecipe(("decodre",), 1e-3)
    with pytest.raises(DataError, match="must be one or more"):
        TuningRecipe((), 1e-3)
    with pytest.raises(DataError, match="rate and clip must be > 0"):
        TuningRecipe(("projector",), 0.0)
    rates = [ALIGN.rate_at(step) for step in range(ALIGN.steps)]
    assert max(rates) == rates[29] == ALIGN.rate
    assert rates[30:] == sorted(rates[30:], reverse=True)


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_a_model_is_saved_and_read_back(checkpoints: Path, tmp_path: Path, decoder: str) -> None:
    model = vlm(checkpoints, "clip", decoder, "ldpv2")
    fine_tune(model, coloured(), dataclasses.replace(FULL, steps=2, batch=4), seed=0)
    model.save(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    again = load_saved(tmp_path)
    assert again.parameter_counts() == model.parameter_counts()
    image, ids = model.pixels(coloured(), [0]), model.question_ids("is it red?")
    assert again.question_ids("is it red?") == ids
    torch.testing.assert_close(asked_alone(again, again.pixels(coloured(), [0]), ids), asked_alone(model, image, ids))
    with pytest.raises(DataError, match=r"projector\.safetensors: no safetensors file"):
        load_saved(tmp_path / "encoder")
    for about, says in (
        ({"format": "mine"}, "format must be 'edge-vlm-nas projector 1', but got 'mine'"),
        ({"format": "edge-vlm-nas projector 1", "projector": "mlp"}, "its metadata lack prompt"),
    ):
        save_file({"a": torch.zeros(2)}, tmp_path / "projector.safetensors", about)
        with pytest.raises(DataError, match=rf"projector\.safetensors: {says}"):
            load_saved(tmp_path)

"""What looks like a model of ours and is not: one clear error before anything of it is built or asked for."""

import json
from pathlib import Path

import pytest

from dirl.models import NewModel, PretrainedModel, save_model
from dirl.models.families import check_served, registry
from dirl.models.families.llada2 import LLaDA2Family
from dirl.models.families.refused import refuse, refuse_code
from dirl.planning.named_shapes import named_or_file

CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
CASES = {
    "I-DLM": ("yifanyu/I-DLM-8B", {"model_type": "sdar", "block_size": 4}),
    "I-DLM, ": ("mine", {"model_type": "sdar", "auto_map": {"AutoModel": "modeling_idlm.SDARForCausalLM"}}),
    "Dream, which attends to the whole sequence": ("dream-7b", {"model_type": "Dream"}),
    "LLaDA, which attends to the whole sequence": ("llada-8b", {"model_type": "llada"}),
    "LLaDA2.1 or later, which also edits": ("inclusionAI/LLaDA2.1-mini", {"model_type": "llada2_moe"}),
    "LLaDA2.1 or later": ("models/LLaDA2.2-flash/", {"model_type": "llada2_moe"}),
    "LLaDA2.0-Uni": ("LLaDA2.0-Uni", {"model_type": "llada2_moe", "image_token_offset": 157_184}),
    "DiffusionGemma, which has no mask token": ("gemma", {"model_type": "diffusion_gemma"}),
    "WeDLM, which is strictly causal": ("wedlm-8b", {"model_type": "wedlm"}),
    "Fast-dLLM v2, which has its logits shifted by one": ("fast", {"model_type": "Fast_dLLM_Qwen"}),
}


@pytest.mark.parametrize("message", CASES)
def test_it_is_refused_by_name_with_the_reason(message: str) -> None:
    name, values = CASES[message]
    with pytest.raises(ValueError, match=rf"model '{name}' is {message}.*use one of the models of docs/models.md"):
        refuse({"auto_map": CODE, **values}, name)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("JetLM/SDAR-8B-Chat", {"model_type": "sdar"}),
        ("inclusionAI/LLaDA2.0-mini", {"model_type": "llada2_moe"}),
        ("Dream-org/DreamReasoner-8B", {"model_type": "Dream", "block_size": 32}),
        ("nvidia/Efficient-DLM-4B", {"model_type": "qwen3", "auto_map": {"AutoModel": "modeling_edlm.EfficientDLM"}}),
        ("runs/compared-with-llada2.1/model", {"model_type": "llada2_moe"}),
        ("runs/sdlm", {"model_type": "sdar"}),
    ],
)
def test_its_likes_that_can_serve_are_not(name: str, values: dict) -> None:
    check_served({"auto_map": CODE, **values}, name)


def test_a_plan_and_a_run_refuse_alike_and_no_code_is_asked_for(tmp_path: Path) -> None:
    values = {"model_type": "wedlm", "architectures": ["WeDLMForCausalLM"], "auto_map": CODE}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    for read in (PretrainedModel(str(tmp_path)).describe, PretrainedModel(str(tmp_path)).read_config):
        with pytest.raises(ValueError, match="is WeDLM, which is strictly causal"):
            read()
    with pytest.raises(ValueError, match="is WeDLM, which is strictly causal"):
        named_or_file(str(tmp_path))


def test_a_folder_of_another_name_is_told_by_the_code_in_it(tmp_path: Path) -> None:
    source = NewModel(alphabet="01", hidden_size=16, num_attention_heads=2, head_dim=8, family=LLaDA2Family(), seed=0)
    description = source.describe()
    save_model(tmp_path, source.build(description.config), description.tokenizer)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "auto_map": CODE}))
    (tmp_path / "modeling_x.py").write_text("def generate(self, threshold=0.7): ...")
    assert "modeling_x.py" in PretrainedModel(str(tmp_path)).describe().carried
    (tmp_path / "modeling_x.py").write_text("def generate(self, threshold=0.7, editing_threshold=0.5): ...")
    with pytest.raises(ValueError, match=r"is LLaDA2.1 or later, which also edits"):
        PretrainedModel(str(tmp_path)).describe()
    refuse_code("sdar", {"modeling_sdar.py": b"class SDARForCausalLM", "notes.txt": b"idlm"}, "mine")
    with pytest.raises(ValueError, match="model 'mine' is I-DLM"):
        refuse_code("sdar", {"modeling_sdar.py": b"class IDLMAttention"}, "mine")


def test_a_family_of_ones_own_may_serve_a_refused_type(monkeypatch: pytest.MonkeyPatch) -> None:
    check_served({"model_type": "sdar"}, "mine")
    monkeypatch.setattr(registry, "_BY_TYPE", {**registry._BY_TYPE, "wedlm": type("Mine", (LLaDA2Family,), {})()})
    check_served({"model_type": "wedlm"}, "mine")

"""Which family serves a model, and what a family has to say before it may."""

from types import SimpleNamespace

import pytest
from tests.tiny import TinyModel
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from dirl.models import ModelFamily, ModelShape, NewModel, PretrainedModel, save_model
from dirl.models.families import families, family_of, register_family
from dirl.models.families.qwen3 import Qwen3Family, SDARConfig
from dirl.models.families.qwen3_moe import Qwen3MoeFamily, SDARMoeConfig


class Llama(ModelFamily):
    model_types = ("llama",)

    def shape(self, config) -> ModelShape:
        return ModelShape.dense(config, head_norms=False)


class Shifted(Llama):
    logit_shift = 1


@pytest.fixture(autouse=True)
def only_own_families(monkeypatch: pytest.MonkeyPatch) -> None:
    from dirl.models.families import registry

    families()
    monkeypatch.setattr(registry, "_BY_TYPE", dict(registry._BY_TYPE))


@pytest.mark.parametrize("config", [Qwen3Config, SDARConfig])
def test_a_dense_model_is_served_by_qwen3s_family(config: type) -> None:
    assert type(family_of(config())) is Qwen3Family


@pytest.mark.parametrize("config", [Qwen3MoeConfig, SDARMoeConfig])
def test_a_model_with_experts_is_served_by_its_own(config: type) -> None:
    assert type(family_of(config())) is Qwen3MoeFamily


def test_a_model_of_no_family_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError,
        match=r"model_type='gemma3_text'; supported are Dream, block_llama, llada2_moe, llama, qwen3, qwen3_moe, sdar, "
        r"sdar_moe: add a family",
    ):
        family_of(Gemma3TextConfig())


def test_a_family_serves_its_models_from_its_registration_on() -> None:
    register_family(mine := Llama())
    assert family_of(LlamaConfig()) is mine and mine in families()


def test_logits_that_are_shifted_are_refused() -> None:
    with pytest.raises(ValueError, match=r"family Shifted: logit_shift=1, but only 0 is supported"):
        register_family(Shifted())
    with pytest.raises(ValueError, match="logit_shift=1"):
        NewModel(alphabet="01", family=Shifted()).describe()


def test_a_family_without_model_types_is_refused() -> None:
    with pytest.raises(ValueError, match="family Nameless: model_types is empty"):
        register_family(type("Nameless", (Llama,), {"model_types": ()})())


def test_a_family_that_does_not_serve_the_model_it_is_named_for_is_refused(tmp_path) -> None:
    source = TinyModel(4)
    description = source.describe()
    save_model(tmp_path, source.build(description.config), description.tokenizer)
    with pytest.raises(ValueError, match=r"model_type='sdar', which family=Llama does not serve: it names llama"):
        PretrainedModel(str(tmp_path), family=Llama()).describe()


def test_layers_with_a_sliding_window_are_refused() -> None:
    config = Qwen3Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=64, max_window_layers=1)
    with pytest.raises(ValueError, match=r"'mine': layers \[1\] use sliding-window attention"):
        family_of(config).check(config, "mine")


def test_a_shape_without_norms_of_queries_and_keys_counts_none() -> None:
    own = SimpleNamespace(**{**SDARConfig().to_dict(), "head_dim": 128})
    with_norms, without = (ModelShape.dense(own, head_norms=norms) for norms in (True, False))
    assert with_norms.parameters - without.parameters == own.num_hidden_layers * 2 * 128

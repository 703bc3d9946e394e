"""The section `moe_params` of a run config: mixture of experts, under mesh-tensorflow's names."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from configs import values
from configs.errors import UserError
from configs.keys import Activation, Keys
from configs.messages import shown

Policy = Literal["all", "none", "threshold", "random"]


def _gating(value: Any) -> Any:
    """Switch's gating is top-1."""
    return "top_1" if value == "switch" else value


def _switch(value: Any) -> Any:
    """mesh-tensorflow writes 0 and 1."""
    return bool(value) if type(value) is int and value in (0, 1) else value


class MoeParams(Keys):
    """The keys inside of the section; mesh-tensorflow's prefix `moe_` may be there or not."""

    num_experts: int = Field(16, ge=1, description="Experts of a layer.")
    hidden_size: int | None = Field(
        None, ge=1, description="Hidden width of an expert; null is 4 × n_embd.")
    gating: Annotated[Literal["top_1", "top_2"], BeforeValidator(_gating)] = Field(
        "top_2", description="Experts that a token is sent to: one (Switch; \"switch\" is the same)"
                             " or two (GShard).")
    glu: bool = Field(
        False, description="Whether an expert's hidden layer is multiplied by a second one, "
                           "without activation.")
    group_size: int = Field(
        1024, ge=1, description="Most tokens of a sequence that are routed together.")
    capacity_factor_train: float = Field(
        1.25, gt=0, description="Tokens that an expert takes of a group in training, in multiples "
                                "of tokens / experts.")
    capacity_factor_eval: float = Field(
        2.0, gt=0, description="The same in evaluation; sampling and eval_tasks have no limit.")
    min_expert_capacity: int = Field(
        4, ge=1, description="Tokens of a group that an expert takes at least.")
    loss_coef: float = Field(
        1e-2, ge=0, description="Weight of the load-balancing loss.")
    z_loss: Annotated[float, BeforeValidator(values.number_or_off)] = Field(
        0.0, ge=0, description="Weight of the router's z-loss (ST-MoE has 1e-3); 0 or null is "
                               "none.")
    dropout_rate: float = Field(
        0.0, ge=0, lt=1, description="Dropout on an expert's hidden layer in training.")
    use_second_place_loss: Annotated[bool, BeforeValidator(_switch)] = Field(
        False, description="Whether second choices have to be balanced too.")
    second_policy_train: Policy = Field(
        "random", description="Whether a second expert is asked in training: if its weight is "
                              "above the threshold, or with the probability weight / threshold.")
    second_threshold_train: float = Field(0.2, ge=0, description="Threshold of that policy.")
    second_policy_eval: Policy = Field(
        "all", description="The same in evaluation and sampling, where random is all.")
    second_threshold_eval: float = Field(0.2, ge=0, description="Threshold of that policy.")
    switch_jitter: float = Field(
        1e-2, ge=0, lt=1, description="With top_1, the router's inputs are multiplied by random "
                                      "numbers between 1 - jitter and 1 + jitter in training.")

    @model_validator(mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """mesh-tensorflow's names without their prefix, and its policies as a jitter."""
        if not isinstance(value, dict):
            return value
        new: dict[str, Any] = {}
        for key, given in value.items():
            name = key.removeprefix("moe_")
            if name in ("switch_policy_train", "switch_policy_eval"):
                if given not in ("argmax", "input_jitter"):
                    raise UserError(f"moe_params.{key}: must be argmax or input_jitter, not "
                                    f"{shown(given)}")
                if name == "switch_policy_eval" or given == "input_jitter":
                    continue
                name, given = "switch_jitter", 0.0
            if name in new and new[name] != given:
                raise UserError(f"moe_params.{key}: {name} is given as well; keep one")
            new[name] = given
        return new

    def second_policy(self, train: bool) -> tuple[str, float]:
        """(policy, threshold) of second choices."""
        if train:
            return self.second_policy_train, self.second_threshold_train
        policy = self.second_policy_eval
        return "all" if policy == "random" else policy, self.second_threshold_eval


class MoeSection(Keys):
    """Mixture of experts"""

    moe_layers: Annotated[list[int], BeforeValidator(lambda value: value or [])] = Field(
        [], description="Numbers of the layers whose feed-forward part is a mixture of experts, "
                        "the first layer being 0; [] is none.")
    moe_params: MoeParams = Field(
        default_factory=MoeParams, description="What these layers are like; the table below.")
    moe_activation: Activation = Field(
        "relu", description="Non-linearity of the experts.")


def architecture(config: Any) -> dict[str, Any]:
    """What decides the shapes and the meaning of the experts' weights."""
    if not config.moe_layers:
        return {}
    facts = {f"moe_params.{key}": getattr(config.moe_params, key)
             for key in ("num_experts", "hidden_size", "gating", "glu")}
    if facts["moe_params.hidden_size"] == 4 * config.n_embd:  # the same weights, written out
        facts["moe_params.hidden_size"] = None
    layers = sorted({layer for layer in config.moe_layers if layer < config.n_layer})
    return {"moe_layers": layers, "moe_activation": config.moe_activation, **facts}


def check(config: Any) -> list[str]:
    """Refuses layers and experts that do not work together.

    Returns:
        notes for the user.

    Raises:
        UserError: names the key and the remedy.
    """
    if not config.moe_layers:
        return []
    if not (config.speaks or config.mlm_training):
        raise UserError(f"moe_layers: model {config.model} is no language model; remove the key")
    if any(layer < 0 for layer in config.moe_layers):
        raise UserError("moe_layers: layers are counted from 0; remove the negative number")
    if config.moe_activation == "crelu":
        raise UserError("moe_activation: experts have no crelu, which gives two features for each; "
                        "take another")
    beyond = [layer for layer in config.moe_layers if layer >= config.n_layer]
    if len(beyond) == len(config.moe_layers):
        raise UserError(f"moe_layers: none of {shown(beyond)} is a layer; they are counted from 0, "
                        f"and n_layer is {config.n_layer}")
    if config.moe_params.gating == "top_2" and config.moe_params.num_experts < 2:
        raise UserError("moe_params.num_experts: top_2 needs two experts or more; set "
                        "moe_params.gating to \"top_1\"")
    return [f"moe_layers: there is no layer {layer}; they are counted from 0" for layer in beyond]

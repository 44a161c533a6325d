"""LoRA: an adapter in which the embed token's own rows learn too.

The token is new to the model, and what it is to mean cannot come from adapters of other layers alone: its row
of the embedding, and that of an output head of its own, are trained in full, all other rows stay as they
are. Merging writes the rows into the matrices, so a saved model is a plain one.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from searchr3.model import SearchR3
from searchr3.training.recipe import Recipe


def add_adapter(search: SearchR3, recipe: Recipe) -> None:
    """Put a LoRA adapter on the model; the embed token's rows of embedding and output head learn too."""
    from peft import LoraConfig, get_peft_model

    lora = recipe.model.lora
    assert lora is not None
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    ends = (search.model.get_input_embeddings(), search.model.get_output_embeddings())
    untied = ends[0].weight is not ends[1].weight  # PEFT itself follows a tied head
    names = [name.rpartition(".")[2] for name, module in search.model.named_modules() if module in ends]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        trainable_token_indices={name: [search.conversation.embed_id] for name in names[: 1 + untied]},
        task_type="CAUSAL_LM",
    )
    search.model = get_peft_model(search.model, config)
    head = search.model.get_output_embeddings()
    if not hasattr(head, "bias"):  # PEFT wraps a tied head, and TRL's loss asks for its bias
        head.register_parameter("bias", getattr(head.original_module, "bias", None))


def copy_token_rows(model: PreTrainedModel) -> None:
    """Complete the reference that TRL makes of an adapter by copying it: it forgets the token's rows.

    A row that PEFT has made float32, for it stands in a bf16 head, would also learn.
    """
    rows = "trainable_tokens_delta."
    for name, weight in model.named_parameters():
        if name.endswith(f"{rows}default"):
            reference = model.get_parameter(name.removesuffix("default") + "ref")
            reference.requires_grad_(False).data.copy_(weight.data)

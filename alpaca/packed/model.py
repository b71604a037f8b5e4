"""The model as training sees it: a pack goes in, the summed loss of its labelled tokens comes out."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from alpaca.errors import BadBase
from alpaca.packed.loss import head_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class PackedModel(nn.Module):
    """A PEFT model whose head is applied only where labels are.

    The decoder runs inside `forward` so that DDP and FSDP, which wrap this module, see the whole of it.
    """

    def __init__(self, peft: PeftModel | PreTrainedModel) -> None:
        """`peft` is the base with an adapter; the base alone will do where nothing is trained."""
        super().__init__()
        self.peft = cast("PeftModel", peft)  # who scores the base alone asks for `base` only
        base = self.base
        self.config: Any = base.config
        self._no_split_modules = base._no_split_modules  # what FSDP wraps when it isn't told
        check_head(base)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, bounds: list[int], label_positions: Tensor, targets: Tensor
    ) -> Tensor:
        """input_ids, position_ids [1, n]; bounds [0, …, n]; label_positions, targets [m] → summed loss, fp32."""
        # An idle micro-batch, without a label, still takes part in every collective of sharded training.
        hidden = self.decode(input_ids, position_ids, bounds)
        return head_loss(hidden[label_positions], self.head, targets)

    @property
    def base(self) -> Any:
        """transformers' model, below the adapter where there is one."""
        return self.peft.get_base_model() if hasattr(self.peft, "get_base_model") else self.peft

    @property
    def head(self) -> Tensor:
        """[vocabulary, width]."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    def tie_weights(self) -> None:
        """Make one weight of head and embeddings again, where the base has it so: accelerate calls this once it has
        moved the weights, to shard them."""
        self.base.tie_weights()

    def decode(self, input_ids: Tensor, position_ids: Tensor, bounds: list[int]) -> Tensor:
        """The last hidden states of a pack, [n, width]; what the head is applied to."""
        decoded = self.base.get_decoder()(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **self._attention(bounds, input_ids.device)
        )
        hidden: Tensor = decoded.last_hidden_state[0]
        return hidden

    def _attention(self, bounds: list[int], device: torch.device) -> dict[str, Any]:
        if self.config._attn_implementation != "flash_attention_2":
            return {"bounds": bounds}
        cumulative = torch.tensor(bounds, dtype=torch.int32, device=device)
        longest = max(end - start for start, end in pairwise(bounds))
        return {
            "cu_seq_lens_q": cumulative,
            "cu_seq_lens_k": cumulative,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def check_head(base: Any) -> None:
    """Raise BadBase for a model whose logits are not a plain product with its head."""
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise BadBase(f"the head is a {type(head).__name__}: only plain linear heads without bias are trained")
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(base.config, name, None) not in (None, 1, 1.0):
            raise BadBase(f"the base changes its logits ({name}), which LLaMA models do not: it is not supported")

"""open_clip's names of CLIP's weights, as transformers' CLIPModel has them.

The networks are the same. open_clip keeps queries, keys and values of a layer in one tensor, and its two projections
as factors on the right, so that they are transposed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_NAME_PATTERNS = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRANSPOSED_NAMES = ("visual.proj", "text_projection")


def convert_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of open_clip's CLIP with CLIPModel's names; a name that is not one of its stays as it is."""
    found: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        name = theirs
        for pattern, replacement in _NAME_PATTERNS:
            name = re.sub(pattern, replacement, name)
        if theirs in _TRANSPOSED_NAMES:
            found[name] = tensor.T
        elif "in_proj_" in name:
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("in_proj_", f"{which}_proj.")] = part
        else:
            found[name] = tensor
    return found

"""Which operators of a torch.export graph are run: those that compute tensors from tensors, all of them torch's own.

Torch finds the target of a node by its name: `torch.os.system` is one. Its verifier refuses that, after it was found.
Here a target is a word from a list, or an operator of aten that torch's dispatcher knows. What reads files, changes
what a tensor stands on, or trusts weights packed by another backend is left out. Source: torch/_export/verifier.py,
torch/_export/serde/serialize.py (`_SYM_OPS`), aten/src/ATen/native/native_functions.yaml.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from modelzip_cli.errors import UnsupportedCheckpoint, inert
from modelzip_cli.running.export_text import code

ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]{1,80})\.([A-Za-z0-9_]{1,80})")
SYMBOLIC = frozenset(
    (
        *(
            f"_operator.{name}"
            for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs")
        ),
        *(f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "getitem")),
        *(f"math.{name}" for name in ("ceil", "floor", "trunc")),
        *(f"torch.sym_{name}" for name in ("int", "float", "ite", "max", "min", "not", "sqrt", "sum")),
    )
)
REGIONS = frozenset(  # a part of the graph that runs without gradients, or at another precision
    f"torch.ops.higher_order.{name}" for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")
)
REFUSED = frozenset(("from_file", "set", "set_", "set_data", "record_stream", "retain_grad", "resize_", "resize"))
BACKENDS = (
    "cudnn_",
    "fbgemm_",
    "lstm_mps",
    "miopen_",
    "mkldnn_",
    "mps_",
    "quantized_",
    "sparse_",
    "to_mkldnn",
    "to_sparse",
)
PRIVATE = frozenset(  # operators with an underscore that exports hold, decomposed ones included
    (
        *(f"__{name}__" for name in ("and", "or", "xor", "lshift", "rshift", "iand", "ior", "ixor")),
        *("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_functional_assert_async"),
        *("_functional_assert_scalar", "_functional_sym_constrain_range", "_functional_sym_constrain_range_for_size"),
        *(
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "_convolution",
            "_convolution_mode",
            "_pad_circular",
            "_pad_enum",
        ),
        *("_batch_norm_no_update", "_batch_norm_with_update", "_batch_norm_with_update_functional", "_fused_rms_norm"),
        *("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training"),
        *("_cdist_forward", "_euclidean_dist", "_pdist_forward", "_prelu_kernel", "_trilinear", "_unique2"),
        *("_embedding_bag", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_conj", "_conj_physical", "_neg_view"),
        *("_softmax", "_log_softmax", "_safe_softmax", "_logcumsumexp", "_is_all_true", "_is_any_true"),
        *("_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention_for_cpu", "_fused_sdp_choice"),
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
        *("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_transform_bias_rescale_qkv"),
        *("_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd", "_linalg_check_errors"),
        *("_local_scalar_dense", "_shape_as_tensor", "_stack", "_to_copy", "_reshape_copy", "_unsafe_view"),
        *("_unsafe_index", "_unsafe_index_put", "_unsafe_masked_index", "_unsafe_masked_index_put_accumulate"),
        *("_weight_norm", "_weight_norm_interface", "_int_mm", "_grouped_mm", "_addmm_activation"),
        *(f"_upsample_{name}_aa" for name in ("bicubic2d", "bilinear2d", "lanczos2d")),
        *(f"_upsample_nearest_exact{number}d" for number in (1, 2, 3)),
    )
)


def operator(value: Any) -> str:
    """Return the target of a node. Raises UnsafeInput for what modelzip does not run."""
    found = ATEN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        if not isinstance(value, str) or value not in SYMBOLIC | REGIONS:
            raise code(str(value), "a call that modelzip does not make")
        return value
    name, overload = found.groups()
    is_private = name.startswith("_") and name not in PRIVATE
    if is_private or name in REFUSED or name.startswith(BACKENDS):
        raise code(str(value), "a call that modelzip does not make")
    qualified = f"aten::{name}" + ("" if overload == "default" else f".{overload}")
    if not torch._C._dispatch_has_kernel(qualified):
        raise UnsupportedCheckpoint(
            f"uses the operator {inert(qualified, longest=100)}, which this torch ({torch.__version__}) does not have"
        )
    return str(value)

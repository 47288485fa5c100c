"""What each operator does to channels: one short function an operator, one table of them all.

A rule gets the axes of what goes in and returns those of what comes out; one answer will do for several results that
are alike. On its way it unifies axes that must be cut alike, freezes those that must stay whole, and names the numbers
that count channels. It is sound if a kept channel of the result depends on kept channels alone, or on others only
through a weight, on the axis that is called its consumer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modelzip_cli.running import channel_shapes as shapes
from modelzip_cli.running.channel_spaces import repeated
from modelzip_cli.running.channel_trace import Axes, Call, Refused, Rule, Shape

OVER = "runs over the channels"


# --- element by element


def same(call: Call) -> Axes:
    """What goes in first comes out."""
    return call.first


def pointwise(call: Call) -> Axes:
    """Broadcast: the axes of all operands, aligned at the right."""
    operands = [(call.trace.axes(node), call.trace.shapes(node)[0]) for node in call.tensors]
    return _broadcast(call, operands, len(call.shape))


def _broadcast(call: Call, operands: Sequence[tuple[Axes, Shape]], rank: int) -> Axes:
    """A length of 1 goes with every channel, and so is tied to none."""
    return tuple(
        call.unify(*(axes[place] for axes, shape in operands if len(shape) >= -place and shape[place] != 1))
        for place in range(-rank, 0)
    )


def prelu(call: Call) -> Axes:
    """One slope, or one for each channel of axis 1."""
    if call.sizes("weight") not in ((), (1,)):
        call.unify(call.first[1], *call.axes("weight"))
    return call.first


# --- layers with weights


def linear(call: Call) -> Axes:
    """input [..., in], weight [out, in], bias [out]."""
    weight = call.weight("weight", producer=0, consumer=1)
    call.unify(call.first[-1], weight[1])
    return (*call.first[:-1], call.unify(weight[0], *call.axes("bias")))


def matmul(call: Call) -> Axes:
    """[..., m, k] @ [..., k, n]. A second factor that is a parameter [k, n] is a linear layer; `addmm` has a bias."""
    first, second = ("mat1", "mat2") if call.name == "addmm" else ("self", "mat2" if call["mat2"] else "other")
    left, right = call.axes(first), call.axes(second)
    if min(len(left), len(right)) < 2:
        raise Refused(OVER)
    if call[second].op == "get_attr" and len(right) == 2:
        call.weight(second, producer=1, consumer=0)
        call.unify(left[-1], right[0])
    else:
        call.freeze(left[-1] + right[-2], OVER)
    bias = call.axes("self")[-1:] if call.name == "addmm" else ()
    outer = [(call.axes(name)[:-2], call.sizes(name)[:-2]) for name in (first, second)]
    return (*_broadcast(call, outer, len(call.shape) - 2), left[-2], call.unify(right[-1], *bias))


def convolution(call: Call) -> Axes:
    """weight [out, in / groups, ...], transposed [in, out / groups, ...].

    Of several groups whole ones can go; a depthwise convolution has one channel a group and so passes channels through.
    """
    transposed = "transpose" in call.name
    space = _space(call)
    batch, channels = call.first[: -space - 1], call.first[-space - 1]
    _keep(call, call.first[-space:])
    if call["groups"] == 1:
        weight = call.weight("weight", producer=int(transposed), consumer=int(not transposed))
        call.unify(channels, weight[not transposed])
        outputs = weight[transposed]
    else:
        weight, groups = call.weight("weight"), call.spaces.new(call["groups"])
        inputs, outputs = (
            repeated(groups, shape[-space - 1] // call["groups"]) for shape in (call.sizes("input"), call.shape)
        )
        call.count(groups, "groups")
        call.unify(inputs, channels)
        call.unify(weight[0], inputs if transposed else outputs)
        call.freeze(weight[1], "keeps what is in a group")
    return (*batch, call.unify(outputs, *call.axes("bias")), *((),) * space)


def _space(call: Call) -> int:
    """How many of the last axes are space: 2 for conv2d."""
    match = re.search(r"(\d)d", call.name)
    assert match is not None, f"the table gives {call.name} a rule for what has a number of dimensions in its name"
    return int(match[1])


def _keep(call: Call, axes: Axes) -> None:
    for axis in axes:
        call.freeze(axis, OVER)


def embedding(call: Call) -> Axes:
    """weight [vocabulary, channels]."""
    weight = call.weight("weight", producer=1)
    call.freeze(weight[0], shapes.PICKS)
    return (*((),) * len(call.axes("indices")), weight[1])


# --- normalisation


def batch_norm(call: Call) -> Axes:
    """Statistics and factors for each channel of axis 1; `instance_norm` takes the statistics of each picture."""
    if call.name == "instance_norm":
        _keep(call, call.first[2:])
    factors = [axis for name in ("weight", "bias", "running_mean", "running_var") for axis in call.axes(name)]
    return call.replaced(1, call.unify(call.first[1], *factors))


def layer_norm(call: Call) -> Axes:
    """Over the last axis, a factor for each channel. It can be cut, though what is left is then normalised by less."""
    if len(call["normalized_shape"]) != 1:
        raise Refused("normalises several axes at once")
    channels = call.unify(call.first[-1], *call.axes("weight"), *call.axes("bias"))
    call.trace.normalised.append(channels)
    call.count(channels, "normalized_shape", 0)
    return call.replaced(-1, channels)


# --- over an axis


def reduction(call: Call) -> Axes:
    """`mean` and its like: the axes `dim` are gone, or of length 1."""
    gone = call.dims()
    _keep(call, tuple(call.first[dim] for dim in gone))
    kept = [() if dim in gone else axis for dim, axis in enumerate(call.first) if call["keepdim"] or dim not in gone]
    return tuple(kept)


def along(call: Call) -> Axes:
    """`softmax` and its like: the axes `dim` are mixed."""
    _keep(call, tuple(call.first[dim] for dim in call.dims()))
    return call.first


def window(call: Call) -> Axes:
    """Pooling and upsampling: the last axes change."""
    space = _space(call)
    _keep(call, call.first[-space:])
    return (*call.first[:-space], *((),) * space)


def pad(call: Call) -> Axes:
    """`pad` has two numbers an axis, from the last one on; it may come to the channels without adding any."""
    axes = list(call.first)
    for place, amount in enumerate(call["pad"]):
        if amount != 0:
            call.freeze(axes[-1 - place // 2], "adds channels")
            axes[-1 - place // 2] = ()
    return tuple(axes)


def attention(call: Call) -> Axes:
    """query [..., heads, time, features], key and value alike: a head depends on no other, a feature on all."""
    if call["enable_gqa"]:
        raise Refused("shares keys among heads")
    names = [name for name in ("query", "key", "value", "attn_mask") if call[name]]
    for name in names:
        _keep(call, call.axes(name)[-2 : -1 if name == "value" else None])
    outer = [(call.axes(name)[:-2], call.sizes(name)[:-2]) for name in names]
    return (*_broadcast(call, outer, len(call.shape) - 2), call.first[-2], call.axes("value")[-1])


# --- numbers, and what cannot be followed


def size(call: Call) -> Axes:
    """`sym_size`: a number that the graph may do anything with."""
    call.freeze(call.first[call.dim()], "reads how many channels there are")
    return ()


def constant(call: Call) -> list[Axes]:
    """`new_zeros` and its like: of what goes in they take dtype and device alone."""
    return call.opaque("makes a constant of this length")


def assertion(call: Call) -> Axes:
    """`_assert_tensor_metadata`, mostly of a dtype: nothing comes out, and a size that it asks for must stay."""
    for axis in call.first if call["size"] else ():
        call.freeze(axis, "asks how many channels there are")
    return ()


def refused(why: str) -> Rule:
    """The rule of operators that are known not to be followed; the others are "not known"."""

    def rule(call: Call) -> Axes:
        raise Refused(why)

    return rule


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_all("dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout", same),
    **_all("to _to_copy type_as contiguous clone detach alias lift_fresh_copy", same),
    **_all("zeros_like ones_like full_like empty_like rand_like randn_like log_sigmoid", same),
    **_all("pointwise hardswish where masked_fill rsub", pointwise),  # most others torch itself calls pointwise
    "prelu": prelu,
    "linear": linear,
    **_all("matmul mm bmm addmm", matmul),
    **_all("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", convolution),
    "embedding": embedding,
    **_all("batch_norm instance_norm", batch_norm),
    **_all("layer_norm rms_norm", layer_norm),
    "group_norm": refused("normalises groups of channels"),
    **_all("mean sum amax amin var std linalg_vector_norm logsumexp", reduction),
    **_all("softmax log_softmax cumsum roll flip", along),
    **_all("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", window),
    **_all("max_pool2d_with_indices max_pool3d_with_indices", window),
    **_all("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", window),
    **_all("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", window),
    **_all("upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_trilinear3d", window),
    **_all("upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa", window),
    **_all("_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d", window),
    **_all("pad constant_pad_nd", pad),
    "scaled_dot_product_attention": attention,
    **_all("permute transpose t movedim swapaxes swapdims numpy_T mT unsqueeze", shapes.moved),
    **_all("expand expand_as", shapes.expand),
    **_all("view view_as reshape reshape_as _unsafe_view flatten unflatten squeeze", shapes.reshape),
    "cat": shapes.concatenation,
    "stack": shapes.stack,
    "slice": shapes.sliced,
    **_all("split split_with_sizes chunk", shapes.pieces),
    "glu": shapes.glu,
    **_all("select unbind", shapes.picked),
    "index": shapes.index,
    **_all("pixel_shuffle pixel_unshuffle channel_shuffle", refused("moves channels to other places")),
    **_all("new_zeros new_ones new_full new_empty", constant),
    "sym_size": size,
    "_assert_tensor_metadata": assertion,
}

"""Weights into networks: what names may differ, and what is said where they do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from modelzip_cli.errors import WrongArchitecture
from modelzip_cli.running.weights import Mismatch, compare, load_weights


class Backbone(nn.Module):
    """A part called `backbone` and a head, as Hugging Face models are built."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.head = nn.Linear(5, 3)


class Tied(nn.Module):
    """A head that is the embedding, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.tok = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.tok.weight
        self.register_buffer("positions", torch.arange(3), persistent=False)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of another of its kind: other numbers, each once."""
    return {name: torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in module.state_dict().items()}


def load(module: nn.Module, tensors: dict[str, Tensor], **options: object) -> nn.Module:
    """Load and give the module."""
    load_weights(module, tensors, "net.pth", "--arch net.py:Net", **options)
    return module


def refusal(module: nn.Module, tensors: dict[str, Tensor], **options: object) -> str:
    """The message of the error; the module is as it was."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(WrongArchitecture) as caught:
        load(module, tensors, **options)
    assert caught.value.exit_code == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Whether the module holds exactly these."""
    state_dict = module.state_dict()
    return state_dict.keys() == tensors.keys() and all(torch.equal(state_dict[name], tensors[name]) for name in tensors)


@given(st.lists(st.sampled_from(["module.", "model.", "_orig_mod.", "state_dict.", "backbone."]), max_size=3))
def test_prefixes_of_all_names_are_taken_off(prefixes):
    tensors = weights_of(Backbone())
    before = "".join(prefixes)
    assert same(load(Backbone(), {before + name: tensor for name, tensor in tensors.items()}), tensors)


def test_a_network_inside_another_takes_the_weights_of_the_inner_one():
    tensors = weights_of(Backbone())
    wrapped = load(nn.Sequential(Backbone()), tensors)
    assert same(wrapped[0], tensors)


def test_a_prefix_that_only_a_part_of_the_network_has_is_put_before():
    tensors = weights_of(Backbone())
    published = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}  # as gpt2 is
    assert same(load(Backbone(), published), tensors)


def test_names_that_fit_are_left_as_they_are():
    inner = nn.ModuleDict({"model": nn.Linear(2, 2)})
    module = nn.ModuleDict({"model": inner})  # model.model.weight: stripping `model.` would fit nothing
    tensors = weights_of(module)
    assert same(load(module, tensors), tensors)


def test_a_part_of_the_names_with_a_prefix_is_no_prefix():
    tensors = weights_of(Backbone())
    mixed = {("module." if name.startswith("head") else "") + name: tensor for name, tensor in tensors.items()}
    assert "2 missing: head.weight, head.bias; 2 unexpected: module.head.weight" in refusal(Backbone(), mixed)


def test_counters_of_batch_norm_may_be_missing():
    tensors = weights_of(Backbone())
    counter = tensors.pop("backbone.1.num_batches_tracked")
    module = Backbone()
    module.backbone[1].num_batches_tracked.fill_(5)
    load(module, tensors)
    assert counter.shape == ()
    assert module.backbone[1].num_batches_tracked == 5
    assert torch.equal(module.head.weight, tensors["head.weight"])


@pytest.mark.parametrize("kept", ["tok.weight", "head.weight"])
def test_either_name_of_a_tie_will_do(kept):
    tensors = {kept: torch.randn(7, 4)}
    module = load(Tied(), tensors)
    assert module.head.weight is module.tok.weight
    assert torch.equal(module.tok.weight, tensors[kept])


def test_both_names_of_a_tie_may_be_there_when_they_are_equal():
    weight = torch.randn(7, 4)
    assert torch.equal(load(Tied(), {"tok.weight": weight, "head.weight": weight.clone()}).tok.weight, weight)


def test_two_tensors_for_what_the_network_ties_are_refused():
    message = refusal(Tied(), {"tok.weight": torch.randn(7, 4), "head.weight": torch.randn(7, 4)})
    assert "where tok.weight and head.weight are one tensor: in the file they differ" in message


def test_a_tie_that_is_missing_altogether_is_missing():
    module = nn.ModuleDict({"tied": Tied(), "other": nn.Linear(2, 2)})
    tensors = {"other.weight": torch.zeros(2, 2), "other.bias": torch.zeros(2)}
    assert "2 missing: tied.tok.weight, tied.head.weight" in refusal(module, tensors)


def test_equal_parameters_are_not_tied():
    module = nn.Sequential(nn.LayerNorm(3), nn.LayerNorm(3))  # all ones, both
    assert "2 missing: 1.weight, 1.bias" in refusal(module, {"0.weight": torch.ones(3), "0.bias": torch.zeros(3)})


def test_a_buffer_that_the_network_computes_itself_may_be_in_the_file():
    module = load(Tied(), {"tok.weight": torch.randn(7, 4), "positions": torch.tensor([7, 7, 7])})
    assert module.positions.tolist() == [0, 1, 2]


def test_weights_take_the_dtype_of_the_network():
    tensors = {name: tensor.bfloat16() for name, tensor in weights_of(nn.Linear(3, 2)).items()}
    module = load(nn.Linear(3, 2), tensors)
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, tensors["weight"].float())


def test_names_and_shapes_can_be_checked_without_memory():
    tensors = {name: tensor.to("meta") for name, tensor in weights_of(Tied()).items()}
    with torch.device("meta"):
        module = Tied()
    load(module, tensors)
    assert "1 unexpected: more" in refusal_on_meta(tensors | {"more": torch.empty(3, device="meta")})


def refusal_on_meta(tensors: dict[str, Tensor]) -> str:
    """The message for a network without memory."""
    with torch.device("meta"):
        module = Tied()
    with pytest.raises(WrongArchitecture) as caught:
        load(module, tensors)
    return str(caught.value)


def test_the_first_three_of_each_kind_are_named():
    tensors = weights_of(nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)]))
    message = refusal(nn.Sequential(nn.Linear(2, 2)), tensors)
    assert message.startswith("net.pth: does not fit --arch net.py:Net: 10 unexpected: 1.weight, 1.bias, 2.weight, ...")


REASONS = {
    "another network": (nn.Linear(4, 3), {"conv.kernel": torch.zeros(3)}, "No name is common"),
    "more classes": (
        Backbone(),
        weights_of(Backbone()) | {"head.weight": torch.zeros(10, 5), "head.bias": torch.zeros(10)},
        "The file has 10 outputs",
    ),
    "another width": (
        Backbone(),
        weights_of(Backbone()) | {"backbone.0.weight": torch.zeros(6, 4), "head.weight": torch.zeros(3, 6)},
        "Likely another width",
    ),
    "another input of the last layer": (
        Backbone(),
        weights_of(Backbone()) | {"head.weight": torch.zeros(3, 9)},
        "Likely another width",
    ),
    "fewer layers": (
        nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)]),
        weights_of(nn.Sequential(nn.Linear(2, 2))),
        "Likely the file has fewer layers or parts",
    ),
    "more layers": (
        nn.Sequential(nn.Linear(2, 2)),
        weights_of(nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])),
        "Likely the file has more layers or parts",
    ),
    "another variant": (
        Backbone(),
        {name.replace("backbone", "body"): tensor for name, tensor in weights_of(Backbone()).items()},
        "Likely another version or variant of the network",
    ),
}


@pytest.mark.parametrize(("module", "tensors", "reason"), REASONS.values(), ids=REASONS)
def test_the_likely_reason_is_given(module, tensors, reason):
    assert refusal(module, tensors).partition(". ")[2].startswith(reason)


def test_arguments_are_advised_where_the_network_takes_some():
    module, tensors, _ = REASONS["more classes"]
    assert refusal(module, tensors).endswith("The file has 10 outputs")
    message = refusal(module, tensors, takes_arguments=True)
    assert message.endswith("""give that number, as in --arch-args '{"num_classes": 10}'""")
    for name in ("another width", "fewer layers", "more layers"):
        module, tensors, _ = REASONS[name]
        assert "--arch-args" in refusal(module, tensors, takes_arguments=True)
        assert "--arch-args" not in refusal(module, tensors)


def test_shapes_are_told_as_they_are_and_as_they_should_be():
    module, tensors, _ = REASONS["more classes"]
    assert "2 of another shape: head.weight is [10, 5], not [3, 5], head.bias is [10], not [3]" in refusal(
        module, tensors
    )


def test_names_from_a_file_are_shown_inert():
    message = refusal(nn.Linear(2, 2), weights_of(nn.Linear(2, 2)) | {"\x1b[31mred": torch.zeros(1)})
    assert "\x1b" not in message
    assert "[31mred" in message


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 2))),
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 2))),
)
def test_a_comparison_says_all_that_differs(found, wanted):
    mismatch = compare(found, wanted)
    assert set(mismatch.missing) == wanted.keys() - found.keys()
    assert set(mismatch.unexpected) == found.keys() - wanted.keys()
    assert {name for name, _, _ in mismatch.misshapen} == {
        name for name in found.keys() & wanted.keys() if found[name] != wanted[name]
    }
    assert any(mismatch) == (found != wanted)
    assert compare(found, found) == Mismatch((), (), ())

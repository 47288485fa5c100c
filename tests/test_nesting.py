"""Where the state dict is inside a torch file, and what is kept of the rest."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from modelzip_cli.containers.nesting import PREFERRED, Nested, take_apart
from modelzip_cli.containers.tree import Global, Named, Opaque, StorageRef, TensorRef, Weights
from modelzip_cli.errors import UnsafeInput, UnsupportedCheckpoint, UsageError
from modelzip_cli.tensors import F32


def tensor(key: str = "0") -> TensorRef:
    return TensorRef(StorageRef(key, F32, 4), F32, 0, (4,), (1,))


STATE = {"a.weight": tensor("0"), "a.bias": tensor("1")}
OTHER = {"b.weight": tensor("2")}


def apart(root, *, key: str | None = None, keep_extras: bool = False) -> Nested:
    return take_apart(root, label="m.pth", key=key, keep_extras=keep_extras)


def test_a_bare_state_dict_is_the_file_itself():
    found = apart(OrderedDict(STATE))
    assert (found.path, found.weights, found.tree) == ("", STATE, Weights("OrderedDict"))


def test_a_bare_tensor_has_a_name():
    found = apart(tensor())
    assert (found.weights, found.tree) == ({"tensor": tensor()}, Weights("tensor"))


@pytest.mark.parametrize("name", PREFERRED)
def test_a_state_dict_under_a_usual_name_is_found_beside_others(name):
    found = apart({"zzz": OTHER, name: STATE, "epoch": 3})
    assert (found.path, found.weights) == (name, STATE)
    assert found.tree == {"zzz": {}, name: Weights("dict"), "epoch": 3}


def test_a_state_dict_two_levels_deep_is_found():
    found = apart({"model": {"state_dict": STATE, "config": {"width": 8}}})
    assert (found.path, found.weights) == ("model.state_dict", STATE)


@pytest.mark.parametrize("name", ["optimizer", "ema", "ema_state_dict", "lr_scheduler", "GradScaler", "rng_state"])
def test_what_is_named_as_no_weights_is_not_taken_for_them(name):
    found = apart({name: OTHER, "anything": STATE})
    assert (found.path, [*found.beside]) == ("anything", [f"{name}.b.weight"])


def test_several_state_dicts_without_a_usual_name_are_a_question():
    with pytest.raises(UsageError, match="holds 2 state dicts; choose with --key: generator, discriminator"):
        apart({"generator": STATE, "discriminator": OTHER})
    assert apart({"generator": STATE, "discriminator": OTHER}, key="discriminator").weights == OTHER


def test_key_reaches_what_would_not_be_chosen():
    assert apart({"model": STATE, "ema": {"shadow": OTHER}}, key="ema.shadow").weights == OTHER


def test_a_key_that_names_nothing_is_answered_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"--key 'modle' names no state dict; did you mean 'model'\?; there are model"):
        apart({"model": STATE}, key="modle")
    with pytest.raises(UsageError, match="there is only the file itself"):
        apart(STATE, key="model")


def test_tensors_beside_the_weights_are_left_out_and_named():
    found = apart({"model": STATE, "optimizer": {"state": {0: {"exp_avg": tensor("3"), "step": 5}}}})
    assert found.tree == {"model": Weights("dict"), "optimizer": {"state": {0: {"step": 5}}}}
    assert found.beside == {"optimizer.state.0.exp_avg": tensor("3")}


def test_tensors_beside_the_weights_stay_in_their_places_when_asked():
    found = apart({"model": STATE, "extra": [tensor("3"), (tensor("4"), 1)]}, keep_extras=True)
    assert found.tree == {"model": Weights("dict"), "extra": [Named("extra.0"), (Named("extra.1.0"), 1)]}
    assert [*found.beside] == ["extra.0", "extra.1.0"]


def test_two_tensors_with_the_same_path_get_two_names():
    found = apart({"model": STATE, "o": {0: tensor("3"), "0": tensor("4")}}, keep_extras=True)
    assert found.tree["o"] == {0: Named("o.0"), "0": Named("o.0'")}


def test_values_keep_their_types_and_order():
    values = {"epoch": 3, 1: ("a", [None, True]), "sizes": OrderedDict(b=1, a=2), (1, 2): {"x"}, "nan": 2.5}
    found = apart({"model": STATE, **values})
    assert found.tree == {"model": Weights("dict"), **values}
    assert [*found.tree] == ["model", *values]
    assert type(found.tree["sizes"]) is OrderedDict


def test_entries_of_the_state_dict_that_are_no_tensors_keep_their_places():
    found = apart({"version": 2, "a.weight": tensor(), "extra_state": {"k": 1}})
    assert found.tree == Weights("dict", ((0, "version", 2), (2, "extra_state", {"k": 1})))


def test_the_metadata_of_torch_travels_with_the_state_dict():
    state = OrderedDict(STATE)
    state._metadata = OrderedDict({"": {"version": 1}})
    assert apart(state).tree.metadata == {"": {"version": 1}}


def test_objects_of_unknown_classes_are_left_out_and_named_once():
    found = apart({"model": STATE, "config": Opaque("my.Config"), "more": [Opaque("my.Config"), 1]})
    assert found.tree == {"model": Weights("dict"), "more": [None, 1]}
    assert found.opaque == ["my.Config"]


def test_names_of_dtypes_are_kept_and_other_globals_are_not():
    found = apart({"model": STATE, "dtype": Global("torch.bfloat16"), "function": Global("os.system")})
    assert found.tree == {"model": Weights("dict"), "dtype": Global("torch.bfloat16")}
    assert found.opaque == ["os.system"]


@pytest.mark.parametrize("root", [Opaque("my.Net"), {"model": Opaque("my.Net"), "epoch": 1}])
def test_weights_inside_an_object_are_refused_with_a_way_out(root):
    with pytest.raises(UnsafeInput, match=r"class my\.Net.*nothing was run; save model\.state_dict\(\)"):
        apart(root)


def test_an_object_under_a_usual_name_is_not_passed_over_for_another_dict():
    with pytest.raises(UnsafeInput):
        apart({"model": Opaque("my.Net"), "statistics": OTHER})


@pytest.mark.parametrize("root", [{}, [], {"a": 1}, {"a": {"b": "c"}}, {1: tensor()}, 5, None])
def test_a_file_without_a_state_dict_is_refused(root):
    with pytest.raises(UnsupportedCheckpoint, match="holds no state dict"):
        apart(root)


def test_a_dict_that_holds_itself_ends():
    root = {"model": STATE}
    assert apart(root | {"self": {"again": {}}}).weights == STATE
